"""The different values of a column, and which one each row has: millions of labels are few different ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow
from pyarrow import types


class Distinct(NamedTuple):
    """A column as its different values.

    Attributes:
        values: in the order in which they first occur. Lists may occur twice.
        rows: the first row of each value, from 0, (values,) int64.
        numbers: position in `values` of each row's value, (rows,) int32 or int64.
    """

    values: list[Any]
    rows: np.ndarray
    numbers: np.ndarray


def distinct_of(values: list[Any]) -> Distinct:
    """Returns the different values of a list: equal ones of one type. If some cannot be hashed, all are different."""
    numbers: dict[Any, int] = {}
    try:
        # 0.0 and -0.0 are equal, but are not the same text.
        each = [numbers.setdefault((type(value), value or str(value)), len(numbers)) for value in values]
    except TypeError:
        return Distinct(values, np.arange(len(values)), np.arange(len(values)))
    found = np.asarray(each, dtype=np.int64)
    rows = _first_rows(found, len(numbers))
    return Distinct([values[row] for row in rows.tolist()], rows, found)


def distinct_in(column: pyarrow.ChunkedArray) -> tuple[pyarrow.Array, np.ndarray, np.ndarray]:
    """Returns values, rows and numbers, as `Distinct` has them, of a column whose type is not a list.

    Numbers of different bits are different values: 0.0 and -0.0.
    """
    kind = column.type
    if types.is_dictionary(kind):
        return distinct_in(column.cast(kind.value_type))
    if types.is_floating(kind):
        column = pyarrow.chunked_array([_as_double(chunk) for chunk in column.chunks], pyarrow.int64())
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    values = encoded.dictionary.view(pyarrow.float64()) if types.is_floating(kind) else encoded.dictionary
    numbers = encoded.indices.to_numpy()
    return values, _first_rows(numbers, len(values)), numbers


def _as_double(chunk: pyarrow.Array) -> pyarrow.Array:
    return chunk.cast(pyarrow.float64()).view(pyarrow.int64())


def _first_rows(numbers: np.ndarray, count: int) -> np.ndarray:
    found = np.zeros(count, dtype=np.int64)
    found[numbers[::-1]] = np.arange(len(numbers))[::-1]  # of several rows, the last one written stays: the first
    return found
