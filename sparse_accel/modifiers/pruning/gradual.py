"""Sparsity that grows: how large it is at a moment, and when it gets a new mask."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sparse_accel.progress import ROUNDING

if TYPE_CHECKING:
    from sparse_accel.progress import Progress


def update_due(progress: Progress, start: float, end: float, frequency: float) -> bool:
    """True at the steps that begin with a new mask: at start, each `frequency` epochs from there, and at end.

    Args:
        start, end, frequency: epochs; a frequency of -1 stands for every step.
    """
    start = max(start, 0.0)
    if progress.begins(start) or progress.begins(end):
        return True
    if not progress.reached(start) or progress.reached(end):
        return False
    if frequency <= 0:
        return True
    passed, passed_before = ((clock.epoch - start) / frequency for clock in (progress, progress.previous()))
    return math.floor(passed + ROUNDING) > math.floor(passed_before + ROUNDING)


def scheduled_sparsity(fraction: float, initial: float, final: float, function: str) -> float:
    """Returns the sparsity at a `fraction` (0 to 1) of the pruning range.

    `cubic` is Zhu & Gupta 2017 (arXiv 1710.01878), eq. 1: fast at first, slow near the end; `inverse_cubic` its mirror.
    """
    x = min(max(fraction, 0.0), 1.0)
    if x == 1.0:
        return final  # to the last digit: counts are rounded from it
    shape = {"linear": x, "cubic": 1 - (1 - x) ** 3, "inverse_cubic": 1 - (1 - x) ** (1 / 3)}[function]
    return initial + shape * (final - initial)
