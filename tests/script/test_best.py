"""The best checkpoint: chosen among comparable evaluations, kept, and what the output folder ends with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from script_fixtures import Outcome, Tiny, assert_same_model, history, read_json, run

from sparse_accel.training.evaluation import Evaluation

pytest_plugins = ["script_fixtures"]

# By epoch. Quantization begins at epoch 2 and settles at epoch 3: the first two are of models that were not yet final.
SCORES = [0.99, 0.98, 0.5, 0.7, 0.6]
RECIPE_ARGS = {"num_epochs": 5, "qat_start_epoch": 2.0, "observer_epoch": 3.0}


@pytest.fixture
def scored(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Trains for 5 epochs of 7 steps; evaluations give SCORES, or others, in order."""

    def train(given: Sequence[float] = SCORES, **others: Any) -> Outcome:
        scores = iter([*given, 0.65])  # the last is of the files at the end

        def figures(*_: Any) -> Evaluation:
            score = next(scores)
            return Evaluation({"eval_accuracy": score, "eval_f1_macro": score, "eval_loss": 1 - score}, {}, {})

        monkeypatch.setattr("sparse_accel.training.evaluation.evaluate_splits", figures)
        flags = tiny.flags(recipe_args=RECIPE_ARGS, output_dir=tmp_path / "out", load_best_model_at_end=True)
        done = run(**{**flags, **others})
        assert done.code == 0, done.all
        return done

    return train


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        ({}, 28),  # by loss
        ({"metric_for_best_model": "eval_accuracy"}, 28),
        ({"metric_for_best_model": "accuracy", "greater_is_better": False}, 21),
        ({"best_model_after_epoch": 5}, 35),
        # Every second evaluated model is saved: what is best must be there to be taken.
        ({"eval_strategy": "steps", "eval_steps": 7, "save_strategy": "steps", "save_steps": 14}, 28),
        ({"eval_strategy": "steps", "eval_steps": 7, "save_strategy": "steps", "save_steps": 21}, 35),
    ],
)
def test_an_unquantized_epoch_is_never_the_best(
    scored: Callable[..., Outcome], tmp_path: Path, flags: dict[str, Any], best: int
) -> None:
    scored(**flags)
    output = tmp_path / "out"
    assert_same_model(output, output / f"checkpoint-{best}")
    results = read_json(output / "all_results.json")
    assert results["best_step"] == best and results["quantized_linears"] == 14 and results["global_step"] == 35
    state = read_json(output / "trainer_state.json")
    assert state["best_global_step"] == best and [e["eval_accuracy"] for e in history(output) if "eval_accuracy" in e]


def test_the_newest_and_the_best_are_kept(scored: Callable[..., Outcome], tmp_path: Path) -> None:
    scored(save_total_limit=1)
    assert checkpoints(tmp_path / "out") == ["checkpoint-28", "checkpoint-35"]


def test_the_best_survives_an_interruption(scored: Callable[..., Outcome], tmp_path: Path) -> None:
    scored()
    output = tmp_path / "out"
    whole = output.rename(tmp_path / "whole")
    output.mkdir()
    for name in ("checkpoint-21", "checkpoint-28"):
        shutil.copytree(whole / name, output / name)
    record = (whole / "run.json").read_text().replace('"finished": true', '"finished": false')
    (output / "run.json").write_text(record)
    # One evaluation is left after step 28, and it is worse than what the checkpoint remembers.
    scored([0.6], save_total_limit=1)
    assert read_json(output / "all_results.json")["best_step"] == 28
    assert_same_model(output, output / "checkpoint-28")
    assert checkpoints(output) == ["checkpoint-28", "checkpoint-35"]
