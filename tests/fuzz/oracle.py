"""What must hold for any input: it is accepted, or refused with a UsageError that a person can use. Nothing else.

Watched are: other exceptions, time, memory, files written outside of the input's folder, programs that are started,
connections, and code out of a pickle.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_accel.errors import UsageError, shortened

SECONDS = 10.0
MEMORY = 1 << 30  # bytes that one input may add to the peak
# A screen of what the commands print: they cut messages to 20 lines and 2,000 characters.
LINES, COLUMNS = 30, 200
_STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "socket.connect",
    "socket.getaddrinfo",
    "pickle.find_class",
)
_USUAL = ("git",)  # environment.json has the commit of the code, whatever the input
# Devices, and semaphores and memory that processes share.
_DEVICES = ("/dev/null", "/dev/tty", "/proc/self/", "/dev/shm/sem.", "/dev/shm/psm_", "/dev/shm/torch_")
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")


class Fault(Exception):
    """What an input must not do.

    Attributes:
        kind: without what differs from input to input.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


class _TooLong(BaseException):
    """Raised by the alarm; not an Exception, so that no handler swallows it."""


_allowed: list[str] = []  # folders that may be written to; empty: nobody watches
_seen: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    if event in _STARTS:
        if not (event == "subprocess.Popen" and arguments[0] in _USUAL):
            _seen.append(f"{event}{arguments[:2]}")
    elif event == "open":
        path, mode, flags = arguments
        writes = any(letter in (mode or "") for letter in "wax+") or (flags or 0) & (
            os.O_WRONLY | os.O_RDWR | os.O_CREAT
        )
        if writes and isinstance(path, str | bytes | os.PathLike):
            _check_path(event, path)
    elif event in _CHANGES:
        for path in arguments[:2]:  # a new name is a place too, and where a link leads, if it says so from the root
            relative = event == "os.symlink" and path is arguments[0] and not os.path.isabs(path)
            if isinstance(path, str | bytes | os.PathLike) and not relative:
                _check_path(event, path)


def _check_path(event: str, path: Any) -> None:
    full = os.path.realpath(os.fsdecode(path))
    inside = any(full == folder or full.startswith(folder + os.sep) for folder in _allowed)
    if not inside and not full.startswith(_DEVICES):
        _seen.append(f"{event} of {full}")


sys.addaudithook(_watch)


@contextmanager
def watched(*folders: Path) -> Iterator[None]:
    """Inside the block, raises Fault for what no input may do.

    Args:
        folders: that may be written to.

    Raises:
        Fault: as said above; for a UsageError, none.
    """

    def end(number: int, frame: Any) -> None:
        raise _TooLong

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _seen.clear()
    _allowed.extend(os.path.realpath(folder) for folder in folders)
    try:
        yield
    except _TooLong:
        raise Fault(f"longer than {SECONDS:g} s", _place(sys.exc_info()[2])) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        _allowed.clear()
    if _seen:
        raise Fault("did what it must not", _seen[0])
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if grown > MEMORY:
        raise Fault("too much memory", f"{grown / 1e9:.1f} GB")


def judge(action: Callable[[], Any], folder: Path, places: str, *others: Path) -> str:
    """Runs an action on an input and returns `accepted` or `refused`.

    Args:
        action: reads the input, which is in `folder`.
        folder: of this input alone.
        places: pattern that a refusal must contain: the file, key or flag.
        others: further folders that may be written to.

    Raises:
        Fault: anything else happened.
    """
    message = ""
    with watched(folder, *others):
        try:
            action()
        except UsageError as error:
            message = shortened(str(error))
        except SystemExit as ended:
            if ended.code not in (0, None):
                raise Fault("an exit code without a UsageError", str(ended.code)) from ended
        except _TooLong:
            raise
        except BaseException as error:
            raise Fault(f"{type(error).__name__} at {_place(error.__traceback__)}", str(error)[:200]) from error
    if not message:
        return "accepted"
    lines = sum(1 + len(line) // COLUMNS for line in message.splitlines())
    if lines > LINES:
        raise Fault("a message longer than a screen", f"{lines} lines")
    if not re.search(places, message):
        raise Fault("a message without its place", message[:200])
    return "refused"


def _place(trace: Any) -> str:
    """The innermost line of this package in a traceback, and the innermost of all."""
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if f"{os.sep}sparse_accel{os.sep}" in frame.filename]
    shown = [*own[-1:], *frames[-1:]]
    return " in ".join(f"{Path(frame.filename).name}:{frame.name}:{frame.lineno}" for frame in shown)


def fresh_folder() -> Path:
    """Returns a new folder, in memory where the system has that."""
    memory = "/dev/shm"
    return Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if os.access(memory, os.W_OK) else None))
