"""A Hub that misbehaves: models and datasets by the real clients, from one on loopback whose files come wrong.

Retrying and resuming is the clients' own business. What is tested is that a fault ends in a clear error, that nothing
of it is taken for a whole file later, and that a redirect or an interruption is no fault.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fork_server import ForkServer
from loopback import Fault
from places import ROOT
from script_fixtures import make_model, sentences, write_csv
from stand_in_hub import StandInHub

WEIGHTS, ROWS, TOKENS = "model.safetensors", "train.csv", "tokenizer.json"
ALWAYS = 300
# (file, fault): how often it happens, and what the error says; None where none is wanted.
FAULTS: dict[tuple[str, Fault], tuple[int, str | None]] = {
    (WEIGHTS, Fault.half): (ALWAYS, "peer closed connection"),
    (WEIGHTS, Fault.error): (ALWAYS, "HTTP Error 500"),
    (WEIGHTS, Fault.missing): (ALWAYS, "does not appear to have a file named"),
    (WEIGHTS, Fault.huge): (ALWAYS, "too large"),
    (WEIGHTS, Fault.elsewhere): (ALWAYS, None),
    (TOKENS, Fault.error): (ALWAYS, "HTTP Error 500"),
    (ROWS, Fault.half): (ALWAYS, "peer closed connection"),
    (ROWS, Fault.error): (ALWAYS, "HTTP Error 500"),
    (ROWS, Fault.huge): (ALWAYS, "too large"),
    (ROWS, Fault.elsewhere): (ALWAYS, None),
}
# Loads each repository named on the command line and prints, as JSON, what came or the error. The waits between the
# client's attempts are left out.
LOAD = """
import json, sys, time
time.sleep = lambda seconds: None
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.errors import UsageError
from sparse_accel.models.loading import load_model, load_tokenizer
from sparse_accel.tasks import TextClassification
from sparse_accel.data.sources import load_tables
for name in sys.argv[1:]:
    flags = {"do_predict": True, "output_dir": "out", "model_name_or_path": name}
    try:
        if "csv" in name:
            value = len(load_tables(TextClassificationArguments(**flags, dataset_name=name))["train"])
        else:
            arguments = TextClassificationArguments(**flags, task_name="sst2")
            model, _ = load_model(arguments, TextClassification)
            total = sum(parameter.detach().double().sum().item() for parameter in model.parameters())
            value = [len(load_tokenizer(arguments, TextClassification)), total]
        print(json.dumps({"value": value}))
    except UsageError as error:
        print(json.dumps({"error": str(error)}))
"""


def repository(file: str, fault: Fault) -> str:
    return f"{file.replace('.', '-')}/{fault.name}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    with StandInHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def server(hub: StandInHub, home: Path) -> Iterator[ForkServer]:
    with ForkServer(hub.environment(home)) as server:
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels: dict[str, Any] = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    return make_model(tmp_path_factory.mktemp("made") / "model", sparse=True, head=True, **labels)


def load(server: ForkServer, *names: str) -> list[dict[str, Any]]:
    done = server.run(LOAD, *names)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_faults_end_in_clear_errors_and_leave_nothing_wrong(
    hub: StandInHub, server: ForkServer, model: Path, tmp_path: Path
) -> None:
    rows = write_csv(tmp_path / ROWS, sentences(40, seed=1))
    for (file, fault), (times, _) in FAULTS.items():
        name = repository(file, fault)
        if file == ROWS:
            hub.add_dataset(name, {ROWS: rows})
        else:
            hub.add_model(name, model)
        hub.faults[f"{name}/{file}"] = [fault] * times
    names = [repository(*each) for each in FAULTS]
    first = load(server, *names)
    hub.faults.clear()
    second = load(server, *names)
    for name, (_, words), outcome in zip(names, FAULTS.values(), first, strict=True):
        if words is None:
            assert "value" in outcome, (name, outcome)
            continue
        assert words in outcome["error"] and name in outcome["error"], (name, outcome)
        assert "Tried, in order" in outcome["error"] and "Ways to fix this" in outcome["error"], (name, outcome)
    whole = {str(outcome["value"]) for outcome in second if isinstance(outcome["value"], list)}
    assert len(whole) == 1 and {outcome["value"] for outcome in second if isinstance(outcome["value"], int)} == {40}


def test_killed_in_the_middle_of_a_file(hub: StandInHub, server: ForkServer, model: Path) -> None:
    hub.add_model("who/silent", model)
    hub.faults[f"who/silent/{WEIGHTS}"] = [Fault.silence]
    stuck = server.start(LOAD, "who/silent")
    deadline = time.monotonic() + 300
    while hub.faults[f"who/silent/{WEIGHTS}"] and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(stuck, signal.SIGKILL)
    assert server.wait().returncode == -signal.SIGKILL
    (again,) = load(server, "who/silent")
    assert "value" in again, again


@pytest.mark.slow
def test_a_hub_that_stalls(hub: StandInHub, home: Path, model: Path, tmp_path: Path) -> None:
    """Each answer stops in the middle of a file, and no connection is closed: after some tries, an error says so."""
    rows = write_csv(tmp_path / ROWS, sentences(40, seed=1))
    hub.add_model("who/stalls", model)
    hub.add_dataset("who/stalls-csv", {ROWS: rows})
    for name in (f"who/stalls/{WEIGHTS}", f"who/stalls-csv/{ROWS}"):
        hub.faults[name] = [Fault.silence] * ALWAYS
    with ForkServer(hub.environment(home) | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}) as impatient:
        for outcome in load(impatient, "who/stalls", "who/stalls-csv"):
            assert "timed out" in outcome["error"] and "Ways to fix this" in outcome["error"], outcome
        hub.faults.clear()
        assert all("value" in outcome for outcome in load(impatient, "who/stalls", "who/stalls-csv"))


def test_prefetch_compares_digests(
    hub: StandInHub, server: ForkServer, home: Path, model: Path, tmp_path: Path
) -> None:
    """A byte that is another one is still a model: only the Hub's digest tells."""
    hub.add_model("who/flipped", model)
    rows = write_csv(tmp_path / "rows.csv", [{"sentence": row["text"]} for row in sentences(8, seed=1)])
    flags = ["--dataset_name", "who/rows", "--do_predict", "--output_dir", "out", "--model_name_or_path", "who/flipped"]
    hub.add_dataset("who/rows", {"test.csv": rows})
    hub.faults[f"who/flipped/{WEIGHTS}"] = [Fault.flipped]

    def prefetch() -> subprocess.CompletedProcess[str]:
        return server.run(ROOT / "scripts" / "prefetch.py", *flags, cwd=tmp_path)

    refused = prefetch()
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert f"who/flipped: these files differ from the Hub's: {WEIGHTS}. Delete " in refused.stderr
    assert "Traceback" not in refused.stderr
    shutil.rmtree(home / "hub" / "models--who--flipped")
    fetched = prefetch()
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    assert "who/flipped: 4 files match the Hub's digests" in fetched.stdout
    assert "who/rows: 1 files match the Hub's digests" in fetched.stdout
