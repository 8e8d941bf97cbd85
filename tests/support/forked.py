"""Runs of a script as processes of their own that have imported everything already, to be interrupted."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from script_fixtures import words


def forked(script: Path, log: Path, **flags: Any) -> Any:
    """Starts a script with these flags; its output is in `log`."""

    def main() -> None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # pytest's own are not these two; open to the end, for a traceback.
        sys.stdout = sys.stderr = os.fdopen(file, "w", buffering=1)
        sys.argv = [str(script), *words(**flags)]
        runpy.run_path(str(script), run_name="__main__")

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process


def wait_for(condition: Callable[[], object], timeout: float = 120) -> None:
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
