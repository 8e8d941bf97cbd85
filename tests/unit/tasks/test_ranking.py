"""Metrics of one query's ranking: by hand, by their definitions over all orders of ties, and against scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from sparse_accel.tasks.ranking import dcg, ndcg_at, recall_at, reciprocal_rank_at

# Few different scores, so that ties are common; few documents, so that all their orders can be counted.
documents = st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 3)), min_size=1, max_size=6)
cutoffs = st.integers(1, 7)


def orders(scores: list[int]) -> list[tuple[int, ...]]:
    """All orders of the documents in which no score is before a higher one."""
    every = itertools.permutations(range(len(scores)))
    return [order for order in every if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))]


def dcg_of(gains: list[float], k: int) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1) if rank <= k)


def test_by_hand() -> None:
    gains, scores = [0, 3, 1], [0.9, 0.5, 0.1]
    assert dcg(gains, 3) == pytest.approx(3 / math.log2(3) + 1 / 2)
    assert dcg(gains, 1) == 0 and dcg([], 5) == 0
    assert ndcg_at(scores, gains, 3) == pytest.approx((3 / math.log2(3) + 1 / 2) / (3 + 1 / math.log2(3)))
    assert reciprocal_rank_at(scores, [False, True, True], 10) == 1 / 2
    assert reciprocal_rank_at(scores, [False, True, True], 1) == 0
    assert recall_at(scores, [False, True, True], 2) == 1 / 2
    # The three documents with one score have no order: the relevant one is the first, second or third.
    assert reciprocal_rank_at([1, 1, 1], [False, False, True], 10) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert recall_at([1, 1, 1], [False, False, True], 1) == pytest.approx(1 / 3)


@given(documents, cutoffs)
def test_ties_are_the_mean_over_all_their_orders(rows: list[tuple[int, int]], k: int) -> None:
    scores, gains = [score for score, _ in rows], [gain for _, gain in rows]
    relevant, every = [gain > 1 for gain in gains], orders(scores)
    best = dcg_of(sorted(gains, reverse=True), k)
    expected = np.mean([dcg_of([gains[row] for row in order], k) for order in every]) / best if best else 0
    assert ndcg_at(scores, gains, k) == pytest.approx(expected)
    ranks = [next((rank for rank, row in enumerate(order, 1) if relevant[row]), math.inf) for order in every]
    assert reciprocal_rank_at(scores, relevant, k) == pytest.approx(
        np.mean([1 / rank if rank <= k else 0 for rank in ranks])
    )
    found = np.mean([sum(relevant[row] for row in order[:k]) for order in every])
    assert recall_at(scores, relevant, k) == pytest.approx(found / max(sum(relevant), 1))


@given(documents, cutoffs)
def test_ndcg_is_that_of_scikit_learn(rows: list[tuple[int, int]], k: int) -> None:
    """It needs two documents, and averages over ties in the same way."""
    scores, gains = [score for score, _ in rows], [gain for _, gain in rows]
    if len(rows) > 1:
        assert ndcg_at(scores, gains, k) == pytest.approx(ndcg_score([gains], [scores], k=k))


@given(documents, cutoffs, st.randoms(use_true_random=False))
def test_the_order_of_the_documents_is_nothing(rows: list[tuple[int, int]], k: int, random: object) -> None:
    moved = list(rows)
    random.shuffle(moved)  # type: ignore[attr-defined]
    for metric in (ndcg_at, reciprocal_rank_at, recall_at):
        first, second = (metric([score for score, _ in each], [gain for _, gain in each], k) for each in (rows, moved))
        assert first == pytest.approx(second)
        assert 0 <= first <= 1 + 1e-12


def test_infinite_scores_tie_too() -> None:
    assert reciprocal_rank_at([math.inf, math.inf], [True, False], 10) == pytest.approx(3 / 4)


def test_many_tied_documents() -> None:
    """The binomial coefficients are those of integers: they do not overflow."""
    relevant = np.arange(3000) % 2 == 0
    assert reciprocal_rank_at(np.zeros(3000), relevant, 10) == pytest.approx(
        sum(0.5**j / j for j in range(1, 11)), abs=1e-3
    )


@pytest.mark.parametrize("metric", [ndcg_at, reciprocal_rank_at, recall_at])
def test_what_has_no_order_is_refused(metric: object) -> None:
    with pytest.raises(ValueError, match="not a number"):
        metric([1.0, math.nan], [1, 0], 10)  # type: ignore[operator]
    with pytest.raises(ValueError, match="not as many"):
        metric([1.0, 2.0], [1], 10)  # type: ignore[operator]
