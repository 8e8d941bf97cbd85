"""The interval of a fraction that was seen."""

from __future__ import annotations

import math


def wilson_interval(share: float, rows: int, z: float = 1.96) -> tuple[float, float]:
    """Returns the 95% interval of a share that was seen in `rows` independent rows (Wilson, 1927)."""
    centre = share + z * z / (2 * rows)
    spread = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return (centre - spread) / (1 + z * z / rows), (centre + spread) / (1 + z * z / rows)
