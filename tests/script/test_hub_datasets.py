"""Datasets of the Hub, by the real loading code, from a Hub on loopback; and what is said when there is none."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from fork_server import ForkServer
from places import ROOT
from script_fixtures import RECIPE, make_model, read_json
from stand_in_hub import StandInHub

from sparse_accel.hub import DATASETS, MODELS
from sparse_accel.tasks.text_classification.glue import GLUE

ROTTEN_TOMATOES = "cornell-movie-review-data/rotten_tomatoes"

# Arguments of each load as JSON -> what was loaded, or the refusal, as JSON. The environment must stand before imports.
LOAD = """
import json, sys
from dataclasses import asdict
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.errors import UsageError
from sparse_accel.tasks.text_classification.data import load_text_classification
for flags in json.loads(sys.argv[1]):
    try:
        arguments = TextClassificationArguments(model_name_or_path="model", output_dir="out", **flags)
        data = load_text_classification(arguments)
    except UsageError as error:
        print(json.dumps({"error": str(error)}))
    else:
        loaded = {name: getattr(data, name) for name in ("text_columns", "label_names", "problem_type", "metrics")}
        loaded["origins"] = {split: asdict(origin) for split, origin in data.origins.items()}
        print(json.dumps(loaded | {"splits": {split: rows[:] for split, rows in data.splits.items()}}))
"""


def parquet(folder: Path, name: str, columns: dict[str, list[Any]], names: list[str] | None) -> Path:
    features = {column: Value("string") for column in columns} | {"idx": Value("int32")}
    features["label"] = ClassLabel(names=names) if names else Value("float32")
    rows = columns | {"idx": list(range(len(columns["label"])))}
    file = folder / f"{name}.parquet"
    Dataset.from_dict(rows, features=Features(features)).to_parquet(file)
    return file


def card(configs: dict[str, list[str]]) -> str:
    """The README of a dataset with several configurations."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [f"  - split: {split}\n    path: {config}/{split}-*" for split in splits]
    return "\n".join([*lines, "---", ""])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    made = tmp_path_factory.mktemp("made")
    hub = StandInHub(tmp_path_factory.mktemp("hub"))
    reviews = parquet(made, "reviews", {"text": ["good", "bad"], "label": [1, 0]}, ["neg", "pos"])
    splits = ("train", "validation", "test")
    hub.add_dataset(ROTTEN_TOMATOES, {f"data/{split}-00000-of-00001.parquet": reviews for split in splits})
    hub.add_dataset("stanfordnlp/imdb", {f"data/{split}-00000-of-00001.parquet": reviews for split in splits[::2]})

    sst2: dict[str, Any] = {"sentence": ["good", "bad"], "label": [1, 0]}
    mnli: dict[str, Any] = {"premise": ["p", "q"], "hypothesis": ["h", "i"], "label": [2, 0]}
    stsb: dict[str, Any] = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [2.0, 4.5]}
    unpublished: dict[str, Any] = {"label": [-1, -1]}
    files: dict[str, Path] = {}
    layout: dict[str, tuple[dict[str, Any], list[str] | None, list[str]]] = {
        "sst2": (sst2, ["negative", "positive"], list(splits)),
        "stsb": (stsb, None, list(splits)),
        "mnli": (mnli, ["entailment", "neutral", "contradiction"], [
            "train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"]),
    }  # fmt: skip
    for task in GLUE.keys() - layout.keys():  # the other six have two classes, and three splits
        pair: dict[str, Any] = {column: [f"{column} 1", f"{column} 2"] for column in GLUE[task].text_columns}
        layout[task] = (pair | {"label": [1, 0]}, ["no", "yes"], list(splits))
    for config, (columns, names, own_splits) in layout.items():
        for split in own_splits:
            rows = columns | unpublished if split.startswith("test") else columns
            file = parquet(made, f"{config}-{split}", rows, names)
            files[f"{config}/{split}-00000-of-00001.parquet"] = file
    readme = card({config: own_splits for config, (_, _, own_splits) in layout.items()})
    hub.add_dataset("nyu-mll/glue", {"README.md": readme, **files})
    hub.add_dataset("someone/with_code", {"with_code.py": "raise SystemExit('this must never run')"})
    with hub:
        yield hub


@pytest.fixture(scope="module")
def server(hub: StandInHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(hub.environment(tmp_path_factory.mktemp("home"))) as server:
        yield server


def load(server: ForkServer, *runs: dict[str, Any]) -> list[dict[str, Any]]:
    return loaded(server.run(LOAD, json.dumps(runs)))


def load_in_a_process(hub: StandInHub, home: Path, *runs: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
    """In a process of its own, with this cache and environment."""
    command = [sys.executable, "-c", LOAD, json.dumps(runs)]
    environment = hub.environment(home) | environment
    return loaded(subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT))


def loaded(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


TRAIN = {"do_train": True, "do_eval": True}


def test_datasets_of_the_hub(server: ForkServer) -> None:
    short, full, on_test, held_out = load(
        server,
        TRAIN | {"dataset_name": "rotten_tomatoes", "input_column_names": ("text",), "label_column_name": "label"},
        TRAIN | {"dataset_name": ROTTEN_TOMATOES},
        TRAIN | {"dataset_name": "imdb", "eval_on_test": True},
        TRAIN | {"dataset_name": "imdb"},
    )
    rows = {"text": ["good", "bad"], "label": ["pos", "neg"]}
    assert short == full
    assert full["splits"] == {"train": rows, "validation": rows}
    assert (full["text_columns"], full["label_names"], full["metrics"]) == (["text"], ["neg", "pos"], "default")
    assert on_test["splits"]["validation"] == rows
    origin = {"name": "stanfordnlp/imdb, split 'test'", "rows": 2, "dataset": "stanfordnlp/imdb", "config": None}
    assert on_test["origins"]["validation"] == origin | {"split": "test"}, "what the rows are, not what they are for"
    assert full["origins"]["validation"]["split"] == "validation" and full["origins"]["train"]["split"] == "train"
    assert held_out["error"] == (
        "stanfordnlp/imdb has no validation rows; --do_eval needs them: add --validation_ratio 0.1 to hold out 10% of "
        "the training rows, or --eval_on_test."
    )


def test_glue(server: ForkServer) -> None:
    everything = TRAIN | {"do_predict": True}
    sst2, mnli, stsb, on_test, by_name, mnli_by_name = load(
        server,
        everything | {"task_name": "sst2"},
        everything | {"task_name": "mnli"},
        everything | {"task_name": "stsb"},
        {"task_name": "sst2", "do_eval": True, "eval_on_test": True},
        TRAIN | {"dataset_name": "glue", "dataset_config_name": "sst2"},
        everything | {"dataset_name": "nyu-mll/glue", "dataset_config_name": "mnli"},
    )
    rows = {"sentence": ["good", "bad"], "label": ["positive", "negative"]}
    assert sst2["splits"] == {"train": rows, "validation": rows, "test": {"sentence": ["good", "bad"]}}
    assert (sst2["label_names"], sst2["metrics"]) == (["negative", "positive"], "sst2")
    pairs = {"premise": ["p", "q"], "hypothesis": ["h", "i"]}
    labelled, unlabelled = pairs | {"label": ["contradiction", "entailment"]}, pairs
    assert list(mnli["splits"]) == ["train", "validation", "validation_mismatched", "test", "test_mismatched"]
    assert [mnli["origins"]["validation"][key] for key in ("dataset", "config", "split")] == [
        "nyu-mll/glue",
        "mnli",
        "validation_matched",
    ]
    assert mnli["splits"]["validation_mismatched"] == labelled and mnli["splits"]["test_mismatched"] == unlabelled
    assert mnli["label_names"] == ["entailment", "neutral", "contradiction"]
    assert (stsb["problem_type"], stsb["label_names"]) == ("regression", ["score"])
    assert stsb["splits"]["train"]["label"] == [2.0, 4.5] and "label" not in stsb["splits"]["test"]
    assert "has no labels (column 'label'), so it can be predicted but not evaluated." in on_test["error"]
    assert by_name["splits"]["train"] == rows and by_name["metrics"] == "sst2"
    assert mnli_by_name == mnli


def test_all_nine_glue_tasks(server: ForkServer) -> None:
    everything = TRAIN | {"do_predict": True}
    loaded = load(server, *[everything | {"task_name": task} for task in GLUE])
    for (task, about), data in zip(GLUE.items(), loaded, strict=True):
        assert "error" not in data, data["error"]
        assert data["metrics"] == task and tuple(data["text_columns"]) == about.text_columns
        assert list(data["splits"]) == [ours for ours, _ in about.splits]
        assert len(data["splits"]["train"]["label"]) == 2 and "label" not in data["splits"]["test"]


def test_what_the_hub_does_not_have(hub: StandInHub, server: ForkServer) -> None:
    unknown, short, config, code = load(
        server,
        TRAIN | {"dataset_name": "nobody/nothing"},
        TRAIN | {"dataset_name": "rotten_tomatos"},
        TRAIN | {"dataset_name": "glue", "dataset_config_name": "sst3"},
        TRAIN | {"dataset_name": "someone/with_code"},
    )
    assert unknown["error"].startswith("--dataset_name nobody/nothing: the dataset was not found. Tried, in order:")
    assert "if it is private or gated, log in with" in unknown["error"] and hub.url in unknown["error"]
    assert "a full Hub id" in short["error"] and "Did you mean 'rotten_tomatoes'?" in short["error"]
    assert "sst2" in config["error"] and "--dataset_config_name" in config["error"]
    assert "someone/with_code" in code["error"] and "code" in code["error"]


@pytest.mark.slow
def test_unreachable_hub(hub: StandInHub, tmp_path: Path) -> None:
    """Offline, in another process: what was loaded before is there, and nothing else."""
    sst2 = TRAIN | {"task_name": "sst2"}
    first, _ = load_in_a_process(hub, tmp_path, TRAIN | {"dataset_name": "rotten_tomatoes"}, sst2)
    cached, missing, other_task = load_in_a_process(
        hub,
        tmp_path,
        TRAIN | {"dataset_name": "rotten_tomatoes"},
        TRAIN | {"dataset_name": "imdb"},
        TRAIN | {"task_name": "cola"},
        HF_HUB_OFFLINE="1",
    )
    assert cached == first
    lines = missing["error"].splitlines()
    assert lines[0] == "--dataset_name imdb: the dataset was not found. Tried, in order:"
    assert [line.split()[1] for line in lines[1:4]] == ["local", "cache", "Hub"]
    assert "does not contain all files of stanfordnlp/imdb" in lines[2] and "HF_HUB_OFFLINE is set" in lines[3]
    assert "HF_ENDPOINT=" in lines[4]
    assert other_task["error"].startswith("--task_name cola: the dataset was not found. Tried, in order:")


def test_a_file_that_is_none(hub: StandInHub, server: ForkServer) -> None:
    hub.add_dataset("someone/broken", {"train.parquet": b"no parquet", "validation.parquet": b"no parquet"})
    (broken,) = load(server, TRAIN | {"dataset_name": "someone/broken"})
    assert broken["error"].startswith("--dataset_name someone/broken: someone/broken cannot be read: "), broken


def test_a_mirror_behind_a_proxy(hub: StandInHub, tmp_path: Path) -> None:
    """HF_ENDPOINT names a host that does not exist: only the proxy answers."""
    proxy = {"HTTP_PROXY": hub.url, "http_proxy": hub.url, "NO_PROXY": "", "no_proxy": ""}
    (loaded,) = load_in_a_process(
        hub, tmp_path, TRAIN | {"dataset_name": "rotten_tomatoes"}, HF_ENDPOINT="http://hub.invalid", **proxy
    )
    assert loaded["splits"]["train"]["text"] == ["good", "bad"]


def test_moves_are_full_ids() -> None:
    for short, full in (DATASETS | MODELS).items():
        assert "/" not in short and full.count("/") == 1


# --- end to end -------------------------------------------------------------------------------------------------------

# Runs the training script once for each list of words, in one process, where the Hub's address stands before imports.
RUN = """
import json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv = ["text_classification.py", *words]
    try:
        runpy.run_path("scripts/text_classification.py", run_name="__main__")
    except SystemExit as end:
        assert not end.code, (words, end.code)
"""
OFFICIAL = {
    "cola": ["matthews_correlation"],
    "mnli": ["accuracy", "accuracy_mm"],
    "mrpc": ["accuracy", "f1", "combined_score"],
    "qnli": ["accuracy"],
    "qqp": ["accuracy", "f1", "combined_score"],
    "rte": ["accuracy"],
    "sst2": ["accuracy"],
    "stsb": ["pearson", "spearmanr", "combined_score"],
    "wnli": ["accuracy"],
}


@pytest.mark.slow
def test_all_nine_glue_tasks_end_to_end(hub: StandInHub, tmp_path: Path) -> None:
    """Trained, evaluated and predicted from the Hub, the model from there too."""
    words = ["good", "bad", "p", "q", "h", "i", "a", "b", "c", "d", "question", "sentence", "1", "2"]
    hub.add_model("someone/tiny", make_model(tmp_path / "tiny", sparse=True, vocabulary=words))
    short = "num_epochs=3,qat_start_epoch=1.0,observer_epoch=2.0"
    same = ["--model_name_or_path", "someone/tiny", "--distill_teacher", "self", "--recipe", str(RECIPE)]
    same += ["--recipe_args", short, "--do_train", "--do_eval", "--do_predict"]
    runs = [["--task_name", task, "--output_dir", str(tmp_path / task), *same] for task in OFFICIAL]
    environment = hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(runs)], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for task, names in OFFICIAL.items():
        results = read_json(tmp_path / task / "eval_results.json")
        assert all(math.isfinite(results[f"eval_{name}"]) for name in names), (task, results)
        model = read_json(tmp_path / task / "config.json")
        labels = {"stsb": ["score"], "mnli": ["entailment", "neutral", "contradiction"]}.get(task)
        labels = labels or (["negative", "positive"] if task == "sst2" else ["no", "yes"])
        assert [model["id2label"][str(number)] for number in range(len(labels))] == labels
        for name in ["test", "test_mismatched"] if task == "mnli" else ["test"]:
            with open(tmp_path / task / f"{name}_predictions.csv", newline="") as stream:
                rows = list(csv.DictReader(stream))
            assert len(rows) == 2, (task, rows)
            if task != "stsb":
                assert list(rows[0]) == ["row", "label", *(f"probability_{label}" for label in labels)]
                assert all(row["label"] in labels for row in rows)
