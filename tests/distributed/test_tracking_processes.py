"""One run in W&B's files, whatever it goes through: two processes, a kill, a stop by the scheduler, an end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from script_fixtures import Tiny, make_model, start, trace, wait
from wandb_files import records

pytest_plugins = ["script_fixtures"]
pytestmark = pytest.mark.slow

LAUNCHER = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_configs" / "ddp.yaml")]
LAUNCHER += ["--main_process_port", "0", "--mixed_precision", "no"]


def launch(**flags: Any) -> Any:
    environment = {"ACCELERATE_USE_CPU": "true", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    return start(launcher=LAUNCHER, env=environment, **flags)


def kill_all(output: Path) -> None:
    """Kills the launcher and its processes, which have process groups of their own, as a machine without power does."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(output) in (entry / "cmdline").read_text() and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)


def logged_steps(file: Path) -> tuple[str, set[int], list[int], bool]:
    """The run's id, the steps with a loss, exit codes, and whether it was marked as preempted."""
    name, steps, codes, preempted = "", set(), [], False
    for record in records(file.parent):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            name = record.run.run_id
        elif kind == "history":
            keys = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "train/loss" in keys:
                steps.add(int(keys["_step"]))
        elif kind == "exit":
            codes.append(record.exit.exit_code)
        elif kind == "preempting":
            preempted = True
    return name, steps, codes, preempted


def test_one_run_over_two_processes_a_kill_and_a_stop(tiny: Tiny, tmp_path: Path) -> None:
    output = tmp_path / "out"
    teacher = make_model(tmp_path / "teacher", sparse=False, head=True)
    arguments = {"num_epochs": 40, "qat_start_epoch": 20, "observer_epoch": 30}
    flags = tiny.flags(distill_teacher=teacher, recipe_args=arguments, per_device_train_batch_size=16, logging_steps=1)
    flags |= {"output_dir": output, "report_to": "wandb", "save_total_limit": 1}

    def after_checkpoint(process: Any, number: int) -> None:
        limit = time.monotonic() + 300
        while not any(int(path.name.split("-")[1]) > number for path in output.glob("checkpoint-*[0-9]")):
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.05)

    process = launch(**flags)
    after_checkpoint(process, 0)
    limit = time.monotonic() + 120
    while not any(logged_steps(file)[1] for file in output.rglob("*.wandb")):  # W&B writes blocks of records
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    kill_all(output)
    wait(process)
    process = launch(**flags)
    newest = max(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*[0-9]"))
    after_checkpoint(process, newest + 7)
    os.killpg(os.getpgid(process.pid), signal.SIGTERM)
    assert wait(process).code != 0
    done = wait(launch(**flags))
    assert done.code == 0, done.all

    files = sorted((output / "tracking").rglob("*.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(files) == 3, "one file a start: process 1 opens none"
    (killed, stopped, ended) = [logged_steps(file) for file in files]
    assert len({killed[0], stopped[0], ended[0]}) == 1, "the same run"
    assert killed[2] == [] and (stopped[2], stopped[3]) == ([75], True) and (ended[2], ended[3]) == ([0], False)
    steps = set(trace(output, "train/loss"))
    assert steps == set(range(1, 281)) and stopped[1] | ended[1] == set(range(newest + 1, 281))
    # What W&B's own process had not written when it was killed is only in trainer_state.json.
    assert killed[1] and killed[1] == set(range(1, max(killed[1]) + 1))
