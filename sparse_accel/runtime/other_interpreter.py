"""DeepSparse 1.8, to compare with: deepsparse_worker.py runs in an environment of its own."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from sparse_accel.errors import UsageError

_SECONDS_TO_START, _MOST_SECONDS = 120, 900


class DeepSparse:
    """A model in DeepSparse, as a context. Calling it runs the model once.

    Args:
        python: the interpreter of an environment with DeepSparse.
        path: the model; `--format integer` gives the graphs that DeepSparse is fast with.
        threads: number of cores.

    Raises:
        UsageError: the interpreter cannot be started, or DeepSparse cannot run the model.
    """

    def __init__(self, python: str, path: Path, batch: int, tokens: int, threads: int) -> None:
        worker = str(Path(__file__).with_name("deepsparse_worker.py"))
        self._words = [python, worker, str(path), str(batch), str(tokens), str(threads)]
        self._python = python

    def __enter__(self) -> DeepSparse:
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                self._words, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace"
            )
        except OSError as error:
            raise UsageError(f"--deepsparse_python {self._python}: {error}") from error
        self._alarm = threading.Timer(_MOST_SECONDS, self._process.kill)
        self._alarm.start()
        try:
            while self._answer() != "ready":  # DeepSparse prints lines about itself
                pass
        except UsageError:
            self._end()
            raise
        return self

    def __call__(self, feed: Any = None) -> None:
        """Runs the model once, on rows of its own."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended: there is no answer then
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        self._answer()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._alarm.cancel()
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout and self._process.stderr
        line = self._process.stdout.readline()
        if not line:
            words = self._process.stderr.read().strip().splitlines() or ["no message"]
            raise UsageError(f"--deepsparse_python {self._python}: DeepSparse failed: {words[-1]}")
        return line.strip()


def require_deepsparse(python: str) -> None:
    """Raises UsageError unless the interpreter `python` starts and can import DeepSparse."""
    command = [python, "-c", "import deepsparse, onnx"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_SECONDS_TO_START
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--deepsparse_python {python}: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"--deepsparse_python {python} cannot import DeepSparse: {last}")
