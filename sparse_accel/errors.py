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
    """Returns this process's number among those of its launch, known before any of them talk: 0 speaks for all.

    What is left over from another launch does not count: RANK without WORLD_SIZE, not below it, or not a number.
    """
    number, count = (os.environ.get(name, "").strip() for name in ("RANK", "WORLD_SIZE"))
    if not (number.isdecimal() and count.isdecimal()):
        return 0
    return int(number) if int(number) < int(count) else 0


def nearest(name: str, known: Iterable[str], count: int = 1) -> str:
    """Returns ` Did you mean 'x'?` for the known names nearest to `name`, `count` at most; empty when none is near."""
    lowered = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(lowered[each]) for each in found)}?" if found else ""


def first_line(error: BaseException) -> str:
    """Returns what an error says first, at most 200 characters; the name of its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def listed(names: Iterable[object], most: int = 12) -> str:
    """Returns names for a message, at most `most` of them: `a, b, c ... (57 in all)`."""
    words = [str(name) for name in names]
    return ", ".join(words) if len(words) <= most else f"{', '.join(words[:most])} ... ({len(words)} in all)"


def shown(value: object, most: int = 60) -> str:
    """Returns a value for a message: its repr, cut after `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def shortened(text: str) -> str:
    """Returns a message of at most 2,000 characters: a longer one keeps its beginning and its end."""
    left_out = len(text) - _BEGINNING - _END
    if len(text) <= _LONGEST_MESSAGE:
        return text
    return f"{text[:_BEGINNING]} ... [{left_out:,} characters left out] ... {text[-_END:]}"


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
# A longer message is not read, and hides what was printed before it.
_LONGEST_MESSAGE, _BEGINNING, _END = 2000, 1400, 400
# Seconds in which a launcher ends the other processes after the first one failed.
_UNTIL_THE_FIRST_HAS_SPOKEN = 10.0


def _say_once(error: UsageError) -> None:
    """Prints an error that all processes of a run meet, or this one alone.

    Most are met by all: the first one says so, its launcher ends the others, and they are not heard. One that is still
    there after a while met an error of its own, such as a file that its machine lacks.
    """
    if rank() == 0 or error.of_one_process:
        print(f"error: {shortened(str(error))}", file=sys.stderr)
        return
    time.sleep(_UNTIL_THE_FIRST_HAS_SPOKEN)
    print(f"error (process {rank()}): {shortened(str(error))}", file=sys.stderr)


def run_main(main: Callable[[], int | None]) -> None:
    """Runs a script's `main`, prints in whatever encoding there is, and turns the outcome into an exit code.

    SIGTERM and SIGUSR1 end it at once, but for training, which they end after the step under way; it exits with 75. A
    UsageError prints one `error:` paragraph and exits with its code, 2 (`--debug` on the command line shows the
    traceback), and so does a disk that takes no more; Ctrl-C exits with 130; any other exception is a fault of ours and
    keeps its traceback.
    """
    # A character that the encoding lacks must not end a run. A log file shows each line at once, as a terminal does.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
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
            print(f"\nstopped by {shortened(str(stopped))}: {_how_to_go_on()}", file=sys.stderr)
        code = stopped.exit_code
    except KeyboardInterrupt as interrupt:
        if "--debug" in sys.argv:
            traceback.print_exc()
        if rank() == 0:
            how = f" ({shortened(str(interrupt))})" if str(interrupt) else ""
            print(f"\ninterrupted{how}: {_how_to_go_on()}", file=sys.stderr)
        code = 130
    sys.exit(code)
