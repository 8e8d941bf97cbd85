"""Attention with dropout on a CPU, forward and backward, in few passes over the memory.

Where weights of attention are dropped, PyTorch's attention on a CPU is made of single operations in float32: a sixth of
a training step of short texts. Here all that is between the products is one function of the compiled library. As in
attention on GPUs (Dao et al. 2022, arXiv 2205.14135), scores and softmax are float32, and the other products are in the
dtype of their factors: bfloat16 under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
    """Returns what torch.nn.functional.scaled_dot_product_attention wants of aten::_scaled_dot_product_attention_math:
    the result, and the dropped weights. The random numbers are those of `nn.dropout.dropout` for the weights.

    Args:
        fast: computes it; None: PyTorch does, as it does without dropout, for causal and grouped attention, for tensors
            that are not plain, and for derivatives in forward mode.
        query, key, value: (texts, heads, tokens, size of a head), on a CPU.
        attn_mask: bool, False where a query must not see a key; or floats to be added to the scores; broadcastable.
        scale: of the scores; None: 1 / sqrt(size of a head).
    """
    tensors = (query, key, value)
    unusual = is_causal or enable_gqa or dropout_mask is not None or torch._C._len_torch_dispatch_stack()
    unusual = unusual or torch.autograd.forward_ad._current_level >= 0
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
    if mask is None:
        return True
    if mask.requires_grad or not 2 <= mask.dim() <= 4 or not (mask.dtype == torch.bool or mask.is_floating_point()):
        return False
    return is_plain(mask.detach(), (mask.dtype,))


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
        # In one pass: converted, and in the order of the product.
        floats = [x.to(torch.float32, memory_format=torch.contiguous_format) for x in (query, key)]
        scores = torch.matmul(floats[0], floats[1].transpose(-2, -1))
        weights, dropped = fast.attention_weights(scores, mask, scale, p, random, value.dtype)
        ctx.save_for_backward(query, key, value, mask, weights, dropped)  # the inputs themselves: they have a graph
        ctx.fast, ctx.arguments = fast, (scale, p, random)
        ctx.set_materialize_grads(False)
        return torch.matmul(dropped, value), dropped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, mask, weights, dropped = ctx.saved_tensors
        gradient, of_weights = gradients
        if gradient is None or of_weights is not None or torch.is_grad_enabled() or not is_plain(gradient):
            factors = ctx.fast.dropout(torch.ones_like(weights), *ctx.arguments[1:])
            return *_gradients(query, key, value, mask, ctx.arguments[0], factors, gradients), *[None] * 5
        needs_query, needs_key, needs_value, *_ = ctx.needs_input_grad
        gradient = gradient.contiguous()
        of_query = of_key = None
        if needs_query or needs_key:
            of_scores = torch.matmul(gradient, value.transpose(-2, -1))
            ctx.fast.attention_gradient(weights, of_scores, *ctx.arguments)
            of_query = torch.matmul(of_scores, key) if needs_query else None
            of_key = torch.matmul(of_scores.transpose(-2, -1), query) if needs_key else None
        of_value = torch.matmul(dropped.transpose(-2, -1), gradient) if needs_value else None
        return of_query, of_key, of_value, *[None] * 5


def _gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    factors: Tensor,
    gradients: tuple[Tensor | None, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients by ordinary operations in float32, which have derivatives of their own, and batches.

    Args:
        factors: of the weights: 0 where one is dropped.
        gradients: of the result and of the dropped weights; None for one that is not used.
    """
    query_, key_, value_ = (x.float() for x in (query, key, value))
    scores = torch.matmul(query_, key_.transpose(-2, -1)) * scale
    scores = scores if mask is None else scores + mask
    nothing = (scores == -torch.inf).all(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)
    of_dropped: Any = 0.0 if gradients[1] is None else gradients[1].float()
    of_value = torch.zeros_like(value)
    if gradients[0] is not None:
        gradient = gradients[0].float()
        of_value = torch.matmul((weights * factors).transpose(-2, -1), gradient)
        of_dropped = of_dropped + torch.matmul(gradient, value_.transpose(-2, -1))
    of_weights = of_dropped * factors
    of_scores = scale * weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True))
    of_query, of_key = torch.matmul(of_scores, key_), torch.matmul(of_scores.transpose(-2, -1), query_)
    return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype)
