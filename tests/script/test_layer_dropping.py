"""A run that drops a layer: its folder is an ordinary model with one layer fewer and the accuracy that is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from script_fixtures import Tiny, assert_same_model, flat, read_json, run, weights
from transformers import AutoModelForSequenceClassification

import sparse_accel

pytest_plugins = ["script_fixtures"]

# 7 steps an epoch. The first of two layers goes inside the second epoch.
RECIPE = """
modifiers:
  - !EpochRangeModifier {end_epoch: 3}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.01, final_lr: 0.001, end_epoch: 3}
  - !ConstantPruningModifier {}
  - !LayerPruningModifier {layers: [bert.encoder.layer.0], start_epoch: START}
  - !QuantizationModifier {start_epoch: 2}
"""


@pytest.fixture(scope="module")
def flags(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(RECIPE.replace("START", "1.3"))
    return tiny.flags(recipe=recipe, recipe_args=None)


def depths(folder: Path) -> dict[str, int]:
    return {path.parent.name: read_json(path)["num_hidden_layers"] for path in folder.glob("**/config.json")}


def assert_one_layer(folder: Path) -> None:
    assert read_json(folder / "config.json")["num_hidden_layers"] == 1
    names = {name.split(".")[3] for name in weights(folder) if ".layer." in name}
    assert names == {"0"}
    quantized = {
        name.split(".")[3] for name in read_json(folder / "quantization.json")["quantizers"] if "layer." in name
    }
    assert quantized == {"0"}
    read, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert read.config.num_hidden_layers == len(sparse_accel.load(folder).bert.encoder.layer) == 1  # type: ignore[union-attr, arg-type]


def test_a_dropped_layer_is_not_in_the_output(flags: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    done = run(**flags, output_dir=whole)
    assert done.code == 0, done.all
    assert "bert.encoder.layer.0 dropped from epoch 1.3: 1 of 2 stay" in flat(done.out)
    assert depths(whole) == {"whole": 1, "checkpoint-7": 2, "checkpoint-14": 1, "checkpoint-21": 1}
    assert_one_layer(whole)

    again = run(model_name_or_path=whole, validation_file=tiny.validation, do_eval=True, output_dir=tmp_path / "again")
    assert again.code == 0, again.all
    figures = [read_json(folder / "eval_results.json")["eval_accuracy"] for folder in (whole, tmp_path / "again")]
    assert figures[0] == figures[1] > 0.6

    # Resumed before the layer was dropped, after it, and after the last step.
    for step in (7, 14, 21):
        resumed = run(**flags, output_dir=tmp_path / str(step), resume_from_checkpoint=whole / f"checkpoint-{step}")
        assert resumed.code == 0, resumed.all
        assert_same_model(whole, tmp_path / str(step))


@pytest.mark.parametrize("start", ["-1", "1"])
def test_one_shot(start: str, tiny: Tiny, flags: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("START", start))
    folder = tmp_path / "out"
    start_from = run(**{**flags, "output_dir": tmp_path / "trained", "recipe": None, "num_train_epochs": 1})
    assert start_from.code == 0, start_from.all
    done = run(
        model_name_or_path=tmp_path / "trained",
        recipe=recipe,
        one_shot=True,
        do_eval=True,
        train_file=tiny.train,
        validation_file=tiny.validation,
        output_dir=folder,
    )
    assert done.code == 0, done.all
    assert_one_layer(folder)


def test_a_wrong_name_is_one_screen(flags: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("START", "1").replace("bert.encoder.layer.0", "bert.encoder.layer.2"))
    done = run(**{**flags, "recipe": recipe}, output_dir=tmp_path / "out")
    assert done.code == 2 and len(done.err.splitlines()) < 25
    assert "'bert.encoder.layer.2' is not a layer that can be dropped" in flat(done.err)
    assert "bert.encoder.layer.0 to bert.encoder.layer.1" in flat(done.err)
