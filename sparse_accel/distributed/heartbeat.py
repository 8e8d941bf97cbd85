"""Which process is lost, when several train together and one dies.

Then collective operations of the others fail with an address and a port, or wait: they do not name the lost process.
So each process increments a counter in the launcher's store once per second, from a thread, even while its main thread
waits. A process whose counter stops is lost. Where the network between two machines is cut, the store does not answer
either: a second thread watches the first.
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
# A process cannot notice by itself that it waits for a lost one: a collective operation on GPUs keeps waiting. This
# must be longer than any pause of a live process.
_END_AFTER = 120.0
_PAUSED = 10.0  # a longer time between two counts of this process means that it was paused


class Heartbeat:
    """The counter of this process, and what it knows about the counters of the others.

    Args:
        store: a torch.distributed store that all processes can reach.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.counts = [0] * world_size
        self.moved = [time.monotonic()] * world_size
        self.answered = time.monotonic()
        self.ended = threading.Event()
        self.store.set(f"host/{rank}", socket.gethostname())
        self.thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.thread.start()
        threading.Thread(target=self._watch, name="heartbeat's watch", daemon=True).start()

    def end(self) -> None:
        """Stops counting. A thread that is inside the store when Python exits would abort the process."""
        self.ended.set()
        self.thread.join(timeout=_GONE_AFTER)

    def gone(self, seconds: float) -> list[int]:
        """Returns the ranks whose counter has not changed for `seconds`."""
        now = time.monotonic()
        return [rank for rank, moved in enumerate(self.moved) if rank != self.rank and now - moved > seconds]

    def described(self, ranks: list[int]) -> str:
        """Returns the ranks for a message, with their hosts: `process 1 (on node7) of 2`."""

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
            if now - last > _PAUSED:  # this process was paused (Ctrl-Z), and so were the others: restart all timers
                self.moved = [now] * self.world_size
            last = now
            try:
                self._beat()
            except RuntimeError:  # the store is gone, and with it the process or launcher that hosted it
                return
            lost = [rank for rank in self.gone(_END_AFTER) if self.counts[rank]]
            if lost and not self.ended.is_set():
                _end(f"{self.described(lost)} ended")

    def _watch(self) -> None:
        last = time.monotonic()
        while not self.ended.wait(_BEAT):
            now = time.monotonic()
            if now - last > _PAUSED:
                self.answered = now
            last = now
            if now - self.answered > _END_AFTER and not self.ended.is_set():
                if _listens():  # it was paused, such as by Ctrl-Z: its system still accepts connections
                    self.answered = now
                    continue
                _end("the launcher's store cannot be reached (its launcher ended, or the network to it is cut)")

    def _beat(self) -> None:
        self.store.add(f"beat/{self.rank}", 1)
        now = self.answered = time.monotonic()
        for rank in range(self.world_size):
            count = self.store.add(f"beat/{rank}", 0)
            self.answered = time.monotonic()
            if count != self.counts[rank]:
                self.counts[rank], self.moved[rank] = count, now


def _listens() -> bool:
    """Returns whether the system that hosts the launcher's store accepts connections for it."""
    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection(address, timeout=_GONE_AFTER).close()
    except (OSError, KeyError, ValueError):
        return False
    return True


def _end(reason: str) -> None:
    """Ends this process with exit code 1, because its main thread would wait forever."""
    print(f"error: {reason}, and this process would wait forever. {_RESUME}", file=sys.stderr, flush=True)
    os._exit(1)


_RESUME = "Its own output says why. Run the same command again to resume from the last checkpoint"


@contextmanager
def report_lost_processes() -> Iterator[None]:
    """Turns the failure of a collective operation into an error that names the lost processes, if there are any.

    Raises:
        ProcessLost: names the lost processes.
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
        # A signal outside of training may come from the launcher, which ends all processes when one is lost.
        if not (_is_of_communication(error) or (isinstance(error, Stopped) and not error.agreed)):
            raise
        for number in REQUESTS:  # the launcher sends these now; ignore them until the lost process is known
            signal.signal(number, signal.SIG_IGN)
        limit = time.monotonic() + (1.5 if isinstance(error, Stopped) else 2) * _GONE_AFTER
        while not (lost := heartbeat.gone(_GONE_AFTER)) and time.monotonic() < limit:
            time.sleep(_BEAT)
        if not lost:
            raise
        raise ProcessLost(f"{heartbeat.described(lost)} ended. {_RESUME}") from error
    finally:
        heartbeat.end()


class ProcessLost(UsageError):
    """Another process of this run is lost. Every remaining process reports it, because rank 0 may be the lost one."""

    exit_code = 1
    of_one_process = True


def _is_of_communication(error: BaseException) -> bool:
    from torch.distributed import DistError

    return isinstance(error, DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
