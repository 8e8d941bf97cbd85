"""Losses that read only the outputs of masked tokens equal those that read all, gradients included."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sparse_accel.nn.losses import (
    IGNORED,
    masked_token_distillation_loss,
    masked_token_loss,
    token_distillation_loss,
    token_loss,
)

ROWS, TOKENS, CLASSES = st.integers(1, 5), st.integers(1, 7), st.integers(2, 9)


def batch(rows: int, tokens: int, classes: int, seed: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of two models, and labels of about a share of the tokens."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, tokens, classes, generator=generator) * 5 for _ in range(2))
    labels = torch.randint(classes, (rows, tokens), generator=generator)
    chosen = torch.rand(rows, tokens, generator=generator) < share
    return student, teacher, labels.masked_fill(~chosen, IGNORED)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    """Of a loss with another weight for each row."""
    (found,) = torch.autograd.grad((loss * torch.arange(1, len(loss) + 1)).sum(), logits)
    return found


@given(ROWS, TOKENS, CLASSES, st.integers(0, 999), st.sampled_from([0.0, 0.2, 1.0]))
def test_the_loss(rows: int, tokens: int, classes: int, seed: int, share: float) -> None:
    logits, _, labels = batch(rows, tokens, classes, seed, share)
    logits.requires_grad_()
    found, expected = masked_token_loss(logits, labels), token_loss(logits, labels)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient(found, logits), gradient(expected, logits), rtol=1e-6, atol=1e-7)
    assert not found[(labels == IGNORED).all(1)].any()


@given(ROWS, TOKENS, CLASSES, st.integers(0, 999), st.sampled_from([0.0, 0.2, 1.0]), st.sampled_from([0.5, 1.0, 5.5]))
def test_the_distance(rows: int, tokens: int, classes: int, seed: int, share: float, temperature: float) -> None:
    student, teacher, labels = batch(rows, tokens, classes, seed, share)
    student.requires_grad_()
    arguments = (student, teacher, labels != IGNORED, temperature)
    found, expected = masked_token_distillation_loss(*arguments), token_distillation_loss(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(found, student), gradient(expected, student), rtol=1e-5, atol=1e-6)


def test_outputs_of_other_tokens_are_not_read() -> None:
    """Not even where they are NaN, which would make the gradient NaN too."""
    student, teacher, labels = batch(3, 6, 4, seed=1, share=0.4)
    masked = labels != IGNORED
    assert masked.any() and not masked.all()
    whole = masked_token_loss(student, labels), masked_token_distillation_loss(student, teacher, masked, 2.0)
    student[~masked] = teacher[~masked] = torch.nan
    student.requires_grad_()
    for found, expected in zip(
        (masked_token_loss(student, labels), masked_token_distillation_loss(student, teacher, masked, 2.0)),
        whole,
        strict=True,
    ):
        assert torch.equal(found, expected)
        assert not gradient(found, student)[~masked].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_raised_to_float32(dtype: torch.dtype) -> None:
    student, teacher, labels = batch(3, 6, 4, seed=1, share=0.5)
    low, masked = student.to(dtype), labels != IGNORED
    found = masked_token_loss(low, labels), masked_token_distillation_loss(low, teacher.to(dtype), masked, 2.0)
    assert {each.dtype for each in found} == {torch.float32}
    torch.testing.assert_close(found[0], token_loss(low.float(), labels))
