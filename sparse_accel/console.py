"""Everything that a run prints, once however many processes it has."""

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
    """Returns this process's number among those of its launch, known before any of them talk: 0 speaks for all.

    What is left over from another launch does not count: RANK without WORLD_SIZE, not below it, or not a number.
    """
    number, count = (os.environ.get(name, "").strip() for name in ("RANK", "WORLD_SIZE"))
    if not (number.isdecimal() and count.isdecimal()):
        return 0
    return int(number) if int(number) < int(count) else 0


def warn(message: str) -> None:
    """Prints `warning: message` on stderr, once however many processes the run has."""
    if rank() == 0:
        print(f"warning: {shortened(message)}", file=sys.stderr)


# Seconds between two states of a progress bar in a log file, where each is a line that stays.
_SECONDS_IN_A_LOG = 30


class _Lines:
    """stderr as a log file: each state of a bar on a line of its own."""

    def write(self, text: str) -> None:
        if state := text.strip():
            sys.stderr.write(f"{state}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def say(accelerator: Accelerator, text: str) -> None:
    """Prints on the main process alone. `accelerator.print` would on one process of each machine."""
    if accelerator.is_main_process:
        print(text)


def progress_bar(
    accelerator: Accelerator, total: int, what: str, unit: str, *, done: int = 0, leave: bool = True
) -> tqdm:
    """Returns a bar on the main process; where stderr is no terminal, a line on its state now and then.

    Args:
        total, done: units in all, and those done before.
        what, unit: what is done, and to what.
        leave: whether the full bar stays; one that does not only appears if it takes its time.
    """
    on_terminal = sys.stderr.isatty()
    interval = 0.1 if on_terminal else _SECONDS_IN_A_LOG
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=f" {unit}",
        leave=leave,
        delay=0 if leave else 10 * interval,
        mininterval=interval,
        maxinterval=max(interval, 10),
        dynamic_ncols=on_terminal,
        ncols=None if on_terminal else 100,
        file=sys.stderr if on_terminal else _Lines(),
        disable=not accelerator.is_main_process,
    )


def print_above_bar(accelerator: Accelerator, line: str) -> None:
    """Prints a line; on a terminal the progress bar moves below it."""
    if accelerator.is_main_process:
        (tqdm.write if sys.stderr.isatty() else print)(line)


def table(title: str, rows: list[tuple[str, Any]]) -> str:
    """Returns a two-column table, long cells wrapped to the terminal's width, for an output in any encoding."""
    line = _horizontal_line()
    width = min(shutil.get_terminal_size((110, 24)).columns, 120)
    left = max(len(name) for name, _ in rows)
    lines = [f"{line * 2} {title} ".ljust(width, line)]
    for name, value in rows:
        wrapped = [part for text in str(value).splitlines() for part in textwrap.wrap(text, width - left - 4) or [""]]
        lines += [f"  {name if number == 0 else '':<{left}}  {part}" for number, part in enumerate(wrapped or [""])]
    return "\n".join([*lines, line * width])


def _horizontal_line() -> str:
    try:
        "─".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "-"
    return "─"
