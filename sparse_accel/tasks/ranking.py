"""Metrics of a ranking, for one query: nDCG, reciprocal rank and recall of its first k documents.

Documents with equal scores have no order. Each metric is then its mean over all orders of them, in closed form
(McSherry and Najork 2008, https://doi.org/10.1007/978-3-540-78646-7_38). So it does not depend on the order of the
documents in a file, and a model that gives all documents the same score gets what a random order gets on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dcg(gains: ArrayLike, k: int) -> float:
    """Returns the discounted cumulative gain of the first k documents: the sum of gain / log2(rank + 1), ranks from 1.

    Source: Järvelin and Kekäläinen 2002, https://doi.org/10.1145/582415.582418, with the discount of trec_eval.

    Args:
        gains: (documents,), in the order of the ranking, the first first.
        k: number of documents that count, at least 1.
    """
    first = np.asarray(gains, dtype=np.float64)[:k]
    return float(first @ _discounts(len(first)))


def ndcg_at(scores: ArrayLike, gains: ArrayLike, k: int) -> float:
    """Returns the DCG of the order by score, divided by that of the best order: 0 to 1; 0 if no gain is positive.

    Args:
        scores: (documents,) of the model; a higher one is earlier.
        gains: (documents,), at least 0. The grades themselves are linear gains, as in trec_eval and scikit-learn;
            2 ** grade - 1 are exponential ones (Burges et al. 2005, https://doi.org/10.1145/1102351.1102363).
        k: number of documents that count, at least 1.

    Raises:
        ValueError: a score is not a number, or scores and gains are not as many.
    """
    scores, gains = _checked(scores, gains)
    best = dcg(np.sort(gains)[::-1], k)
    if best <= 0:
        return 0.0
    expected = np.empty(len(gains))
    for start, tied in _by_score(scores):
        expected[start : start + len(tied)] = gains[tied].mean()
    return dcg(expected, k) / best


def reciprocal_rank_at(scores: ArrayLike, relevant: ArrayLike, k: int) -> float:
    """Returns 1 / rank of the first relevant document; 0 if none is among the first k.

    Args:
        scores: (documents,) of the model; a higher one is earlier.
        relevant: (documents,) bool.
        k: number of documents that count, at least 1.

    Raises:
        ValueError: as for `ndcg_at`.
    """
    scores, relevant = _checked(scores, np.asarray(relevant, dtype=bool))
    for start, tied in _by_score(scores):
        found = int(relevant[tied].sum())
        if found == 0:
            continue
        # Of n tied documents in a random order, r of them relevant, the first relevant one is the j-th with this
        # probability: the other r - 1 are among the n - j after it.
        last = min(len(tied) - found + 1, k - start)
        chances = (comb(len(tied) - j, found - 1) / comb(len(tied), found) / (start + j) for j in range(1, last + 1))
        return float(sum(chances))
    return 0.0


def recall_at(scores: ArrayLike, relevant: ArrayLike, k: int) -> float:
    """Returns the fraction of the relevant documents that are among the first k: 0 to 1; 0 if there are none.

    Args and Raises: as for `reciprocal_rank_at`.
    """
    scores, relevant = _checked(scores, np.asarray(relevant, dtype=bool))
    if not relevant.any():
        return 0.0
    found = 0.0
    for start, tied in _by_score(scores):
        found += relevant[tied].mean() * max(0, min(len(tied), k - start))
    return float(found / relevant.sum())


def _checked(scores: ArrayLike, truth: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    scores, truth = np.asarray(scores), np.asarray(truth)
    if scores.ndim != 1 or scores.shape != truth.shape:
        raise ValueError(f"scores and documents are not as many: {scores.shape} and {truth.shape}")
    if np.isnan(scores).any():
        raise ValueError("a score is not a number, so the documents have no order")
    return scores, truth


def _by_score(scores: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yields the documents of each distinct score, the highest first, with the number of documents before them."""
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    bounds = np.flatnonzero(descending[1:] != descending[:-1]) + 1
    start = 0
    for tied in np.split(order, bounds):
        yield start, tied
        start += len(tied)


def _discounts(count: int) -> NDArray[np.float64]:
    discounts: NDArray[np.float64] = 1 / np.log2(np.arange(2, count + 2))
    return discounts
