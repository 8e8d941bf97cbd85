"""Dropout on a CPU, with random numbers of the compiled library.

PyTorch makes the numbers one after the other, and stores them for the backward: 10 to 20% of a training step of an
encoder. Here they follow from a key and the position alone (Philox, Salmon et al. 2011), so that they are made in
vectors, by all threads, and again in the backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_accel.nn.attention import attention
from sparse_accel.nn.cpu_kernels import Kernel, is_plain, kernel

_registered: list[torch.library.Library] = []  # what is registered lasts as long as this object
_in_use = False
# Whose random numbers.
COMPILED, PYTORCH = "philox", "pytorch"
DROPOUT_VARIABLE = "SPARSE_ACCEL_DROPOUT"  # of the environment: one of them, for training scripts


def dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """Returns what torch.nn.functional.dropout does, with other random numbers while `use_compiled_dropout` is on.

    The key is a number of PyTorch's generator of the CPU: a seed, or a restored state of that generator, gives the same
    result, for any number of threads. What is dropped is 0 also where it was no number.

    Args:
        x: any shape, on a CPU. What is not contiguous, or not a plain tensor of float32 or bfloat16, gets PyTorch's
            numbers, as does everything under a mode that records operations.
        p: probability of a zero, 0 to 1, rounded to 1/65,536; the numbers that stay are divided by what remains.
        train: False: `x` is returned.
    """
    if not train or p == 0.0 or x.numel() == 0:
        return x
    fast = kernel() if _in_use else None
    if fast is None or not 0 < round(p * 2**16) < 2**16 or not _is_plain(x) or torch._C._len_torch_dispatch_stack():
        return x * torch.empty_like(x).bernoulli_(1.0 - p).div_(1.0 - p) if p < 1.0 else x * torch.zeros_like(x)
    key = int(torch.empty((), dtype=torch.int64, device="cpu").random_().item())
    return _Dropout.apply(x, p, key, fast)


def _is_plain(x: Tensor) -> bool:
    return is_plain(x) and x.is_contiguous()


def _attention(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    return attention(kernel() if _in_use else None, *arguments, **options)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, key: int, fast: Kernel) -> Tensor:
        ctx.arguments, ctx.like = (p, key, fast), (x.shape, x.dtype)
        return fast.dropout(x, p, key)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0] if gradients[0].is_contiguous() else gradients[0].contiguous()
        if _is_plain(gradient):
            return _Dropout.apply(gradient, *ctx.arguments), None, None, None
        return gradient * _Dropout._factors(ctx), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0] * _Dropout._factors(ctx)

    @staticmethod
    def _factors(ctx: Any) -> Tensor:
        p, key, fast = ctx.arguments
        shape, dtype = ctx.like
        return fast.dropout(torch.ones(shape, dtype=dtype), p, key)


def use_compiled_dropout(on: bool = True) -> None:
    """Makes PyTorch call `dropout` for tensors on a CPU, and `attention` where weights are dropped; not for what works
    in place, nor in inference mode.

    Args:
        on: False: from now on, the numbers are PyTorch's own again.
    """
    global _in_use
    _in_use = on and kernel() is not None
    if _in_use and not _registered:
        library = torch.library.Library("aten", "IMPL")
        library.impl("dropout", dropout, "AutogradCPU")
        library.impl("_scaled_dot_product_attention_math", _attention, "AutogradCPU")
        _registered.append(library)


def dropout_numbers() -> str:
    """Returns whose random numbers dropout on a CPU takes now: COMPILED or PYTORCH."""
    return COMPILED if _in_use else PYTORCH
