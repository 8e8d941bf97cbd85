"""Loads the rows of a text classification run and the names of their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparse_accel.console import warn
from sparse_accel.data.columns import (
    DOCUMENT,
    QUERY,
    SCORE,
    USUAL_LABEL_COLUMNS,
    check_column,
    find_label_column,
    find_text_columns,
    ranks_documents,
)
from sparse_accel.data.sources import load_tables
from sparse_accel.data.tables import Table
from sparse_accel.errors import NoLabels, UsageError, listed
from sparse_accel.tasks.base import TaskData
from sparse_accel.tasks.label_names import RERANKING, SINGLE_LABEL, Head
from sparse_accel.tasks.splits import draw_rows, needed_splits, needs_no_labels, origins_of
from sparse_accel.tasks.text_classification.glue import GLUE, load_glue
from sparse_accel.tasks.text_classification.label_reading import LabelReader
from sparse_accel.tasks.text_classification.labels import LabelColumn, are_hidden
from sparse_accel.tasks.text_classification.reranking import are_relevant, check_queries, query_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
    from numpy.typing import NDArray

    from sparse_accel.cli.text_classification import TextClassificationArguments

LABEL = "label"


@dataclass(frozen=True, kw_only=True)
class TextClassificationData(TaskData):
    """Rows of texts.

    Columns of a split: the text columns and, if the rows have labels, `label` (a name; a float; a list of names). The
    id of a row is its position in its split. For a reranker, `label` is the score from 0 to 1.

    Attributes:
        text_columns: one column, or two for pairs; for a reranker, those of queries and of documents.
        label_column: name of the label column in the source; None if no split has labels.
        problem_type: as in config.json: single_label_classification, multi_label_classification or regression; or
            reranking.
        metrics: name of the metric set: a GLUE task, or "default".
        positive: number of the output for label 1 of the data, whose F1 a GLUE task reports.
        highest: of a reranker, the score in the data that became 1: 1, or the highest grade; None if it is not known.
    """

    text_columns: tuple[str, ...]
    label_column: str | None
    problem_type: str
    metrics: str
    positive: int = 1
    highest: int | None = None

    @property
    def label2id(self) -> dict[str, int]:
        """Returns the number of the output of each label, by name."""
        return {name: position for position, name in enumerate(self.label_names)}

    def has_labels(self, split: str) -> bool:
        """Whether the rows of a split have labels."""
        return LABEL in self.splits[split].column_names

    def queries(self, split: str) -> NDArray[np.int64]:
        """Returns the number of each row's query, for a reranker; see `query_numbers`."""
        return query_numbers(self.splits[split][self.text_columns[0]][:])

    def describe_queries(self) -> str:
        """Returns how many queries the evaluation has, and how many without a relevant document; for a reranker."""
        words = []
        for split in (name for name in self.splits if name.startswith("validation") and self.has_labels(name)):
            queries, scores = self.queries(split), np.asarray(self.splits[split][LABEL][:])
            count = len(np.unique(queries))
            without = count - len(np.unique(queries[are_relevant(scores, self.highest or 1)]))
            found = f"{count} {'query' if count == 1 else 'queries'}"
            words.append(f"{found}, {without} of them without a relevant document" if without else found)
        return "; ".join(words)


def load_text_classification(
    arguments: TextClassificationArguments, head: Head | None = None
) -> TextClassificationData:
    """Returns the splits that a run needs, with their columns found and their labels read.

    Args:
        arguments: flags that name the data and its use.
        head: of a fine-tuned model: labels of the data are converted to its names (`match_names`), and rows without
            labels can be predicted. Training keeps the head if the labels match, and uses a new one if they are clearly
            different. None: the names come from the training rows, or else from the available rows.

    Raises:
        UsageError: data is missing or invalid (with file, row, line and column), or its labels do not match those of
            the model.
    """
    found = load_glue(arguments.task_name, arguments.cache_dir) if arguments.task_name else load_tables(arguments)
    tables = needed_splits(arguments, found)
    task = GLUE[arguments.task_name] if arguments.task_name else None
    asked = task.problem_type if task else _asked(arguments, tables, head)
    is_reranker = asked == RERANKING
    label_column = _label_column(
        arguments, tables, (SCORE, *USUAL_LABEL_COLUMNS) if is_reranker else USUAL_LABEL_COLUMNS
    )
    named_columns = arguments.input_column_names or (task.text_columns if task else None)
    first = next(iter(tables.values()))
    if is_reranker and named_columns is None and {QUERY, DOCUMENT} <= set(first.column_names):
        named_columns = (QUERY, DOCUMENT)
    text_columns = find_text_columns(first, named_columns, label_column)
    if is_reranker and len(text_columns) != 2:
        raise UsageError(
            f"{first.name}: a reranker reads a query and a document, but the text is only '{text_columns[0]}'; the "
            f"columns are: {listed(first.column_names)}. Name both, for example --input_column_names query,document"
            + ("." if arguments.problem_type else ", or name another --problem_type.")
        )
    for table in tables.values():
        _check_texts(table, text_columns)
    labelled = _labels(arguments, tables, label_column)
    teaching = labelled.get("train") or next(iter(labelled.values()), None)
    if "train" in found and "train" not in tables and label_column in found["train"].column_names:
        teaching = LabelColumn(found["train"], str(label_column), as_classes=arguments.problem_type == SINGLE_LABEL)

    if arguments.problem_type not in (None, asked):
        raise UsageError(
            f"--problem_type {arguments.problem_type}: --task_name {arguments.task_name} is {asked}. Remove one flag."
        )
    reader = LabelReader(teaching, head, asked, arguments.do_train)
    splits = {split: table.texts(text_columns) for split, table in tables.items()}
    if is_reranker:
        _check_queries(arguments, tables, splits, text_columns[0], set(labelled))
    for split, labels in labelled.items():
        splits[split] = splits[split].add_column(LABEL, reader.read(labels), feature=reader.feature)
    if reader.by_position:
        warn(f"labels are matched by position, not by name: {reader.by_position}")
    strata = None
    if "train" in labelled and reader.problem_type == SINGLE_LABEL:
        strata = splits["train"][LABEL][:]
    sources = {split: table.name for split, table in tables.items()}
    splits, sources = draw_rows(
        arguments, splits, sources, strata, (lambda rows: rows[text_columns[0]][:]) if is_reranker else None
    )
    return TextClassificationData(
        splits=splits,
        sources=sources,
        origins=origins_of(splits, tables),
        text_columns=text_columns,
        label_column=label_column if labelled else None,
        problem_type=reader.problem_type,
        label_names=reader.names,
        metrics=arguments.task_name or "default",
        cache_dir=arguments.cache_dir,
        keeps_head=reader.keeps_head,
        positive=reader.position_of_label_1(teaching),
        highest=reader.highest,
    )


# --- which splits, which columns --------------------------------------------------------------------------------------


def _asked(arguments: TextClassificationArguments, tables: dict[str, Table], head: Head | None) -> str | None:
    """Returns the problem type that a flag, a reranker to start from, or the columns query, document and score ask for;
    None if the labels decide."""
    if arguments.problem_type:
        return arguments.problem_type
    if head is not None and head.problem_type == RERANKING:
        return RERANKING
    if head is not None and head.problem_type and not arguments.do_train:
        return None  # the model decides
    named = arguments.input_column_names or arguments.label_column_name
    return RERANKING if not named and any(map(ranks_documents, tables.values())) else None


def _check_queries(
    arguments: TextClassificationArguments,
    tables: dict[str, Table],
    splits: dict[str, Dataset],
    column: str,
    labelled: set[str],
) -> None:
    """Checks the queries of all splits; where they are evaluated, each needs two documents."""
    evaluated = "train" if arguments.validation_ratio is not None else "validation"
    for split, table in tables.items():
        ranked = split.startswith(evaluated) and split in labelled
        check_queries(table, column, splits[split][column][:], ranked=ranked)


def _label_column(arguments: TextClassificationArguments, tables: dict[str, Table], usual: Sequence[str]) -> str | None:
    """Returns the label column; None if only rows to predict are read, and they have none."""
    columns = {split: find_label_column(table, arguments.label_column_name, usual) for split, table in tables.items()}
    column = next((column for column in columns.values() if column), None)
    for split, table in tables.items():
        if columns[split] is not None or needs_no_labels(arguments, split):
            continue
        if arguments.label_column_name or column:
            check_column(table, arguments.label_column_name or str(column), "--label_column_name")
        raise NoLabels(
            f"{table.name} has no column {' or '.join(map(repr, usual))}; its columns are: "
            f"{', '.join(table.column_names)}. "
            "Name the label column with --label_column_name."
        )
    return column


def _check_texts(table: Table, columns: tuple[str, ...]) -> None:
    for column in columns:
        check_column(table, column, "--input_column_names")
    unusable = table.unusable_text(columns)
    if unusable is not None:
        row, column, wrong = unusable
        raise UsageError(f"{table.place(row, column)} {wrong}: fix or delete this row.")


def _labels(
    arguments: TextClassificationArguments, tables: dict[str, Table], column: str | None
) -> dict[str, LabelColumn]:
    """Returns the labels of the splits that need labels, as they are in the source."""
    found: dict[str, LabelColumn] = {}
    for split, table in tables.items():
        if needs_no_labels(arguments, split):
            continue
        labels = LabelColumn(table, str(column), as_classes=arguments.problem_type == SINGLE_LABEL)
        if not are_hidden(labels):
            found[split] = labels
        else:
            raise UsageError(
                f"{table.name} has no labels (column '{column}'), so it can be predicted but not evaluated."
            )
    return found
