"""Masked language modelling under two processes: the tokens that are masked are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_fixtures import RECIPES, TinyTexts, run, run_under
from script_fixtures import flat, read_json, trace, weights

pytest_plugins = ["language_fixtures"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flags(language: TinyTexts) -> dict[str, Any]:
    """Lines of 2 to 30 tokens: a mean over rows would be another one. A live teacher; masks that follow gradients."""
    return language.flags(
        distill_teacher=language.model,
        recipe=RECIPES / "obert_pruned90.yaml",
        recipe_args={"num_grads": 4, "num_epochs": 2, "pruning_end_epoch": 1.0, "distill_hardness": 0.5},
        line_by_line=True,
        num_train_epochs=None,
        learning_rate=None,
        eval_strategy="epoch",
    )


@pytest.fixture(scope="module")
def one(flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("one") / "out"
    done = run(**flags, output_dir=output)
    assert done.code == 0, done.all
    return output


@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_two_processes(flags: dict[str, Any], one: Path, tmp_path: Path, layout: str) -> None:
    """Two micro-batches of 8 rows on each. The last batch, of 11 rows, has fillers, and so has an evaluation."""
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 7}
    done = run_under(layout, **{**flags, **settings}, output_dir=tmp_path / "out")
    assert done.code == 0 and f"{layout.upper()}, 2 processes" in flat(done.out), done.all
    for name in ("train/loss", "train/task_loss", "train/distillation_loss", "train/teacher_agreement"):
        losses, others = trace(one, name), trace(tmp_path / "out", name)
        assert len(losses) == 14 and losses == pytest.approx(others, abs=1e-6), name
    for name in ("eval_loss", "eval_perplexity", "eval_accuracy"):
        assert trace(tmp_path / "out", name) == pytest.approx(trace(one, name), rel=1e-5)
    figures = [read_json(folder / "eval_results.json") for folder in (one, tmp_path / "out")]
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    first, second = weights(one), weights(tmp_path / "out")
    assert first.keys() == second.keys()  # the tied decoder is stored once
    for name, weight in first.items():
        assert torch.equal(weight == 0, second[name] == 0), name
