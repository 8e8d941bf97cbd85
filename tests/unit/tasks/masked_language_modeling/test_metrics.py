"""Perplexity and accuracy of masked tokens: known numbers, and what floats cannot hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_accel.nn.losses import IGNORED, token_loss
from sparse_accel.tasks import MaskedLanguageModeling
from sparse_accel.tasks.label_names import Head
from sparse_accel.tasks.masked_language_modeling.metrics import (
    METRICS,
    masked_token_metrics,
    perplexity,
)


def token_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each masked token and whether the most likely token is the true one, as an evaluation keeps them."""
    kept = MaskedLanguageModeling(Head([])).kept({"logits": logits}, {"labels": labels})
    assert not kept[labels == IGNORED].any()
    loss, found, wanted = kept[labels != IGNORED].unbind(dim=-1)
    return loss, found == wanted


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    losses, correct = token_scores(torch.zeros(2, 3, 50), torch.tensor([[0, IGNORED, 7], [IGNORED, IGNORED, 0]]))
    found = masked_token_metrics(losses.numpy(), correct.numpy())
    assert found == {"perplexity": pytest.approx(50), "accuracy": pytest.approx(2 / 3)}
    assert tuple(found) == METRICS and {type(value) for value in found.values()} == {float}


def test_scores_of_tokens() -> None:
    logits = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(0)).half()
    labels = torch.randint(0, 9, (4, 6), generator=torch.Generator().manual_seed(1))
    labels[torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) < 0.5] = IGNORED
    losses, correct = token_scores(logits, labels)
    places = (labels != IGNORED).nonzero().tolist()
    assert losses.dtype == torch.float32 and len(losses) == len(correct) == len(places)
    for (row, token), loss, right in zip(places, losses.tolist(), correct.tolist(), strict=True):
        one = logits[row, token].double()
        assert loss == pytest.approx(float(one.logsumexp(0) - one[labels[row, token]]), rel=1e-5)
        assert right == (int(one.argmax()) == int(labels[row, token]))
    counts = (labels != IGNORED).sum(dim=1)
    assert float((token_loss(logits, labels) * counts).sum()) == pytest.approx(float(losses.sum()), rel=1e-5)


def test_the_mean_is_exact_in_any_order() -> None:
    losses = np.random.default_rng(0).exponential(size=10_001).astype(np.float32)
    assert perplexity(losses) == perplexity(losses[::-1]) == math.exp(math.fsum(losses.astype(float)) / 10_001)
    tiny = np.full(1_000_000, np.float32(1e-4))  # a sum in float32 would be wrong
    assert perplexity(tiny) == pytest.approx(math.exp(float(np.float32(1e-4))), rel=1e-14)


@pytest.mark.parametrize(
    ("losses", "expected"), [([700.0], math.exp(700)), ([710.0], math.inf), ([1.0, math.inf], math.inf), ([0.0], 1.0)]
)
def test_large_losses(losses: list[float], expected: float) -> None:
    assert perplexity(losses) == expected


def test_sums_that_no_float_holds() -> None:
    assert perplexity([1.7e308, 1.7e308]) == math.inf


def test_a_loss_that_is_no_number_shows() -> None:
    assert math.isnan(perplexity([1.0, math.nan]))


def test_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="no masked tokens"):
        perplexity([])
    with pytest.raises(ValueError, match="no masked tokens"):
        masked_token_metrics(np.zeros(0), np.zeros(0, dtype=bool))
    with pytest.raises(ValueError, match="2 losses for 1 tokens"):
        masked_token_metrics([1.0, 2.0], [True])
