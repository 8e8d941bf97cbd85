"""The tutorial's GLUE command, with names of the Hub, in a process that meets a Hub on loopback."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from places import ROOT
from script_fixtures import RECIPE, SCRIPT, Tiny, flat, make_model, read_json, sentences, words
from stand_in_hub import StandInHub

pytest_plugins = ["script_fixtures"]

# Two labels are enough here; MNLI is the task with two sentences, and with two sets to evaluate and two to predict on.
NAMES = ["entailment", "contradiction"]
SPLITS = ["train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"]


def mnli(folder: Path) -> dict[str, Any]:
    """Files of a dataset repository like GLUE's: test rows have the label -1, as unpublished ones have."""
    features = Features(premise=Value("string"), hypothesis=Value("string"), label=ClassLabel(names=NAMES))
    card = ["---", "configs:", "- config_name: mnli", "  data_files:"]
    files: dict[str, Any] = {}
    for number, split in enumerate(SPLITS):
        rows = sentences(64 if split == "train" else 20, seed=number)
        columns = {"premise": [row["text"] for row in rows], "hypothesis": ["it is good"] * len(rows)}
        labels = [-1 if split.startswith("test") else row["label"] for row in rows]
        path = folder / f"{split}.parquet"
        Dataset.from_dict({**columns, "label": labels}, features=features).to_parquet(path)
        files[f"mnli/{split}-00000-of-00001.parquet"] = path
        card += [f"  - split: {split}", f"    path: mnli/{split}-*"]
    return {**files, "README.md": "\n".join([*card, "---", ""])}


@pytest.mark.slow
def test_a_glue_task_and_models_of_the_hub(tiny: Tiny, tmp_path: Path) -> None:
    hub = StandInHub(tmp_path / "hub")
    (tmp_path / "made").mkdir()
    hub.add_dataset("nyu-mll/glue", mnli(tmp_path / "made"))
    hub.add_model("someone/pruned90", tiny.model)
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(NAMES)),
        "label2id": {name: number for number, name in enumerate(NAMES)},
    }
    hub.add_model("someone/teacher", make_model(tmp_path / "teacher", sparse=False, head=True, **labels))
    flags = words(
        task_name="mnli",
        model_name_or_path="someone/pruned90",
        recipe=RECIPE,
        recipe_args={"num_epochs": 2, "qat_start_epoch": 1.0, "observer_epoch": 2.0},
        distill_teacher="someone/teacher",
        output_dir="out",
        per_device_train_batch_size=32,
        do_train=True,
        do_eval=True,
        do_predict=True,
        eval_strategy="epoch",
    )
    with hub:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *flags],
            cwd=tmp_path,
            env=hub.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "64 train, 20 validation, 20 validation_mismatched" in flat(done.stdout)
    assert {"eval_accuracy", "eval_accuracy_mm", "eval_loss", "eval_loss_mm"} <= read_json(
        tmp_path / "out" / "all_results.json"
    ).keys()
    assert read_json(tmp_path / "out" / "config.json")["label2id"] == labels["label2id"]
    for split in ("test", "test_mismatched"):
        with open(tmp_path / "out" / f"{split}_predictions.csv", newline="") as stream:
            predictions = list(csv.DictReader(stream))
        assert len(predictions) == 20 and {row["label"] for row in predictions} <= set(NAMES)
