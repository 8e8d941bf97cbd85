"""Printing: once per run, for any number of processes."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from sparse_accel.errors import shortened

if TYPE_CHECKING:
    from accelerate import Accelerator


def rank() -> int:
    """Returns the rank of this process from the environment, before processes can communicate; rank 0 prints for all.

    Leftovers of another launch are ignored (0): RANK without WORLD_SIZE, not below it, or not a number.
    """
    number, count = (os.environ.get(name, "").strip() for name in ("RANK", "WORLD_SIZE"))
    if not (number.isdecimal() and count.isdecimal()):
        return 0
    return int(number) if int(number) < int(count) else 0


def warn(message: str) -> None:
    """Prints `warning: message` on stderr, on process 0 only; not with --log_level error."""
    if rank() == 0 and _shows_warnings:
        print(f"warning: {shortened(message)}", file=sys.stderr)


# Seconds between two states of a progress bar in a log file, where each state is a new line.
_SECONDS_IN_A_LOG = 30


class _Lines:
    """stderr as a log file: writes each state of a bar as a separate line."""

    def write(self, text: str) -> None:
        if state := text.strip():
            sys.stderr.write(f"{state}\n")

    def flush(self) -> None:
        sys.stderr.flush()


# By --log_level. Without progress only warnings and errors are printed, without warnings only errors.
_shows_progress = _shows_warnings = True


def set_log_level(level: str) -> None:
    """Sets what is printed, by this package and by the libraries underneath.

    Args:
        level: `debug`, `info`, `warning` or `error`; from `warning` on, tables, evaluations and bars are left out.
    """
    global _shows_progress, _shows_warnings
    import logging

    _shows_progress, _shows_warnings = level in ("debug", "info"), level != "error"
    if level != "info":  # otherwise each library keeps its own level
        for name in ("transformers", "datasets", "accelerate", "huggingface_hub", "torch"):
            logging.getLogger(name).setLevel(level.upper())


def say(accelerator: Accelerator, text: str) -> None:
    """Prints on the main process only. `accelerator.print` prints on one process per machine."""
    if accelerator.is_main_process and _shows_progress:
        print(text)


def note(text: str) -> None:
    """Prints a line on process 0 only, as `say` does, where there is no accelerator."""
    if rank() == 0 and _shows_progress:
        print(text)


def progress_bar(
    accelerator: Accelerator | None,
    total: int,
    what: str,
    unit: str,
    *,
    done: int = 0,
    leave: bool = True,
    bar_format: str | None = None,
) -> tqdm:
    """Returns a progress bar on the main process; if stderr is not a terminal, it prints a line every 30 seconds.

    Args:
        accelerator: of the run; None in a loop without one.
        total, done: number of units, and how many are already done.
        what, unit: description of the work, and name of a unit.
        bar_format: of tqdm; None: its own.
        leave: whether the full bar stays; a bar that does not stay appears only after 1 second, in a log after 30.
    """
    on_terminal = sys.stderr.isatty()
    has_width = on_terminal and os.get_terminal_size(sys.stderr.fileno()).columns > 0  # a container's may report 0
    interval = 0.1 if on_terminal else _SECONDS_IN_A_LOG
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=f" {unit}",
        leave=leave,
        delay=0 if leave else 1 if on_terminal else interval,
        mininterval=interval,
        maxinterval=max(interval, 10),
        dynamic_ncols=has_width,
        ncols=None if has_width else 100,
        file=sys.stderr if on_terminal else _Lines(),
        bar_format=bar_format,
        disable=not _shows_progress or (accelerator is not None and not accelerator.is_main_process),
    )


def print_above_bar(accelerator: Accelerator, line: str) -> None:
    """Prints a line on the main process; on a terminal, above the progress bar."""
    if accelerator.is_main_process and _shows_progress:
        (tqdm.write if sys.stderr.isatty() else print)(line)


def table(title: str, rows: list[tuple[str, Any]]) -> str:
    """Returns a two-column table, wrapped to the terminal's width, that any output encoding can print."""
    line = _horizontal_line()
    width = min(shutil.get_terminal_size((110, 24)).columns, 120)
    left = max(len(name) for name, _ in rows)
    # Paths and names stay in one piece, so that they can be copied.
    wrapper = textwrap.TextWrapper(max(width - left - 4, 20), break_long_words=False, break_on_hyphens=False)
    lines = [f"{line * 2} {title} ".ljust(width, line)]
    for name, value in rows:
        wrapped = [part for text in str(value).splitlines() for part in wrapper.wrap(text) or [""]]
        lines += [f"  {name if number == 0 else '':<{left}}  {part}" for number, part in enumerate(wrapped or [""])]
    return "\n".join([*lines, line * width])


def _horizontal_line() -> str:
    try:
        "─".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "-"
    return "─"
