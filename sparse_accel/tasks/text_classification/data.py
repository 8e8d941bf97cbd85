"""Loads the rows of a text classification run and the names of their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparse_accel.console import warn
from sparse_accel.data.arrow_columns import class_numbers
from sparse_accel.data.columns import USUAL_LABEL_COLUMNS, check_column, find_label_column, find_text_columns
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
    from collections.abc import Callable, Hashable, Sequence

    from datasets import Dataset

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
        problem_type: as in config.json: single_label_classification, multi_label_classification or regression; or that
            of a subclass of TextClassification.
        metrics: name of the metric set: a GLUE task, or "default".
        positive: number of the output for label 1 of the data, whose F1 a GLUE task reports.
        highest: the label in the data that became 1; None if labels are not divided, or it is not known.
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


class RowRules:
    """How rows are read. A subclass for another problem type overrides what is different there.

    Attributes:
        own_type: the problem type of a subclass; None: every type that no subclass has.
        label_columns: usual names of the label column.
        label_reader: reads that column.
    """

    own_type: ClassVar[str | None] = None
    label_columns: ClassVar[tuple[str, ...]] = USUAL_LABEL_COLUMNS
    label_reader: ClassVar[type[LabelReader]] = LabelReader

    @classmethod
    def fits(cls, table: Table) -> bool:
        """Whether the columns of a table ask for the problem type of a subclass, without a flag."""
        return False

    @classmethod
    def find_texts(cls, table: Table, named: Sequence[str] | None, label_column: str | None) -> tuple[str, ...]:
        """Returns the text columns; arguments and errors as for `find_text_columns`."""
        return find_text_columns(table, named, label_column)

    @classmethod
    def check_rows(cls, table: Table, rows: Dataset, columns: tuple[str, ...], *, evaluated: bool) -> None:
        """Checks the rows of a table beyond what is checked for every problem type.

        Args:
            rows: with the text columns alone.
            columns: of the texts.
            evaluated: whether the rows are evaluated.

        Raises:
            UsageError: a row cannot be used.
        """

    @classmethod
    def groups(cls, columns: tuple[str, ...]) -> Callable[[Dataset], Sequence[Hashable]] | None:
        """Returns what gives the group of each row, see `draw_rows`; None: there are no groups.

        Args:
            columns: of the texts.
        """
        return None


def load_text_classification(
    arguments: TextClassificationArguments, head: Head | None = None, kinds: Sequence[type[RowRules]] = (RowRules,)
) -> TextClassificationData:
    """Returns the splits that a run needs, with their columns found and their labels read.

    Args:
        arguments: flags that name the data and its use.
        head: of a fine-tuned model: labels of the data are converted to its names (`match_names`), and rows without
            labels can be predicted. Training keeps the head if the labels match, and uses a new one if they are clearly
            different. None: the names come from the training rows, or else from the available rows.
        kinds: rules of which those of the asked problem type are used; the first ones where no others are.

    Raises:
        UsageError: data is missing or invalid (with file, row, line and column), or its labels do not match those of
            the model.
    """
    found = load_glue(arguments.task_name, arguments.cache_dir) if arguments.task_name else load_tables(arguments)
    tables = needed_splits(arguments, found)
    task = GLUE[arguments.task_name] if arguments.task_name else None
    kind = kinds[0] if task else _kind(arguments, tables, head, kinds)
    asked = task.problem_type if task else kind.own_type or arguments.problem_type
    label_column = _label_column(arguments, tables, kind.label_columns)
    named_columns = arguments.input_column_names or (task.text_columns if task else None)
    text_columns = kind.find_texts(next(iter(tables.values())), named_columns, label_column)
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
    reader = kind.label_reader(teaching, head, asked, arguments.do_train)
    splits = {split: table.texts(text_columns) for split, table in tables.items()}
    evaluated = "train" if arguments.validation_ratio is not None else "validation"
    for split, table in tables.items():
        is_evaluated = split.startswith(evaluated) and split in labelled
        kind.check_rows(table, splits[split], text_columns, evaluated=is_evaluated)
    for split, labels in labelled.items():
        column: Any = labels.by_row(reader.read(labels), reader.feature)
        splits[split] = splits[split].add_column(LABEL, column, feature=reader.feature)
    if reader.by_position:
        warn(f"labels are matched by position, not by name: {reader.by_position}")
    strata = None
    if "train" in labelled and reader.problem_type == SINGLE_LABEL:
        strata = class_numbers(splits["train"], LABEL)
    sources = {split: table.name for split, table in tables.items()}
    splits, sources = draw_rows(arguments, splits, sources, strata, kind.groups(text_columns))
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


def _kind(
    arguments: TextClassificationArguments, tables: dict[str, Table], head: Head | None, kinds: Sequence[type[RowRules]]
) -> type[RowRules]:
    """Returns the rules for the problem type that a flag, else the model, else the columns ask for."""
    asked = arguments.problem_type or (head.problem_type if head else None)
    for kind in kinds:
        if asked is not None and kind.own_type == asked:
            return kind
    named = arguments.input_column_names or arguments.label_column_name
    if arguments.problem_type or (asked and not arguments.do_train) or named:
        return kinds[0]
    return next((kind for kind in kinds if any(map(kind.fits, tables.values()))), kinds[0])


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
