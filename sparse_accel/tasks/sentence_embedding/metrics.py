"""Metrics of embeddings: correlation of cosines with scores, retrieval, and nearest texts. Plain numpy, in chunks."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr

from sparse_accel.tasks.ranking import ndcg_at, recall_at

CORRELATIONS = ("spearman", "pearson")
RETRIEVAL = ("ndcg_at_10", "recall_at_10")
_FIRST = 10
_AT_ONCE = 256


def unit_length(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns embeddings (texts, D) divided by their norm, or by 1e-12 where that is smaller; float64."""
    found = np.asarray(embeddings, dtype=np.float64)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def correlations(cosines: NDArray[np.float64], scores: NDArray[np.float64]) -> dict[str, float]:
    """Returns the correlation by ranks and the linear one; with a constant column it is undefined, and given as 0."""
    varied = len(scores) > 1 and np.ptp(cosines) > 0 and np.ptp(scores) > 0
    return {
        "spearman": float(spearmanr(cosines, scores).statistic) if varied else 0.0,
        "pearson": float(pearsonr(cosines, scores).statistic) if varied else 0.0,
    }


def retrieval(embeddings: NDArray[np.float64], relevant: Mapping[int, Set[int]]) -> dict[str, float]:
    """Returns nDCG@10 and recall@10, means over queries.

    The documents of a query are all texts but the query's own.

    Args:
        embeddings: (texts, D), of unit length.
        relevant: numbers of the texts that are relevant for each query, itself a number of a text.
    """
    queries = [query for query in relevant if relevant[query] - {query}]
    totals = dict.fromkeys(RETRIEVAL, 0.0)
    for start in range(0, len(queries), _AT_ONCE):
        chunk = queries[start : start + _AT_ONCE]
        for query, scores in zip(chunk, embeddings[chunk] @ embeddings.T, strict=True):
            gains = np.zeros(len(embeddings))
            gains[list(relevant[query])] = 1.0
            kept = _deciding(scores, gains, query)
            totals["ndcg_at_10"] += ndcg_at(scores[kept], gains[kept], _FIRST)
            totals["recall_at_10"] += recall_at(scores[kept], gains[kept] > 0, _FIRST)
    return {name: total / max(len(queries), 1) for name, total in totals.items()}


def _deciding(scores: NDArray[np.float64], gains: NDArray[np.float64], query: int) -> NDArray[np.bool_]:
    """Returns the documents that decide the metrics of one query: the first ones, with ties, and the relevant ones."""
    others = np.ones(len(scores), dtype=bool)
    others[query] = False
    first = min(_FIRST, len(scores) - 1)
    last = np.partition(scores[others], -first)[-first]
    kept: NDArray[np.bool_] = others & ((scores >= last) | (gains > 0))
    return kept


def nearest(embeddings: NDArray[np.float64], texts: NDArray[np.intp]) -> NDArray[np.int64]:
    """Returns the nearest other text of some texts, by cosine, (len(texts),); of equally near ones, the first.

    Args:
        embeddings: (texts, D), of unit length; at least two.
        texts: numbers of texts.
    """
    found = np.zeros(len(texts), dtype=np.int64)
    for start in range(0, len(texts), _AT_ONCE):
        chunk = texts[start : start + _AT_ONCE]
        cosines = embeddings[chunk] @ embeddings.T
        cosines[np.arange(len(chunk)), chunk] = -np.inf
        found[start : start + len(chunk)] = cosines.argmax(axis=1)
    return found
