"""Figures as text."""

from __future__ import annotations

import math
import re
from typing import Any

from sparse_accel.report.read import number

NOTHING = "–"
# Figures in these names are fractions, which people read as percentages.
_FRACTIONS = ("accuracy", "f1", "exact_match", "precision", "recall", "agreement", "combined_score")
# The thresholds of SQuAD 2.0 are named after the figures that they are best for, but in units of logits.
_NO_FRACTION = "_threshold"


def fraction(value: Any) -> float:
    """Returns a number between 0 and 1 for the length of a bar or the depth of a shade; 0 for what is not a number."""
    found = number(value)
    return min(max(found, 0.0), 1.0) if found is not None and not math.isnan(found) else 0.0


def is_fraction(name: str) -> bool:
    """Returns whether a figure of this name is a fraction from 0 to 1."""
    return any(word in name for word in _FRACTIONS) and not name.endswith(_NO_FRACTION)


def figure(name: str, value: Any) -> str:
    """Returns a figure as text: fractions in percent, others with four digits."""
    return percent(value, 2) if is_fraction(name) else plain(value)


def difference(name: str, value: float) -> str:
    """Returns a difference of two figures of this name with its sign; of fractions, in percentage points."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{100 * value:+.2f} points" if is_fraction(name) else f"{value:+.4g}"
    return text.replace("-", "−")


def plain(value: Any) -> str:
    """Returns a number with four digits, or any other value as it is."""
    found = number(value)
    if found is None:
        return NOTHING if value is None else str(value)
    if math.isnan(found):
        return "NaN"
    if math.isfinite(found) and abs(found) < 1e15 and found == int(found):
        return f"{int(found):,}".replace("-", "−")
    if not math.isfinite(found):
        return "∞" if found > 0 else "−∞"
    return re.sub(r"e([+-])0*", r"e\1", f"{found:.4g}").replace("e+", "e").replace("-", "−")


def percent(value: Any, digits: int = 1) -> str:
    """Returns a fraction as `81.1%`."""
    found = number(value)
    if found is None:
        return NOTHING
    if not math.isfinite(found):
        return plain(found)
    small = 0 < abs(found) < 0.01  # a share of 0.03% is not 0.0%
    text = f"{100 * found:.2g}" if small else f"{100 * found:.{digits}f}"
    return text.replace("-", "−") + "%"


def size(value: Any) -> str:
    """Returns a number of bytes as `23.3 MB`."""
    found = number(value)
    if found is None or not math.isfinite(found):
        return NOTHING
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if found >= 10**power:
            return f"{found / 10**power:.{3 if unit == 'GB' else 1}f} {unit}"
    return f"{int(found)} bytes"


def milliseconds(value: Any) -> str:
    """Returns milliseconds with three digits."""
    found = number(value)
    if found is None or not math.isfinite(found):
        return NOTHING
    return f"{found:,.0f}" if found >= 100 else f"{found:.1f}" if found >= 10 else f"{found:.2f}"


def duration(value: Any) -> str:
    """Returns seconds as `5 min 34 s`, `54 min` or `2 h 5 min`."""
    found = number(value)
    if found is None or not math.isfinite(found) or found < 0:
        return NOTHING
    if found < 60:
        return f"{found:.1f} s"
    minutes, seconds = divmod(round(found), 60)
    if minutes < 10:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(round(found / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def times(value: float) -> str:
    """Returns a factor as `2.2×`."""
    return f"{value:.2g}×" if value < 10 else f"{value:.0f}×"
