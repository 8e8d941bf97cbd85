"""What a power cut could lose: every file has its bytes on disk when it gets its name, in runs of all scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import script_fixtures
from layouts import launcher
from places import ROOT
from script_fixtures import environment, words
from task_scripts import TASK_FIXTURES, TASK_SCRIPTS
from write_order import Disk, can_trace, read, strace

pytest_plugins = TASK_FIXTURES
MORE = int(os.environ.get("FAULTED_RUNS", "1")) > 2  # other scripts take as long, and write with the same functions
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 1, "eval_strategy": "epoch"}


def traced(command: list[str], folder: Path, trace: Path, **variables: str) -> Disk:
    """Runs a Python program, and returns what it did in a folder."""
    if not can_trace():
        pytest.skip("strace is not installed, or may not trace")
    asked = [*strace(trace), sys.executable, *command]
    done = subprocess.run(asked, cwd=ROOT, env=environment(**variables), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return read(trace.read_text(), folder)


def check(disk: Disk, *names: str) -> None:
    """Raises AssertionError unless these names came by renames, nothing came too early, and all is on disk."""
    assert {str(path.relative_to(disk.folder)) for path in disk.renamed} >= {*names}
    assert disk.faults == []
    assert {path for path in disk.unflushed if not disk.is_passing(path)} == set()
    assert not {disk.folder, disk.folder.parent} & disk.names


@pytest.mark.slow
@pytest.mark.parametrize("task", TASK_SCRIPTS if MORE else {"tiny"})
def test_training(task: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    rows: Any = request.getfixturevalue(task)
    output, caches = tmp_path / "out", tmp_path / "caches"
    flags = rows.flags(**SAVING, output_dir=output, cache_dir=caches)
    trace, written = tmp_path / "trace", ["run.json", "checkpoint-4", "model.safetensors", "all_results.json"]
    disk = traced([str(TASK_SCRIPTS[task]), *words(**flags)], output, trace, SPARSE_ACCEL_CACHE=str(caches))
    check(disk, *written, "report.html")
    cached = read(trace.read_text(), caches / "sparse_accel", ignored="^(tmp|cache-)")  # those of `datasets`
    assert cached.faults == [] and cached.unflushed == set()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "fsdp2", "deepspeed_zero2"] if MORE else ["fsdp2"])
def test_two_processes(layout: str, tiny: script_fixtures.Tiny, tmp_path: Path) -> None:
    launch, variables = launcher(layout)
    flags = words(**tiny.flags(**SAVING, output_dir=tmp_path / "out"))
    disk = traced([*launch, str(script_fixtures.SCRIPT), *flags], tmp_path / "out", tmp_path / "trace", **variables)
    check(disk, "run.json", "checkpoint-4", "checkpoint-8", "model.safetensors", "all_results.json")


@pytest.mark.slow
def test_export(tiny: script_fixtures.Tiny, tmp_path: Path) -> None:
    """Twice: the second time, a folder takes the place of another."""
    done = script_fixtures.run(**tiny.flags(output_dir=tmp_path / "trained"))
    assert done.code == 0, done.all
    flags = words(model_path=tmp_path / "trained", output_dir=tmp_path / "at" / "deployment", compress=True)
    for _ in range(2):
        disk = traced([str(ROOT / "scripts" / "export_onnx.py"), *flags], tmp_path / "at", tmp_path / "trace")
        check(disk, "deployment")


# --- the reading of a trace -------------------------------------------------------------------------------------------

OPENED = '7 openat(AT_FDCWD</>, "/out/.a.partial", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0666) = 3</out/.a.partial>'
WRITTEN = '7 write(3</out/.a.partial>, ""..., 100) = 100'
IN_TWO_THREADS = """7 write(3</out/.a.partial>, <unfinished ...>
8 write(9</b>, ""..., 1) = 1
7 <... write resumed>""..., 1) = 1"""
FLUSHED = "7 fsync(3</out/.a.partial>)  = 0"
FAILED = "7 fsync(3</out/.a.partial>)  = -1 EIO (Input/output error)"
RENAMED = '7 rename("/out/.a.partial", "/out/a") = 0'
FOLDER = "7 fsync(4</out>)              = 0"
IN_A_FOLDER = OPENED.replace("/out/.a.partial", "/out/.c.partial/x")
FOLDER_RENAMED = '7 renameat2(AT_FDCWD</out>, ".c.partial", AT_FDCWD</out>, "c", 0) = 0'
REMOVED, ASIDE = '7 unlink("/out/b") = 0', '7 rename("/out/b", "/out/.b.partial") = 0'
DELETED, LATE = '7 unlink("/out/.b.partial") = 0', ".b.partial is taken away before the names beside it are on disk"
NO_NAMES = ".c.partial is not flushed when it gets its name"
TOO_EARLY = ".a.partial is not flushed when it gets its name"
TAKEN_AWAY = "b is taken away before the names beside it are on disk"


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        ([OPENED, WRITTEN, FLUSHED, RENAMED, FOLDER], []),
        ([OPENED, WRITTEN, RENAMED, FOLDER], [TOO_EARLY]),
        ([OPENED, FLUSHED, WRITTEN, RENAMED, FOLDER], [TOO_EARLY]),
        ([OPENED, WRITTEN, FAILED, RENAMED], [TOO_EARLY]),
        ([OPENED, FLUSHED, IN_TWO_THREADS, RENAMED], [TOO_EARLY]),
        ([IN_A_FOLDER, FOLDER_RENAMED], [NO_NAMES, ".c.partial/x is not flushed when it gets its name"]),
        ([OPENED, FLUSHED, RENAMED, FOLDER, REMOVED], []),
        ([OPENED, FLUSHED, RENAMED, REMOVED], [TAKEN_AWAY]),
        ([OPENED, FLUSHED, RENAMED, ASIDE], [TAKEN_AWAY]),
        ([OPENED, FLUSHED, ASIDE, RENAMED, DELETED], ["b is taken away before the names beside it are on disk", LATE]),
        ([OPENED, FLUSHED, FOLDER, ASIDE, RENAMED, FOLDER, DELETED], []),
        ([IN_A_FOLDER, FLUSHED.replace(".a.partial", ".c.partial/x"), FOLDER_RENAMED], [NO_NAMES]),
        ([OPENED.replace("/out", "/elsewhere"), RENAMED.replace("/out", "/elsewhere")], []),
    ],
)
def test_what_a_trace_shows(lines: list[str], faults: list[str]) -> None:
    assert read("\n".join(lines), Path("/out")).faults == faults


def test_what_a_trace_leaves_open() -> None:
    found = read("\n".join([OPENED, WRITTEN, FLUSHED, RENAMED, '7 write(5</out/log>, ""..., 1) = 1']), Path("/out"))
    assert {str(path) for path in found.unflushed} == {"/out/log"} and {str(path) for path in found.names} == {"/out"}
    ignored = read('7 write(5</out/log>, ""..., 1) = 1', Path("/out"), ignored="^log$")
    assert ignored.unflushed == set()
