"""The numbered parts of a split as one table."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, concatenate_datasets

from sparse_accel.data.tables import Table
from sparse_accel.errors import UsageError, listed


class PartedTable(Table):
    """Rows of several files, one after another: the numbered parts of a split."""

    def __init__(self, parts: list[Table]) -> None:
        first = parts[0]
        self.name, self.column_names, self.typed = first.name, first.column_names, first.typed
        self.index_columns = first.index_columns
        self._parts = parts
        for part in parts:
            if part.column_names != first.column_names:
                raise UsageError(
                    f"{part.name} has other columns than {first.name}: {listed(part.column_names)} instead of "
                    f"{listed(first.column_names)}."
                )

    def __len__(self) -> int:
        """Number of rows."""
        return sum(len(part) for part in self._parts)

    def values(self, column: str) -> list[Any]:
        """The column, row by row."""
        return [value for part in self._parts for value in part.values(column)]

    def is_text(self, column: str) -> bool:
        """Whether the column can serve as input text, in one part at least: others may have none in it."""
        return any(part.is_text(column) for part in self._parts)

    def unusable_text(self, columns: tuple[str, ...]) -> tuple[int, str, str] | None:
        """The first row whose text cannot be used, as (row from 0, column, what is wrong)."""
        before = 0
        for part in self._parts:
            if found := part.unusable_text(columns):
                return found[0] + before, found[1], found[2]
            before += len(part)
        return None

    def class_names(self, column: str) -> list[str] | None:
        """Names of the classes, where all parts declare the same."""
        names = [part.class_names(column) for part in self._parts]
        return names[0] if all(each == names[0] for each in names) else None

    def texts(self, columns: tuple[str, ...]) -> Dataset:
        """A dataset of these columns of text."""
        return concatenate_datasets([part.texts(columns) for part in self._parts])

    def entry(self, row: int, column: str, number: int) -> str:
        """Where an entry of a row's list is, in the part that the row is in."""
        for part in self._parts:
            if row < len(part):
                return part.entry(row, column, number)
            row -= len(part)
        return self.name

    def place(self, row: int, column: str = "") -> str:
        """File, row and line, of the part that the row is in."""
        for part in self._parts:
            if row < len(part):
                return part.place(row, column)
            row -= len(part)
        return self.name


def concatenated(tables: list[Table]) -> Table:
    """Returns the rows of several tables as one."""
    return tables[0] if len(tables) == 1 else PartedTable(tables)
