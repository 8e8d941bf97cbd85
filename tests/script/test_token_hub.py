"""Sentences of the Hub, by the real loading code, from a Hub on loopback: CoNLL-2003 by its old name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value
from places import ROOT
from stand_in_hub import StandInHub

NAMES = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG"]
LOAD = """
import json
from sparse_accel.cli.token_classification import TokenClassificationArguments
from sparse_accel.tasks.token_classification.data import load_token_classification
arguments = TokenClassificationArguments(
    model_name_or_path="model", output_dir="out", dataset_name="conll2003", do_train=True, do_eval=True, do_predict=True
)
data = load_token_classification(arguments, None)
found = {name: getattr(data, name) for name in ("label_names", "scheme", "token_column", "tag_column")}
print(json.dumps(found | {"splits": {split: rows[:] for split, rows in data.splits.items()}}))
"""


def test_declared_tags_of_a_hub_dataset(tmp_path: Path) -> None:
    rows: dict[str, Any] = {
        "id": ["0", "1"],
        "tokens": [["EU", "rejects", "German", "call"], ["Peter", "Blackburn"]],
        "pos_tags": [[0, 1, 0, 1], [0, 0]],
        "ner_tags": [[3, 0, 0, 0], [1, 2]],
    }
    tags = {"pos_tags": List(ClassLabel(names=["NN", "VB"])), "ner_tags": List(ClassLabel(names=NAMES))}
    features = Features({"id": Value("string"), "tokens": List(Value("string")), **tags})
    file = tmp_path / "rows.parquet"
    Dataset.from_dict(rows, features=features).to_parquet(file)
    hub = StandInHub(tmp_path / "hub")
    splits = ("train", "validation", "test")
    hub.add_dataset("lhoestq/conll2003", {f"data/{split}-00000-of-00001.parquet": file for split in splits})
    with hub:
        done = subprocess.run(
            [sys.executable, "-c", LOAD],
            cwd=ROOT,
            env=hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Tags that are declared are outputs, in their order, whether they occur or not.
    assert (found["label_names"], found["scheme"]) == (NAMES, "IOB2")
    assert (found["token_column"], found["tag_column"]) == ("tokens", "ner_tags")
    assert found["splits"]["train"]["tags"] == [["B-ORG", "O", "O", "O"], ["B-PER", "I-PER"]]
    assert found["splits"]["train"] == found["splits"]["validation"]
    assert found["splits"]["test"] == {"tokens": rows["tokens"], "sentence": [0, 1]}
