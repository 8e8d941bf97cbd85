"""Runs of a script as processes of their own that have imported everything already, to be interrupted."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from script_fixtures import NOTHING, Outcome, words


def forked(script: Path, log: Path, **flags: Any) -> Any:
    """Starts a script with these flags; its output is in `log`."""
    log.unlink(missing_ok=True)
    return _start([str(script), *words(**flags)], log, log)


def forked_ranks(program: Sequence[str], environments: Sequence[Mapping[str, str]], timeout: float = 240) -> Outcome:
    """Runs a program in several processes, as a launcher does: where one fails, the others are ended.

    Args:
        program: a script and its arguments.
        environments: of each process.
        timeout: seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        processes = [_start(program, out, err, each) for each in environments]
        limit = time.monotonic() + timeout
        while (running := [each for each in processes if each.exitcode is None]) and time.monotonic() < limit:
            multiprocessing.connection.wait([each.sentinel for each in running], limit - time.monotonic())
            if any(each.exitcode for each in processes):
                limit = min(limit, time.monotonic() + 20)  # those that remain say what they see
        for each in running:
            each.kill()
            each.join()
        failed = [each.exitcode for each in processes if each.exitcode]
        return Outcome(failed[0] if failed else 0, out.read_text(), err.read_text())


def _start(program: Sequence[str], out: Path, err: Path, variables: Mapping[str, str] = NOTHING) -> Any:
    def main() -> None:
        from accelerate.state import AcceleratorState, GradientState

        # pytest's own are not these two; open to the end, for a traceback.
        sys.stdout, sys.stderr = (_opened(path, number) for path, number in ((out, 1), (err, 2)))
        os.environ.update(variables)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        sys.argv = [*program]
        runpy.run_path(program[0], run_name="__main__")

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process


def _opened(path: Path, number: int) -> Any:
    """Opens a file, to which other processes may write too, as standard output (1) or error (2)."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, number)
    return os.fdopen(file, "w", buffering=1)


def wait_for(condition: Callable[[], object], timeout: float = 120) -> None:
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
