"""Signals that ask a run to stop: it saves a checkpoint and ends after the current step, the same on every process.

SIGINT (Ctrl-C), SIGTERM (a scheduler that preempts) and SIGUSR1 (a scheduler's warning before the time limit) are
requests. Processes receive them at different steps, so between two steps they agree on whether any of them received
one. Outside of training, these signals end a script at once (`main.run_main`).

A killed launcher leaves its processes running, and nothing would end them: so its end is a request to stop, too.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_accel.distributed.collectives import largest, rank_and_size, world_size
from sparse_accel.errors import Stopped

REQUESTS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
# A launcher forwards Ctrl-C to processes that already got it from the terminal: count both as one request.
_SECONDS_OF_ONE_REQUEST = 1.0

_LAUNCHER_ENDED = 1000  # beyond all signals' numbers
_SECONDS_BETWEEN_LOOKS = 0.5

_asked = 0  # the signal that this process received, 0 for none
_updating = False  # whether it must end without a checkpoint, because masks are being updated

_AFTER_THIS_STEP = b"\nCtrl-C: saving and ending after this step. Press again to end at once, unsaved.\n"
_AFTER_THIS_SAMPLE = (
    b"\nCtrl-C: ending as soon as possible, without a checkpoint, because the masks are being updated. Press again to "
    b"end at once.\n"
)


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Turns signals into requests, and yields a function that returns which signal was received (0: none), the same on
    all processes.

    All processes must call that function between the same two steps. A second Ctrl-C interrupts at once.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C.
    """
    global _asked
    _asked, since = 0, 0.0
    one_request = _SECONDS_OF_ONE_REQUEST if world_size() > 1 else 0.0

    def ask(number: int, frame: Any) -> None:
        global _asked
        nonlocal since
        now = time.monotonic()
        if _asked == number == signal.SIGINT and now - since >= one_request:
            raise KeyboardInterrupt("not saved: training since the last checkpoint is lost")
        if not _asked:
            _asked, since = number, now
            if number == signal.SIGINT and rank_and_size()[0] == 0:
                # Not with print: the signal may have interrupted a print.
                os.write(2, _AFTER_THIS_SAMPLE if _updating else _AFTER_THIS_STEP)

    def launcher_ended() -> None:
        global _asked
        _asked = _asked or _LAUNCHER_ENDED

    try:
        before = {number: signal.signal(number, ask) for number in REQUESTS}
    except ValueError:  # not in the main thread, where signals never arrive
        yield lambda: largest(0)
        return
    try:
        with _launcher_watched(launcher_ended):
            yield lambda: largest(_asked)
    finally:
        _asked = 0
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(number: int) -> None:
    """Ends the run as the signal asks.

    Raises:
        KeyboardInterrupt: for Ctrl-C.
        Stopped: for other signals, and for a launcher that ended.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped("the end of its launcher" if number == _LAUNCHER_ENDED else signal.Signals(number).name)


@contextmanager
def update_of_masks() -> Iterator[None]:
    """Marks work inside a step that takes minutes, and that `stop_now_if_asked` ends without a checkpoint."""
    global _updating
    _updating = True
    try:
        yield
    finally:
        _updating = False


def stop_now_if_asked() -> None:
    """Ends the run at once, unsaved, if any process received a signal; for work in `update_of_masks`.

    All processes must call it. Does nothing outside of `stop_requests`, where signals act by themselves.

    Raises:
        KeyboardInterrupt, Stopped: as `stop`.
    """
    number = largest(_asked)
    if number == signal.SIGINT:
        raise KeyboardInterrupt("not saved: the masks were being updated")
    try:
        if number:
            stop(number)
    except Stopped as stopped:
        stopped.unsaved = "not saved: the masks were being updated"
        raise


@contextmanager
def _launcher_watched(ended: Callable[[], None]) -> Iterator[None]:
    """Calls `ended` once when the launcher that started this process ends; a shell may end (nohup)."""
    launcher, over = os.getppid(), threading.Event()
    if not _is_launcher(launcher):
        yield
        return

    def watch() -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            if os.getppid() != launcher:
                ended()
                return

    thread = threading.Thread(target=watch, name="launcher watched", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_launcher(process: int) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    except OSError:  # not Linux, or the process has ended
        return "TORCHELASTIC_RUN_ID" in os.environ
    known = r"(^|/)(accelerate|torchrun|deepspeed)$|accelerate\.commands|torch\.distributed|deepspeed\.launcher"
    return any(re.search(known, word) for word in words)
