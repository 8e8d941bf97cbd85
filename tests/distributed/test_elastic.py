"""accelerate_configs/elastic.sh: real torchrun, two processes; stopped, killed, left alone, and told of an error."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from layouts import SHORT, difference, make_flags, recipe_flags
from places import ROOT
from script_fixtures import assert_same_model, environment, run, words

pytestmark = pytest.mark.slow
Start = Callable[..., subprocess.Popen[bytes]]
LIMIT = 480  # seconds, for a machine that has other work too


def flags_of(folder: Path, epochs: int) -> dict[str, Any]:
    found = {**make_flags(folder), "save_strategy": "steps", "save_steps": 2, "output_dir": folder / "run"}
    found |= recipe_flags(folder, "tutorial") | {"recipe_args": {**SHORT, "num_epochs": epochs}}
    del found["per_device_train_batch_size"]  # GLOBAL_BATCH
    return found


@pytest.fixture
def started() -> Iterator[Start]:
    """Starts elastic.sh outside of the clone, as where a wheel is installed; its output is added to a file."""
    running: list[subprocess.Popen[bytes]] = []

    def start(log: Path, flags: dict[str, Any], **variables: str) -> subprocess.Popen[bytes]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = environment(**{"ACCELERATE_USE_CPU": "true", "GLOBAL_BATCH": "32", "PATH": path} | variables)
        command = ["bash", str(ROOT / "accelerate_configs" / "elastic.sh"), *words(**flags)]
        with open(log, "ab") as out:
            running.append(
                subprocess.Popen(
                    command, cwd=log.parent, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
            )
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:  # the test has failed; processes whose launcher is gone end by themselves
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None and time.monotonic() < limit, log.read_text()
        time.sleep(0.1)


def of_rank(rank: int, launcher: int) -> int:
    """The id of a training process below `launcher`, by its rank."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = environ.read_text().split("\0")
            parents = [int((environ.parent / "stat").read_text().rpartition(")")[2].split()[1])]
            while parents[-1] > 1 and parents[-1] != launcher:
                parents.append(int(Path(f"/proc/{parents[-1]}/stat").read_text().rpartition(")")[2].split()[1]))
        except OSError:  # another user's, or it has ended
            continue
        if f"RANK={rank}" in variables and parents[-1] == launcher:
            return int(environ.parent.name)
    raise AssertionError(f"no process of rank {rank} below {launcher}")


def test_stopped_then_killed_it_ends_as_a_run_that_was_never_stopped(started: Start, tmp_path: Path) -> None:
    flags, log = flags_of(tmp_path, epochs=8), tmp_path / "log"
    stopped = started(log, flags, PROCESSES="2")
    until((tmp_path / "run" / "checkpoint-2").is_dir, stopped, log)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=LIMIT) == 75, log.read_text()
    assert "stopped by SIGTERM" in log.read_text()

    resumed = started(log, flags, PROCESSES="2")
    until(lambda: "resuming from step" in log.read_text(), resumed, log)
    os.kill(of_rank(1, resumed.pid), signal.SIGKILL)
    assert resumed.wait(timeout=LIMIT) == 0, log.read_text()
    text = log.read_text()
    assert text.count("resuming from step") == 2 and text.count("── results") == 1, text

    batch = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}
    whole = run(**{**flags, **batch, "output_dir": tmp_path / "whole"})
    assert whole.code == 0, whole.all
    assert_same_model(tmp_path / "whole", tmp_path / "run")


def test_a_machine_that_leaves_and_the_rest_goes_on_with_the_same_batch(started: Start, tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    flags = flags_of(tmp_path, epochs=8)
    place = {"NODES": "1:2", "PROCESSES": "1", "MAIN_ADDRESS": "localhost", "MAIN_PORT": port, "ADDRESS": "localhost"}
    logs = [tmp_path / f"log{number}" for number in (0, 1)]
    first, second = (started(log, flags, MACHINE=str(number), **place) for number, log in enumerate(logs))
    until((tmp_path / "run" / "checkpoint-2").is_dir, first, logs[0])
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=LIMIT) == 75, logs[1].read_text()
    assert first.wait(timeout=LIMIT) == 0, logs[0].read_text()
    text = "".join(log.read_text() for log in logs)
    assert text.count("(DDP, 2 processes)") == 1 and text.count("── results") == 1, text
    assert "resuming from step" in text

    whole = run(**{**flags, "per_device_train_batch_size": 32, "output_dir": tmp_path / "whole"})
    assert whole.code == 0, whole.all
    gap = difference(tmp_path / "whole", tmp_path / "run", float_steps=7)
    assert gap.loss_before < 1e-5 and gap.loss < 1e-2 and gap.rate == 0 and gap.under_masks == 0, gap


def test_an_error_to_fix_is_told_once_and_ends_it(started: Start, tmp_path: Path) -> None:
    flags, log = flags_of(tmp_path, epochs=8), tmp_path / "log"
    assert started(log, flags | {"train_file": tmp_path / "none.csv"}, PROCESSES="2").wait(timeout=LIMIT) == 2
    text = log.read_text()
    assert text.count("none.csv") == 1 and "error: " in text, text
    assert started(log, flags, PROCESSES="2", GLOBAL_BATCH="31").wait(timeout=LIMIT) == 2
    assert log.read_text().count("GLOBAL_BATCH=31 cannot be split over 2 processes") == 1
