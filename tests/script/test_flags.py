"""Flags of training through the script: each does what it says, and those that must not matter do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from script_fixtures import (
    RECIPE,
    Outcome,
    Tiny,
    assert_same_model,
    flat,
    make_model,
    read_json,
    run,
    sentences,
    trace,
    weights,
    write_csv,
)
from transformers import AutoTokenizer, get_scheduler

from sparse_accel import load
from sparse_accel.cli.parser import parse_arguments
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.training import schedule

pytest_plugins = ["script_fixtures"]

MAGNITUDE = RECIPE.with_name("magnitude_pruned90.yaml")
SHORT = {"num_epochs": 3, "qat_start_epoch": 1.0, "observer_epoch": 2.0, "init_lr": 1e-2}


@pytest.fixture(scope="module")
def steady(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Flags of a run without dropout: the same numbers however a batch is split."""
    none: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = make_model(tmp_path_factory.mktemp("models") / "steady", sparse=True, **none)
    return tiny.flags(model_name_or_path=model, recipe_args=SHORT, logging_steps=1)


@pytest.fixture(scope="module")
def reference(steady: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reference") / "out"
    done = run(**steady, output_dir=output)
    assert done.code == 0, done.all
    return output


def ranges(folder: Path) -> torch.Tensor:
    entries = read_json(folder / "quantization.json")["quantizers"]
    return torch.tensor([[*entries[name]["minimum"], *entries[name]["maximum"]] for name in sorted(entries)])


def assert_alike(one: Path, other: Path, tolerance: float) -> None:
    """Losses and weights agree up to rounding; ranges, which padding takes part in, to a hundredth."""
    assert trace(one, "train/loss") == pytest.approx(trace(other, "train/loss"), abs=tolerance)
    assert torch.allclose(ranges(one), ranges(other), atol=tolerance, rtol=0.01)
    for name, weight in weights(one).items():
        assert torch.allclose(weight, weights(other)[name], atol=10 * tolerance), name
        assert torch.equal(weight == 0, weights(other)[name] == 0), name


# --- what must not matter ---------------------------------------------------------------------------------------------


def test_accumulation(steady: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    """The odd last batch of 11 rows included."""
    split = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "output_dir": tmp_path / "out"}
    done = run(**{**steady, **split})
    assert done.code == 0, done.all
    assert_alike(tmp_path / "out", reference, 2e-3)


def test_gradient_checkpointing(steady: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    done = run(**steady, gradient_checkpointing=True, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert_alike(tmp_path / "out", reference, 1e-5)


def test_workers_and_padding(steady: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    done = run(**steady, dataloader_num_workers=1, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert_same_model(tmp_path / "out", reference)
    padded = run(**steady, pad_to_max_length=True, max_seq_length=24, output_dir=tmp_path / "padded")
    assert padded.code == 0, padded.all
    unquantized = {step: loss for step, loss in trace(reference, "train/loss").items() if step <= 7}
    found = trace(tmp_path / "padded", "train/loss")
    assert {step: found[step] for step in unquantized} == pytest.approx(unquantized, abs=1e-4)


def test_bfloat16(steady: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    """Through the start of quantization and the freeze; masks and files stay float32 and exact."""
    done = run(**steady, bf16=True, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert "bf16" in flat(done.out)
    exact, found = weights(reference), weights(tmp_path / "out")
    assert all(weight.dtype == torch.float32 for weight in found.values())
    for name in exact:
        if "encoder" in name and exact[name].ndim == 2:
            assert torch.equal(exact[name] == 0, found[name] == 0)
    losses = trace(tmp_path / "out", "train/loss")
    assert losses[1] == pytest.approx(trace(reference, "train/loss")[1], abs=0.02)
    assert losses[21] < losses[1]
    results = read_json(tmp_path / "out" / "all_results.json")
    assert results["quantized_linears"] == 14
    # What is reported of the files is measured as they are delivered: float32, quantizers on.
    model, rows = load(tmp_path / "out"), sentences(60, seed=2)
    batch = AutoTokenizer.from_pretrained(tmp_path / "out")(
        [row["text"] for row in rows], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**batch).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"] for row in rows]))
    assert results["eval_loss"] == pytest.approx(float(loss), rel=1e-5)
    in_training = trace(tmp_path / "out", "eval_loss")[21]
    assert results["eval_loss"] != pytest.approx(in_training, rel=1e-5)  # that one was in bfloat16


def test_a_misspelt_choice_of_random_numbers(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_ACCEL_DROPOUT", "torch")
    refused = run(**tiny.flags(output_dir=tmp_path / "out"))
    assert refused.code == 2 and "SPARSE_ACCEL_DROPOUT=torch: set it to pytorch or philox" in refused.err, refused.all
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_compiled(tiny: Tiny, tmp_path: Path) -> None:
    """Three steps, each of another graph: pruned, quantized for the first time, quantized with ranges."""
    none: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": 3}
    model = make_model(tmp_path / "model", sparse=True, **none)
    recipe_args = {"num_epochs": 1, "qat_start_epoch": 0.3, "observer_epoch": 0.9, "init_lr": 1e-2}
    flags = tiny.flags(model_name_or_path=model, recipe_args=recipe_args, max_train_samples=75, logging_steps=1)
    flags |= {"do_eval": None, "eval_strategy": "no"}
    for name, compiled in (("compiled", True), ("eager", None)):
        done = run(**flags, torch_compile=compiled, output_dir=tmp_path / name)
        assert done.code == 0, done.all
        assert ("compiled each block (--torch_compile)" in flat(done.out)) == bool(compiled)
    assert_alike(tmp_path / "compiled", tmp_path / "eager", 1e-3)


# --- what matters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "warmup"), [("cosine", {"warmup_ratio": 0.2}), ("linear", {"warmup_steps": 3})])
def test_the_usual_schedules(tiny: Tiny, tmp_path: Path, name: str, warmup: dict[str, Any]) -> None:
    """Without a recipe: the rate of each step is the one that transformers' scheduler gives."""
    flags = tiny.flags(recipe=None, recipe_args=None, distill_teacher=None, eval_strategy="no", do_eval=None)
    flags |= {"logging_steps": 1, "max_steps": 10, "learning_rate": 1e-3, "lr_scheduler_type": name}
    done = run(**flags, **warmup, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert "no recipe" in done.out
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=2 if name == "cosine" else 3, num_training_steps=10)
    expected = {}
    for step in range(1, 11):
        expected[step] = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
    assert trace(tmp_path / "out", "train/learning_rate") == pytest.approx(expected)


def test_the_recipe_overrules_epochs_and_steps(tiny: Tiny, tmp_path: Path) -> None:
    flags = tiny.flags(recipe_args={**SHORT, "num_epochs": 1, "qat_start_epoch": 0, "observer_epoch": 1})
    for number, (flag, words) in enumerate(
        [("max_steps", "--max_steps 5"), ("num_train_epochs", "--num_train_epochs 5")]
    ):
        done = run(**{**flags, flag: 5, "output_dir": tmp_path / str(number)})
        assert done.code == 0, done.all
        assert f"{words} is overridden: the recipe runs 1" in flat(done.out)
        assert read_json(tmp_path / str(number) / "all_results.json")["global_step"] == 7


def overridden(words: str, *modifiers: str) -> list[str]:
    """Lines of the start-up table on flags that a recipe of 3 epochs overrules; 10 steps an epoch."""
    lines = ["!EpochRangeModifier {end_epoch: 3}", *modifiers]
    recipe = load_recipe("modifiers:\n" + "".join(f"  - {line}\n" for line in lines))
    flags = f"--model_name_or_path m --output_dir o --do_train --task_name sst2 {words}"
    arguments = parse_arguments(TextClassificationArguments, flags.split())
    return schedule.steps_of_run(arguments, recipe, 10)[1]


def set_rate(start: float, groups: str = "") -> str:
    more = f", param_groups: {groups}" if groups else ""
    return f"!SetLearningRateModifier {{start_epoch: {start}, learning_rate: 0.003{more}}}"


def test_each_flag_that_the_recipe_overrules_is_said() -> None:
    usual = "--learning_rate 1e-5 --lr_scheduler_type cosine --warmup_ratio 0.1"
    assert overridden(usual, set_rate(0)) == [
        "--learning_rate 1e-05 is overridden: the recipe sets the learning rate",
        "--lr_scheduler_type cosine is overridden: the recipe sets the learning rate",
        "--warmup_ratio 0.1 is overridden: the recipe sets the learning rate",
    ]
    function = "!LearningRateFunctionModifier {lr_func: linear, init_lr: 0.01, final_lr: 0, end_epoch: 3, "
    for modifier in (
        set_rate(2),
        function + "start_epoch: 2}",
        "!LearningRateModifier {lr_class: ExponentialLR, lr_kwargs: {gamma: 0.9}, init_lr: 0.01, start_epoch: 2}",
    ):
        assert overridden("--learning_rate 5e-5 --warmup_steps 3", modifier) == [
            "--learning_rate 5e-05 is overridden from epoch 2 on: the recipe sets the learning rate; "
            "until then it is 5e-05",
            "--warmup_steps 3 is overridden: the recipe sets the learning rate, and until then it is constant",
        ]
    # The earliest counts, in whatever order they are written.
    assert "overridden from epoch 1 on" in overridden("--learning_rate 1e-5", set_rate(2), set_rate(1))[0]


def test_nothing_is_said_of_flags_that_act_or_were_not_given() -> None:
    assert overridden("", set_rate(0), "!SetWeightDecayModifier {weight_decay: 0.1}") == []
    assert overridden("--learning_rate 1e-5 --warmup_steps 3 --weight_decay 0.1") == []
    assert overridden("--weight_decay 0.1", set_rate(0)) == []
    assert overridden("--weight_decay 0.1", "!SetWeightDecayModifier {weight_decay: 0, param_groups: [1]}") == []
    assert overridden("--num_train_epochs 3 --max_steps 30", set_rate(0)) == []


def test_overridden_weight_decay_and_parameter_groups() -> None:
    assert overridden("--weight_decay 0", "!SetWeightDecayModifier {weight_decay: 0.1}") == [
        "--weight_decay 0.0 is overridden: the recipe sets the weight decay"
    ]
    assert overridden("--weight_decay 0.2", "!SetWeightDecayModifier {weight_decay: 0.1, start_epoch: 1.5}") == [
        "--weight_decay 0.2 is overridden from epoch 1.5 on: the recipe sets the weight decay; until then it is 0.2"
    ]
    assert overridden("--learning_rate 1e-5 --warmup_steps 3", set_rate(0, "[1]")) == [
        "--learning_rate 1e-05 is overridden for parameter group 1: the recipe sets the learning rate; "
        "otherwise it is 1e-05",
        "--warmup_steps 3 is overridden: the recipe sets the learning rate, and otherwise it is constant",
    ]
    assert overridden("--learning_rate 1e-5", set_rate(0, "[0]"), set_rate(2, "[1]"))[0].startswith(
        "--learning_rate 1e-05 is overridden for parameter group 0 and parameter group 1 from epoch 2 on: "
    )


def test_epochs_and_steps_that_were_given() -> None:
    assert overridden("--num_train_epochs 7 --max_steps 5") == [
        "--max_steps 5 is overridden: the recipe runs 3 epochs",
        "--num_train_epochs 7 is overridden: the recipe runs 3",
    ]


@pytest.mark.parametrize("start", [0.0, 1.5])
def test_the_notices_are_what_happens(start: float) -> None:
    """Before the recipe's first rate the flag's holds, constant, whatever schedule and warmup were asked for."""
    words = "--model_name_or_path m --output_dir o --do_train --task_name sst2 --learning_rate 0.1 --warmup_steps 9"
    arguments = parse_arguments(TextClassificationArguments, words.split())
    recipe = load_recipe(f"modifiers:\n  - !EpochRangeModifier {{end_epoch: 3}}\n  - {set_rate(start)}\n")
    model = torch.nn.Linear(2, 2)
    run_of_recipe = RecipeRun(recipe, lr_schedule=schedule.lr_schedule(arguments, recipe, 30))
    run_of_recipe.attach(model)
    run_of_recipe.bind(None, model, torch.optim.SGD(model.parameters(), lr=1.0), steps_per_epoch=10)
    rates = []
    for _ in range(30):
        run_of_recipe.step_begin()
        rates.append(run_of_recipe.learning_rate())
        run_of_recipe.step_end()
    before = round(10 * start)
    assert rates == [0.1] * before + [0.003] * (30 - before)


def test_label_smoothing_is_for_classes(tiny: Tiny, tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": row["label"] + 0.5} for row in sentences(20, seed=1)]
    scores = write_csv(tmp_path / "scores.csv", rows)
    flags = tiny.flags(train_file=scores, validation_file=scores, output_dir=tmp_path / "out")
    refused = run(**flags, label_smoothing_factor=0.1)
    assert refused.code == 2 and "--label_smoothing_factor" in refused.err and "regression" in refused.err


def test_label_smoothing(steady: dict[str, Any], reference: Path, tmp_path: Path) -> None:
    """It changes what is trained on, and not what is reported of an evaluation."""
    done = run(**steady, label_smoothing_factor=0.2, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert trace(tmp_path / "out", "train/loss")[1] != trace(reference, "train/loss")[1]
    only_evaluation = {"do_train": None, "model_name_or_path": tmp_path / "out", "output_dir": tmp_path / "e"}
    evaluated = run(**{**steady, **only_evaluation})
    assert evaluated.code == 0, evaluated.all
    same = [read_json(tmp_path / folder / "eval_results.json")["eval_loss"] for folder in ("out", "e")]
    assert same[0] == same[1]


# --- at once ----------------------------------------------------------------------------------------------------------


def one_shot(tiny: Tiny, output: Path, recipe: Path, **others: Any) -> Outcome:
    return run(one_shot=True, recipe=recipe, model_name_or_path=tiny.model, output_dir=output, **others)


def test_quantizing_at_once(tiny: Tiny, tmp_path: Path) -> None:
    refused = one_shot(tiny, tmp_path / "out", RECIPE)
    assert refused.code == 2 and "add --train_file" in refused.err
    assert not (tmp_path / "out").exists()

    flags: dict[str, Any] = {"train_file": tiny.train, "validation_file": tiny.validation, "do_eval": True}
    done = one_shot(tiny, tmp_path / "out", RECIPE, **flags)
    assert done.code == 0, done.all
    applied, left_out = flat(done.out).split("applied at once: ")[1].split(" no effect without training: ")
    assert applied == "ConstantPruningModifier, QuantizationModifier"
    assert "DistillationModifier" in left_out and "LearningRateFunctionModifier" in left_out
    results = read_json(tmp_path / "out" / "all_results.json")
    assert results["quantized_linears"] == 14 and results["encoder_sparsity"] == pytest.approx(0.9, abs=0.005)
    assert "eval_accuracy" in results
    start, end = weights(tiny.model), weights(tmp_path / "out")
    for name in end.keys() & start.keys():
        assert torch.equal(start[name], end[name])
    assert (ranges(tmp_path / "out").abs().amax(1) > 0).all()
    again = one_shot(tiny, tmp_path / "out", RECIPE, **flags)
    assert again.code == 0 and "finished" in again.out


def test_pruning_at_once(tiny: Tiny, tmp_path: Path) -> None:
    dense = make_model(tmp_path / "dense", sparse=False)
    done = run(one_shot=True, recipe=MAGNITUDE, model_name_or_path=dense, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    results = read_json(tmp_path / "out" / "all_results.json")
    assert results["encoder_sparsity"] == pytest.approx(0.9, abs=0.001) and results["quantized_linears"] == 0
    start, end = weights(dense), weights(tmp_path / "out")
    for name in end.keys() & start.keys():
        kept = end[name] != 0
        assert torch.equal(end[name][kept], start[name][kept])
        if not kept.all() and kept.any():
            assert start[name][kept].abs().min() >= start[name][~kept].abs().max()
