"""Questions of the Hub, by the real loading code, from a Hub on loopback: SQuAD by its old names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from places import ROOT
from question_fixtures import Question, questions
from stand_in_hub import StandInHub

LOAD = """
import json, sys
from sparse_accel.cli.question_answering import QuestionAnsweringArguments
from sparse_accel.tasks.question_answering.data import load_question_answering
found = {}
for name in ("squad", "squad_v2"):
    arguments = QuestionAnsweringArguments(
        model_name_or_path="model", output_dir="out", dataset_name=name, do_train=True, do_eval=True,
        version_2_with_negative=name == "squad_v2",
    )
    data = load_question_answering(arguments, None)
    found[name] = {"sources": data.sources, "splits": {split: rows[:] for split, rows in data.splits.items()}}
print(json.dumps(found))
"""


def parquet(file: Path, rows: list[Question]) -> Path:
    answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
    texts = {name: Value("string") for name in ("id", "title", "context", "question")}
    Dataset.from_list([row.flat() for row in rows], features=Features(texts | {"answers": answers})).to_parquet(file)
    return file


def test_squad_by_its_old_names(tmp_path: Path) -> None:
    """Both are read from rajpurkar/..., with the configuration's folder; answers are in their places."""
    rows = {"squad": questions(6, seed=1), "squad_v2": questions(6, seed=2, impossible=0.5)}
    assert 0 < sum(not row.answers for row in rows["squad_v2"]) < 6
    hub = StandInHub(tmp_path / "hub")
    for name, folder in (("squad", "plain_text"), ("squad_v2", "squad_v2")):
        file = parquet(tmp_path / f"{name}.parquet", rows[name])
        splits = ("train", "validation")
        hub.add_dataset(f"rajpurkar/{name}", {f"{folder}/{split}-00000-of-00001.parquet": file for split in splits})
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
    assert "--dataset_name squad is now rajpurkar/squad on the Hub" in done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for name, expected in rows.items():
        splits = found[name]["splits"]
        assert splits["train"] == splits["validation"]
        assert splits["train"] == {
            "id": [row.id for row in expected],
            "question": [row.question for row in expected],
            "context": [row.context for row in expected],
            "answer_texts": [[text for text, _ in row.answers] for row in expected],
            "answer_starts": [[start for _, start in row.answers] for row in expected],
            "question_row": [*range(6)],
        }
