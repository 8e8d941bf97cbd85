"""Draws rows: a stratified hold-out, and a seeded subset. Both keep the order of the rows."""

from __future__ import annotations

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
