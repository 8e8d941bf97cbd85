"""Metrics of masked language modelling: perplexity and accuracy over masked tokens, all with the same weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

METRICS = ("perplexity", "accuracy")


def perplexity(losses: Sequence[float] | np.ndarray) -> float:
    """Returns exp of the mean loss, in float64; inf if that is larger than any float64, NaN if a loss is NaN.

    Args:
        losses: (U,) cross-entropy of each masked token, in nats.

    Raises:
        ValueError: there are none.
    """
    values = np.asarray(losses, dtype=np.float64)
    if not values.size:
        raise ValueError("no masked tokens")
    try:
        return math.exp(math.fsum(values) / values.size)  # fsum: the order of the rows changes nothing
    except OverflowError:
        return math.inf


def masked_token_metrics(
    losses: Sequence[float] | np.ndarray, correct: Sequence[bool] | np.ndarray
) -> dict[str, float]:
    """Returns the metrics of all masked tokens, by name: those of METRICS.

    Args:
        losses: (U,), as for `perplexity`.
        correct: (U,) bool: whether the model's most likely token is the original one.

    Returns:
        perplexity, at least 1; accuracy, a fraction from 0 to 1.

    Raises:
        ValueError: different lengths, or no masked tokens.
    """
    if len(losses) != len(correct):
        raise ValueError(f"{len(losses)} losses for {len(correct)} tokens")
    return {"perplexity": perplexity(losses), "accuracy": float(np.mean(correct, dtype=np.float64))}
