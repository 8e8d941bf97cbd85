"""Which weights stay: pure functions from scores to masks.

A mask is a bool tensor of its weight's shape, True where the weight is kept. Sparsity is the fraction of False.
Tests compare the results with SparseML 1.8.0 (`tests/golden/masks.json`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_accel.nn.cpu_kernels import MaskedOnCpu, clear_on_cpu

MaskType = str | Sequence[int]
MOVEMENT_RATE = 0.01


def block_shape(mask_type: MaskType) -> tuple[int, int] | None:
    """Returns (rows, columns) of the blocks that are kept or pruned as one; None for masks without blocks.

    `block4` is 1 x 4: four neighbours along the input dimension. A pair [a, b] is a x b.
    """
    if mask_type == "block4":
        return (1, 4)
    return None if isinstance(mask_type, str) else (int(mask_type[0]), int(mask_type[1]))


def kept_of_group(mask_type: MaskType) -> tuple[int, int] | None:
    """Returns (N, M) of an `N:M` mask, which keeps N of each M neighbours; None for another mask type."""
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", mask_type) if isinstance(mask_type, str) else None
    return (int(found[1]), int(found[2])) if found else None


def keep_all_but_lowest(score: Tensor, pruned: int) -> Tensor:
    """Returns the mask that drops the `pruned` lowest scores; of equal scores, the earlier position is dropped first.

    Args:
        score: any shape, float; not NaN.
        pruned: number of scores to drop, 0 to score.numel().
    """
    mask = torch.ones(score.numel(), dtype=torch.bool, device=score.device)
    if pruned > 0:
        flat = score.flatten()
        threshold = flat.kthvalue(pruned).values
        below = flat < threshold
        mask[below] = False
        tied = (flat == threshold).nonzero().flatten()
        mask[tied[: pruned - int(below.sum())]] = False
    return mask.view(score.shape)


def magnitude_mask(weight: Tensor, sparsity: float, mask_type: MaskType = "unstructured") -> Tensor:
    """Returns the mask that drops the smallest weights of one tensor.

    Args:
        weight: (out, in) or (out, in, ...) for a convolution, float. Zeros count as the smallest weights.
        sparsity: fraction to drop, 0 to 1; round(sparsity * n) of the n units (weights or blocks) are dropped.
        mask_type: `unstructured`, `block4`, `N:M`, or a pair [rows, columns] of a block.

    Raises:
        ValueError: blocks or groups do not divide the weight, or `sparsity` is not 1 - N/M of an N:M mask.
    """
    return masks_of_scores([magnitude(weight)], sparsity, mask_type)[0]


def magnitude(weight: Tensor) -> Tensor:
    """Returns the scores of magnitude pruning: absolute values, float32, of the weight's shape."""
    return weight.detach().abs().float()


def add_movement(score: Tensor, gradient: Tensor, weight: Tensor, usable: Tensor) -> None:
    """Adds one step to the scores of movement pruning, in place: score -= 0.01 * gradient * weight.

    Sanh et al. 2020, arXiv 2005.07683, eq. 7: weights that training moves away from 0 are important. The factor changes
    no rank; it is that of SparseML.

    Args:
        score, weight: any shape, float; a masked weight counts as the caller gives it, as 0 or as it is stored.
        gradient: of the loss with respect to `weight`; where the mask cuts it off, the score stays.
        usable: (), bool, on the device of the others; False leaves the scores unchanged, for gradients with NaN.
    """
    if not score.is_cuda:
        if usable:
            score.addcmul_(gradient, weight, value=-MOVEMENT_RATE)
    else:  # without waiting for the device
        score.addcmul_(torch.where(usable, gradient, 0.0), weight, value=-MOVEMENT_RATE)


def masks_of_scores(
    scores: Sequence[Tensor],
    sparsity: float,
    mask_type: MaskType = "unstructured",
    left: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """Returns a mask for each tensor that drops the lowest scores, with one ranking over all of them.

    So the sparsity of single tensors may differ. An N:M mask has the same sparsity in every group, so a ranking over
    all tensors and one per tensor agree.

    Args:
        scores: one score per weight, each of its weight's shape; not NaN. A block has the mean score of its weights.
        sparsity: fraction to drop, 0 to 1; round(sparsity * n) of the n units (weights or blocks) are dropped.
        mask_type: as for `magnitude_mask`.
        left: which weights of each tensor count, bool, of its shape or broadcastable to it; None: all. The others are
            neither ranked nor dropped. A block counts if one of its weights does. It has no effect on N:M masks.

    Raises:
        ValueError: as `magnitude_mask`.
    """
    group = kept_of_group(mask_type)
    if group is not None:
        return [_group_mask(score, sparsity, *group) for score in scores]
    block = block_shape(mask_type)
    units = list(scores) if block is None else [_block_scores(score, block) for score in scores]
    counting = [_counting(mask, score, block) for mask, score in zip(left or [None] * len(units), scores, strict=True)]
    ranked = [unit.flatten() if c is None else unit[c] for unit, c in zip(units, counting, strict=True)]
    flat = torch.cat(ranked)
    kept = keep_all_but_lowest(flat, round(sparsity * flat.numel())).split([each.numel() for each in ranked])
    masks = []
    for part, unit, counts in zip(kept, units, counting, strict=True):
        mask = part.view(unit.shape) if counts is None else torch.ones_like(unit, dtype=torch.bool)
        masks.append(mask if counts is None else mask.masked_scatter_(counts, part))
    if block is None:
        return masks
    return [_expand_blocks(mask, score.shape, block) for mask, score in zip(masks, scores, strict=True)]


def whole_blocks(left: Tensor, shape: Sequence[int], mask_type: MaskType) -> Tensor:
    """Returns `left`, with True for all weights of a block that has one; unchanged for mask types without blocks.

    Args:
        left: bool, of `shape` or broadcastable to it.
        shape: of the weight: (out, in, ...).
        mask_type: as for `magnitude_mask`.
    """
    block = None if kept_of_group(mask_type) else block_shape(mask_type)
    if block is None:
        return left
    whole = left.expand(*shape)
    return _expand_blocks(_block_scores(whole.float(), block) > 0, whole.shape, block)


def _counting(left: Tensor | None, score: Tensor, block: tuple[int, int] | None) -> Tensor | None:
    """Returns which units (weights or blocks) have a weight that is left, bool; None: all."""
    if left is None:
        return None
    left = left.expand(score.shape)
    return left if block is None else _block_scores(left.float(), block) > 0


def masked(
    weight: Tensor,
    mask: Tensor,
    bits: Tensor | None = None,
    *,
    straight_through: bool = False,
    used_once: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns the effective weight: `weight` with exact zeros where `mask` is False, and no gradient there.

    It is not a product, because inf * 0 is NaN.

    Args:
        weight: any shape, float.
        mask: bool, of the weight's shape or broadcastable to it; it is not read if there are `bits`.
        bits: `mask_bits(mask)`, which a CPU applies ten times faster than a bool mask; float32 weights only.
        straight_through: the backward ignores the mask: masked weights get the gradient of their zeros.
        used_once, dtype: see `MaskedOnCpu`; only with `bits`, and with a gradient that ends at the mask.
    """
    if straight_through:
        return _MaskedStraightThrough.apply(weight, mask, bits)
    return torch.where(mask, weight, 0.0) if bits is None else MaskedOnCpu.apply(weight, bits, used_once, dtype)


class _MaskedStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, bits: Tensor | None) -> Tensor:
        return masked(weight, mask, bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None


def clear(tensor: Tensor, mask: Tensor, bits: Tensor | None = None) -> None:
    """Sets a tensor to exact zeros in place where `mask` is False. Arguments as for `masked`."""
    if bits is None:
        tensor.masked_fill_(~mask, 0.0)
    else:
        clear_on_cpu(tensor, bits)


def constant_mask(weight: Tensor) -> Tensor:
    """Returns the mask that keeps the zeros of a weight: True where it is not zero."""
    return weight != 0


def sparsity_of(weight: Tensor) -> float:
    """Returns the fraction of exact zeros."""
    return int((weight == 0).sum()) / weight.numel() if weight.numel() else 0.0


def _block_scores(score: Tensor, block: tuple[int, int]) -> Tensor:
    """Returns the mean score of each block: (out, in) -> (out / rows, in / columns)."""
    matrix = score.flatten(1)
    rows, columns = block
    if matrix.shape[0] % rows or matrix.shape[1] % columns:
        raise ValueError(f"blocks of {rows} x {columns} do not divide a weight of {tuple(score.shape)}")
    return matrix.view(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns).mean(dim=(1, 3))


def _expand_blocks(mask: Tensor, shape: torch.Size, block: tuple[int, int]) -> Tensor:
    return mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1).view(shape)


def _group_mask(score: Tensor, sparsity: float, kept: int, size: int) -> Tensor:
    """Returns the N:M mask: of each `size` neighbours the `kept` highest are kept; of equal ones, the later."""
    if sparsity == 0:
        return torch.ones_like(score, dtype=torch.bool)
    if abs(sparsity - (1 - kept / size)) > 1e-6:
        raise ValueError(f"a {kept}:{size} mask has sparsity {1 - kept / size:g}, not {sparsity:g}")
    if score.numel() % size or score[0].numel() % size:
        raise ValueError(f"groups of {size} do not divide the rows of a weight of {tuple(score.shape)}")
    groups = score.view(-1, size)
    dropped = groups.argsort(dim=1, stable=True)[:, : size - kept]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(1, dropped, False).view(score.shape)
