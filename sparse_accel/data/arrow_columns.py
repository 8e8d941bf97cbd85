"""Columns of a dataset as arrays, read in pieces from the files behind it: no Python object for each row.

For 10 million rows, lists of Python numbers take minutes and gigabytes; the same as an array takes 40 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow
from pyarrow import compute

ROWS_AT_ONCE = 10_000


def pieces(dataset: Any, column: str) -> Iterator[pyarrow.Array]:
    """Yields the values of a column, 10,000 rows at a time, in the dataset's order.

    Args:
        dataset: of the `datasets` library; its rows may be some of those in its files.
    """
    arrow = dataset.select_columns([column]).with_format("arrow")
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        yield arrow[start : start + ROWS_AT_ONCE].column(0).combine_chunks()


def lengths_of(dataset: Any, column: str = "input_ids") -> np.ndarray:
    """Returns the number of entries of each row's list, (rows,) int32."""
    found = np.empty(len(dataset), dtype=np.int32)
    start = 0
    for piece in pieces(dataset, column):
        found[start : start + len(piece)] = compute.list_value_length(piece).to_numpy(zero_copy_only=False)
        start += len(piece)
    return found


def largest_in(dataset: Any, column: str) -> int:
    """Returns the largest number in the lists of a column, at least 0; 0 if they are empty."""
    largest = (compute.max(piece.flatten()).as_py() for piece in pieces(dataset, column))
    return max((number for number in largest if number is not None), default=0)


def numbers_in(dataset: Any, column: str) -> np.ndarray:
    """Returns a column of numbers, (rows,), with its own dtype."""
    found = [piece.to_numpy(zero_copy_only=False) for piece in pieces(dataset, column)]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def class_numbers(dataset: Any, column: str) -> np.ndarray:
    """Returns the number of each row's value among those of the column, (rows,) int32, from 0 in the order in which
    they first occur."""
    chunked = pyarrow.chunked_array(list(pieces(dataset, column)), dataset.features.arrow_schema.field(column).type)
    found = [chunk.indices.to_numpy() for chunk in chunked.dictionary_encode().chunks]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int32)
