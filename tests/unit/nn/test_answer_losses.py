"""Losses of answers: each row by itself, on its own tokens, in plain Python; padding is nowhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from places import golden
from torch import Tensor

from sparse_accel.nn.losses import answer_distillation_loss, answer_loss

GOLDEN: dict[str, Any] = golden("token_distillation")
# Tokens of each row, and where the padding is.
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=5)
SIDES = st.sampled_from(["left", "right"])
SEEDS = st.integers(0, 99)


def masked(lengths: Sequence[int], side: str, more: int) -> Tensor:
    """Where rows of these lengths have tokens, in a batch with `more` tokens than the longest."""
    width = max(lengths) + more
    numbers = torch.arange(width)[None]
    counts = torch.tensor(lengths)[:, None]
    return numbers >= width - counts if side == "left" else numbers < counts


def log_softmax(values: Sequence[float]) -> list[float]:
    total = math.log(sum(math.exp(value - max(values)) for value in values)) + max(values)
    return [value - total for value in values]


@given(LENGTHS, SIDES, st.integers(0, 3), SEEDS)
def test_the_loss_is_that_of_each_row_alone(lengths: list[int], side: str, more: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = masked(lengths, side, more)
    logits = torch.randn(*tokens.shape, 2, generator=generator) * 5
    logits[~tokens] = 1e4  # whatever a model says of padding
    logits.requires_grad_()
    positions = torch.stack([torch.randint(length, (2,), generator=generator) for length in lengths])
    found = answer_loss(logits, positions, tokens)
    assert found.shape == (len(lengths),) and found.dtype == torch.float32
    for row in range(len(lengths)):
        own = logits[row][tokens[row]].tolist()
        shares = [log_softmax([pair[column] for pair in own])[int(positions[row, column])] for column in (0, 1)]
        assert found[row].item() == pytest.approx(-sum(shares) / 2, rel=1e-5, abs=1e-5)
    found.sum().backward()
    assert_no_gradient_of_padding(logits.grad, tokens)


@given(LENGTHS, SIDES, st.integers(0, 3), SEEDS, st.sampled_from([0.5, 1.0, 5.5]))
def test_the_distance_is_that_of_each_row_alone(
    lengths: list[int], side: str, more: int, seed: int, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = masked(lengths, side, more)
    student, teacher = (torch.randn(*tokens.shape, 2, generator=generator) * 3 for _ in range(2))
    teacher[~tokens] = 0.0  # as the table gives it
    student[~tokens] = -1e4
    student.requires_grad_()
    found = answer_distillation_loss(student, teacher, tokens, temperature)
    assert found.shape == (len(lengths),) and found.dtype == torch.float32
    for row in range(len(lengths)):
        total = 0.0
        for column in (0, 1):
            ours, theirs = (
                log_softmax([value / temperature for value in each[row][tokens[row]][:, column].tolist()])
                for each in (student, teacher)
            )
            total += sum(math.exp(q) * (q - p) for p, q in zip(ours, theirs, strict=True))
        assert found[row].item() == pytest.approx(temperature**2 * total / 2, rel=1e-4, abs=1e-5)
    one, other = (
        answer_distillation_loss(student[..., column], teacher[..., column], tokens, temperature) for column in (0, 1)
    )
    torch.testing.assert_close((one + other) / 2, found, rtol=1e-5, atol=1e-6)
    found.sum().backward()
    assert_no_gradient_of_padding(student.grad, tokens)


def assert_no_gradient_of_padding(gradient: Tensor | None, tokens: Tensor) -> None:
    assert gradient is not None and gradient.isfinite().all()
    assert not gradient[~tokens].any()
    # A softmax does not change where all logits are shifted.
    torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(len(tokens), 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("temperature", GOLDEN["cases"])
def test_golden_outputs(temperature: str) -> None:
    """SparseML's formula is T^2 * KL, summed over the last dimension, divided by the rows; the mean of its outputs."""
    student, teacher = (torch.tensor(GOLDEN[name]).flatten(end_dim=1) for name in ("student", "teacher"))
    student.requires_grad_()
    tokens = torch.ones(student.shape, dtype=torch.bool)
    one = answer_distillation_loss(student, teacher, tokens, float(temperature)).mean()
    both = answer_distillation_loss(
        torch.stack([student, student], dim=-1), torch.stack([teacher, teacher], dim=-1), tokens, float(temperature)
    ).mean()
    expected = GOLDEN["cases"][temperature]
    assert one.item() == pytest.approx(expected["loss"], rel=1e-6) and both.item() == pytest.approx(
        one.item(), rel=1e-6
    )
    one.backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor(expected["gradient"]).view_as(student), rtol=1e-5, atol=1e-7)


def test_low_precision_is_raised_to_float32() -> None:
    tokens = torch.ones(2, 5, dtype=torch.bool)
    logits = torch.randn(2, 5, 2, dtype=torch.bfloat16)
    assert answer_loss(logits, torch.ones(2, 2, dtype=torch.int64), tokens).dtype == torch.float32
    assert answer_distillation_loss(logits, logits, tokens, 2.0).dtype == torch.float32
