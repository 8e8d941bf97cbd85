"""The tutorial's command as a person types it, on a tiny model: what it prints, and what lies in the folder then."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from script_fixtures import RECIPE, Outcome, Tiny, history, read_json, run, run_process, sentences, weights
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import sparse_accel
from sparse_accel.distributed.processor import bfloat16_is_fast
from sparse_accel.nn import layers
from sparse_accel.recipe import load_recipe

pytest_plugins = ["script_fixtures"]

RECIPE_ARGS = '{"num_epochs":3,"qat_start_epoch":1.0, "observer_epoch": 2.0}'
# The tutorial's CSV command; stubs of models are paths, the recipe's stub is shipped, recipe_args shorten it.
COMMAND = f"""
  --model_name_or_path ./pruned90-none \\
  --recipe zoo:nlp/sentiment_analysis/obert-base/pytorch/huggingface/sst2/pruned90_quant-none \\
  --recipe_args '{RECIPE_ARGS}' \\
  --distill_teacher disable \\
  --train_file ./rotten_tomatoes-train.csv --validation_file ./rotten_tomatoes-validation.csv  --input_column_names text --label_column_name label \\
  --output_dir sparse_quantized_bert-text_classification_rotten_tomatoes-local_dataset --max_seq_length 128 --per_device_train_batch_size 32 \\
  --per_device_eval_batch_size 32 --preprocessing_num_workers 6 --do_train --do_eval --evaluation_strategy epoch --fp16  \\
  --save_strategy epoch --save_total_limit 1
"""  # noqa: E501
COMMAND_WORDS = shlex.split(COMMAND.replace("\\\n", " "))
OUTPUT = "sparse_quantized_bert-text_classification_rotten_tomatoes-local_dataset"
INPUTS = {"pruned90-none", "rotten_tomatoes-train.csv", "rotten_tomatoes-validation.csv"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """The working directory of somebody who follows the tutorial."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "pruned90-none").symlink_to(tiny.model)
    (folder / "rotten_tomatoes-train.csv").symlink_to(tiny.train)
    (folder / "rotten_tomatoes-validation.csv").symlink_to(tiny.validation)
    return folder


@pytest.fixture(scope="module")
def first(desk: Path) -> Outcome:
    return run_process(*COMMAND_WORDS, cwd=desk)


@pytest.fixture(scope="module")
def output(desk: Path, first: Outcome) -> Path:
    assert first.code == 0, first.all
    return desk / OUTPUT


def test_what_it_prints(first: Outcome) -> None:
    assert first.code == 0, first.all
    warnings = [line for line in first.err.splitlines() if line.startswith("warning")]
    precision = "bf16, which this CPU multiplies" if bfloat16_is_fast() else "float32"
    assert warnings == [f"warning: --fp16 needs a GPU, but there is none: training in {precision}"]
    titles = [line for line in first.out.splitlines() if line.startswith("── ")]
    assert [title.split()[1] for title in titles] == ["run", "results"]
    evaluations = [line.split() for line in first.out.splitlines() if line.startswith("epoch ")]
    assert [line[1] for line in evaluations] == ["1.00", "2.00", "3.00"]
    assert len(first.out.splitlines()) < 50
    assert "Traceback" not in first.err and "Warning" not in first.err
    # In a log file, bars are lines: tokenizing twice, and training, each with its two states.
    lines = [line for line in first.err.splitlines() if line.strip()]
    assert len(lines) <= 10 and "evaluate" not in first.err, first.err


def test_the_recorded_flags_are_this_very_run(desk: Path, output: Path) -> None:
    again = run(str(output / "arguments.json"), cwd=desk)
    assert again.code == 0, again.all
    assert "already contains this run, finished" in again.out


def test_what_lies_in_the_folder(desk: Path, output: Path) -> None:
    assert {path.name for path in desk.iterdir()} == INPUTS | {OUTPUT}
    model = {"config.json", "model.safetensors", "quantization.json", "tokenizer.json", "tokenizer_config.json"}
    recipe = {"recipe.yaml", "recipe_as_given.yaml"}
    figures = {"all_results.json", "train_results.json", "eval_results.json", "sparsity.json", "trainer_state.json"}
    figures |= {"arguments.json", "environment.json", "evaluation.json", "README.md", "report.html"}
    # 7 steps an epoch, and --save_total_limit 1.
    assert {path.name for path in output.iterdir()} == model | recipe | figures | {"run.json", "checkpoint-21"}
    assert {path.name for path in (output / "checkpoint-21").iterdir()} == model | {
        "recipe_state.safetensors",
        "trainer_state.json",
        "training_state.safetensors",
        "checksums.json",
    }


def test_transformers_loads_the_float_model(tiny: Tiny, output: Path) -> None:
    model, info = AutoModelForSequenceClassification.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info
    start = weights(tiny.model)
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        if "encoder" in name and weight.ndim == 2:
            assert torch.equal(weight == 0, start[name] == 0)
    config = read_json(output / "config.json")
    assert config["id2label"] == {"0": "0", "1": "1"} and config["label2id"] == {"0": 0, "1": 1}
    assert config["problem_type"] == "single_label_classification"


def test_sparse_accel_loads_the_quantized_model(tiny: Tiny, output: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(output)
    batch = tokenizer([row["text"] for row in sentences(8, seed=4)], padding=True, return_tensors="pt")
    plain = AutoModelForSequenceClassification.from_pretrained(output)
    quantized = sparse_accel.load(output)
    with torch.no_grad():
        difference = (plain(**batch).logits - quantized(**batch).logits).abs().max()
    assert 0 < difference < 0.5
    assert layers.quantized_linears(quantized) == (14, 14)
    assert {name.rpartition(".")[2] for name in layers.quantizers(quantized)} == {
        "input_quantizer",
        "weight_quantizer",
        "output_quantizer",
    }
    assert all(quantizer.enabled for quantizer in layers.quantizers(quantized).values())


def test_figures(output: Path) -> None:
    sparsity = read_json(output / "sparsity.json")
    encoder = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert sparsity["encoder_linear"]["weights"] == encoder
    assert sparsity["prunable"]["weights"] == encoder + 32 * 32 + 2 * 32  # pooler and classifier
    assert sparsity["model"]["weights"] == sum(weight.numel() for weight in weights(output).values())
    assert sparsity["model"]["zeros"] == sum(int((weight == 0).sum()) for weight in weights(output).values())
    for entry in (sparsity["encoder_linear"], *sparsity["layers"].values()):
        assert entry["sparsity"] == pytest.approx(entry["zeros"] / entry["weights"], abs=1e-6)
    assert 0.895 < sparsity["encoder_linear"]["sparsity"] < 0.905

    results = read_json(output / "all_results.json")
    evaluated, trained = (read_json(output / f"{name}_results.json") for name in ("eval", "train"))
    assert set(evaluated) == {"eval_accuracy", "eval_f1_macro", "eval_loss"}
    assert set(trained) >= {"epoch", "global_step", "train_loss", "train_runtime", "encoder_sparsity"}
    assert results == trained | evaluated
    assert results["quantized_linears"] == results["linears"] == 14
    assert results["epoch"] == 3.0 and results["global_step"] == 21
    assert history(output)[-1]["eval_accuracy"] == evaluated["eval_accuracy"]


def test_the_recipe_can_be_repeated_from_the_folder(output: Path) -> None:
    assert (output / "recipe_as_given.yaml").read_text() == RECIPE.read_text()
    given, resolved = load_recipe(RECIPE, RECIPE_ARGS), load_recipe(output / "recipe.yaml")
    assert resolved.modifiers == given.without_teacher().modifiers  # the command disables the teacher
    assert len(given.modifiers) == len(resolved.modifiers) + 1
    assert resolved.content["num_epochs"] == 3
    assert "eval(" not in resolved.text


# --- the same command again -------------------------------------------------------------------------------------------


def test_the_same_command_prints_the_results(desk: Path, first: Outcome, output: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    again = run(*COMMAND_WORDS, cwd=desk)
    assert again.code == 0, again.all
    assert "finished" in again.out
    assert "steps/s" not in again.err and "evaluate" not in again.err
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before
    table = first.out[first.out.index("── results") :]
    assert table in again.out


def test_a_finished_run_of_other_settings_is_moved_aside(desk: Path, output: Path) -> None:
    other = run(*COMMAND_WORDS, "--seed", "43", cwd=desk)
    assert other.code == 0, other.all
    aside = desk / f"{OUTPUT}.1"
    assert f"{OUTPUT} was moved to {OUTPUT}.1" in other.out and "seed (42 there, 43 here)" in other.out
    assert read_json(aside / "run.json")["identity"]["seed"] == 42
    assert read_json(output / "run.json")["identity"]["seed"] == 43
    # Back to where the other tests found it.
    shutil.rmtree(output)
    aside.rename(output)


def test_another_layout_is_the_same_run(desk: Path, output: Path) -> None:
    """Batch split, logging, saving and workers are not part of what a run is."""
    layout = ["--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "2", "--logging_steps", "3"]
    again = run(*COMMAND_WORDS, *layout, "--save_total_limit", "3", "--preprocessing_num_workers", "1", cwd=desk)
    assert again.code == 0 and "finished" in again.out, again.all
    assert not (desk / f"{OUTPUT}.1").exists()
