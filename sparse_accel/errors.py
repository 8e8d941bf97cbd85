"""Errors for people: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence


class UsageError(Exception):
    """Something that the user can mend: a flag, a recipe, a file, a column.

    The message says what is wrong, where, and what to do. Scripts print it without a traceback and exit with 2.
    """

    exit_code = 2
    of_one_process = False


class Stopped(Exception):
    """A scheduler's signal ended the run after the step under way; what it has done is saved.

    Scripts exit with 75, the code that asks to be tried again later (EX_TEMPFAIL of sysexits.h).
    """

    exit_code = 75


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


# Seconds in which a launcher ends the other processes after the first one failed.
_UNTIL_THE_FIRST_HAS_SPOKEN = 10.0


def _say_once(error: UsageError) -> None:
    """Prints an error that all processes of a run meet, or this one alone.

    Most are met by all: the first one says so, its launcher ends the others, and they are not heard. One that is still
    there after a while met an error of its own, such as a file that its machine lacks.
    """
    rank = os.environ.get("RANK") or "0"
    if rank == "0" or error.of_one_process:
        print(f"error: {error}", file=sys.stderr)
        return
    time.sleep(_UNTIL_THE_FIRST_HAS_SPOKEN)
    print(f"error (process {rank}): {error}", file=sys.stderr)


def run_main(main: Callable[[], int | None]) -> None:
    """Runs a script's `main` and turns its outcome into an exit code.

    A UsageError prints one `error:` paragraph and exits with its code, 2 (`--debug` on the command line shows the
    traceback); Ctrl-C exits with 130, a scheduler's signal with 75; any other exception is a
    fault of ours and keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line when it is printed, as a terminal does
    try:
        code = main() or 0
    except UsageError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        _say_once(error)
        code = error.exit_code
    except Stopped as stopped:
        if "--debug" in sys.argv:
            traceback.print_exc()
        if os.environ.get("RANK", "0") == "0":
            print(f"\nstopped by {stopped}: run the same command again to go on", file=sys.stderr)
        code = stopped.exit_code
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            traceback.print_exc()
        if os.environ.get("RANK", "0") == "0":
            print(
                "\ninterrupted: run the same command again to go on",
                file=sys.stderr,
            )
        code = 130
    sys.exit(code)
