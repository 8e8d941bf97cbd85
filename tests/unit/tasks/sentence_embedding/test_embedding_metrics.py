"""Figures of embeddings against plain implementations, and nearest texts."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from scipy.stats import spearmanr

from sparse_accel.tasks.sentence_embedding.metrics import correlations, nearest, retrieval, unit_length
from sparse_accel.tasks.sentence_embedding.pairs import pairs_of


def embeddings(texts: int, seed: int) -> np.ndarray:
    """Unit vectors without ties."""
    return unit_length(np.random.default_rng(seed).normal(size=(texts, 6)))


@given(texts=st.integers(3, 40), queries=st.integers(1, 6), seed=st.integers(0, 999))
def test_retrieval_by_a_plain_loop(texts: int, queries: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    vectors = embeddings(texts, seed)
    chosen = draw.choice(texts, size=min(queries, texts), replace=False).tolist()
    relevant = {
        query: {int(each) for each in draw.choice(texts, size=draw.integers(1, 4)) if each != query} for query in chosen
    }
    gains, recalls = [], []
    for query, wanted in relevant.items():
        if not wanted:
            continue
        others = sorted(
            (each for each in range(texts) if each != query), key=lambda each: -vectors[query] @ vectors[each]
        )
        found = [float(each in wanted) for each in others[:10]]
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(len(wanted), 10)))
        gains.append(sum(gain / math.log2(rank + 2) for rank, gain in enumerate(found)) / ideal)
        recalls.append(sum(found) / len(wanted))
    expected = {"ndcg_at_10": np.mean(gains or [0]), "recall_at_10": np.mean(recalls or [0])}
    assert retrieval(vectors, relevant) == pytest.approx(expected)


def test_equal_texts_have_no_order() -> None:
    """All cosines are the same: what a random order gets on average, whatever the order of the file."""
    found = retrieval(np.ones((21, 1)), {0: {3}, 1: {20}})
    assert found["recall_at_10"] == pytest.approx(0.5)


def test_correlations() -> None:
    cosines, scores = np.asarray([0.1, 0.5, 0.4, 0.9]), np.asarray([0.0, 3.0, 3.0, 5.0])
    assert correlations(cosines, scores)["spearman"] == pytest.approx(spearmanr(cosines, scores).statistic)
    assert correlations(cosines, scores)["pearson"] == pytest.approx(np.corrcoef(cosines, scores)[0, 1])
    assert correlations(cosines, np.ones(4)) == {"spearman": 0.0, "pearson": 0.0}


@given(texts=st.integers(2, 600), seed=st.integers(0, 9))
def test_nearest_by_a_plain_search(texts: int, seed: int) -> None:
    vectors = embeddings(texts, seed)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    numbers = np.arange(0, texts, 2)
    assert nearest(vectors, numbers).tolist() == cosines.argmax(axis=1)[numbers].tolist()


def test_pairs_and_what_is_relevant() -> None:
    """Each text once; the second one of a pair with at least the least score; never the query itself."""
    rows = {"text_1": ["a", "a", "b", "c"], "text_2": ["b", "c", "b", "a"], "score": [4.0, 3.9, 5.0, 5.0]}
    found = pairs_of(Dataset.from_dict(rows), least=4.0)
    assert found.texts == ["a", "b", "c"] and found.numbers.tolist() == [[0, 1], [0, 2], [1, 1], [2, 0]]
    assert found.relevant == {0: {1}, 2: {0}} and found.scores is not None
    found = pairs_of(Dataset.from_dict({"text_1": ["a", "a"], "text_2": ["b", "c"], "text_3": ["d", "a"]}), least=0.8)
    assert found.texts == ["a", "b", "d", "c"] and found.relevant == {0: {1, 3}} and found.scores is None
