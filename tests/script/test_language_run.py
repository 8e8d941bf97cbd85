"""A run of masked language modelling as a whole: resumed, finished, shown, logged; lines, blocks and whole words."""

from __future__ import annotations

import math
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from language_fixtures import LENGTH, RECIPES, TinyTexts, run, start, write_texts
from script_fixtures import assert_same_model, flat, make_model, read_json, trace, wait
from stand_in_hub import card_problems
from token_fixtures import VOCABULARY, unfinished
from transformers import AutoTokenizer, pipeline
from wandb_files import wandb_run

pytest_plugins = ["language_fixtures"]


@pytest.fixture(scope="module")
def flags(language: TinyTexts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With dropout, a teacher and growing masks: 12 steps, a checkpoint in the middle of each of the three epochs."""
    folder = tmp_path_factory.mktemp("models")
    return language.flags(
        model_name_or_path=make_model(folder / "model", sparse=False, vocabulary=VOCABULARY),
        distill_teacher=language.model,
        recipe=RECIPES / "obert_pruned90.yaml",
        recipe_args={"num_grads": 4, "init_lr": 2e-3, "distill_hardness": 0.5},
        num_train_epochs=None,
        learning_rate=None,
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=3,
    )


@pytest.fixture(scope="module")
def whole(flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    done = run(**flags, output_dir=output)
    assert done.code == 0, done.all
    return output


def assert_same_run(one: Path, other: Path) -> None:
    """Files of weights and figures are the same, byte by byte; durations may differ, and means since the last log."""
    assert_same_model(one, other)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    first, second = (read_json(folder / "all_results.json") for folder in (one, other))
    assert {**first, "train_runtime": 0, "train_loss": 0} == {**second, "train_runtime": 0, "train_loss": 0}
    for name in ("eval_loss", "eval_perplexity", "train/learning_rate", "train/loss", "train/distillation_loss"):
        assert trace(one, name) == trace(other, name)


@pytest.mark.parametrize("step", [3, pytest.param(9, marks=pytest.mark.slow)])
def test_going_on_from_a_checkpoint(flags: dict[str, Any], whole: Path, tmp_path: Path, step: int) -> None:
    """Mid-epoch: the rest of the epoch is masked as it would have been."""
    output = unfinished(whole, tmp_path / "out", step)
    resumed = run(**flags, output_dir=output)
    assert resumed.code == 0 and f"from step {step}" in flat(resumed.out), resumed.all
    assert_same_run(output, whole)


@pytest.mark.slow
def test_going_on_after_a_kill(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start(**flags, output_dir=output)
    while not (output / "checkpoint-6").is_dir() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert wait(process).code == -signal.SIGKILL
    resumed = run(**flags, output_dir=output)
    assert resumed.code == 0 and "resuming from step" in flat(resumed.out), resumed.all
    assert_same_run(output, whole)


def test_a_finished_run_is_shown(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(whole, tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    again = run(**flags, output_dir=output)
    assert again.code == 0 and "finished: nothing is trained again" in flat(again.out), again.all
    assert "eval_perplexity" in again.out and "evaluation:" not in again.out
    assert {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"mlm_probability": 0.2}, "mlm_probability (0.15 there, 0.2 here)"),
        ({"whole_word_mask": True}, "whole_word_mask (False there, True here)"),
        ({"line_by_line": True}, "data"),
        ({"seed": 7}, "seed (42 there, 7 here)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_way_of_masking_is_another_run(
    more: dict[str, Any], said: str, flags: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    """An unfinished one is not gone on with: the rest would be masked otherwise."""
    output = unfinished(whole, tmp_path / "out", 3)
    other = run(**{**flags, **more}, output_dir=output)
    assert other.code == 2 and said in flat(other.err), other.all
    assert (output / "checkpoint-3").is_dir()


def test_a_finished_run_of_another_fraction_is_kept(language: TinyTexts, tmp_path: Path) -> None:
    """The new one gets the folder; its figures are of its own masks."""
    for fraction in (0.15, 0.4):
        done = run(**language.flags(mlm_probability=fraction, output_dir=tmp_path / "out"))
        assert done.code == 0, done.all
    assert "differs in mlm_probability (0.15 there, 0.4 here)" in flat(done.out)
    assert f"{0.4:.0%} of the tokens masked" in flat(done.out)
    figures = [read_json(tmp_path / name / "eval_results.json") for name in ("out", "out.1")]
    assert abs(figures[0]["eval_loss"] - figures[1]["eval_loss"]) > 1e-3


def test_what_changes_the_figures_is_measured_again(language: TinyTexts, whole: Path, tmp_path: Path) -> None:
    """A trained model: fraction, seed, kind of words and length are of the question."""
    flags: dict[str, Any] = {"model_name_or_path": whole, "validation_file": language.validation, "do_eval": True}
    found = set()
    others: list[dict[str, Any]] = [{}, {"mlm_probability": 0.3}, {"seed": 1}, {"whole_word_mask": True}]
    for more in [*others, {"line_by_line": True}]:
        done = run(**{**flags, "max_seq_length": LENGTH, **more}, output_dir=tmp_path / "out")
        assert done.code == 0 and "warning" not in done.err, done.all
        found.add(read_json(tmp_path / "out" / "eval_results.json")["eval_loss"])
    assert len(found) == 5


# --- rows -------------------------------------------------------------------------------------------------------------


def test_whole_words(language: TinyTexts, tmp_path: Path) -> None:
    done = run(**language.flags(whole_word_mask=True, output_dir=tmp_path / "out"))
    assert done.code == 0 and "15% of the tokens masked, whole words" in flat(done.out), done.all
    figures = read_json(tmp_path / "out" / "eval_results.json")
    assert figures["eval_perplexity"] == pytest.approx(math.exp(figures["eval_loss"]), rel=1e-5)


def test_perplexity_and_loss_of_long_words(language: TinyTexts, tmp_path: Path) -> None:
    """Of rows whose words have more pieces than there are tokens to mask."""
    lines = ["anna clara", "dmitri dmitri", "clara", "the old film was old", "in the old film from to and ."] * 3
    file = write_texts(tmp_path / "validation.txt", lines)
    flags: dict[str, Any] = {"model_name_or_path": language.model, "validation_file": file, "do_eval": True}
    done = run(**flags, line_by_line=True, whole_word_mask=True, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    figures = read_json(tmp_path / "out" / "eval_results.json")
    assert figures["eval_perplexity"] == pytest.approx(math.exp(figures["eval_loss"]), rel=1e-5)


def test_rows_are_held_out_and_drawn(language: TinyTexts, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "validation_file": None,
        "validation_ratio": 0.2,
        "max_train_samples": 50,
        "max_eval_samples": 10,
    }
    done = run(**language.flags(**flags, output_dir=tmp_path / "out"))
    assert done.code == 0 and "50 train, 10 validation" in flat(done.out), done.all
    assert "41 rows held out" in flat(done.out)


def test_the_best_by_perplexity(language: TinyTexts, tmp_path: Path) -> None:
    """Lower is better, without being told."""
    best: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": "perplexity"}
    flags = language.flags(**best, eval_strategy="epoch", save_strategy="epoch", num_train_epochs=3, learning_rate=5e-2)
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    logged = trace(tmp_path / "out", "eval_perplexity")
    found = read_json(tmp_path / "out" / "eval_results.json")["eval_perplexity"]
    assert found == pytest.approx(min(logged.values()), rel=1e-6) and len(logged) == 3


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.slow  # W&B starts a service
def test_figures_in_trackers(language: TinyTexts, tmp_path: Path) -> None:
    flags = language.flags(eval_strategy="epoch", num_train_epochs=2, output_dir=tmp_path / "out")
    done = run(**flags, report_to="wandb")
    assert done.code == 0, done.all
    config, found, _ = wandb_run(tmp_path / "out" / "tracking")
    logged = {name: trace(tmp_path / "out", f"eval_{name}") for name in ("loss", "perplexity", "accuracy")}
    for name, values in logged.items():
        assert found[f"eval/{name}"] == pytest.approx(values) and len(values) == 2
        final = read_json(tmp_path / "out" / "eval_results.json")[f"eval_{name}"]
        assert [*found[f"final/{name}"].values()] == pytest.approx([final])
    assert found["train/loss"] == pytest.approx(trace(tmp_path / "out", "train/loss"))
    assert config["mlm_probability"] == 0.15 and config["whole_word_mask"] is False
    assert not any(name.startswith("eval/") and name.partition("/")[2] not in logged for name in found)


def test_texts_that_transformers_fills_in(language: TinyTexts, whole: Path) -> None:
    fill: Any = pipeline("fill-mask", model=str(whole), tokenizer=AutoTokenizer.from_pretrained(whole))
    assert len(fill("cla [MASK] went to paris .")) == 5


def test_flags_without_effect(language: TinyTexts, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "model_name_or_path": language.model,
        "validation_file": language.validation,
        "do_eval": True,
    }
    done = run(**flags, train_file=language.train, output_dir=tmp_path / "out")
    assert done.code == 0 and "--train_file is not used without --do_train or --one_shot" in done.err, done.all
    assert "label" not in done.err


def test_a_text_that_is_longer_than_a_model_takes(language: TinyTexts, tmp_path: Path) -> None:
    """It is cut into blocks, nothing is lost; the length is that of the model."""
    file = write_texts(tmp_path / "train.txt", [" ".join(["anna kern saw the old film"] * 100)])
    done = run(**language.flags(train_file=file, max_seq_length=512, output_dir=tmp_path / "out"))
    assert done.code == 0 and "up to 64 tokens" in flat(done.out), done.all
    assert "1 train in 12 rows" in flat(done.out), done.all


def test_the_card(whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its code runs in its folder as it stands; its figures are of masked tokens, on texts."""
    monkeypatch.chdir(whole)
    text = (whole / "README.md").read_text(encoding="utf-8")
    assert card_problems(text) == []
    assert "pipeline_tag: fill-mask" in text and "Perplexity of masked tokens (lower is better)" in text
    assert " texts)" in text and "LABEL_0" not in text and "classifier" not in text
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    exec(code, {})
    assert "token_str" in capsys.readouterr().out
