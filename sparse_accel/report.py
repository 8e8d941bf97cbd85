"""What a run prints: the table at the start with everything that was decided, and the results at the end."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from sparse_accel.environment import compilation
from sparse_accel.errors import shortened
from sparse_accel.layers import masks, prunable_names, quantizers
from sparse_accel.sharding import describe, plain_model

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from sparse_accel.recipe_run import RecipeRun

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


def timeline(run: RecipeRun) -> str:
    """Returns the events of the modifiers that take part, one a line."""
    if run.recipe is None:
        return "no recipe: plain training"
    events = sorted((event for modifier in run.modifiers for event in modifier.events()), key=lambda event: event[0])
    return "\n".join(f"epoch {epoch:g}: {what}" for epoch, what in events) or "nothing happens"


def structure(model: nn.Module) -> list[tuple[str, str]]:
    """Returns what is prunable and what gets quantized, in rows of the table."""
    found = quantizers(model)
    kinds = {kind: sum(1 for name in found if name.endswith(kind)) for kind in ("input", "weight", "output")}
    kinds = {kind: sum(1 for name in found if name.endswith(f"{kind}_quantizer")) for kind in kinds}
    masked = sum(1 for name in masks(model) if name.endswith(".weight"))
    rows = [("masks", f"{masked} weights, of {len(prunable_names(model))} prunable (Linear, convolution)")]
    if found:
        words = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        rows.append(("quantizers", f"{len(found)}, off until their epoch: {words}"))
    return rows


def start_table(accelerator: Accelerator, run: RecipeRun, rows: list[tuple[str, Any]]) -> str:
    """Returns the start-up table: layout and precision, the script's own `rows`, the recipe, the structure, notices.

    A setting that the environment made, such as torch.compile, is shown like one of the flags.
    """
    layout = [
        ("device", f"{accelerator.device} ({describe(accelerator)})"),
        ("precision", {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)),
    ]
    if compiled := compilation(accelerator):
        layout.append(("compiled", compiled))
    notices = [("note", shortened(notice)) for notice in run.notices]
    recipe = [("recipe", timeline(run))]
    return table("run", layout + rows + recipe + structure(plain_model(accelerator, run.model)) + notices)


def results_table(results: dict[str, Any]) -> str:
    """Returns the figures of a finished run."""
    rows = [(name, f"{value:.4f}" if isinstance(value, float) else value) for name, value in sorted(results.items())]
    return table("results", [row for row in rows if row[1] is not None and not isinstance(row[1], (dict, list))])
