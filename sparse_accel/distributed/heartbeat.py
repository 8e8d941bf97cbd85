"""Which process is gone, when several train together and one dies.

Collective operations of the others fail with an address and a port, or wait: they do not say who is missing. So each
process counts up a number in the launcher's store once a second, from a thread, whatever its main thread waits for.
Whose number stands still is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sparse_accel.errors import Stopped, UsageError

_BEAT = 1.0  # seconds between two counts
_GONE_AFTER = 5.0  # seconds without a count, once an operation has failed
# A process that waits for one that is gone cannot notice by itself: a GPU's collective operation waits on. Longer than
# any pause of a process that lives.
_END_AFTER = 120.0
_PAUSED = 10.0  # more than this between two counts of one's own


class Heartbeat:
    """This process's count, and what it knows of the others'.

    Args:
        store: a torch.distributed store that all processes reach.
        rank, world_size: of this process.
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.counts = [0] * world_size
        self.moved = [time.monotonic()] * world_size
        self.ended = threading.Event()
        self.store.set(f"host/{rank}", socket.gethostname())
        self.thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Counts no more. A thread that is inside the store when Python exits would abort the whole process."""
        self.ended.set()
        self.thread.join(timeout=_GONE_AFTER)

    def gone(self, seconds: float) -> list[int]:
        """Returns the ranks that have not counted for so long."""
        now = time.monotonic()
        return [rank for rank, moved in enumerate(self.moved) if rank != self.rank and now - moved > seconds]

    def in_words(self, ranks: list[int]) -> str:
        def place(rank: int) -> str:
            try:
                return f"{rank} (on {self.store.get(f'host/{rank}').decode()})"
            except RuntimeError:
                return str(rank)

        noun = "process" if len(ranks) == 1 else "processes"
        return f"{noun} {', '.join(place(rank) for rank in ranks)} of {self.world_size}"

    def _run(self) -> None:
        last = time.monotonic()
        while not self.ended.wait(_BEAT):
            now = time.monotonic()
            if now - last > _PAUSED:  # this process was stopped, as by Ctrl-Z, and so were the others: all begin anew
                self.moved = [now] * self.world_size
            last = now
            try:
                self._beat()
            except RuntimeError:  # the store is gone, and with it the process, or the launcher, that kept it
                if not self.ended.wait(_END_AFTER):
                    _end("the launcher's store cannot be reached any more")
                return
            lost = [rank for rank in self.gone(_END_AFTER) if self.counts[rank]]
            if lost and not self.ended.is_set():
                _end(f"{self.in_words(lost)} ended")

    def _beat(self) -> None:
        self.store.add(f"beat/{self.rank}", 1)
        now = time.monotonic()
        for rank in range(self.world_size):
            count = self.store.add(f"beat/{rank}", 0)
            if count != self.counts[rank]:
                self.counts[rank], self.moved[rank] = count, now


def _end(reason: str) -> None:
    """Ends this process, whose main thread waits for something that will not come."""
    print(f"error: {reason}, and this process would wait for ever. {_GO_ON}", file=sys.stderr, flush=True)
    os._exit(1)


_GO_ON = "What it printed says why. Run the same command again to go on from the last checkpoint"


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Turns a collective operation that failed because a process is gone into an error that says which.

    Raises:
        UsageError: names the processes.
    """
    from sparse_accel.distributed.collectives import open_store, rank_and_size
    from sparse_accel.distributed.signals import REQUESTS

    store = open_store()
    if store is None:
        yield
        return
    heartbeat = Heartbeat(store, *rank_and_size())
    try:
        yield
    except (Exception, Stopped) as error:
        # A signal that came outside of training may be the launcher's, which ends all when one is gone.
        if not (_is_of_communication(error) or (isinstance(error, Stopped) and not error.agreed)):
            raise
        for number in REQUESTS:  # the launcher ends the others at once: this takes a moment longer, and then ends too
            signal.signal(number, signal.SIG_IGN)
        limit = time.monotonic() + (1.5 if isinstance(error, Stopped) else 2) * _GONE_AFTER
        while not (lost := heartbeat.gone(_GONE_AFTER)) and time.monotonic() < limit:
            time.sleep(_BEAT)
        if not lost:
            raise
        raise ProcessLost(f"{heartbeat.in_words(lost)} ended. {_GO_ON}") from error
    finally:
        heartbeat.end()


class ProcessLost(UsageError):
    """Another process of this run is gone; every one that is left says so, for it may be the first that is gone."""

    exit_code = 1
    of_one_process = True


def _is_of_communication(error: BaseException) -> bool:
    from torch.distributed import DistError

    return isinstance(error, DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
