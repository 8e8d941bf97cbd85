"""What a run prints: the table at the start with everything that was decided, and the results at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparse_accel.console import table
from sparse_accel.distributed.environment import compilation
from sparse_accel.distributed.launch import describe
from sparse_accel.distributed.weights import plain_model
from sparse_accel.errors import shortened
from sparse_accel.nn.layers import masks, prunable_names, quantizers

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from sparse_accel.recipe_run import RecipeRun


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
