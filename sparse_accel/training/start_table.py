"""The start-up table, with all decisions for the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from torch import nn

from sparse_accel.console import table
from sparse_accel.distributed.environment import compilation
from sparse_accel.distributed.launch import describe, precision_name
from sparse_accel.distributed.threads import threads_in_use
from sparse_accel.distributed.weights import plain_model
from sparse_accel.errors import listed, shortened
from sparse_accel.nn.layers import masks, prunable_names, quantizers
from sparse_accel.recipe.recipe import timeline_of
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.training.compilation import is_compiled
from sparse_accel.training.precision import bfloat16_hint
from sparse_accel.training.schedule import Schedule
from sparse_accel.training.streaming import StreamSampler

if TYPE_CHECKING:
    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe_run import RecipeRun
    from sparse_accel.training.loaders import Batches, TokenizedRows


def describe_run(
    arguments: TrainingArguments,
    run: RecipeRun,
    fresh: list[str],
    rows: TokenizedRows,
    sampler: Batches,
    schedule: Schedule,
) -> list[tuple[str, str]]:
    """Returns rows of the start-up table: model, data, batches and number of steps.

    Args:
        fresh: weights that are newly initialized.
    """
    padded = f"padded to {rows.limit}" if arguments.pad_to_max_length else "padded to the longest row of the batch"
    resumed = f", resuming from step {run.progress.step}" if run.progress.step else ""
    hints = bfloat16_hint(arguments, resumed=run.progress.step > 0)
    counts = {split: (len(found), len(rows.splits[split])) for split, found in run.task.data.splits.items()}
    splits = ", ".join(f"{count} {split}" for split, (count, _) in counts.items())
    if isinstance(sampler, StreamSampler):
        splits = f"{sampler.describe()}" + (f"; {splits}" if splits else "")
    return [
        ("model", str(arguments.model_name_or_path)),
        ("head", describe_head(run.task.head.names, fresh)),
        ("data", f"{splits}; {run.task.describe_labels()}"),
        ("columns", run.task.describe_columns()),
        ("lengths", f"up to {rows.limit} tokens; {padded}{run.task.describe_parts(counts)}"),
        ("global batch", f"{sampler.global_batch_size} rows: micro-batches of {sampler.micro_batch_size}"),
        ("steps", f"{schedule.total_steps}, {sampler.steps} per epoch{resumed}"),
        *(("note", notice) for notice in [*run.training_notices, *hints]),
    ]


def describe_head(names: list[str], fresh: list[str]) -> str:
    """Returns the origin of the model's head, as text.

    Args:
        names: labels in the order of the outputs.
        fresh: weights that are newly initialized.
    """
    if fresh:
        return f"newly initialized ({len(fresh)} weights)"
    return "the model's own" + (f", with outputs {listed(names)}" if names else "")


def timeline(run: RecipeRun) -> str:
    """Returns the events of the recipe's modifiers, one per line, by epoch."""
    if run.recipe is None:
        return "no recipe: plain training"
    events = timeline_of(run.modifiers, run.max_epochs)
    return "\n".join(f"epoch {epoch:g}: {what}" for epoch, what in events) or "no events"


def applied_at_once(run: RecipeRun) -> str:
    """Returns what --one_shot applies of a recipe, and what has no effect without training."""
    if run.recipe is None:
        return "no recipe"
    applied = [f"{modifier.name}{modifier.at_once()}" for modifier in run.modifiers if modifier.changes_at_once]
    without_effect = [modifier.name for modifier in run.modifiers if not modifier.changes_at_once]
    others = dict.fromkeys([*without_effect, *run.left_out])
    lines = [f"applied at once: {', '.join(applied) or 'nothing'}"]
    return "\n".join(lines + ([f"no effect without training: {', '.join(others)}"] if others else []))


def structure(model: nn.Module, trains: bool = True) -> list[tuple[str, str]]:
    """Returns rows of the start-up table: masks, prunable weights and quantizers."""
    found = quantizers(model)
    kinds = {kind: sum(1 for name in found if name.endswith(kind)) for kind in ("input", "weight", "output")}
    kinds = {kind: sum(1 for name in found if name.endswith(f"{kind}_quantizer")) for kind in kinds}
    masked = sum(1 for name in masks(model) if name.endswith(".weight"))
    rows = [("masks", f"on {masked} of {len(prunable_names(model))} prunable weights (Linear, convolution)")]
    if found:
        words = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        rows.append(("quantizers", f"{len(found)}{', off until their epoch' * trains}: {words}"))
    return rows


def start_table(accelerator: Accelerator, run: RecipeRun, rows: list[tuple[str, Any]], trains: bool = True) -> str:
    """Returns the start-up table: layout, precision, threads, the script's own `rows`, recipe, structure, notices.

    It also shows settings from the environment, such as torch.compile.

    Args:
        trains: False if the recipe is applied at once, without training.
    """
    layout: list[tuple[str, Any]] = [
        ("device", f"{accelerator.device} ({describe(accelerator)})"),
        ("precision", precision_name(accelerator)),
        ("threads", threads_in_use()),
    ]
    if compiled := compilation(accelerator):
        layout.append(("compiled", compiled))
    elif is_compiled(plain_model(accelerator, run.model)):
        layout.append(("compiled", "each block (--torch_compile)"))
    notices = [("note", shortened(notice)) for notice in run.notices]
    recipe = [("recipe", timeline(run) if trains else applied_at_once(run))]
    return table("run", layout + rows + recipe + structure(plain_model(accelerator, run.model), trains) + notices)
