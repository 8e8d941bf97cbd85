"""The pairs of a split as numbers of its distinct texts, so that each text is embedded once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from sparse_accel.tasks.sentence_embedding.data import SCORE, TEXTS


@dataclass(frozen=True)
class Pairs:
    """The pairs of a split.

    Attributes:
        texts: its distinct texts, in the order of the rows; of triples, negatives too.
        numbers: (pairs, 2), of the first and the second text of each pair.
        scores: (pairs,) float64; None if there are none.
        relevant: number of a first text -> numbers of the texts that are relevant for it.
    """

    texts: list[str]
    numbers: NDArray[np.intp]
    scores: NDArray[np.float64] | None
    relevant: dict[int, set[int]]

    @property
    def count(self) -> int:
        """Returns the number of pairs."""
        return len(self.numbers)

    def cosines(self, embeddings: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the cosine of each pair, (pairs,), from embeddings (texts, D) of unit length."""
        first, second = self.numbers.T
        found: NDArray[np.float64] = (embeddings[first] * embeddings[second]).sum(axis=1)
        return found


def pairs_of(rows: Dataset, least: float) -> Pairs:
    """Returns the pairs of rows.

    Args:
        rows: two or three columns of TEXTS and, if the pairs have them, scores.
        least: the second text of a pair with at least this score is relevant for the first; without scores, each is.
    """
    columns = [rows[name][:] for name in TEXTS if name in rows.column_names]
    numbers: dict[str, int] = {}
    for texts in zip(*columns, strict=True):
        for text in texts:
            numbers.setdefault(text, len(numbers))
    found = np.asarray([[numbers[text] for text in column] for column in columns[:2]], dtype=np.intp).T
    scores = np.asarray(rows[SCORE][:], dtype=np.float64) if SCORE in rows.column_names else None
    relevant: dict[int, set[int]] = {}
    for row, (first, second) in enumerate(found.tolist()):
        if first != second and (scores is None or scores[row] >= least):
            relevant.setdefault(first, set()).add(second)
    return Pairs(list(numbers), found, scores, relevant)
