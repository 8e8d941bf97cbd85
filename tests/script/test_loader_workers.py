"""Loader workers that die, and signals that they get along with their main process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import language_fixtures
import pytest
import script_fixtures
from forked import children_of, forked, wait_for
from language_fixtures import TinyTexts
from script_fixtures import Tiny

pytest_plugins = ["language_fixtures", "script_fixtures"]

Flags = Callable[..., dict[str, Any]]
SAVES: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "do_eval": None, "eval_strategy": "no"}


@pytest.fixture(params=["rows", "stream"])
def script_and_flags(request: pytest.FixtureRequest, tiny: Tiny, language: TinyTexts) -> tuple[Path, dict[str, Any]]:
    """A script and its flags for a run with two workers that saves early and takes long."""
    if request.param == "rows":
        settings = tiny.flags(**SAVES, recipe=None, recipe_args=None, per_device_train_batch_size=4, num_train_epochs=9)
        return script_fixtures.SCRIPT, {**settings, "dataloader_num_workers": 2}
    stream = {"streaming": True, "stream_shards": 4, "per_device_train_batch_size": 8, "validation_file": None}
    settings = language.flags(**SAVES, **stream, max_steps=500, num_train_epochs=None)
    return language_fixtures.SCRIPT, {**settings, "dataloader_num_workers": 2}


def begun(script: Path, output: Path, **flags: Any) -> Any:
    """A run that has saved its first checkpoint, and has workers."""
    process = forked(script, output.parent / "log", **flags, output_dir=output)
    wait_for(lambda: not process.is_alive() or (list(output.glob("checkpoint-*")) and children_of(process.pid)))
    assert process.is_alive(), (output.parent / "log").read_text()
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_to_the_process_and_its_workers_saves(
    script_and_flags: tuple[Path, dict[str, Any]], tmp_path: Path, number: int, code: int
) -> None:
    """As a terminal and a scheduler send it: workers must not die of it before the step is done."""
    script, flags = script_and_flags
    process = begun(script, tmp_path / "out", **{**flags, "save_steps": 5})
    for each in (*children_of(process.pid), process.pid):
        os.kill(each, number)
    process.join(60)
    log = (tmp_path / "log").read_text()
    assert process.exitcode == code and "Traceback" not in log and "run the same command again" in log, log
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_killed_worker_is_told(script_and_flags: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    script, flags = script_and_flags
    process = begun(script, tmp_path / "out", **flags)
    worker = children_of(process.pid)[-1]
    os.kill(worker, signal.SIGKILL)
    process.join(60)
    log = (tmp_path / "log").read_text()
    assert process.exitcode == 1 and "Traceback" not in log, log
    assert log.count("error: a loader worker") == log.count("rror") == 1 and " ended" in log, log
    assert "--dataloader_num_workers" in log and "Run the same command again to resume" in log
    wait_for(lambda: not Path(f"/proc/{worker}").exists())
