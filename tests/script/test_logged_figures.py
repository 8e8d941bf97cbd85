"""Every logged name of a real run in W&B's own file, against an independent computation of its value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from script_fixtures import Tiny, make_model, run, sentences, write_csv
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from wandb_files import wandb_run

from sparse_accel.data.batches import GlobalBatchSampler
from sparse_accel.report.read import read_run

pytest_plugins = ["script_fixtures"]

EPOCHS, STEPS = 3, 7  # 203 rows in batches of 32
RATE = 1e-3
ARGUMENTS = {"num_epochs": EPOCHS, "qat_start_epoch": 1.0, "observer_epoch": 2.0, "init_lr": RATE}


class Run:
    """The run, its parts, and what W&B's file has of it."""

    def __init__(self, tiny: Tiny, folder: Path) -> None:
        self.rows = _rows(tiny.train)
        self.start = make_model(
            folder / "start", sparse=True, head=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        self.teacher = make_model(folder / "the_teacher", sparse=False, head=True)
        self.output = folder / "out"
        flags = tiny.flags(model_name_or_path=self.start, distill_teacher=self.teacher, recipe_args=ARGUMENTS)
        done = run(**{**flags, "logging_steps": 1}, output_dir=self.output, report_to="wandb")
        assert done.code == 0, done.all
        self.config, self.found, _ = wandb_run(self.output / "tracking")

    def batch(self, epoch: int, step: int) -> tuple[Any, torch.Tensor]:
        """The inputs and labels of a step (from 0) of an epoch (from 0), tokenized by transformers."""
        tokenizer = AutoTokenizer.from_pretrained(self.start)
        lengths = [len(ids) for ids in tokenizer([row["text"] for row in self.rows])["input_ids"]]
        sampler = GlobalBatchSampler(lengths, 32, 1, seed=42)
        sampler.epoch = epoch
        rows = [self.rows[int(row)] for row in list(sampler)[step] if row >= 0]
        batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        return batch, torch.tensor([int(row["label"]) for row in rows])


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tiny, tmp_path_factory.mktemp("logged"))


def _rows(path: Path) -> list[dict[str, Any]]:
    import csv

    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_losses_norm_and_tokens_of_the_first_step(trained: Run) -> None:
    batch, labels = trained.batch(0, 0)
    model = AutoModelForSequenceClassification.from_pretrained(trained.start).train()
    teacher = AutoModelForSequenceClassification.from_pretrained(trained.teacher).eval()
    zeros = [(weight, weight == 0) for name, weight in model.named_parameters() if name.endswith("weight")]
    logits = model(**batch).logits
    with torch.no_grad():
        wanted = teacher(**batch).logits
    task = functional.cross_entropy(logits, labels)
    soft = functional.kl_div((logits / 2).log_softmax(1), (wanted / 2).softmax(1), reduction="batchmean") * 4
    soft.backward()  # hardness 1, temperature 2: the task loss has no part in it
    squares = 0.0
    for weight, zero in zeros:
        if ".layer." in next(name for name, each in model.named_parameters() if each is weight):
            assert weight.grad is not None
            weight.grad[zero & (weight.ndim == 2)] = 0.0  # masked
    for weight in model.parameters():
        squares += float(weight.grad.square().sum()) if weight.grad is not None else 0.0
    mask = batch["attention_mask"]
    agreed = float((logits.argmax(1) == wanted.argmax(1)).float().mean())
    found = {name: by_step[1] for name, by_step in trained.found.items() if 1 in by_step}
    assert found["train/task_loss"] == pytest.approx(float(task), rel=1e-5)
    assert found["train/distillation_loss"] == pytest.approx(float(soft), rel=1e-4)
    assert found["train/loss"] == pytest.approx(found["train/distillation_loss"], rel=1e-6)
    assert found["train/teacher_agreement"] == pytest.approx(agreed)
    assert found["train/gradient_norm"] == pytest.approx(squares**0.5, rel=1e-3)
    assert found["train/padding"] == pytest.approx(1 - float(mask.float().mean()))
    ratio = found["train/tokens_per_second"] / found["train/samples_per_second"]
    assert ratio == pytest.approx(float(mask.sum()) / len(labels))


def test_rates_clock_and_phase_of_every_step(trained: Run) -> None:
    total, found = EPOCHS * STEPS, trained.found
    steps = range(1, total + 1)
    assert found["train/learning_rate"] == pytest.approx({n: RATE * (1 - (n - 1) / total) for n in steps})
    assert set(found["train/weight_decay"].values()) == {0.01}, "as the recipe says"
    assert {n: found["train/epoch"][n] for n in steps} == pytest.approx({n: n / STEPS for n in steps})
    assert {n: found["quantization/phase"][n] for n in steps} == {n: min((n - 1) // STEPS, 2) for n in steps}


def test_sparsity_of_the_saved_weights(trained: Run) -> None:
    weights = load_file(trained.output / "model.safetensors")
    last = {name: by_step[max(by_step)] for name, by_step in trained.found.items() if name.startswith("sparsity/")}
    layers = {name.removeprefix("sparsity/layers/"): value for name, value in last.items() if "/layers/" in name}
    assert len(layers) == 17
    for name, value in layers.items():
        assert value == pytest.approx(float((weights[name] == 0).float().mean()), abs=1e-6), name
    encoder = [weight for name, weight in weights.items() if ".layer." in name and weight.ndim == 2]
    zeros = sum(int((weight == 0).sum()) for weight in encoder)
    assert last["sparsity/encoder"] == pytest.approx(zeros / sum(w.numel() for w in encoder), abs=1e-6)
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    assert last["sparsity/model"] == pytest.approx(zeros / sum(w.numel() for w in weights.values()), abs=1e-6)


def test_ranges_and_scales_of_quantization_json(trained: Run) -> None:
    stored = json.loads((trained.output / "quantization.json").read_text())["quantizers"]
    last = EPOCHS * STEPS
    kinds = {"min": (min, "minimum"), "max": (max, "maximum"), "scale": (max, "scale")}
    for name, entry in stored.items():
        plain = name.removesuffix("_quantizer")
        for kind, (choose, key) in kinds.items():
            assert trained.found[f"quantization/{kind}/{plain}"][last] == pytest.approx(choose(entry[key])), plain
        clipped = trained.found[f"quantization/clipped/{plain}"]
        assert sorted(clipped) == [2 * STEPS, 3 * STEPS], "at the ends of the epochs with quantization"


@pytest.mark.parametrize("epoch", [2, 3])
def test_clipped_fractions_of_a_plain_model_with_quantizers_of_torch(trained: Run, epoch: int) -> None:
    """On the last batch of an epoch, with weights and ranges of its checkpoint."""
    folder = trained.output / f"checkpoint-{epoch * STEPS}"
    stored = json.loads((folder / "quantization.json").read_text())["quantizers"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected: dict[str, tuple[float, int]] = {}

    def quantized(name: str, x: torch.Tensor) -> torch.Tensor:
        (scale,), (zero_point,) = stored[name]["scale"], stored[name]["zero_point"]
        limits = (-128, 127) if stored[name]["signed"] else (0, 255)
        values, kept = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(x, scale, zero_point, *limits)
        expected[name.removesuffix("_quantizer")] = (1 - float(kept.double().mean()), x.numel())
        return values

    for name in stored:
        place, _, kind = name.rpartition(".")
        module = model.get_submodule(place)
        if kind == "weight_quantizer" and isinstance(module, torch.nn.Linear):
            module.weight.data = quantized(name, module.weight.data)
        elif kind == "input_quantizer":
            module.register_forward_pre_hook(lambda _, inputs, name=name: quantized(name, inputs[0]))
        else:  # of embeddings, also the weights: only the rows that are looked up are quantized
            module.register_forward_hook(lambda _, inputs, output, name=name: quantized(name, output))
    with torch.no_grad():
        model(**trained.batch(epoch - 1, -1)[0])
    logged: dict[str, Any] = trained.found
    for name, (clipped, count) in expected.items():
        found = logged[f"quantization/clipped/{name}"][epoch * STEPS]
        # Activations are equal only up to rounding: one may be on the other side of a limit.
        assert found == pytest.approx(clipped, abs=1e-9 if name.endswith(".weight") else 1.01 / count), name
        assert sum(logged[f"histograms/{name}/values"][epoch * STEPS]) == count, name
    assert expected["bert.pooler.dense.input"][0] > 2 / 352, "some values are clipped"
    assert expected["bert.encoder.layer.0.attention.self.query.weight"][0] > 0


def test_evaluations_are_those_of_the_files(trained: Run) -> None:
    found, last = trained.found, EPOCHS * STEPS
    results = json.loads((trained.output / "eval_results.json").read_text())
    record = json.loads((trained.output / "evaluation.json").read_text())["validation"]
    assert found["eval/accuracy"][last] == results["eval_accuracy"] == record["figures"]["accuracy"]
    assert set(found["final/accuracy"].values()) == {results["eval_accuracy"]}
    confusion = np.asarray(record["confusion"])
    assert confusion.sum() == 60 == record["rows"]
    assert np.trace(confusion) / 60 == pytest.approx(results["eval_accuracy"])
    recalls = confusion.diagonal() / confusion.sum(axis=1)
    assert [entry["recall"] for entry in record["per_label"]] == pytest.approx(list(recalls))
    assert len(record["mistakes"]) == min(60 - np.trace(confusion), 20)
    sure = [entry["confidence"] for entry in record["mistakes"]]
    assert sure == sorted(sure, reverse=True)
    teacher = record["teacher"]["figures"]
    assert found["teacher/accuracy"][0] == teacher["accuracy"] and found["teacher/loss"][0] == teacher["loss"]


def test_the_teachers_figures_stay_with_their_rows(trained: Run, tiny: Tiny, tmp_path: Path) -> None:
    """Measured again on as many other rows, the finished run has no figures of its teacher there."""
    others = write_csv(tmp_path / "others.csv", sentences(60, seed=77))
    flags = tiny.flags(model_name_or_path=trained.start, distill_teacher=trained.teacher, recipe_args=ARGUMENTS)
    again = run(**{**flags, "logging_steps": 1, "validation_file": others}, output_dir=trained.output)
    assert again.code == 0 and "nothing is trained again" in again.out, again.all
    record = json.loads((trained.output / "evaluation.json").read_text())["validation"]
    assert record["rows"] == 60 and record["teacher"] is None
    back = run(**{**flags, "logging_steps": 1}, output_dir=trained.output)
    assert back.code == 0, back.all
    assert json.loads((trained.output / "evaluation.json").read_text())["validation"]["teacher"] is not None


def test_an_evaluation_of_another_model_is_not_this_runs(trained: Run, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(trained.output, folder)
    other = run(
        model_name_or_path=trained.teacher,
        validation_file=tiny.validation,
        output_dir=folder,
        do_eval=True,
        per_device_eval_batch_size=32,
    )
    assert other.code == 0, other.all
    assert "eval_model" in json.loads((folder / "eval_results.json").read_text())
    assert json.loads((folder / "evaluation.json").read_text())["validation"]["teacher"] is None
    found = read_run(folder)
    assert found.figures() == {} and found.evaluation == {} and any("another model" in note for note in found.notes)


def test_an_evaluation_alone_is_in_card_and_report(trained: Run, tmp_path: Path) -> None:
    """With the rows that it was of: those of the training run are others. A card that is not there is not made."""
    folder = tmp_path / "out"
    shutil.copytree(trained.output, folder)
    others = write_csv(tmp_path / "others.csv", sentences(60, seed=77))
    flags: dict[str, Any] = {"output_dir": folder, "do_eval": True, "per_device_eval_batch_size": 32}
    card, page = folder / "README.md", folder / "report.html"
    assert "On validation.csv (60 rows):" in card.read_text()
    done = run(**flags, validation_file=others, max_eval_samples=16)
    assert done.code == 0, done.all
    assert "On others.csv (16 of 60 rows):" in card.read_text() and "others.csv" in page.read_text()
    assert "name: others.csv (16 of 60 rows)" in card.read_text() and "split:" not in card.read_text()
    before = card.read_text(), page.read_text()
    other = run(**flags, model_name_or_path=trained.teacher, validation_file=others)
    assert other.code == 0 and (card.read_text(), page.read_text()) == before, "they are of the folder's model"
    card.unlink()
    page.unlink()
    done = run(**flags, validation_file=others)
    assert done.code == 0 and not card.exists() and not page.exists(), done.all


def test_commands_that_train_nothing_have_runs_of_their_own(trained: Run, tiny: Tiny, tmp_path: Path) -> None:
    folder, others = tmp_path / "out", write_csv(tmp_path / "others.csv", sentences(20, seed=7))
    shutil.copytree(trained.output, folder, symlinks=True)
    (first,) = (folder / "tracking").rglob("*.wandb")
    before, kept = first.read_bytes(), (folder / "tracking" / "wandb_run_id").read_text()
    evaluates: dict[str, Any] = {"output_dir": folder, "do_eval": True, "report_to": "wandb tensorboard"}
    flags = {**tiny.flags(model_name_or_path=trained.start, distill_teacher=trained.teacher), "logging_steps": 1}
    commands: list[tuple[Path, dict[str, Any]]] = [
        (trained.teacher, {"model_name_or_path": trained.teacher, "validation_file": tiny.validation}),
        (folder, {"validation_file": others}),
        (folder, {**flags, "recipe_args": ARGUMENTS}),  # its training is finished
    ]
    known = {first.parent}
    for model, words in commands:
        done = run(**{**words, **evaluates})
        assert done.code == 0, done.all
        (place,) = {path.parent for path in (folder / "tracking").rglob("*.wandb")} - known
        known.add(place)
        config, found, _ = wandb_run(place)
        assert config["eval_model"] == str(model) and kept.strip() not in place.name
        results = json.loads((folder / "eval_results.json").read_text())
        assert set(found["final/accuracy"].values()) == {results["eval_accuracy"]}
    assert first.read_bytes() == before and (folder / "tracking" / "wandb_run_id").read_text() == kept
    places = {path.relative_to(folder / "tracking").parts[0] for path in folder.rglob("events.*")}
    assert len(places) == 3 and all(name.startswith("evaluation-") for name in places)


def test_configuration(trained: Run) -> None:
    environment = trained.config["environment"]
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["layout"] == "one process" and environment["hardware"]["cores"] >= 1
    assert environment == {
        **json.loads((trained.output / "environment.json").read_text()),
        "started": environment["started"],
    }
    assert trained.config["recipe"]["training_modifiers"]


@pytest.mark.slow
def test_structure_is_logged_whenever_it_changes(tiny: Tiny, tmp_path: Path) -> None:
    """Heads, neurons and parameters that are left, in W&B's file and the run's own log, against the saved weights."""
    recipe = tmp_path / "recipe.yaml"
    keys = "final_sparsity: {attention_heads: 0.5, ffn_neurons: 0.75}, start_epoch: 0, end_epoch: 1"
    recipe.write_text(
        "modifiers:\n  - !EpochRangeModifier {end_epoch: 2}\n"
        f"  - !StructuredPruningModifier {{{keys}, update_frequency: 0.5, inter_func: linear}}\n"
    )
    few = {"max_train_samples": 128, "recipe": recipe, "recipe_args": None, "logging_steps": 1, "do_eval": None}
    few |= {"validation_file": None, "eval_strategy": "no", "save_strategy": "no", "learning_rate": 1e-3}
    model = make_model(tmp_path / "dense", sparse=False)
    done = run(**tiny.flags(model_name_or_path=model, **few), output_dir=tmp_path / "out", report_to="wandb")
    assert done.code == 0, done.all
    _, found, _ = wandb_run(tmp_path / "out" / "tracking")
    # 2 blocks of 4 heads and 64 neurons; 4 steps an epoch, so half of the way after two of them.
    assert found["structure/attention_heads"] == {3: 6, 5: 4, 8: 4}
    assert found["structure/ffn_neurons"] == {3: 80, 5: 32, 8: 32}
    assert set(found["structure/attention_heads_full_size"].values()) == {8}
    assert set(found["structure/ffn_neurons_full_size"].values()) == {128}
    saved = load_file(tmp_path / "out" / "model.safetensors")
    # A head owns 8 rows of 32 weights and a bias three times and 8 columns of 32; a neuron a row, a bias, a column.
    removed = 4 * (3 * 8 * 33 + 8 * 32) + 96 * (33 + 32)
    assert found["structure/parameters"][8] == sum(each.numel() for each in saved.values()) - removed
    own = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert {e["step"]: e["structure/ffn_neurons"] for e in own if "structure/ffn_neurons" in e} == {3: 80, 5: 32, 8: 32}
