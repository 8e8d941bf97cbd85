"""Gradual pruning: the sparsity at each step, and the steps that update masks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sparse_accel.progress import ROUNDING

if TYPE_CHECKING:
    from sparse_accel.progress import Progress


def update_due(progress: Progress, start: float, end: float, frequency: float) -> bool:
    """Returns True at steps that begin with a new mask: at `start`, every `frequency` epochs after it, and at `end`.

    Args:
        start, end, frequency: in epochs; the frequency -1 means every step.
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
    """Returns the sparsity at a `fraction` of the pruning range.

    Args:
        fraction: 0 at its start, 1 at its end; other values are clipped.
        initial, final: sparsity at start and end, 0 to 1.
        function: `linear`; `cubic`, which is eq. 1 of Zhu & Gupta 2017 (arXiv 1710.01878): fast at first, slow near the
            end; or `inverse_cubic`, its mirror: slow at first.
    """
    x = min(max(fraction, 0.0), 1.0)
    if x == 1.0:
        return final  # exactly: the number of pruned weights is rounded from it
    shape = {"linear": x, "cubic": 1 - (1 - x) ** 3, "inverse_cubic": 1 - (1 - x) ** (1 / 3)}[function]
    return initial + shape * (final - initial)
