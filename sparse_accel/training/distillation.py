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
    """Returns the teacher that the recipe's distillation follows, and its tokenizer; None where there is none."""
    following = [modifier for modifier in (recipe.modifiers if recipe else []) if modifier.needs_teacher]
    if arguments.distill_teacher in (None, "disable") or not following:
        return arguments.distill_teacher, None
    teacher, tokenizer = load_teacher(arguments, student, task)
    teacher.model.to(accelerator.device)
    return teacher, tokenizer


def check_teacher_inputs(arguments: TrainingArguments, run: RecipeRun, rows: TokenizedRows, own_tokenizer: Any) -> None:
    """Refuses what a teacher cannot be asked for, where it cannot read the student's token ids.

    Args:
        rows: of training, as the student reads them.
        own_tokenizer: the teacher's own, or None.

    Raises:
        UsageError: outputs that no table holds, or answers on tokens, and a teacher that would be fed ids of another
            vocabulary, or more tokens than it takes.
    """
    if run.teacher is None or (limit := _own_limit(arguments, run.teacher, rows, own_tokenizer)) is None:
        return
    asked = frozenset().union(*(modifier.teacher_outputs for modifier in run.modifiers)) - {"logits"}
    what = f"the recipe compares {listed(sorted(asked))}" if asked else ""
    what = what or ("this task compares answers on tokens" if run.task.token_columns else "")
    if what:
        only = " or distil logits only (distill_output_keys: [logits])" if asked and not run.task.token_columns else ""
        raise UsageError(
            f"--distill_teacher {arguments.distill_teacher} reads text through its own tokenizer, up to {limit} "
            f"tokens, and {what}, which needs the same tokens in both models: take a teacher with the model's "
            f"tokenizer and length,{'' if only else ' or'} add --use_teacher_tokenizer{',' if only else ''}{only}"
        )


def _own_limit(arguments: TrainingArguments, teacher: Teacher, rows: TokenizedRows, own_tokenizer: Any) -> int | None:
    """The tokens that a teacher takes that must read texts through its own tokenizer; None for one that need not: it
    does the same with a text, and takes as many tokens as the longest row has."""
    if own_tokenizer is None:
        return None
    limit = min(arguments.max_seq_length, max_length(own_tokenizer, teacher.model))
    too_long = max(len(ids) for ids in rows.splits["train"]["input_ids"]) > limit
    return limit if too_long or tokenizer_digest(own_tokenizer) != tokenizer_digest(rows.tokenizer) else None


def fill_teacher_table(
    arguments: TrainingArguments, accelerator: Accelerator, run: RecipeRun, rows: TokenizedRows, own_tokenizer: Any
) -> str:
    """Computes or finds the teacher's logits on the training rows; returns what was done, in words.

    A teacher whose tokenizer does otherwise with a text, or that takes fewer tokens than the longest row has, reads the
    same texts through its own.

    Args:
        rows: as the student reads them.
        own_tokenizer: the teacher's own, or None.
    """
    teacher = run.teacher
    assert teacher is not None
    words = "its logits on the training rows"
    if (limit := _own_limit(arguments, teacher, rows, own_tokenizer)) is not None:
        words += f", read through its own tokenizer, up to {limit} tokens"
        rows = tokenize_rows(arguments, accelerator, run.task, own_tokenizer, teacher.model)
    dataset, cache = rows.splits["train"], Path(arguments.cache_dir) if arguments.cache_dir else None
    size = arguments.per_device_eval_batch_size
    found = teacher.make_table(accelerator, dataset, rows.tokenizer, batch_size=size, cache=cache)
    words += f": {'found on disk' if found else 'computed once, kept on disk'}"
    return words + _right_on(arguments, teacher, dataset)


def _right_on(arguments: TrainingArguments, teacher: Teacher, dataset: Any) -> str:
    """`; right on 91.2% of them`, and a warning where a guess would be right more often: labels in other order, say."""
    answers = teacher.task.answers(dataset)
    if answers is None or teacher.table is None:
        return ""
    labels = torch.from_numpy(answers).to(teacher.table.device)
    right = float((teacher.table.argmax(1) == labels).float().mean())
    most = float(labels.bincount().max()) / len(labels)
    what = "rows" if teacher.task.unit == "sentences" else teacher.task.unit
    if right < most:
        warn(
            f"--distill_teacher {arguments.distill_teacher} is right on {right:.1%} of the training {what}, and one "
            f"answer for all would be on {most:.1%}: is it a teacher of this task, with its labels in this order?"
        )
    return f"; right on {right:.1%} of {'them' if what == 'rows' else f'the {what}'}"
