"""Errors for people: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
import errno
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class UsageError(Exception):
    """Something that the user can mend: a flag, a recipe, a file, a column.

    The message says what is wrong, where, and what to do. Scripts print it without a traceback and exit with 2.
    """

    exit_code = 2
    of_one_process = False


class Stopped(BaseException):
    """A scheduler's signal ended the run: after the step under way, and saved, or at once where it was not training.

    Scripts exit with 75, the code that asks to be tried again later (EX_TEMPFAIL of sysexits.h). As KeyboardInterrupt
    it is no Exception: it may be raised anywhere, and libraries that try again or make do must not take it for theirs.
    """

    exit_code = 75
    agreed = True  # between two steps, on all processes; otherwise at once, on this one


def rank() -> int:
    """Returns this process's number among those of its launch, known before any of them talk: 0 speaks for all."""
    return int(os.environ.get("RANK") or 0)


def nearest(name: str, known: Iterable[str], count: int = 1) -> str:
    """Returns ` Did you mean 'x'?` for the known names nearest to `name`, `count` at most; empty when none is near."""
    lowered = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(lowered[each]) for each in found)}?" if found else ""


def first_line(error: BaseException) -> str:
    """Returns what an error says first, at most 200 characters; the name of its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def in_order(steps: Sequence[tuple[str, str]]) -> str:
    """Returns (place, outcome) of what was tried as numbered lines of a table."""
    width = max(len(place) for place, _ in steps)
    return "\n".join(f"  {number}. {place:<{width}}  {outcome}" for number, (place, outcome) in enumerate(steps, 1))


@contextmanager
def _signals_end_it() -> Iterator[None]:
    def end(number: int, frame: Any) -> None:
        stopped = Stopped(signal.Signals(number).name)
        stopped.agreed = False
        raise stopped

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    try:
        before = {number: signal.signal(number, end) for number in numbers}
    except ValueError:  # not in the main thread, where signals never arrive
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _how_to_go_on() -> str:
    without = " without --overwrite_output_dir, which starts anew," if "--overwrite_output_dir" in sys.argv else ""
    return f"run the same command again{without} to go on"


# What a disk may refuse, and what to do.
_OF_A_DISK = dict.fromkeys(
    (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)),
    "make room there. What was written before is whole: run the same command again to go on",
)
_OF_A_DISK |= dict.fromkeys((errno.EROFS, errno.EACCES), "name a place that you may read and write")
# Seconds in which a launcher ends the other processes after the first one failed.
_UNTIL_THE_FIRST_HAS_SPOKEN = 10.0


def _say_once(error: UsageError) -> None:
    """Prints an error that all processes of a run meet, or this one alone.

    Most are met by all: the first one says so, its launcher ends the others, and they are not heard. One that is still
    there after a while met an error of its own, such as a file that its machine lacks.
    """
    if rank() == 0 or error.of_one_process:
        print(f"error: {error}", file=sys.stderr)
        return
    time.sleep(_UNTIL_THE_FIRST_HAS_SPOKEN)
    print(f"error (process {rank()}): {error}", file=sys.stderr)


def run_main(main: Callable[[], int | None]) -> None:
    """Runs a script's `main` and turns its outcome into an exit code.

    SIGTERM and SIGUSR1 end it at once, but for training, which they end after the step under way; it exits with 75. A
    UsageError prints one `error:` paragraph and exits with its code, 2 (`--debug` on the command line shows the
    traceback), and so does a disk that takes no more; Ctrl-C exits with 130; any other exception is a fault of ours and
    keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line when it is printed, as a terminal does
    try:
        with _signals_end_it():
            code = main() or 0
    except UsageError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        _say_once(error)
        code = error.exit_code
    except OSError as error:
        advice = _OF_A_DISK.get(error.errno or 0)
        if advice is None:
            raise
        if "--debug" in sys.argv:
            traceback.print_exc()
        _say_once(UsageError(f"{error}: {advice}"))
        code = UsageError.exit_code
    except Stopped as stopped:
        if "--debug" in sys.argv:
            traceback.print_exc()
        if rank() == 0:
            print(f"\nstopped by {stopped}: {_how_to_go_on()}", file=sys.stderr)
        code = stopped.exit_code
    except KeyboardInterrupt as interrupt:
        if "--debug" in sys.argv:
            traceback.print_exc()
        if rank() == 0:
            how = f" ({interrupt})" if str(interrupt) else ""
            print(f"\ninterrupted{how}: {_how_to_go_on()}", file=sys.stderr)
        code = 130
    sys.exit(code)
