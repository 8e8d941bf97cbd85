"""Texts of the Hub, by the real loading code, from a Hub on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from datasets import Dataset
from places import ROOT
from stand_in_hub import StandInHub

LOAD = """
import json
from sparse_accel.cli.masked_language_modeling import MaskedLanguageModelingArguments
from sparse_accel.tasks import MaskedLanguageModeling
found = []
for column in (None, "url"):
    arguments = MaskedLanguageModelingArguments(
        model_name_or_path="model", output_dir="out", dataset_name="someone/corpus", do_train=True, do_eval=True,
        text_column_name=column,
    )
    task = MaskedLanguageModeling.load(arguments, None)
    splits = {split: list(rows["text"]) for split, rows in task.data.splits.items()}
    found.append({"columns": task.describe_columns(), "splits": splits, "source": task.data.sources["train"]})
print(json.dumps(found))
"""


def test_texts_of_a_hub_dataset(tmp_path: Path) -> None:
    """As wikitext has them: a text in each row, many of them empty; or in a column that is named."""
    rows = {"url": ["www.a", "www.b", "www.c"], "text": [" = One = \n", "", " two , three \n"]}
    file = tmp_path / "rows.parquet"
    Dataset.from_dict(rows).to_parquet(file)
    hub = StandInHub(tmp_path / "hub")
    files = {f"data/{split}-00000-of-00001.parquet": file for split in ("train", "validation", "test")}
    hub.add_dataset("someone/corpus", files)
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
    expected = (("text", [" = One = \n", " two , three \n"]), ("url", rows["url"]))
    for found, (column, texts) in zip(json.loads(done.stdout.splitlines()[-1]), expected, strict=True):
        assert found["columns"] == column and found["source"] == "someone/corpus, split 'train'"
        assert found["splits"] == {"train": texts, "validation": texts}
