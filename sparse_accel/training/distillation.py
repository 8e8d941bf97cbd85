"""The teacher of a run, and the table of its logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn

from sparse_accel.console import warn
from sparse_accel.data.tokenizing import tokenizer_digest
from sparse_accel.errors import UsageError, listed
from sparse_accel.models.loading import load_teacher, sequence_limit
from sparse_accel.models.teacher import Teacher
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.training.loaders import tokenize_rows

if TYPE_CHECKING:
    from sparse_accel.cli.text_classification import TextClassificationArguments
    from sparse_accel.recipe import Recipe


def make_teacher(
    arguments: TextClassificationArguments, recipe: Recipe | None, accelerator: Accelerator, student: nn.Module
) -> tuple[Teacher | str | None, Any]:
    """Returns the teacher that the recipe's distillation follows, and its tokenizer; None where there is none."""
    following = [modifier for modifier in (recipe.modifiers if recipe else []) if modifier.needs_teacher]
    if arguments.distill_teacher in (None, "disable") or not following:
        return arguments.distill_teacher, None
    teacher, tokenizer = load_teacher(arguments, student)
    teacher.model.to(accelerator.device)
    return teacher, tokenizer


def check_teacher_inputs(
    arguments: TextClassificationArguments, run: RecipeRun, dataset: Any, tokenizers: tuple[Any, Any]
) -> None:
    """Refuses outputs of the teacher that no table holds, where it cannot read the student's token ids.

    Args:
        dataset: the training rows as the student reads them.
        tokenizers: the student's, and the teacher's own or None.

    Raises:
        UsageError: it would be fed ids of another vocabulary, or more tokens than it takes.
    """
    asked = frozenset().union(*(modifier.teacher_outputs for modifier in run.modifiers)) - {"logits"}
    if run.teacher is None or not asked:
        return
    if (limit := _own_limit(arguments, run.teacher, dataset, tokenizers)) is not None:
        raise UsageError(
            f"--distill_teacher {arguments.distill_teacher} reads text through its own tokenizer, up to {limit} "
            f"tokens, and the recipe compares {listed(sorted(asked))}, which needs the same tokens in both models: "
            "take a teacher with the model's tokenizer and length, add --use_teacher_tokenizer, or distil logits only "
            "(distill_output_keys: [logits])"
        )


def _own_limit(
    arguments: TextClassificationArguments, teacher: Teacher, dataset: Any, tokenizers: tuple[Any, Any]
) -> int | None:
    """The tokens that a teacher takes that must read texts through its own tokenizer; None for one that need not: it
    does the same with a text, and takes as many tokens as the longest row has."""
    tokenizer, own_tokenizer = tokenizers
    if own_tokenizer is None:
        return None
    limit = min(arguments.max_seq_length, sequence_limit(own_tokenizer, teacher.model))
    too_long = max(len(ids) for ids in dataset["input_ids"]) > limit
    return limit if too_long or tokenizer_digest(own_tokenizer) != tokenizer_digest(tokenizer) else None


def fill_teacher_table(
    arguments: TextClassificationArguments,
    accelerator: Accelerator,
    teacher: Teacher,
    data: Any,
    dataset: Any,
    tokenizers: tuple[Any, Any],
) -> str:
    """Computes or finds the teacher's logits on the training rows; returns what was done, in words.

    Args:
        dataset: the training rows as the student reads them.
        tokenizers: the student's, and the teacher's own or None. A teacher whose tokenizer does otherwise with a text,
            or that takes fewer tokens than the longest row has, reads the same texts through its own.
    """
    tokenizer, own_tokenizer = tokenizers
    words = "its logits on the training rows"
    if (limit := _own_limit(arguments, teacher, dataset, tokenizers)) is not None:
        tokenizer = own_tokenizer
        words += f", read through its own tokenizer, up to {limit} tokens"
        dataset = tokenize_rows(arguments, accelerator, data, tokenizer, limit, teacher.model)["train"]
    cache = Path(arguments.cache_dir) if arguments.cache_dir else None
    size = arguments.per_device_eval_batch_size
    found = teacher.make_table(accelerator, dataset, tokenizer, batch_size=size, cache=cache)
    words += f": {'found on disk' if found else 'computed once, kept on disk'}"
    return words + _right_on(arguments, teacher, data, dataset)


def _right_on(arguments: TextClassificationArguments, teacher: Teacher, data: Any, dataset: Any) -> str:
    """`; right on 91.2% of them`, and a warning where a guess would be right more often: labels in other order, say."""
    if data.problem_type != "single_label_classification" or teacher.table is None:
        return ""
    labels = torch.as_tensor(dataset["labels"][:], device=teacher.table.device)
    right = float((teacher.table.argmax(1) == labels).float().mean())
    most = float(labels.bincount().max()) / len(labels)
    if right < most:
        warn(
            f"--distill_teacher {arguments.distill_teacher} is right on {right:.1%} of the training rows, and one "
            f"answer for all would be on {most:.1%}: is it a teacher of this task, with its labels in this order?"
        )
    return f"; right on {right:.1%} of them"
