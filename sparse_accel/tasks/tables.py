"""A table of rows as it was found: in a file of the user, or as a split of a dataset.

Files are read whole, and by rules of their own rather than by guessing types: in CSV a text stays the text that it is
("NA", "None" and "1984" included), and every fault has a row and a line. Rows keep their order; a row's number in
messages counts data rows from 1.
"""

from __future__ import annotations

import csv
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute
import pyarrow.parquet
from datasets import ClassLabel, Dataset, List, Value

from sparse_accel.errors import UsageError


class Table(ABC):
    """Rows with named columns.

    Attributes:
        name: what messages call it: a file, or a dataset and its split.
        column_names: in the order of the source.
        typed: False where every value is text, and numbers must be told from their spelling (CSV).
    """

    name: str
    column_names: list[str]
    typed: bool = True

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def values(self, column: str) -> list[Any]:
        """The column, row by row."""

    @abstractmethod
    def is_text(self, column: str) -> bool:
        """Whether the column can serve as input text."""

    @abstractmethod
    def unusable_text(self, columns: tuple[str, ...]) -> tuple[int, str, str] | None:
        """The first row whose text cannot be used, as (row from 0, column, what is wrong)."""

    @abstractmethod
    def texts(self, columns: tuple[str, ...]) -> Dataset:
        """A dataset of these columns of text."""

    def class_names(self, column: str) -> list[str] | None:
        """Names of the classes, in their order, where the source declares them."""
        return None

    def place(self, row: int, column: str = "") -> str:
        """Where a row stands, counted from 0, for messages."""
        return f"{self.name}, row {row + 1}" + (f", column '{column}'" if column else "")


class FileTable(Table):
    """Rows of a file, held in memory."""

    def __init__(self, name: str, columns: dict[str, list[Any]], lines: list[int], typed: bool) -> None:
        self.name, self.column_names, self.typed = name, list(columns), typed
        self._columns, self._lines = columns, lines

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self._columns.values()), []))

    def values(self, column: str) -> list[Any]:
        """The column, row by row."""
        return self._columns[column]

    def is_text(self, column: str) -> bool:
        """Whether a value among the first hundred is text with a letter in it."""
        return any(isinstance(each, str) and any(map(str.isalpha, each)) for each in self._columns[column][:100])

    def unusable_text(self, columns: tuple[str, ...]) -> tuple[int, str, str] | None:
        """The first row that holds no text at all, or something that is not text."""
        for row, texts in enumerate(zip(*(self._columns[column] for column in columns), strict=True)):
            for column, text in zip(columns, texts, strict=True):
                if text is None:
                    return row, column, "has no text"
                if not isinstance(text, str):
                    return row, column, f"is {json.dumps(text)}, which is not text"
            # One empty half of a pair occurs in real data; a row without any text is a fault of the file.
            if not any(text.strip() for text in texts):
                return row, columns[0], "has no text"
        return None

    def texts(self, columns: tuple[str, ...]) -> Dataset:
        """A dataset of these columns of text."""
        return Dataset.from_dict({column: self._columns[column] for column in columns})

    def place(self, row: int, column: str = "") -> str:
        """File, row and line."""
        line = f" (line {self._lines[row]})" if self._lines else ""
        return f"{self.name}, row {row + 1}{line}" + (f", column '{column}'" if column else "")


class DatasetTable(Table):
    """A split of a dataset, with declared types, mapped from disk."""

    def __init__(self, name: str, dataset: Dataset) -> None:
        self.name, self.column_names = name, dataset.column_names
        self._dataset = dataset

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._dataset)

    def values(self, column: str) -> list[Any]:
        """The column, row by row."""
        values: list[Any] = self._dataset.with_format(None)[column][:]
        return values

    def is_text(self, column: str) -> bool:
        """Whether the column is declared as text."""
        return self._dataset.features[column] in (Value("string"), Value("large_string"))

    def unusable_text(self, columns: tuple[str, ...]) -> tuple[int, str, str] | None:
        """The first null. Empty texts stand, since published datasets hold some (GLUE's QQP does)."""
        for column in columns:
            if not self.is_text(column) and len(self):
                return 0, column, f"holds {self._dataset.features[column]}, which is not text"
            values = self._dataset.with_format("arrow")[:][column]
            if values.null_count:
                return pyarrow.compute.index(values.is_null(), True).as_py(), column, "has no text"
        return None

    def texts(self, columns: tuple[str, ...]) -> Dataset:
        """A dataset of these columns of text."""
        return self._dataset.select_columns(list(columns))

    def class_names(self, column: str) -> list[str] | None:
        """Names of a ClassLabel column, or of a list of them."""
        feature = self._dataset.features[column]
        feature = feature.feature if isinstance(feature, List) else feature
        return list(feature.names) if isinstance(feature, ClassLabel) and feature.names else None


def read_table(file: str) -> Table:
    """Reads a .csv, .tsv, .json, .jsonl or .parquet file.

    CSV and TSV have a header line. JSON is a list of objects, an object with that list under "data", or one object a
    line.

    Raises:
        UsageError: the file cannot be read, is not what its name says, or a row does not fit its header.
    """
    suffix = Path(file).suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            return _read_csv(file, "\t" if suffix == ".tsv" else ",")
        if suffix in (".json", ".jsonl"):
            return _read_json(file)
        table = pyarrow.parquet.read_table(file)
        return DatasetTable(file, Dataset(table))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from None
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None


def _read_csv(file: str, separator: str) -> FileTable:
    # The module's limit of 128 KiB for one field is shorter than real documents.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open(file, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=separator, strict=True)
        rows: list[list[str]] = []
        lines: list[int] = []
        try:
            header = next(reader, [])
            if not any(header):
                raise UsageError(f"{file} has no header line: its first line must name the columns.")
            other = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
            if other is not None:
                raise UsageError(
                    f"{file}, line 1: {header[0]!r} is one column. Its fields seem to be separated by {other!r}: save "
                    "it with commas between them, or with tabs as a .tsv file."
                )
            if twins := [name for name in header if name and header.count(name) > 1]:
                raise UsageError(f"{file}, line 1: column '{twins[0]}' stands there twice.")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UsageError(
                        f"{file}, row {len(rows) + 1} (line {reader.line_num}): {len(row)} fields, and the header has "
                        f"{len(header)}. A field with a comma, quote or line break in it must stand in double quotes."
                    )
                rows.append(row)
                lines.append(reader.line_num)
        except csv.Error as error:
            if "unexpected end" in str(error):
                begin = lines[-1] + 1 if lines else 2
                raise UsageError(
                    f"{file}, line {begin}: a double quote opens a field there that nothing closes before the end of "
                    'the file. A quote that is part of a text is written twice, "".'
                ) from None
            raise UsageError(f"{file}, line {reader.line_num}: {error}.") from None
    # pandas writes its index as a first column without a name.
    columns = {name: [row[place] for row in rows] for place, name in enumerate(header) if name}
    return FileTable(file, columns, lines, typed=False)


def _read_json(file: str) -> FileTable:
    text = Path(file).read_text(encoding="utf-8-sig")
    lines: list[int] = []
    try:
        content = json.loads(text)
        content = content.get("data", [content]) if isinstance(content, dict) else content
    except json.JSONDecodeError as error:
        if Path(file).suffix.lower() == ".json" and error.lineno == 1 and text.lstrip()[:1] != "{":
            raise UsageError(f"{file}, line 1, column {error.colno}: not JSON: {error.msg}.") from None
        content = []
        for number, value in _read_json_lines(file, text):
            content.append(value)
            lines.append(number)
    if not isinstance(content, list):
        raise UsageError(f'{file}: a list of objects is expected, such as [{{"text": "fine", "label": 1}}].')
    names: dict[str, None] = {}
    for row, value in enumerate(content):
        if not isinstance(value, dict):
            line = f" (line {lines[row]})" if lines else ""
            raise UsageError(f"{file}, row {row + 1}{line}: an object of columns is expected, not {json.dumps(value)}.")
        names |= dict.fromkeys(value)
    return FileTable(file, {name: [value.get(name) for value in content] for name in names}, lines, typed=True)


def _read_json_lines(file: str, text: str) -> Iterator[tuple[int, Any]]:
    # Not str.splitlines(): that also splits at U+2028, which stands in real text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise UsageError(f"{file}, line {number}, column {error.colno}: not JSON: {error.msg}.") from None
