"""A run's log as series of points, and the events of its recipe, numbered for the charts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparse_accel.report.read import Run, number

Points = list[tuple[float, float]]
# A chart is about 400 pixels wide: more points than this only make the file larger.
_MOST_POINTS = 400


@dataclass(frozen=True)
class Event:
    """What happens at one epoch: a mark in the charts, and its line in the list beneath.

    Attributes:
        number: of the mark, from 1; 0 for what holds from the start or happens at the end, which have no mark.
        when: the epoch in words.
    """

    number: int
    epoch: float
    when: str
    texts: tuple[str, ...]


def events_of(run: Run) -> list[Event]:
    """Returns the events of a run's recipe by epoch."""
    if run.recipe is None:
        return []
    texts: dict[float, list[str]] = {}
    for epoch, text in run.recipe.timeline():
        if text != "training ends":
            texts.setdefault(max(epoch, 0.0), []).append(text)
    found: list[Event] = []
    for epoch, of_it in sorted(texts.items()):
        at_end = epoch == run.recipe.max_epochs and epoch > 0
        number = 0 if epoch == 0 or at_end else 1 + sum(each.number > 0 for each in found)
        found.append(
            Event(number, epoch, "start" if epoch == 0 else "end" if at_end else f"epoch {epoch:g}", tuple(of_it))
        )
    return found


def last_epoch(runs: Sequence[Run]) -> float:
    """Returns the last epoch in the logs of runs: where all charts of a page end."""
    epochs = [number(entry.get("epoch")) for run in runs for entry in run.history]
    return max((epoch for epoch in epochs if epoch is not None and can_be_drawn(epoch)), default=0.0)


def can_be_drawn(value: float) -> bool:
    """Returns whether a chart can show a value: sums and differences of larger ones than 1e300 overflow."""
    return abs(value) <= 1e300


def series(run: Run, name: str) -> Points:
    """Returns a logged figure as (epoch, value), in order; values that cannot be drawn are NaN, a gap in a chart."""
    found = []
    for entry in run.history:
        epoch, value = number(entry.get("epoch")), number(entry.get(name))
        if epoch is not None and value is not None and can_be_drawn(epoch):
            found.append((epoch, value if can_be_drawn(value) else math.nan))
    return found


def names_of(run: Run, *beginnings: str) -> list[str]:
    """Returns the names in a run's log that begin with one of these, in the order in which they appear first."""
    return list(dict.fromkeys(name for entry in run.history for name in entry if name.startswith(beginnings)))


def thinned(points: Points, most: int = _MOST_POINTS) -> Points:
    """Returns at most about `most` points: the lowest, the highest and any gap of each of equal parts of a series."""
    if len(points) <= most:
        return points
    kept: Points = [points[0]]
    size = math.ceil(2 * len(points) / most)
    for start in range(0, len(points), size):
        part = points[start : start + size]
        finite = [point for point in part if not math.isnan(point[1])]
        ends = {min(finite, key=_value), max(finite, key=_value)} if finite else set()
        gap = [point for point in part if math.isnan(point[1])][:1]
        kept += sorted([*ends, *gap])
    return [*kept, points[-1]]


def not_finite(lines: Iterable[tuple[str, Points]]) -> str:
    """Returns a sentence on values that a chart cannot show; empty if there are none."""
    found = []
    for name, points in lines:
        gaps = [epoch for epoch, value in points if math.isnan(value)]
        if gaps:
            found.append(
                f"{name}: {len(gaps)} of {len(points)} values are NaN or infinite, the first at epoch {gaps[0]:g}"
            )
    return "; ".join(found)


def last(points: Sequence[tuple[float, float]]) -> float | None:
    """Returns the last value of a series; None if it is empty."""
    return points[-1][1] if points else None


def _value(point: tuple[float, float]) -> float:
    return point[1]
