"""Tables of rows: from a user's file, or from a split of a dataset.

Files are read without guessing types: in CSV a text is exactly the text in the file (also "NA", "None" and "1984"), and
every error names a row and a line. Rows keep their order; row numbers in messages count data rows from 1.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute
import pyarrow.parquet
from datasets import ClassLabel, Dataset, LargeList, List, concatenate_datasets
from pyarrow import types

from sparse_accel.data.arrow_types import (
    can_be_label,
    first_unreadable,
    is_list,
    is_text,
    plain,
    row_names,
    stored_type,
)
from sparse_accel.data.delimited import read_delimited
from sparse_accel.data.distinct import Distinct, distinct_in, distinct_of
from sparse_accel.data.json_rows import read_json
from sparse_accel.data.mapped_columns import is_large, mapped_column
from sparse_accel.data.reading import Rows, check_signature, read_text
from sparse_accel.errors import UsageError, first_line, shown

# Enough to see that a column is no label, without all of it.
_FIRST_ROWS = 10_000
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Origin:
    """What the rows of an evaluation are taken from: a table, or a part of one.

    Attributes:
        name: of the table.
        rows: the number of rows of the table.
        dataset, config, split: Hub id, configuration (None: the default one) and split of a dataset on the Hub; None
            for files and folders of this machine.
    """

    name: str
    rows: int
    dataset: str | None
    config: str | None
    split: str | None


class Table(ABC):
    """Rows with named columns.

    Attributes:
        name: its name in messages: a file, or a dataset and its split.
        column_names: in the order of the source.
        typed: False if every value is text, and numbers must be recognized by their spelling (CSV).
        index_columns: columns with row names or row numbers, such as a pandas index: never guessed to be the text.
        hub: id, configuration and split of a dataset on the Hub; None for files and folders of this machine.
    """

    name: str
    column_names: list[str]
    typed: bool = True
    index_columns: frozenset[str] = frozenset()
    hub: tuple[str, str | None, str] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of rows."""

    @property
    def origin(self) -> Origin:
        """Returns what an evaluation records of its rows."""
        return Origin(self.name, len(self), *(self.hub or (None, None, None)))

    @abstractmethod
    def values(self, column: str) -> list[Any]:
        """Returns the values of a column, row by row."""

    def distinct(self, column: str) -> Distinct:
        """Returns the values of a column as its different values; errors as for `values`."""
        return distinct_of(self.values(column))

    @abstractmethod
    def is_text(self, column: str) -> bool:
        """Whether the column can be input text."""

    def has_more_than(self, count: int, column: str) -> bool:
        """Whether the first rows of a column have more than `count` different values."""
        return len(distinct_of(self.values(column)[:_FIRST_ROWS]).values) > count

    @abstractmethod
    def unusable_text(self, columns: tuple[str, ...]) -> tuple[int, str, str] | None:
        """Returns the first row whose text cannot be used, as (row from 0, column, what is wrong), else None."""

    @abstractmethod
    def texts(self, columns: tuple[str, ...]) -> Dataset:
        """Returns a dataset of these text columns."""

    def class_names(self, column: str) -> list[str] | None:
        """Returns the class names in order if the source declares them; else None."""
        return None

    def entry(self, row: int, column: str, number: int) -> str:
        """Returns the place of an entry of a row's list, for messages; `row` and `number` count from 0."""
        return f"{self.place(row, column)}, entry {number + 1}"

    def place(self, row: int, column: str = "") -> str:
        """Returns the place of a row, for messages; `row` counts from 0."""
        return f"{self.name}, row {row + 1}" + (f", column '{column}'" if column else "")


class FileTable(Table):
    """The rows of a file, in memory."""

    def __init__(self, name: str, rows: Rows, typed: bool) -> None:
        self.name, self.column_names, self.typed = name, list(rows.columns), typed
        self.index_columns = rows.index_columns | row_names(self.column_names)
        self._columns, self._lines = rows.columns, rows.lines

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(next(iter(self._columns.values()), []))

    def values(self, column: str) -> list[Any]:
        """Returns the values of a column, row by row."""
        return self._columns[column]

    def is_text(self, column: str) -> bool:
        """Whether one of the first hundred values is text that contains a letter."""
        return any(isinstance(each, str) and any(map(str.isalpha, each)) for each in self._columns[column][:100])

    def unusable_text(self, columns: tuple[str, ...]) -> tuple[int, str, str] | None:
        """Returns the first row without any text, or with a value that is not text."""
        for row, texts in enumerate(zip(*(self._columns[column] for column in columns), strict=True)):
            for column, text in zip(columns, texts, strict=True):
                if text is None or (isinstance(text, float) and math.isnan(text)):
                    return row, column, "has no text"
                if not isinstance(text, str):
                    return row, column, f"is {shown(text)}, which is not text"
                if _LONE_SURROGATE.search(text):  # JSON can spell it, but no encoding has it
                    return row, column, "has a lone surrogate (half of a \\u pair)"
            # One empty half of a pair occurs in real data; a row without any text is an error in the file.
            if not any(text.strip() for text in texts):
                return row, columns[0], "has no text"
        return None

    def texts(self, columns: tuple[str, ...]) -> Dataset:
        """Returns a dataset of these text columns."""
        return Dataset.from_dict({column: self._columns[column] for column in columns})

    def place(self, row: int, column: str = "") -> str:
        """Returns file, row and line, for messages; `row` counts from 0."""
        line = f" (line {self._lines[row]})" if self._lines else ""
        return f"{self.name}, row {row + 1}{line}" + (f", column '{column}'" if column else "")


class ArrowTable(Table):
    """Rows with declared types, in Arrow columns."""

    @abstractmethod
    def _type(self, column: str) -> pyarrow.DataType:
        """Returns the type of a column."""

    @abstractmethod
    def _column(self, column: str) -> pyarrow.ChunkedArray:
        """Returns the values of a column, row by row."""

    def values(self, column: str) -> list[Any]:
        """Returns the values of a column, row by row; decimals without digits after the point as integers.

        Raises:
            UsageError: the type of the column cannot be a label, or a value cannot be read.
        """
        if not can_be_label(self._type(column)):
            raise self._wrong_type(column, "cannot be a label")
        return self._plain_values(column, self._column(column))

    def distinct(self, column: str) -> Distinct:
        """Returns the same as its different values; only for them, and for lists, are there objects of Python."""
        kind = self._type(column)
        if isinstance(kind, pyarrow.BaseExtensionType) or not can_be_label(kind) or types.is_nested(kind):
            return super().distinct(column)
        values, rows, numbers = distinct_in(self._column(column))
        return Distinct(self._plain_values(column, values), rows, numbers)

    def has_more_than(self, count: int, column: str) -> bool:
        """Whether the first rows of a column have more than `count` different values."""
        return len(self._column(column).slice(0, _FIRST_ROWS).unique()) > count

    def _plain_values(self, column: str, values: pyarrow.Array | pyarrow.ChunkedArray) -> list[Any]:
        try:
            return [plain(value) for value in values.to_pylist()]
        except (ValueError, OverflowError) as error:  # dates that Python cannot hold
            raise UsageError(f"{self.name}, column '{column}' cannot be read: {first_line(error)}") from None

    def is_text(self, column: str) -> bool:
        """Whether the column is declared as text."""
        return is_text(self._type(column))

    def unusable_text(self, columns: tuple[str, ...]) -> tuple[int, str, str] | None:
        """Returns the first null. Empty texts are valid, because published datasets contain some (GLUE's QQP).

        Raises:
            UsageError: the type of a column is not text.
        """
        for column in columns:
            if not self.is_text(column) and not types.is_null(self._type(column)):
                raise self._wrong_type(column, "is not text")
            values = self._column(column)
            if values.null_count:
                return pyarrow.compute.index(values.is_null(), True).as_py(), column, "has no text"
            try:
                values.validate(full=True)
            except pyarrow.ArrowInvalid:
                return first_unreadable(values), column, "has text that is not UTF-8"
        return None

    def _wrong_type(self, column: str, wrong: str) -> UsageError:
        found = str(self._type(column))[:100]
        return UsageError(f"{self.name}, column '{column}' has the type {found}, which {wrong}.")


class DatasetTable(ArrowTable):
    """A split of a dataset, memory-mapped from disk."""

    def __init__(self, name: str, dataset: Dataset, hub: tuple[str, str | None, str] | None = None) -> None:
        self.name, self.column_names, self.hub = name, dataset.column_names, hub
        self.index_columns = row_names(self.column_names)
        self._dataset = dataset

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self._dataset)

    def _type(self, column: str) -> pyarrow.DataType:
        return self._dataset.data.schema.field(column).type

    def _column(self, column: str) -> pyarrow.ChunkedArray:
        return self._dataset.select_columns([column]).with_format("arrow")[:].column(column)

    def texts(self, columns: tuple[str, ...]) -> Dataset:
        """Returns a dataset of these text columns."""
        return self._dataset.select_columns(list(columns))

    def class_names(self, column: str) -> list[str] | None:
        """Returns the names of a ClassLabel column, or of a column of lists of ClassLabels; else None."""
        feature = self._dataset.features[column]
        feature = feature.feature if isinstance(feature, (List, LargeList)) else feature
        return list(feature.names) if isinstance(feature, ClassLabel) and feature.names else None


class ParquetTable(ArrowTable):
    """A Parquet file. A column is read when it is needed; the others may have any type.

    Args:
        file: its path.
        cache_dir: folder for the texts of a large file, which are mapped into memory; None: the Hugging Face cache.

    Raises:
        UsageError: the file has no columns, or two with the same name.
    """

    def __init__(self, file: str, cache_dir: str | None = None) -> None:
        self.name = file
        self._cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "sparse_accel"
        self._file = pyarrow.parquet.ParquetFile(file)
        self._schema = self._file.schema_arrow
        self.column_names = self._schema.names
        if not self.column_names:
            raise UsageError(f"{file} has no columns.")
        if twins := [name for name in self.column_names if self.column_names.count(name) > 1]:
            raise UsageError(f"{file}: duplicate column '{twins[0]}'.")
        # A range index is not a column: pandas stores it as an object instead of a name.
        stored = self._metadata(b"pandas").get("index_columns")
        index = [name for name in stored if name in self.column_names] if isinstance(stored, list) else []
        self.index_columns = row_names(self.column_names) | frozenset(index)
        self._columns: dict[str, pyarrow.ChunkedArray] = {}
        self._mapped: dict[str, Dataset] = {}

    def __len__(self) -> int:
        """Returns the number of rows."""
        return int(self._file.metadata.num_rows)

    def _metadata(self, key: bytes) -> dict[str, Any]:
        """Returns what a library stored in the file about its columns; empty if there is nothing readable."""
        try:
            content = json.loads((self._schema.metadata or {}).get(key, b"{}"))
        except (ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def _type(self, column: str) -> pyarrow.DataType:
        return self._schema.field(column).type

    def _column(self, column: str) -> pyarrow.ChunkedArray:
        if self.is_text(column) and is_large(self._file):
            return self._map(column).data.column(column)
        if column not in self._columns:
            with _faults_of(self.name):
                # `columns=` also matches the beginning of other paths ("a" matches "a.b"), so select by name.
                self._columns[column] = self._file.read(columns=[column]).column(column)
            self._check_length(column, len(self._columns[column]))
        return self._columns[column]

    def texts(self, columns: tuple[str, ...]) -> Dataset:
        """Returns a dataset of these text columns."""
        if is_large(self._file) and all(map(self.is_text, columns)):
            return concatenate_datasets([self._map(column) for column in columns], axis=1)
        return Dataset(
            pyarrow.table({column: self._column(column).cast(self._text_type(column)) for column in columns})
        )

    def _map(self, column: str) -> Dataset:
        if column not in self._mapped:
            with _faults_of(self.name):
                self._mapped[column] = mapped_column(
                    self._file, self.name, column, self._text_type(column), self._cache
                )
            self._check_length(column, len(self._mapped[column]))
        return self._mapped[column]

    def _check_length(self, column: str, rows: int) -> None:
        if rows != len(self):
            raise UsageError(f"{self.name} is damaged: column '{column}' has {rows} rows, and the file {len(self)}.")

    def _text_type(self, column: str) -> pyarrow.DataType:
        kind = self._type(column)
        return kind if types.is_string(kind) or types.is_large_string(kind) else pyarrow.large_string()

    def class_names(self, column: str) -> list[str] | None:
        """Returns the ClassLabel names that `datasets` stored for a column of integers or lists of them; else None."""
        type_ = stored_type(self._type(column))
        if not types.is_integer(stored_type(type_.value_type) if is_list(type_) else type_):
            return None
        feature: Any = self._metadata(b"huggingface")
        for key in ("info", "features", column):
            feature = feature.get(key) if isinstance(feature, dict) else None
        if isinstance(feature, dict) and "feature" in feature:  # a list
            feature = feature["feature"]
        names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        return [str(name) for name in names] if names else None


# --- files ------------------------------------------------------------------------------------------------------------


def read_table(file: str, cache_dir: str | None = None) -> Table:
    """Returns the table of a .csv, .tsv, .json, .jsonl or .parquet file.

    CSV and TSV files have a header line. `delimited.read_delimited` describes the rules for quotes in TSV, and
    `json_rows.read_json` the supported formats of JSON.

    Args:
        file: its path.
        cache_dir: see `ParquetTable`.

    Raises:
        UsageError: the file cannot be read, does not match its suffix, or a row does not fit the header.
    """
    suffix = Path(file).suffix.lower()
    with _faults_of(file):
        check_signature(file)
        if suffix in (".csv", ".tsv"):
            separator = "\t" if suffix == ".tsv" else ","
            return FileTable(file, read_delimited(file, read_text(file), separator), typed=False)
        if suffix in (".json", ".jsonl"):
            return FileTable(file, read_json(file, read_text(file)), typed=True)
        return ParquetTable(file, cache_dir)


@contextmanager
def _faults_of(file: str) -> Iterator[None]:
    """Turns errors of the system or of Arrow about a file into a UsageError."""
    try:
        yield
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise UsageError(f"{file} cannot be read: {first_line(error)}") from None
