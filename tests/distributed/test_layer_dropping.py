"""Layers dropped inside a run, under every layout: one result, folders that load, and checkpoints that move between."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from layouts import make_flags, run_under
from script_fixtures import assert_same_model, flat, read_json, run, trace, weights
from transformers import AutoModelForSequenceClassification

pytestmark = pytest.mark.slow

# 7 steps an epoch. The first of two layers goes before the tenth step, quantization begins with the fifteenth.
RECIPE = """
modifiers:
  - !EpochRangeModifier {end_epoch: 3}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.002, final_lr: 0.0001, end_epoch: 3}
  - !MagnitudePruningModifier {start_epoch: 0.4, end_epoch: 1.7, init_sparsity: __FROM_PARAM__, final_sparsity: 0.95}
  - !LayerPruningModifier {layers: [bert.encoder.layer.0], start_epoch: 1.2}
  - !QuantizationModifier {start_epoch: 2, disable_quantization_observer_epoch: 2.5}
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("flags")
    (folder / "recipe.yaml").write_text(RECIPE)
    return {**make_flags(folder), "distill_teacher": None, "recipe": folder / "recipe.yaml"}


@pytest.fixture(scope="module")
def one(flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "out"
    assert run(**flags, gradient_accumulation_steps=2, output_dir=folder).code == 0
    return folder


def unfinished(whole: Path, output: Path, step: int) -> Path:
    """The folder as a kill after checkpoint `step` would have left it."""
    output.mkdir()
    shutil.copytree(whole / f"checkpoint-{step}", output / f"checkpoint-{step}")
    record = (whole / "run.json").read_text().replace('"finished": true', '"finished": false')
    (output / "run.json").write_text(record)
    return output


def assert_near(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 5e-3


# DDP gives what one process gives, to the bit: test_modifiers_distributed.py.
@pytest.mark.parametrize("layout", ["fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_one_result_that_loads_and_goes_on_elsewhere(
    layout: str, one: Path, flags: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    ended = run_under(layout, **flags, output_dir=output)
    assert ended.code == 0, ended.all
    assert_near(one, output)
    losses, others = trace(one, "train/loss"), trace(output, "train/loss")
    assert losses.keys() == others.keys()
    for step, loss in losses.items():
        assert others[step] == pytest.approx(loss, abs=1e-6 if step <= 14 else 5e-3), step
    for name in ("eval_loss", "eval_accuracy"):  # the last one is of the model whose layer is removed
        assert trace(output, name) == pytest.approx(trace(one, name), abs=0.02)
    for step, blocks in ((7, 2), (14, 1), (21, 1)):
        folder = output / f"checkpoint-{step}"
        assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_hidden_layers == blocks
    quantizers, expected = (read_json(each / "quantization.json")["quantizers"].keys() for each in (output, one))
    assert quantizers == expected
    in_blocks = [name for name in quantizers if ".layer." in name]
    assert in_blocks and all(".layer.0." in name for name in in_blocks)  # the block that stays
    assert read_json(output / "sparsity.json")["prunable"] == read_json(one / "sparsity.json")["prunable"]

    # One process resumes what two trained, and the other way round, after the last step.
    resumed = unfinished(output, tmp_path / "by_one", 14)
    ended = run(**flags, gradient_accumulation_steps=2, output_dir=resumed)
    assert ended.code == 0 and "from step 14" in flat(ended.out), ended.all
    assert_near(one, resumed)
    resumed = unfinished(one, tmp_path / "by_two", 21)
    ended = run_under(layout, **flags, output_dir=resumed)
    assert ended.code == 0 and "from step 21" in flat(ended.out), ended.all
    assert_same_model(one, resumed)
