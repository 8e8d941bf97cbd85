"""The schedule of a run: when to log, evaluate and save, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import get_scheduler

from sparse_accel.cli.parser import given
from sparse_accel.modifiers import Modifier
from sparse_accel.progress import Progress

if TYPE_CHECKING:
    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe import Recipe


@dataclass(frozen=True)
class Schedule:
    """When to log, evaluate and save, in optimizer steps; 0 means never."""

    total_steps: int
    log_every: int = 0
    evaluate_every: int = 0
    save_every: int = 0

    def due(self, every: int, step: int) -> bool:
        """Returns whether something that happens each `every` steps happens after `step`; always after the last."""
        return every > 0 and (step % every == 0 or step == self.total_steps)


def steps_of_run(
    arguments: TrainingArguments, recipe: Recipe | None, steps_per_epoch: int
) -> tuple[Schedule, list[str]]:
    """Returns the schedule, and one line for each flag that the recipe overrides."""
    notices = _overridden_flags(arguments, recipe)
    if recipe is not None and recipe.max_epochs > 0:
        total, epochs = recipe.max_epochs * steps_per_epoch, arguments.num_train_epochs
        if given(arguments, "max_steps") and arguments.max_steps > 0 and arguments.max_steps != total:
            notices.append(
                f"--max_steps {arguments.max_steps} is overridden: the recipe runs {recipe.max_epochs} epochs"
            )
        if given(arguments, "num_train_epochs") and epochs != recipe.max_epochs:
            notices.append(f"--num_train_epochs {epochs:g} is overridden: the recipe runs {recipe.max_epochs}")
    elif arguments.max_steps > 0:
        total = arguments.max_steps
    else:
        total = math.ceil(arguments.num_train_epochs * steps_per_epoch)

    def every(strategy: str, steps: int) -> int:
        return {"no": 0, "steps": steps, "epoch": steps_per_epoch}[strategy]

    evaluate_every = every(arguments.eval_strategy, arguments.eval_steps or arguments.logging_steps)
    save_every = every(arguments.save_strategy, arguments.save_steps)
    return Schedule(total, arguments.logging_steps, evaluate_every, save_every), notices


def _overridden_flags(arguments: TrainingArguments, recipe: Recipe | None) -> list[str]:
    """Returns a line for each given flag that the recipe's learning rate or weight decay overrides."""
    lines = []
    # --weight_decay applies only to parameter group 0: group 1, biases and norms, has no decay.
    for setting, value, groups in (("lr", "learning_rate", (0, 1)), ("weight_decay", "weight_decay", (0,))):
        modifiers = _modifiers_of(recipe, setting)
        found = {group: [m.span[0] for m in modifiers if m.covers_group(group)] for group in groups}
        starts = {group: min(epochs) for group, epochs in found.items() if epochs}
        if not starts:
            continue
        when = {group: f" from epoch {start:g} on" if start > 0 else "" for group, start in starts.items()}
        if len(starts) == len(groups) and len(set(starts.values())) == 1:
            scope, otherwise = when[groups[0]], "until then"
        else:
            scope = " for " + " and ".join(f"parameter group {group}{text}" for group, text in when.items())
            otherwise = "otherwise"
        because = f"the recipe sets the {value.replace('_', ' ')}"
        if given(arguments, value):
            number = getattr(arguments, value)
            rest = f"; {otherwise} it is {number}" if scope else ""
            lines.append(f"--{value} {number} is overridden{scope}: {because}{rest}")
        for name in ("lr_scheduler_type", "warmup_ratio", "warmup_steps") if setting == "lr" else ():
            if given(arguments, name):
                rest = f", and {otherwise} it is constant" if scope else ""
                lines.append(f"--{name} {getattr(arguments, name)} is overridden: {because}{rest}")
    return lines


def _modifiers_of(recipe: Recipe | None, setting: str) -> list[Modifier]:
    """Returns the recipe's modifiers that control one setting of the optimizer: `lr` or `weight_decay`."""
    return [modifier for modifier in (recipe.modifiers if recipe else []) if modifier.setting == setting]


def lr_schedule(arguments: TrainingArguments, recipe: Recipe | None, total_steps: int) -> Any:
    """Returns the learning rate as a function of progress, from the flags; constant if the recipe controls it."""
    if _modifiers_of(recipe, "lr"):
        return lambda progress: arguments.learning_rate
    warmup = arguments.warmup_steps or math.ceil(arguments.warmup_ratio * total_steps)
    return transformers_schedule(arguments.lr_scheduler_type, arguments.learning_rate, warmup, total_steps)


def transformers_schedule(name: str, peak: float, warmup_steps: int, total_steps: int) -> Callable[[Progress], float]:
    """Returns the learning rate of a transformers schedule as a pure function of progress.

    Args:
        name: linear, cosine, constant or constant_with_warmup.
        peak: the learning rate after warmup.
        warmup_steps, total_steps: in optimizer steps.
    """
    if name == "constant":
        return lambda progress: peak
    # Only the shape comes from transformers; its scheduler counts calls, but here the step comes from progress.
    stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(name, stand_in, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
    shape = scheduler.lr_lambdas[0]
    return lambda progress: peak * float(shape(progress.step))
