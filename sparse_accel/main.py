"""Runs a script's main function: handles signals and errors, and sets the exit code.

Programs import it before torch: it sets how the threads of torch wait.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sparse_accel.console import rank
from sparse_accel.distributed.threads import wait_asleep
from sparse_accel.errors import Stopped, UsageError, shortened

# Not in `run_main`: until that is called, a program may have imported torch.
wait_asleep()

_exit_code: int | None = None  # of `run_main`; None: it was not called


def _leave() -> None:
    """Ends a process of several here, the last of what Python does at an exit before it takes itself apart.

    Threads of process groups live on: gloo's one may still hold the last tensor of a collective operation. If such a
    thread asks for Python then, the process aborts ("terminate called without an active exception", PyTorch issue
    38228), its exit code is lost, and a scheduler does not start the command again.
    """
    count = os.environ.get("WORLD_SIZE", "").strip()
    if _exit_code is None or not (count.isdecimal() and int(count) > 1):
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(_exit_code)


# What is registered first is called last: after torch, trackers and others.
atexit.register(_leave)

_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


@contextmanager
def _signals_end_it() -> Iterator[None]:
    def end(number: int, frame: Any) -> None:
        stopped = Stopped(signal.Signals(number).name)
        stopped.agreed = False
        raise stopped

    try:
        before = {number: signal.signal(number, end) for number in _ENDING}
    except ValueError:  # not in the main thread: signals do not arrive here
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _how_to_resume(resumes: bool, unsaved: str = "") -> str:
    """Returns what to do after an interruption, as the rest of its message.

    Args:
        unsaved: why no checkpoint was written; there may be none at all then.
    """
    if not resumes:
        return ""
    if unsaved:
        unsaved = " from the last checkpoint, or, if there is none, to start again"
    without = " without --overwrite_output_dir (it starts a new run)" if "--overwrite_output_dir" in sys.argv else ""
    return f": run the same command again{without} to resume{unsaved}"


# Errors of a disk, and what to do.
_OF_A_DISK = dict.fromkeys(
    (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)),
    "free disk space there. Earlier files are intact: run the same command again to resume",
)
_OF_A_DISK |= dict.fromkeys((errno.EROFS, errno.EACCES), "use a folder that you may read and write")
# Seconds after which a launcher has ended the other processes, once the first one failed.
_UNTIL_THE_FIRST_HAS_SPOKEN = 10.0


def _say_once(error: UsageError) -> None:
    """Prints an error once, whether all processes of a run have it or only this one.

    Most errors occur on all processes: process 0 prints it, and its launcher ends the others before they print. A
    process that is still alive after a while has a different error, such as a file missing on its machine.
    """
    if rank() == 0 or error.of_one_process:
        print(f"error: {shortened(str(error))}", file=sys.stderr)
        return
    time.sleep(_UNTIL_THE_FIRST_HAS_SPOKEN)
    print(f"error (process {rank()}): {shortened(str(error))}", file=sys.stderr)


def run_main(main: Callable[[], int | None], *, resumes: bool = True) -> None:
    """Runs a script's `main`, makes output safe in any encoding, and ends the process with an exit code.

    SIGTERM and SIGUSR1 end the script at once, training after the current step; exit code 75. A UsageError, or an error
    of a full or read-only disk, prints one `error:` paragraph; exit code 2 (`--debug` on the command line adds the
    traceback). Ctrl-C: exit code 130. Any other exception is a fault of this package and keeps its traceback.

    Args:
        main: returns the exit code; None is 0.
        resumes: whether the same command goes on where it was interrupted; the message then tells the user.

    Raises:
        SystemExit: always, with the exit code.
    """
    global _exit_code
    _exit_code = 1  # of an error with a traceback
    # A character missing in the encoding must not end a run. Log files get each line at once, as a terminal does.
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
    except BrokenPipeError:  # whoever reads the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
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
            how = f" ({stopped.unsaved})" if stopped.unsaved else ""
            resume = _how_to_resume(resumes, stopped.unsaved)
            print(f"\nstopped by {shortened(str(stopped))}{how}{resume}", file=sys.stderr)
        code = stopped.exit_code
    except KeyboardInterrupt as interrupt:
        if "--debug" in sys.argv:
            traceback.print_exc()
        if rank() == 0:
            how = f" ({shortened(str(interrupt))})" if str(interrupt) else ""
            print(f"\ninterrupted{how}{_how_to_resume(resumes, str(interrupt))}", file=sys.stderr)
        code = 130
    except SystemExit as left:  # --help, or a program that this one started
        _exit_code = left.code if isinstance(left.code, int) else int(left.code is not None)
        raise
    _exit_code = code
    _tell_launcher(code)
    sys.exit(code)


def leave_signals_to_the_next() -> None:
    """Undoes what `run_main` did with signals, for a program started inside of it that calls `run_main` itself; else a
    second signal, which launchers send, would be answered twice."""
    with suppress(ValueError):  # not in the main thread: signals do not arrive here
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)


def _tell_launcher(code: int) -> None:
    """Adds the exit code to the file in SPARSE_ACCEL_EXIT_CODES: launchers end with 1, whatever their processes ended
    with, and who started the launcher must know whether the same command resumes (75) or meets its error again (2)."""
    if file := os.environ.get("SPARSE_ACCEL_EXIT_CODES"):
        with suppress(OSError), open(file, "a") as codes:
            codes.write(f"{code}\n")
