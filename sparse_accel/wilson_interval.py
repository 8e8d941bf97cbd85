"""The confidence interval of an observed fraction."""

from __future__ import annotations

import math


def wilson_interval(fraction: float, rows: int, z: float = 1.96) -> tuple[float, float]:
    """Returns the confidence interval of a fraction, observed on `rows` independent rows (Wilson, 1927).

    Args:
        fraction: the observed fraction, 0 to 1.
        rows: number of rows.
        z: quantile of the normal distribution; 1.96 gives 95% confidence.
    """
    centre = fraction + z * z / (2 * rows)
    spread = z * math.sqrt(fraction * (1 - fraction) / rows + z * z / (4 * rows * rows))
    return (centre - spread) / (1 + z * z / rows), (centre + spread) / (1 + z * z / rows)
