"""Checks that the training rows of a run teach something, and that its recipe can do with them what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparse_accel.distributed.collectives import world_size
from sparse_accel.errors import UsageError
from sparse_accel.recipe import load_recipe

if TYPE_CHECKING:
    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.modifiers.base import Modifier
    from sparse_accel.tasks.sentence_embedding.data import EmbeddingData


def check_training(arguments: TrainingArguments, data: EmbeddingData) -> None:
    """Checks the training rows and the recipe of a run.

    Raises:
        UsageError: texts have no teacher, pairs no negatives, or a modifier needs what the rows do not have.
    """
    recipe = load_recipe(arguments.recipe, arguments.recipe_args) if arguments.recipe else None
    modifiers = list(recipe.modifiers) if recipe else []
    in_batch = data.width("train") > 1 and not data.has_scores("train")
    _check_modifiers(modifiers, data.width("train"), in_batch)
    if not arguments.do_train:
        return
    follows = any(each.needs_teacher for each in modifiers) and arguments.distill_teacher != "disable"
    if data.width("train") == 1 and not follows:
        raise UsageError(
            f"{data.sources['train']} has texts alone, which teach nothing without a teacher: add --distill_teacher "
            "and a recipe with a DistillationModifier, or train on pairs (columns anchor, positive)."
        )
    if in_batch:
        _check_negatives(arguments, data)


def _check_modifiers(modifiers: Sequence[Modifier], width: int, in_batch: bool) -> None:
    for each in modifiers:
        if not each.samples_gradients:
            continue
        if in_batch:
            raise UsageError(
                f"{each.name} needs gradients of single rows, but the loss of a pair depends on all rows of its batch: "
                "prune by magnitude or movement, or follow a teacher on texts."
            )
        if width == 1 and getattr(each, "grad_loss", "recipe") == "task":
            raise UsageError(
                f"{each.name}: grad_loss: texts have no loss but the distance from the teacher: set it to recipe."
            )


def _check_negatives(arguments: TrainingArguments, data: EmbeddingData) -> None:
    if arguments.gradient_accumulation_steps > 1:
        raise UsageError(
            "--gradient_accumulation_steps: the negatives of a pair are the other rows of its batch, and a part of a "
            "batch has fewer: set --per_device_train_batch_size to the complete batch; --gradient_checkpointing saves "
            "memory."
        )
    rows, batch = len(data.splits["train"]), arguments.per_device_train_batch_size * world_size()
    if data.width("train") == 2 and min(rows, batch) == 1:
        alone = f"{data.sources['train']} has one pair" if rows == 1 else "each batch has one pair"
        remedy = "add rows" if rows == 1 else "raise --per_device_train_batch_size"
        raise UsageError(
            f"{alone}, which has no negatives: {remedy}, or add a column of them (anchor, positive, negative)."
        )
