"""Draws rows, or whole groups of rows: a stratified hold-out, and a seeded subset. All keep the order of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def hold_out(classes: np.ndarray, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows split into kept and held-out ones, with each class in proportion.

    round(ratio * rows) rows are held out: of each class its exact number rounded down or up, but never all rows of a
    class; a class of one row is kept. For a plain random split, give every row the same class.

    Args:
        classes: number of each row's class, (rows,), integers.
        ratio: fraction of the rows to hold out, between 0 and 1.
        seed: seed of the draw.

    Returns:
        Row numbers kept and row numbers held out, both ascending, int64.
    """
    random = np.random.default_rng(seed)
    _, first, numbers = np.unique(classes, return_index=True, return_inverse=True)
    order = np.argsort(first)  # the classes as they first occur
    by_class = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    sizes = [len(by_class[number]) for number in order]
    fractions = [ratio * size for size in sizes]
    counts = [min(int(fraction), size - 1) for fraction, size in zip(fractions, sizes, strict=True)]
    # Largest remainder method: the rows missing after rounding down are taken from the classes that lost most by it.
    by_remainder = sorted(range(len(sizes)), key=lambda number: counts[number] - fractions[number])
    for number in by_remainder[: max(0, round(ratio * len(classes)) - sum(counts))]:
        counts[number] += counts[number] < sizes[number] - 1
    held = np.zeros(len(classes), dtype=bool)
    for number, count in zip(order, counts, strict=True):
        held[random.permutation(by_class[number])[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def draw(rows: int, count: int | None, seed: int) -> np.ndarray | None:
    """Returns `count` of `rows` row numbers, drawn at random, ascending; None for all of them.

    Random, because the first rows of a file that is sorted by label have only one class.
    """
    if count is None or count >= rows:
        return None
    return np.sort(np.random.default_rng(seed).permutation(rows)[:count])


def hold_out_groups(groups: Sequence[Hashable], ratio: float, seed: int) -> tuple[list[int], list[int]]:
    """Returns the rows split into kept and held-out ones: round(ratio * groups) groups are held out, but never all.

    Args:
        groups: group of each row, (rows,).
        ratio, seed: as for `hold_out`, which the result is like.
    """
    names = list(dict.fromkeys(groups))
    held = {names[number] for number in hold_out(np.zeros(len(names), dtype=np.int64), ratio, seed)[1]}
    rows = range(len(groups))
    return [row for row in rows if groups[row] not in held], [row for row in rows if groups[row] in held]


def draw_groups(groups: Sequence[Hashable], count: int | None, seed: int) -> list[int] | None:
    """Returns the rows of some groups, drawn at random, ascending; None for all of them.

    Args:
        groups: group of each row, (rows,).
        count: the most rows; the first group drawn may have more.
        seed: seed of the draw.
    """
    if count is None or count >= len(groups):
        return None
    sizes = Counter(groups)
    names, chosen, rows = list(sizes), set[Hashable](), 0
    for number in np.random.default_rng(seed).permutation(len(names)):
        rows += sizes[names[number]]
        if chosen and rows > count:
            break
        chosen.add(names[number])
    return [row for row, group in enumerate(groups) if group in chosen]
