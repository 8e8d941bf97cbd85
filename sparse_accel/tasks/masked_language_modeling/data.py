"""Loads the texts of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset

from sparse_accel.data.columns import check_column, find_text_columns
from sparse_accel.data.lines import checked_text, lines_from
from sparse_accel.data.reading import Rows
from sparse_accel.data.sources import load_tables
from sparse_accel.data.tables import FileTable, Table, read_table
from sparse_accel.errors import UsageError, listed
from sparse_accel.tasks.base import TaskData
from sparse_accel.tasks.masked_language_modeling.streaming import TEXT, open_corpus, validation_table
from sparse_accel.tasks.splits import draw_rows, needed_splits, origins_of

if TYPE_CHECKING:
    from sparse_accel.cli.masked_language_modeling import MaskedLanguageModelingArguments


@dataclass(frozen=True)
class TextData(TaskData):
    """Rows of a run, with where they were.

    Attributes:
        columns: of texts, in the files.
    """

    columns: tuple[str, ...] = (TEXT,)


def load_masked_language_modeling(arguments: MaskedLanguageModelingArguments) -> TextData:
    """Returns the splits that a run needs, with the column `text`. Blank texts are left out.

    Args:
        arguments: flags that name the data and its use.

    Raises:
        UsageError: data is missing or wrong, with its place, or has no text.
    """
    stream = open_corpus(arguments) if arguments.streaming and arguments.do_train else None
    if not arguments.streaming:
        tables = needed_splits(arguments, load_tables(arguments, _read))
    else:
        tables = {"validation": validation_table(arguments, _read)} if arguments.do_eval else {}
    columns = {split: _column_of(table, arguments.text_column_name) for split, table in tables.items()}
    splits = {split: _texts(table, columns[split]) for split, table in tables.items()}
    splits, sources = draw_rows(arguments, splits, {split: table.name for split, table in tables.items()}, None)
    streamed = [arguments.text_column_name or TEXT] if stream is not None else []
    return TextData(
        columns=tuple(dict.fromkeys([*streamed, *columns.values()])),
        splits=splits,
        sources=sources,
        label_names=[],
        origins=origins_of(splits, tables),
        stream=stream,
        keeps_head=True,
        cache_dir=arguments.cache_dir,
    )


def _read(file: str) -> Table:
    if Path(file).suffix.lower() != ".txt":
        return read_table(file)
    lines = [text for _, _, text in lines_from(file)]
    return FileTable(file, Rows({TEXT: lines}, list(range(1, len(lines) + 1))), typed=False)


def _column_of(table: Table, named: str | None) -> str:
    if named is not None:
        check_column(table, named, "--text_column_name")
        return named
    try:
        columns = find_text_columns(table, None, None)
    except UsageError:  # its remedy is a flag of other tasks
        columns = ()
    if len(columns) != 1:
        raise UsageError(
            f"{table.name}: no column, or several, may be the text; the columns are: {listed(table.column_names)}. "
            "Name one with --text_column_name."
        )
    return columns[0]


def _texts(table: Table, column: str) -> Dataset:
    values = table.values(column)
    texts = [
        text if text is None or not text else checked_text(table.place(row, column), text)
        for row, text in enumerate(values)
    ]
    kept = [text for text in texts if text and text.strip()]
    if not kept:
        raise UsageError(f"{table.name}: column '{column}' has no text: all {len(values)} rows are blank.")
    return Dataset.from_dict({TEXT: kept})
