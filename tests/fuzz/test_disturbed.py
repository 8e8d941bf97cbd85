"""Runs that are disturbed at random, several times each, end as if nothing had happened: `make faults`.

A run is started with one command, again and again: first with disturbances (killed at a change of its folder, killed
anywhere, SIGTERM, a full disk, a disk that can only be read), then without. Its files are those of a run that nobody
disturbed, byte by byte where that is promised; no half-written file is left; each end has the exit code that says what
to do. FAULTED_RUNS in the environment is the number of runs of each row, FAULTED_SEED draws others.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import script_fixtures
from fork_server import ForkServer
from layouts import LAYOUTS, launcher
from places import ROOT, SUPPORT
from script_fixtures import environment, history, read_json, words
from task_scripts import TASK_FIXTURES, TASK_SCRIPTS

from sparse_accel.run_folder.checkpoints import checkpoints_in, verify

pytest_plugins = TASK_FIXTURES
pytestmark = pytest.mark.slow

RUNS = int(os.environ.get("FAULTED_RUNS", "1"))
SEED = int(os.environ.get("FAULTED_SEED", "1"))
KINDS = ("kill", "kill", "alarm", "alarm", "term", "full", "short", "read_only")
# Files that are the same byte by byte; of the others, times and paths differ.
SAME = ("model.safetensors", "quantization.json", "config.json", "tokenizer.json", "recipe.yaml")
SAME_IN_CHECKPOINTS = (*SAME[:-1], "training_state.safetensors", "recipe_state.safetensors")
# Of all_results.json: seconds, and what follows from them.
TIMES = re.compile(r"runtime|per_second|memory|seconds")
ENDS = {
    "kill": {-signal.SIGKILL, 0},  # what is left of a run may have fewer changes, or be done by then
    "alarm": {-signal.SIGALRM, 0},
    "term": {75, 0},  # in the last step, or behind it
    "full": {2, 0},
    "short": {2, 0},
    "read_only": {2, 0},
}


def draw_of(task: str, number: int, changes: int, hundredths: int) -> list[dict[str, Any]]:
    """Returns one to three disturbances of a run."""
    draw = random.Random(f"{SEED} {task} {number}")
    found = []
    for _ in range(draw.randint(1, 3)):
        kind = draw.choice(KINDS)
        most = {"alarm": hundredths, "short": 200}.get(kind, changes)
        found.append({"kind": kind, "at": draw.randint(1, most)})
    return found


def check_same(whole: Path, output: Path) -> None:
    """Raises AssertionError unless a run left what the other one did."""
    for name in SAME:
        assert (whole / name).exists() == (output / name).exists(), name
        if (whole / name).exists():
            assert (whole / name).read_bytes() == (output / name).read_bytes(), name
    results, expected = read_json(output / "all_results.json"), read_json(whole / "all_results.json")
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        assert TIMES.search(name) or results[name] == value, name
    logged = [[entry["step"] for entry in history(folder)] for folder in (output, whole)]
    assert logged[0] == logged[1]
    left = [path.name for path in output.rglob("*") if path.name.startswith(".") or ".partial" in path.name]
    assert left == []
    mine, others = ({path.name for path in checkpoints_in(folder)} for folder in (output, whole))
    assert others <= mine, "a signal may add one, at the step at which it came"
    for checkpoint in checkpoints_in(output):
        assert verify(checkpoint) == ""
        for name in SAME_IN_CHECKPOINTS:
            if (whole / checkpoint.name / name).exists():
                assert (whole / checkpoint.name / name).read_bytes() == (checkpoint / name).read_bytes(), name
    assert read_json(output / "run.json")["finished"] is True


def check_end(ended: Any, spec: dict[str, Any]) -> None:
    """Raises AssertionError unless a disturbed run ended as it should, with words for people."""
    shown = f"{spec}\nexit code {ended.returncode}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    assert ended.returncode in ENDS[spec["kind"]], shown
    assert "Traceback" not in ended.stderr, shown
    if ended.returncode == 2:
        assert re.search(r"error: .*(space|[Rr]ead-only|too large)", " ".join(ended.stderr.split())), shown
    if ended.returncode == 75:
        assert "run the same command again" in " ".join(ended.stderr.split()), shown


@pytest.mark.parametrize("task", TASK_SCRIPTS)
def test_one_process(task: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    rows: Any = request.getfixturevalue(task)
    more: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "eval_strategy": "epoch"}
    flags = rows.flags(**more, cache_dir=tmp_path / "cache")

    with ForkServer(environment(HF_HOME=str(tmp_path / "hf"), SPARSE_ACCEL_CACHE=str(tmp_path / "own"))) as server:

        def run(output: Path, **spec: Any) -> subprocess.CompletedProcess[str]:
            spec["folder"] = str(output)
            asked = words(**flags, output_dir=output)
            return server.run(SUPPORT / "disturbed.py", json.dumps(spec), str(TASK_SCRIPTS[task]), *asked)

        whole, counted = tmp_path / "whole", tmp_path / "changes"
        done = run(whole, kind="count", at=0, changes=str(counted))
        assert done.returncode == 0, done.stderr
        again = tmp_path / "again"
        assert run(again, kind="count", at=0).returncode == 0
        check_same(whole, again)  # or it could not be promised
        changes = int(counted.read_text())
        for number in range(RUNS):
            output = tmp_path / f"run-{number}"
            specs = draw_of(task, number, changes, 400)
            for spec in specs:
                check_end(run(output, **spec), spec)
            done = run(output, kind="", at=0)
            assert done.returncode == 0, f"{specs}\n{done.stdout}\n{done.stderr}"
            try:
                check_same(whole, output)
            except AssertionError as error:
                raise AssertionError(f"after {specs}") from error


# They cost minutes: .ci/run has what kills and stops one of two processes in tests/distributed/test_layouts.py.
@pytest.mark.skipif(RUNS <= 2, reason="make faults")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes(layout: str, tiny: script_fixtures.Tiny, tmp_path: Path) -> None:
    """One of them is killed, or stands still for some seconds; the launcher ends the other."""
    flags = tiny.flags(save_strategy="steps", save_steps=2, logging_steps=1, cache_dir=tmp_path / "cache")
    launch, variables = launcher(layout)

    def run(output: Path, **spec: Any) -> subprocess.CompletedProcess[str]:
        spec["folder"] = str(output)
        command = [*launch, str(SUPPORT / "disturbed.py"), json.dumps(spec), str(script_fixtures.SCRIPT)]
        asked = [sys.executable, *command, *words(**flags, output_dir=output)]
        return subprocess.run(
            asked, env=environment(**variables), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
        )

    whole = tmp_path / "whole"
    assert run(whole, kind="", at=0).returncode == 0
    for number in range(max(1, RUNS // 4)):
        draw, output = random.Random(f"{SEED} {layout} {number}"), tmp_path / f"run-{number}"
        specs: list[dict[str, Any]] = [{"kind": "kill", "at": draw.randint(1, 40), "rank": 0}]
        specs += [{"kind": "alarm", "at": draw.randint(600, 1500), "rank": number % 2}]
        specs += [{"kind": "slow", "at": draw.randint(50, 300), "rank": (number + 1) % 2}]
        for spec in specs:
            code = run(output, **spec).returncode
            finished = (output / "run.json").exists() and read_json(output / "run.json")["finished"]
            assert finished or code != 0, spec
        done = run(output, kind="", at=0)
        assert done.returncode == 0, f"{specs}\n{done.stdout}\n{done.stderr}"
        check_same(whole, output)
