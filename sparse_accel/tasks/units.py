"""Places in a table of all units of a split, from batches of its rows. Shapes as in tasks/base.py."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def unit_numbers(units: Tensor, row_id: Tensor, starts: Tensor) -> Tensor:
    """Returns the position of each unit of a batch in a table of all units, (U,) int64, ordered as `tensor[units]`.

    Args:
        units: (R,) or (R, T) bool.
        row_id: (R,) int64, at least 0 in rows that have units.
        starts: (rows,) int64: the number of units before each row.
    """
    first = starts[row_id.clamp(min=0)]
    if units.ndim == 1:
        return first[units]
    return (first[:, None] + units.cumsum(1) - 1)[units]


def starts_of(counts: np.ndarray) -> Tensor:
    """Returns the number of units before each row, (rows,) int64, from the number of units of each row."""
    return torch.from_numpy(np.cumsum(counts) - counts)
