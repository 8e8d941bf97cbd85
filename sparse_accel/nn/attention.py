"""Attention with dropout on a CPU, forward and backward, in few passes over the memory.

Where weights of attention are dropped, PyTorch takes an attention for a CPU that is made of single operations, in
float32: a sixth of a training step of short texts. Here the products are in the dtype of their factors, as everywhere
under autocast, and all between them is one function of the compiled library, which computes in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_accel.nn.cpu_kernels import MOST_KEYS, Kernel, is_plain

_OF_PYTORCH = torch.ops.aten._scaled_dot_product_attention_math.default


def attention(
    fast: Kernel | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    dropout_mask: Tensor | None = None,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns what aten::_scaled_dot_product_attention_math does: the result, and the weights. The random numbers are
    those of `nn.dropout.dropout` for the weights.

    Args:
        fast: computes it; None: PyTorch does, as it does without dropout, for causal and grouped attention, and for
            tensors that are not plain.
        query, key, value: (texts, heads, tokens, size of a head), on a CPU.
        attn_mask: bool, False where a query must not see a key; or floats to be added to the scores; broadcastable.
        scale: of the scores; None: 1 / sqrt(size of a head).
    """
    tensors = (query, key, value)
    unusual = is_causal or enable_gqa or dropout_mask is not None or torch._C._len_torch_dispatch_stack()
    if fast is None or unusual or not 0 < round(dropout_p * 2**16) < 2**16 or not _are_usual(tensors, attn_mask):
        return _OF_PYTORCH.decompose(
            *tensors, attn_mask, dropout_p, is_causal, dropout_mask, scale=scale, enable_gqa=enable_gqa
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    mask = None if attn_mask is None else _added(attn_mask, (*query.shape[:3], key.shape[2]))
    random = int(torch.empty((), dtype=torch.int64, device="cpu").random_().item())
    return _Attention.apply(query, key, value, mask, scale, dropout_p, random, fast)


def _are_usual(tensors: tuple[Tensor, Tensor, Tensor], mask: Tensor | None) -> bool:
    query, key, value = tensors
    if any(x.dim() != 4 or x.numel() == 0 or x.dtype != query.dtype or not is_plain(x) for x in tensors):
        return False
    if query.shape[:2] != key.shape[:2] or key.shape[:3] != value.shape[:3] or key.shape[2] > MOST_KEYS:
        return False
    return mask is None or (not mask.requires_grad and mask.layout == torch.strided and type(mask) is Tensor)


def _added(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns a mask as float32 numbers to be added, expanded to the shape of the scores, contiguous in keys."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(mask.logical_not(), -torch.inf)
    if mask.shape[-1] != shape[-1]:
        mask = mask.expand(*mask.shape[:-1], shape[-1])
    return mask.float().contiguous().expand(shape)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        p: float,
        random: int,
        fast: Kernel,
    ) -> tuple[Tensor, Tensor]:
        query, key, value = (x.contiguous() for x in (query, key, value))
        scores = torch.matmul(query, key.transpose(-2, -1))
        weights, dropped = fast.attention_weights(scores, mask, scale, p, random)
        ctx.save_for_backward(query, key, value, weights, dropped)
        ctx.fast, ctx.arguments = fast, (scale, p, random)
        ctx.mark_non_differentiable(dropped)
        return torch.matmul(dropped, value), dropped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, dropped = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_value = torch.matmul(dropped.transpose(-2, -1), gradient)
        of_scores = torch.matmul(gradient, value.transpose(-2, -1))
        ctx.fast.attention_gradient(weights, of_scores, *ctx.arguments)
        of_query = torch.matmul(of_scores, key)
        return of_query, torch.matmul(of_scores.transpose(-2, -1), query), of_value, *[None] * 5
