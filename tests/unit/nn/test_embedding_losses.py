"""Losses of embeddings against plain loops and formulas."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.nn.functional import cosine_similarity

from sparse_accel.nn.embedding_losses import embedding_distance, in_batch_loss, not_negatives, score_loss


def test_distance_of_texts_and_of_pairs() -> None:
    student, teacher = torch.randn(5, 2, 8), torch.randn(5, 2, 8)
    expected = 1 - cosine_similarity(student, teacher, dim=-1)
    torch.testing.assert_close(embedding_distance(student[:, 0], teacher[:, 0], "cosine"), expected[:, 0])
    torch.testing.assert_close(embedding_distance(student, teacher, "cosine"), expected.mean(dim=1))
    squares = (student - teacher).square()
    torch.testing.assert_close(embedding_distance(student, teacher, "mse"), squares.mean(dim=(1, 2)))
    assert embedding_distance(student.bfloat16(), teacher.bfloat16(), "mse").dtype == torch.float32


def test_score_loss() -> None:
    first, second, scores = torch.randn(4, 8), torch.randn(4, 8), torch.rand(4)
    torch.testing.assert_close(score_loss(first, second, scores), (cosine_similarity(first, second) - scores) ** 2)


@given(rows=st.integers(1, 6), negatives=st.integers(0, 2), seed=st.integers(0, 99))
def test_in_batch_loss_by_a_plain_loop(rows: int, negatives: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randn(rows, 4, generator=generator)
    candidates = torch.randn(rows * (1 + negatives), 4, generator=generator)
    own = torch.arange(rows) * (1 + negatives)
    left_out = torch.rand(rows, len(candidates), generator=generator) < 0.3
    left_out[torch.arange(rows), own] = False
    found = in_batch_loss(anchors, candidates, own, left_out, scale=20.0)
    for row in range(rows):
        cosines = [cosine_similarity(anchors[row], each, dim=0) for each in candidates]
        kept = [20 * cosine for number, cosine in enumerate(cosines) if not left_out[row, number]]
        expected = torch.logsumexp(torch.stack(kept), 0) - 20 * cosines[int(own[row])]
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_it_is_that_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    anchors, candidates = torch.randn(5, 8), torch.randn(10, 8)
    reference: Any = MultipleNegativesRankingLoss(model=None, scale=20.0)  # type: ignore[arg-type]
    columns = [anchors, candidates[0::2], candidates[1::2]]
    expected = reference.compute_loss_from_embeddings(columns, None)
    nothing = torch.zeros(5, 10, dtype=torch.bool)
    found = in_batch_loss(anchors, candidates, torch.arange(0, 10, 2), nothing, 20.0)
    torch.testing.assert_close(found.mean(), expected)


@pytest.mark.parametrize("what", ["the positive again", "the anchor", "another positive of the anchor"])
def test_what_is_no_negative(what: str) -> None:
    """Rows (1, 2), (3, x) and candidates 2, x: x is a negative of row 1 only if nothing says otherwise."""
    other, anchor = {"the positive again": (2, 3), "the anchor": (1, 3), "another positive of the anchor": (4, 1)}[what]
    anchors, positives = torch.tensor([1, anchor]), torch.tensor([2, other])
    left_out = not_negatives(anchors, positives, positives, anchors)
    assert left_out[0].tolist() == [True, True]
    left_out = not_negatives(torch.tensor([1, 3]), torch.tensor([2, 4]), torch.tensor([2, 4]), torch.tensor([1, 3]))
    assert left_out.tolist() == [[True, False], [False, True]]
