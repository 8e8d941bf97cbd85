"""Texts of the Hub, by the real loading code, from a Hub on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from places import ROOT
from stand_in_hub import Commit, StandInHub

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


OPEN = """
import json, sys
from sparse_accel.cli.masked_language_modeling import MaskedLanguageModelingArguments
from sparse_accel.errors import UsageError
from sparse_accel.tasks.masked_language_modeling.streaming import open_corpus
arguments = MaskedLanguageModelingArguments(
    model_name_or_path="model", output_dir="out", dataset_name=sys.argv[1], do_train=True, streaming=True,
    stream_shards=2, max_steps=1,
)
corpus = open_corpus(arguments)
try:
    if len(sys.argv) > 2:
        corpus.check(json.loads(sys.argv[2]))
    print(json.dumps(corpus.identity))
except UsageError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_a_stream_knows_the_files_of_the_hub(tmp_path: Path) -> None:
    """Not their commit: a new text beside them changes nothing. What was changed, added or deleted is named."""
    hub, files = StandInHub(tmp_path / "hub"), [f"data/train-0000{number}-of-00003.parquet" for number in range(3)]

    def commit(*paths: str, text: str = "one", name: str = "someone/corpus") -> None:
        Dataset.from_dict({"text": [text] * 3}).to_parquet(tmp_path / "rows.parquet")
        hub.add_dataset(name, {path: tmp_path / "rows.parquet" for path in paths})
        hub.commits.setdefault(name, []).append(Commit("more", paths, ()))

    def opened(*words: str, name: str = "someone/corpus") -> Any:
        command, variables = [sys.executable, "-c", OPEN, name, *words], hub.environment(tmp_path / "home")
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    with hub:
        commit(*files)
        commit(*files, name="someone/other")
        begun = opened()
        assert [each["name"] for each in begun["files"]] == files
        hub.add_dataset("someone/corpus", {"README.md": "A corpus.\n"})
        commit()
        asked = len(hub.requests)
        assert opened(json.dumps(begun)) == begun
        assert len([request for request in hub.requests[asked:] if ".parquet" in request]) <= 2  # not one for each file
        assert "someone/other" in opened(json.dumps(begun), name="someone/other")
        commit(files[1], text="two")
        said = opened(json.dumps(begun))
        assert f"someone/corpus: {files[1]} was changed since this run began" in said and "new run" in said
        commit(files[1])
        commit("data/train-00003-of-00003.parquet")
        assert "00003-of-00003.parquet was not among the files that this run began with" in opened(json.dumps(begun))
        (tmp_path / "hub" / "datasets" / "someone" / "corpus" / files[2]).unlink()
        commit()
        assert f"{files[2]} is missing" in opened(json.dumps(begun))
