"""How a program ends: signals, errors for people, and its exit code."""

from __future__ import annotations

import errno
import io
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sparse_accel.console import rank
from sparse_accel.errors import Stopped, UsageError, shortened


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
