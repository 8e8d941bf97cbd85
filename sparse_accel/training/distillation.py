"""The teacher of a run, and the table of its logits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from datasets import concatenate_datasets
from torch import nn

from sparse_accel.console import warn
from sparse_accel.data.batches import TEACHER, TEXT_LENGTHS, longest_text
from sparse_accel.data.tokenizing import MODEL_INPUTS, tokenizer_digest
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


def with_teacher_inputs(
    arguments: TrainingArguments, accelerator: Accelerator, run: RecipeRun, rows: TokenizedRows, own_tokenizer: Any
) -> TokenizedRows:
    """Returns the rows with what the teacher reads in each step, if that is not what the model reads: the training rows
    then have columns such as `teacher_input_ids`, by the teacher's tokenizer.

    Args:
        rows: the rows, tokenized for the student.
        own_tokenizer: the teacher's tokenizer, or None.

    Raises:
        UsageError: the recipe or the task compares tokens one by one, but the teacher has another vocabulary or takes
            fewer tokens.
    """
    if run.teacher is None or (limit := _own_limit(arguments, run.teacher, rows, own_tokenizer)) is None:
        return rows
    by_token = [modifier for modifier in run.modifiers if modifier.needs_same_tokens]
    asked = frozenset().union(*(modifier.teacher_outputs for modifier in by_token))
    what = f"the recipe compares {listed(sorted(asked - {'logits'}))} of each token" if by_token else ""
    if not what and run.task.compares_tokens:
        has_logits = "logits" in _outputs_asked(run)
        what = "this task compares the logits of tokens" if has_logits else "this task splits long rows by their tokens"
    if what:
        only = ", or compare only logits or the first token" if by_token else ""
        raise UsageError(
            f"--distill_teacher {arguments.distill_teacher} needs its own tokenizer, up to {limit} tokens, but {what}, "
            "which requires the same tokens in both models: use a teacher with the model's tokenizer and length, or "
            f"add --use_teacher_tokenizer{only}"
        )
    if not _outputs_asked(run) - {"logits"}:
        return rows  # its logits are in the table
    own = tokenize_rows(arguments, accelerator, run.task, own_tokenizer, run.teacher.model).splits["train"]
    own = own.select_columns([name for name in own.column_names if name in (*MODEL_INPUTS, TEXT_LENGTHS)])
    own = own.rename_columns({name: f"{TEACHER}{name}" for name in own.column_names})
    collator = copy.copy(rows.collator)
    collator.teacher_tokenizer = own_tokenizer
    splits = {**rows.splits, "train": concatenate_datasets([rows.splits["train"], own], axis=1)}
    return replace(rows, splits=splits, collator=collator)


def _outputs_asked(run: RecipeRun) -> frozenset[str]:
    """The teacher's outputs that the recipe's modifiers compare."""
    return frozenset().union(*(modifier.teacher_outputs for modifier in run.modifiers))


def _own_limit(arguments: TrainingArguments, teacher: Teacher, rows: TokenizedRows, own_tokenizer: Any) -> int | None:
    """The maximum number of tokens of a teacher that must use its own tokenizer; None if the student's rows fit it: its
    tokenizer gives the same ids, and it takes as many tokens as the longest row has."""
    if own_tokenizer is None:
        return None
    limit = min(arguments.max_seq_length, max_length(own_tokenizer, teacher.model))
    # A stream's rows are not known yet.
    longest = longest_text(rows.splits["train"]) if "train" in rows.splits else rows.limit
    too_long = longest > limit
    return limit if too_long or tokenizer_digest(own_tokenizer) != tokenizer_digest(rows.tokenizer) else None


def rows_for_teacher(
    arguments: TrainingArguments, accelerator: Accelerator, run: RecipeRun, rows: TokenizedRows, own_tokenizer: Any
) -> TokenizedRows:
    """Returns the rows as the run's teacher must read them: those of the student, unless its tokenizer gives other ids
    or it takes fewer tokens than the longest row has.

    Args:
        rows: tokenized for the student.
        own_tokenizer: the teacher's tokenizer, or None.
    """
    assert run.teacher is not None
    if _own_limit(arguments, run.teacher, rows, own_tokenizer) is None:
        return rows
    return tokenize_rows(arguments, accelerator, run.task, own_tokenizer, run.teacher.model)


def fill_teacher_table(
    arguments: TrainingArguments, accelerator: Accelerator, run: RecipeRun, rows: TokenizedRows, own_tokenizer: Any
) -> str:
    """Computes the teacher's logits on the training rows, or reads them from disk; returns what was done, as text.

    Nothing is computed if no modifier compares logits, or if the task keeps no table of them: the teacher then runs in
    each step. If its tokenizer gives other ids, or it takes fewer tokens than the longest row has, the texts are
    tokenized again for it.

    Args:
        rows: the training rows, tokenized for the student.
        own_tokenizer: the teacher's tokenizer, or None.
    """
    teacher = run.teacher
    assert teacher is not None
    asked = _outputs_asked(run)
    limit = _own_limit(arguments, teacher, rows, own_tokenizer)
    tokens = "" if limit is None else f", with its own tokenizer, up to {limit} tokens"
    if not teacher.task.keeps_table:
        return f"it runs in each step, for its {listed(sorted(asked))}"
    live = f"it also runs in each step, for its {listed(sorted(asked - {'logits'}))}" if asked - {"logits"} else ""
    if "logits" not in asked:
        return live + tokens
    what = "embeddings" if teacher.task.table_on_disk else "logits"
    words = f"its {what} on the training rows{tokens}"
    rows = rows_for_teacher(arguments, accelerator, run, rows, own_tokenizer)
    dataset, cache = rows.splits["train"], Path(arguments.cache_dir) if arguments.cache_dir else None
    size = arguments.per_device_eval_batch_size
    found = teacher.make_table(accelerator, dataset, rows.tokenizer, batch_size=size, cache=cache)
    words += f": {'found on disk' if found else 'computed once, stored on disk'}"
    return words + _correct_on(arguments, teacher, dataset) + (f"; {live}" if live else "")


def _correct_on(arguments: TrainingArguments, teacher: Teacher, dataset: Any) -> str:
    """`; correct on 91.2% of them`. Warns if a constant answer would be correct more often, as with swapped labels."""
    classes = teacher.task.class_labels(dataset)
    table = teacher.table
    if classes is None or table is None:
        return ""
    decided = table.argmax(1) if isinstance(table, torch.Tensor) else table.columns_of_largest()
    labels = torch.from_numpy(classes).to(decided.device)
    right = float((decided == labels).float().mean())
    most = float(labels.bincount().max()) / len(labels)
    what = "rows" if teacher.task.unit == "sentences" else teacher.task.unit
    if right < most:
        warn(
            f"--distill_teacher {arguments.distill_teacher} is correct on {right:.1%} of the training {what}; always "
            f"the same answer would be on {most:.1%}. Is it a teacher for this task, with its labels in this order?"
        )
    return f"; correct on {right:.1%} of {'them' if what == 'rows' else f'the {what}'}"
