"""Loads the rows of a text classification run and the names of their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparse_accel.console import warn
from sparse_accel.data.columns import check_column, find_label_column, find_text_columns
from sparse_accel.data.sources import load_tables
from sparse_accel.data.tables import Table
from sparse_accel.errors import NoLabels, UsageError
from sparse_accel.tasks.base import TaskData
from sparse_accel.tasks.label_names import SINGLE_LABEL, Head
from sparse_accel.tasks.splits import draw_rows, needed_splits, needs_no_labels, origins_of
from sparse_accel.tasks.text_classification.glue import GLUE, load_glue
from sparse_accel.tasks.text_classification.label_reading import LabelReader
from sparse_accel.tasks.text_classification.labels import LabelColumn, are_hidden

if TYPE_CHECKING:
    from sparse_accel.cli.text_classification import TextClassificationArguments

LABEL = "label"


@dataclass(frozen=True, kw_only=True)
class TextClassificationData(TaskData):
    """Rows of texts.

    Columns of a split: the text columns and, if the rows have labels, `label` (a name; a float; a list of names). The
    id of a row is its position in its split.

    Attributes:
        text_columns: one column, or two for pairs.
        label_column: name of the label column in the source; None if no split has labels.
        problem_type: as in config.json: single_label_classification, multi_label_classification or regression.
        metrics: name of the metric set: a GLUE task, or "default".
        positive: number of the output for label 1 of the data, whose F1 a GLUE task reports.
    """

    text_columns: tuple[str, ...]
    label_column: str | None
    problem_type: str
    metrics: str
    positive: int = 1

    @property
    def label2id(self) -> dict[str, int]:
        """Returns the number of the output of each label, by name."""
        return {name: position for position, name in enumerate(self.label_names)}

    def has_labels(self, split: str) -> bool:
        """Whether the rows of a split have labels."""
        return LABEL in self.splits[split].column_names


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
    label_column = _label_column(arguments, tables)
    task = GLUE[arguments.task_name] if arguments.task_name else None
    named_columns = arguments.input_column_names or (task.text_columns if task else None)
    text_columns = find_text_columns(next(iter(tables.values())), named_columns, label_column)
    for table in tables.values():
        _check_texts(table, text_columns)
    labelled = _labels(arguments, tables, label_column)
    teaching = labelled.get("train") or next(iter(labelled.values()), None)
    if "train" in found and "train" not in tables and label_column in found["train"].column_names:
        teaching = LabelColumn(found["train"], str(label_column), as_classes=arguments.problem_type == SINGLE_LABEL)

    asked = task.problem_type if task else arguments.problem_type
    if arguments.problem_type not in (None, asked):
        raise UsageError(
            f"--problem_type {arguments.problem_type}: --task_name {arguments.task_name} is {asked}. Remove one flag."
        )
    reader = LabelReader(teaching, head, asked, arguments.do_train)
    splits = {split: table.texts(text_columns) for split, table in tables.items()}
    for split, labels in labelled.items():
        splits[split] = splits[split].add_column(LABEL, reader.read(labels), feature=reader.feature)
    if reader.by_position:
        warn(f"labels are matched by position, not by name: {reader.by_position}")
    strata = None
    if "train" in labelled and reader.problem_type == SINGLE_LABEL:
        strata = splits["train"][LABEL][:]
    splits, sources = draw_rows(arguments, splits, {split: table.name for split, table in tables.items()}, strata)
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
    )


# --- which splits, which columns --------------------------------------------------------------------------------------


def _label_column(arguments: TextClassificationArguments, tables: dict[str, Table]) -> str | None:
    """Returns the label column; None if only rows to predict are read, and they have none."""
    columns = {split: find_label_column(table, arguments.label_column_name) for split, table in tables.items()}
    column = next((column for column in columns.values() if column), None)
    for split, table in tables.items():
        if columns[split] is not None or needs_no_labels(arguments, split):
            continue
        if arguments.label_column_name or column:
            check_column(table, arguments.label_column_name or str(column), "--label_column_name")
        raise NoLabels(
            f"{table.name} has no column 'label' or 'labels'; its columns are: {', '.join(table.column_names)}. "
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
