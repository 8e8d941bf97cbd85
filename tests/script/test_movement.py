"""The shipped movement recipe through the script: pruned while it learns, resumed from the middle, refused at once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from script_fixtures import RECIPE, Tiny, assert_same_model, flat, make_model, read_json, run, weights

pytest_plugins = ["script_fixtures"]

MOVEMENT = RECIPE.with_name("movement_pruned90.yaml")
# 7 steps an epoch, 21 in all; masks tighten from step 2 to step 14.
SHORT = {
    "num_epochs": 3,
    "warmup_epoch": 0.5,
    "pruning_start_epoch": 0.25,
    "pruning_end_epoch": 2.0,
    "init_lr": 5e-3,
    "distill_hardness": 0.5,
}


@pytest.fixture(scope="module")
def flags(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    return tiny.flags(
        model_name_or_path=make_model(folder / "dense", sparse=False),
        distill_teacher=make_model(folder / "teacher", sparse=False, head=True),
        recipe=MOVEMENT,
        recipe_args=SHORT,
        save_strategy="steps",
        save_steps=4,
        logging_steps=4,
    )


@pytest.fixture(scope="module")
def whole(flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    done = run(**flags, output_dir=output)
    assert done.code == 0, done.all
    assert "pruning by movement from 0 to 0.9" in flat(done.out) and "straight-through" in flat(done.out)
    return output


def test_a_dense_model_ends_90_percent_sparse(whole: Path) -> None:
    results = read_json(whole / "all_results.json")
    assert results["encoder_sparsity"] == pytest.approx(0.9, abs=1e-3) and results["quantized_linears"] == 0
    encoder = {name: weight for name, weight in weights(whole).items() if ".layer." in name and weight.ndim == 2}
    assert len(encoder) == 12
    for name, weight in encoder.items():
        assert int((weight == 0).sum()) == round(0.9 * weight.numel()), name


@pytest.mark.parametrize("step", [4, 12, 16, 20])  # before the last update of the masks, and after it
def test_it_resumes_bit_for_bit(flags: dict[str, Any], whole: Path, tmp_path: Path, step: int) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole / f"checkpoint-{step}", output / f"checkpoint-{step}")
    record = (whole / "run.json").read_text().replace('"finished": true', '"finished": false')
    (output / "run.json").write_text(record)
    done = run(**flags, output_dir=output)
    assert done.code == 0 and f"from step {step}" in flat(done.out), done.all
    assert_same_model(whole, output)


def test_model_files_of_a_checkpoint_hold_zeros_and_its_state_the_stored_weights(whole: Path) -> None:
    from safetensors.torch import load_file

    folder = whole / "checkpoint-12"
    model, training = weights(folder), load_file(folder / "training_state.safetensors")
    masks = {
        key.rpartition(":")[2]: mask
        for key, mask in load_file(folder / "recipe_state.safetensors").items()
        if key.endswith(".weight") and ":score:" not in key and mask.ndim == 2
    }
    assert len(masks) == 12
    for name, mask in masks.items():
        pruned = ~mask.bool()
        assert (model[name][pruned] == 0).all() and (training[f"weight:{name}"][pruned] != 0).any(), name


def test_it_cannot_be_applied_without_training(flags: dict[str, Any], tmp_path: Path) -> None:
    done = run(
        one_shot=True, recipe=MOVEMENT, model_name_or_path=flags["model_name_or_path"], output_dir=tmp_path / "out"
    )
    assert done.code == 2, done.all
    assert "--one_shot: MovementPruningModifier works only in training: use --do_train" in flat(done.err)
