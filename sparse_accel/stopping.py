"""Signals that ask a run to stop: it ends after the step under way, on every process at the same one, and is saved.

SIGINT (Ctrl-C), SIGTERM (a scheduler that preempts) and SIGUSR1 (a scheduler's warning before the time limit) are
requests. A process hears them at any moment, and processes hear them at different steps, so between two steps they
agree on whether any of them was asked.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sparse_accel.errors import Stopped
from sparse_accel.processes import largest, world_size

REQUESTS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
# A launcher passes Ctrl-C on to processes that the terminal has told already: one request, not an impatient one.
_SECONDS_OF_ONE_REQUEST = 1.0

_asked = 0  # the signal that this process was asked by, 0 for none


def asked() -> int:
    """Returns the number of the signal that asked this process to stop, 0 where none did."""
    return _asked


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Turns signals into requests, and gives a function that says, on all processes alike, which signal asked; 0: none.

    All processes call that function between the same two steps. A second Ctrl-C interrupts at once.
    """
    global _asked
    _asked, since = 0, 0.0
    one_request = _SECONDS_OF_ONE_REQUEST if world_size() > 1 else 0.0

    def ask(number: int, frame: Any) -> None:
        global _asked
        nonlocal since
        now = time.monotonic()
        if _asked == number == signal.SIGINT and now - since >= one_request:
            raise KeyboardInterrupt
        if not _asked:
            _asked, since = number, now

    try:
        before = {number: signal.signal(number, ask) for number in REQUESTS}
    except ValueError:  # not in the main thread: signals never arrive here
        yield lambda: largest(0)
        return
    try:
        yield lambda: largest(_asked)
    finally:
        _asked = 0
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(number: int) -> None:
    """Ends the run as the signal asks: KeyboardInterrupt for Ctrl-C, Stopped for the others."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(signal.Signals(number).name)
