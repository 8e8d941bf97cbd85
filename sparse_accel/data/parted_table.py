"""One table of the numbered parts of a split."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, concatenate_datasets

from sparse_accel.data.tables import Table
from sparse_accel.errors import UsageError, listed


class PartedTable(Table):
    """The rows of several files in order: the numbered parts of a split.

    Raises:
        UsageError: the parts do not have the same columns.
    """

    def __init__(self, parts: list[Table]) -> None:
        first = parts[0]
        self.name, self.column_names, self.typed = first.name, first.column_names, first.typed
        self.index_columns = first.index_columns
        self._parts = parts
        for part in parts:
            if part.column_names != first.column_names:
                raise UsageError(
                    f"{part.name}: expected the columns of {first.name}: {listed(first.column_names)}; "
                    f"got {listed(part.column_names)}."
                )

    def __len__(self) -> int:
        """Returns the number of rows."""
        return sum(len(part) for part in self._parts)

    def values(self, column: str) -> list[Any]:
        """Returns the values of a column, row by row."""
        return [value for part in self._parts for value in part.values(column)]

    def is_text(self, column: str) -> bool:
        """Whether the column can be input text in at least one part; it may be empty in others."""
        return any(part.is_text(column) for part in self._parts)

    def unusable_text(self, columns: tuple[str, ...]) -> tuple[int, str, str] | None:
        """Returns the first row whose text cannot be used, as (row from 0, column, what is wrong), else None."""
        before = 0
        for part in self._parts:
            if found := part.unusable_text(columns):
                return found[0] + before, found[1], found[2]
            before += len(part)
        return None

    def class_names(self, column: str) -> list[str] | None:
        """Returns the class names if all parts declare the same; else None."""
        names = [part.class_names(column) for part in self._parts]
        return names[0] if all(each == names[0] for each in names) else None

    def texts(self, columns: tuple[str, ...]) -> Dataset:
        """Returns a dataset of these text columns."""
        return concatenate_datasets([part.texts(columns) for part in self._parts])

    def entry(self, row: int, column: str, number: int) -> str:
        """Returns the place of an entry of a row's list, in the part that contains the row."""
        for part in self._parts:
            if row < len(part):
                return part.entry(row, column, number)
            row -= len(part)
        return self.name

    def place(self, row: int, column: str = "") -> str:
        """Returns file, row and line, in the part that contains the row."""
        for part in self._parts:
            if row < len(part):
                return part.place(row, column)
            row -= len(part)
        return self.name


def concatenated(tables: list[Table]) -> Table:
    """Returns one table with the rows of several.

    Raises:
        UsageError: the tables do not have the same columns.
    """
    return tables[0] if len(tables) == 1 else PartedTable(tables)
