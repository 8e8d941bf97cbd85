"""Loads the questions of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparse_accel.data.sources import load_tables
from sparse_accel.errors import UsageError, listed
from sparse_accel.tasks.base import TaskData
from sparse_accel.tasks.question_answering.encoding import QUESTION_ROW
from sparse_accel.tasks.question_answering.reading import read_questions, read_squad
from sparse_accel.tasks.splits import draw_rows, needed_splits, needs_no_labels, numbered, origins_of

if TYPE_CHECKING:
    from sparse_accel.cli.question_answering import QuestionAnsweringArguments
    from sparse_accel.tasks.label_names import Head

# The two outputs of each token, start and end. transformers gives them no names of their own.
NAMES = ["LABEL_0", "LABEL_1"]


def load_question_answering(arguments: QuestionAnsweringArguments, head: Head | None) -> TaskData:
    """Returns the splits that a run needs, with the columns of `reading.read_questions` and question_row, the number of
    the question in its split.

    Args:
        arguments: flags that name the data and its use.
        head: of a fine-tuned model; None: the model gets a new one.

    Raises:
        UsageError: data is missing or wrong, with its place; or the head does not have two outputs.
    """
    check_outputs(head)
    tables = needed_splits(arguments, load_tables(arguments, read_squad))
    splits = {
        split: read_questions(
            table,
            answers=not needs_no_labels(arguments, split),
            with_negatives=arguments.version_2_with_negative,
        )
        for split, table in tables.items()
    }
    splits, sources = draw_rows(arguments, splits, {split: table.name for split, table in tables.items()}, None)
    return TaskData(
        splits={split: numbered(rows, QUESTION_ROW) for split, rows in splits.items()},
        sources=sources,
        label_names=NAMES,
        origins=origins_of(splits, tables),
        keeps_head=head is not None,
        cache_dir=arguments.cache_dir,
    )


def check_outputs(head: Head | None) -> None:
    """Raises UsageError if a head does not have two outputs per token."""
    if head is not None and len(head.names) != len(NAMES):
        raise UsageError(
            f"the model has {len(head.names)} outputs per token in its config.json ({listed(head.names)}); question "
            "answering needs two, start and end. Use another model, or --new_head"
        )
