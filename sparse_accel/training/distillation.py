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
from sparse_accel.models.loading import load_teacher, max_length
from sparse_accel.models.teacher import Teacher
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.training.loaders import TokenizedRows, tokenize_rows

if TYPE_CHECKING:
    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe import Recipe
    from sparse_accel.tasks import Task


def make_teacher(
    arguments: TrainingArguments, recipe: Recipe | None, accelerator: Accelerator, student: nn.Module, task: Task
) -> tuple[Teacher | str | None, Any]:
    """Returns the teacher for the recipe's distillation, and its tokenizer (None if it has none, or is the student).

    If no modifier needs a teacher, it returns the value of --distill_teacher instead, without loading anything.

    Raises:
        UsageError: the teacher cannot be read, or its labels differ from the student's.
    """
    following = [modifier for modifier in (recipe.modifiers if recipe else []) if modifier.needs_teacher]
    if arguments.distill_teacher in (None, "disable") or not following:
        return arguments.distill_teacher, None
    teacher, tokenizer = load_teacher(arguments, student, task)
    teacher.model.to(accelerator.device)
    return teacher, tokenizer


def check_teacher_inputs(arguments: TrainingArguments, run: RecipeRun, rows: TokenizedRows, own_tokenizer: Any) -> None:
    """Refuses a teacher that cannot read the student's token ids, if the recipe or the task requires it to.

    Args:
        rows: the training rows, tokenized for the student.
        own_tokenizer: the teacher's tokenizer, or None.

    Raises:
        UsageError: the recipe compares other outputs than logits, or the task has labels per token, but the teacher
            has another vocabulary or takes fewer tokens.
    """
    if run.teacher is None or (limit := _own_limit(arguments, run.teacher, rows, own_tokenizer)) is None:
        return
    asked = frozenset().union(*(modifier.teacher_outputs for modifier in run.modifiers)) - {"logits"}
    what = f"the recipe compares {listed(sorted(asked))}" if asked else ""
    what = what or ("this task compares the logits of tokens" if run.task.token_columns else "")
    if what:
        only = " or distil logits only (distill_output_keys: [logits])" if asked and not run.task.token_columns else ""
        raise UsageError(
            f"--distill_teacher {arguments.distill_teacher} needs its own tokenizer, up to {limit} tokens, but {what}, "
            "which requires the same tokens in both models: use a teacher with the model's tokenizer and length,"
            f"{'' if only else ' or'} add --use_teacher_tokenizer{',' if only else ''}{only}"
        )


def _own_limit(arguments: TrainingArguments, teacher: Teacher, rows: TokenizedRows, own_tokenizer: Any) -> int | None:
    """The maximum number of tokens of a teacher that must use its own tokenizer; None if the student's rows fit it: its
    tokenizer gives the same ids, and it takes as many tokens as the longest row has."""
    if own_tokenizer is None:
        return None
    limit = min(arguments.max_seq_length, max_length(own_tokenizer, teacher.model))
    too_long = max(len(ids) for ids in rows.splits["train"]["input_ids"]) > limit
    return limit if too_long or tokenizer_digest(own_tokenizer) != tokenizer_digest(rows.tokenizer) else None


def fill_teacher_table(
    arguments: TrainingArguments, accelerator: Accelerator, run: RecipeRun, rows: TokenizedRows, own_tokenizer: Any
) -> str:
    """Computes the teacher's logits on the training rows, or reads them from disk; returns what was done, as text.

    If the teacher's tokenizer gives other ids, or the teacher takes fewer tokens than the longest row has, the texts
    are tokenized again for the teacher.

    Args:
        rows: the training rows, tokenized for the student.
        own_tokenizer: the teacher's tokenizer, or None.
    """
    teacher = run.teacher
    assert teacher is not None
    words = "its logits on the training rows"
    if (limit := _own_limit(arguments, teacher, rows, own_tokenizer)) is not None:
        words += f", with its own tokenizer, up to {limit} tokens"
        rows = tokenize_rows(arguments, accelerator, run.task, own_tokenizer, teacher.model)
    dataset, cache = rows.splits["train"], Path(arguments.cache_dir) if arguments.cache_dir else None
    size = arguments.per_device_eval_batch_size
    found = teacher.make_table(accelerator, dataset, rows.tokenizer, batch_size=size, cache=cache)
    words += f": {'found on disk' if found else 'computed once, stored on disk'}"
    return words + _correct_on(arguments, teacher, dataset)


def _correct_on(arguments: TrainingArguments, teacher: Teacher, dataset: Any) -> str:
    """`; correct on 91.2% of them`. Warns if a constant answer would be correct more often, as with swapped labels."""
    classes = teacher.task.class_labels(dataset)
    if classes is None or teacher.table is None:
        return ""
    labels = torch.from_numpy(classes).to(teacher.table.device)
    right = float((teacher.table.argmax(1) == labels).float().mean())
    most = float(labels.bincount().max()) / len(labels)
    what = "rows" if teacher.task.unit == "sentences" else teacher.task.unit
    if right < most:
        warn(
            f"--distill_teacher {arguments.distill_teacher} is correct on {right:.1%} of the training {what}; always "
            f"the same answer would be on {most:.1%}. Is it a teacher for this task, with its labels in this order?"
        )
    return f"; correct on {right:.1%} of {'them' if what == 'rows' else f'the {what}'}"
