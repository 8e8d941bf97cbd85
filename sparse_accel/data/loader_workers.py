"""Loader workers: they leave signals that stop a run to its main process, and a lost one is an error for users."""

from __future__ import annotations

import gc
import os
import re
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec.asyn

from sparse_accel.distributed.signals import REQUESTS
from sparse_accel.errors import UsageError

# What torch says of a lost worker; the second group is the name of its signal.
_LOST = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]+)|exited unexpectedly)"
)


def begin_worker(worker: int) -> None:
    """Leaves signals that ask a run to stop to its main process, which needs rows until the end of its step.

    The `worker_init_fn` of a DataLoader.
    """
    for number in REQUESTS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    # The main process ends its workers by SIGTERM, too: only the sender tells these apart.
    if hasattr(signal, "sigwaitinfo"):  # macOS and Windows have none: there, workers end with it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_asks, args=[os.getppid()], name="SIGTERM", daemon=True).start()
    # Of what this process was forked with, nothing may be collected: an iterator of `datasets` would wait for threads
    # that were not forked. And one of them may have held the lock of fsspec.
    gc.freeze()
    fsspec.asyn.reset_lock()


def _end_when_parent_asks(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class WorkerLost(UsageError):
    """A loader worker of this process ended. The other processes of the run still have theirs."""

    exit_code = 1
    of_one_process = True


@contextmanager
def report_lost_workers() -> Iterator[None]:
    """Turns the errors that follow the end of a loader worker into one for users.

    Raises:
        WorkerLost: names the worker if it is known, the likely cause and what to do.
    """
    try:
        try:
            yield
        except Exception:
            # Torch's handler raises its error at any place: here, too, and in what follows.
            with suppress(ValueError, AttributeError):  # not in the main thread; Windows has no such signal
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise
    except Exception as error:
        lost = _lost_worker(error)
        if lost is None:
            raise
        cause = "shared memory (/dev/shm) was full" if "Bus error" in lost else "memory ran out"
        raise WorkerLost(
            f"a loader worker{lost} ended, most often because {cause}. Set a lower --dataloader_num_workers, or give "
            "the run more memory. Run the same command again to resume from the last checkpoint"
        ) from error


def _lost_worker(error: BaseException | None) -> str | None:
    """Returns the process and signal of a worker that was lost, as far as they are known; None if none was.

    Its own error may have followed another, or led to one. The connection to it may have failed before that.
    """
    found = None
    while error is not None:
        if said := _LOST.search(str(error)):
            return f" (process {said[1]}{f', {said[2]}' if said[2] else ''})"
        if isinstance(error, (OSError, EOFError)) and _raised_in(error) == "multiprocessing":
            found = ""
        error = error.__cause__ or error.__context__
    return found


def _raised_in(error: BaseException) -> str:
    """Returns the name of the folder of the code that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).parent.name if frames else ""
