"""Draws rows, or whole groups of rows: a stratified hold-out, and a seeded subset. All keep the order of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def hold_out(labels: Sequence[Hashable], ratio: float, seed: int) -> tuple[list[int], list[int]]:
    """Returns the rows split into kept and held-out ones, with each class in proportion.

    round(ratio * rows) rows are held out: of each class its exact number rounded down or up, but never all rows of a
    class; a class of one row is kept. For a plain random split, give every row the same label.

    Args:
        labels: class of each row, (rows,).
        ratio: fraction of the rows to hold out, between 0 and 1.
        seed: seed of the draw.

    Returns:
        Row numbers kept and row numbers held out, both ascending.
    """
    random = np.random.default_rng(seed)
    rows_of: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(label, []).append(row)
    fractions = {label: ratio * len(rows) for label, rows in rows_of.items()}
    room = {label: len(rows) - 1 for label, rows in rows_of.items()}
    counts = {label: min(int(fraction), room[label]) for label, fraction in fractions.items()}
    # Largest remainder method: the rows missing after rounding down are taken from the classes that lost most by it.
    by_remainder = sorted(fractions, key=lambda label: counts[label] - fractions[label])
    for label in by_remainder[: max(0, round(ratio * len(labels)) - sum(counts.values()))]:
        counts[label] += counts[label] < room[label]
    held = sorted(
        row for label, rows in rows_of.items() for row in random.permutation(rows)[: counts[label]].astype(int).tolist()
    )
    held_set = set(held)
    return [row for row in range(len(labels)) if row not in held_set], held


def draw(rows: int, count: int | None, seed: int) -> list[int] | None:
    """Returns `count` of `rows` row numbers, drawn at random, ascending; None for all of them.

    Random, because the first rows of a file that is sorted by label have only one class.
    """
    if count is None or count >= rows:
        return None
    chosen: list[int] = np.sort(np.random.default_rng(seed).permutation(rows)[:count]).tolist()
    return chosen


def hold_out_groups(groups: Sequence[Hashable], ratio: float, seed: int) -> tuple[list[int], list[int]]:
    """Returns the rows split into kept and held-out ones: round(ratio * groups) groups are held out, but never all.

    Args:
        groups: group of each row, (rows,).
        ratio, seed: as for `hold_out`, which the result is like.
    """
    names = list(dict.fromkeys(groups))
    held = {names[number] for number in hold_out([0] * len(names), ratio, seed)[1]}
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
