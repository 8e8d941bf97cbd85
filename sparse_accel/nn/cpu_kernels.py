"""Faster CPU versions of three operations; the results are the same bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FakeQuantizeOnCpu(torch.autograd.Function):
    """Computes torch.fake_quantize_per_tensor_affine with vectorized operations, with the same result bit for bit.

    On a CPU it takes a fifth of the time, because PyTorch's kernel processes single numbers there. A GPU has no such
    difference, and would have to wait for `item()`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
        zero = int(zero_point.item())
        rounded = (x * (1.0 / scale)).round_()
        ctx.save_for_backward(rounded)
        ctx.outside = (lowest - zero - 1, highest - zero + 1)
        return rounded.clamp(lowest - zero, highest - zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (rounded,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], rounded, *ctx.outside), None, None, None, None


def mask_bits(mask: Tensor) -> Tensor:
    """Returns an int32 tensor of the mask's shape: all bits set where the mask is True, none where it is False."""
    return mask.to(torch.int32).neg_()


class MaskedOnCpu(torch.autograd.Function):
    """Clears all bits of masked numbers, in the forward and in the backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: Tensor) -> Tensor:
        ctx.save_for_backward(bits)
        return (weight.view(torch.int32) & bits).view(torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        return (gradients[0].contiguous().view(torch.int32) & bits).view(torch.float32), None


def clear_on_cpu(tensor: Tensor, bits: Tensor) -> None:
    """Sets a float32 tensor to 0 in place where the mask of `bits` is False."""
    tensor.view(torch.int32).bitwise_and_(bits)
