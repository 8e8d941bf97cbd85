"""Which weights stay: pure functions from scores to masks.

A mask is a bool tensor of its weight's shape, True where the weight is kept. Sparsity is the fraction of False.
Tests compare the results with SparseML 1.8.0 (`tests/golden/masks.json`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_accel.nn.cpu_kernels import MaskedOnCpu

MaskType = str | Sequence[int]


def block_shape(mask_type: MaskType) -> tuple[int, int] | None:
    """Returns (rows, columns) of the blocks that are kept or pruned as one; None for masks without blocks.

    `block4` is 1 x 4: four neighbours along the input dimension. A pair [a, b] is a x b.
    """
    if mask_type == "block4":
        return (1, 4)
    return None if isinstance(mask_type, str) else (int(mask_type[0]), int(mask_type[1]))


def kept_of_group(mask_type: MaskType) -> tuple[int, int] | None:
    """Returns (N, M) of an `N:M` mask, which keeps N of each M neighbours; None for another mask type."""
    found = re.fullmatch(r"(\d+):(\d+)", mask_type) if isinstance(mask_type, str) else None
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
    return global_magnitude_masks([weight], sparsity, mask_type)[0]


def global_magnitude_masks(
    weights: Sequence[Tensor], sparsity: float, mask_type: MaskType = "unstructured"
) -> list[Tensor]:
    """Returns a `magnitude_mask` for each weight, with one ranking over all `weights`, so that sparsity may differ.

    An N:M mask has the same sparsity in every group, so a ranking over all layers and one per layer agree.

    Raises:
        ValueError: as `magnitude_mask`.
    """
    group = kept_of_group(mask_type)
    if group is not None:
        return [_group_mask(weight, sparsity, *group) for weight in weights]
    block = block_shape(mask_type)
    scores = [weight.detach().abs().float() if block is None else _block_scores(weight, block) for weight in weights]
    flat = torch.cat([score.flatten() for score in scores])
    kept = keep_all_but_lowest(flat, round(sparsity * flat.numel()))
    masks = [
        part.view(score.shape) for part, score in zip(kept.split([s.numel() for s in scores]), scores, strict=True)
    ]
    if block is None:
        return masks
    return [_expand_blocks(mask, weight, block) for mask, weight in zip(masks, weights, strict=True)]


def masked(weight: Tensor, mask: Tensor, bits: Tensor | None = None) -> Tensor:
    """Returns the effective weight: `weight` with exact zeros where `mask` is False, and no gradient there.

    It is not a product, because inf * 0 is NaN.

    Args:
        weight: any shape, float.
        mask: bool, of the weight's shape.
        bits: `mask_bits(mask)`, which a CPU applies ten times faster than a bool mask; float32 weights only.
    """
    if bits is None:
        return torch.where(mask, weight, 0.0)
    return MaskedOnCpu.apply(weight, bits)


def constant_mask(weight: Tensor) -> Tensor:
    """Returns the mask that keeps the zeros of a weight: True where it is not zero."""
    return weight != 0


def sparsity_of(weight: Tensor) -> float:
    """Returns the fraction of exact zeros."""
    return int((weight == 0).sum()) / weight.numel() if weight.numel() else 0.0


def _block_scores(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """Returns the mean magnitude of each block: (out, in) -> (out / rows, in / columns)."""
    matrix = weight.detach().float().abs().flatten(1)
    rows, columns = block
    if matrix.shape[0] % rows or matrix.shape[1] % columns:
        raise ValueError(f"blocks of {rows} x {columns} do not divide a weight of {tuple(weight.shape)}")
    return matrix.view(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns).mean(dim=(1, 3))


def _expand_blocks(mask: Tensor, weight: Tensor, block: tuple[int, int]) -> Tensor:
    return mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1).view(weight.shape)


def _group_mask(weight: Tensor, sparsity: float, kept: int, size: int) -> Tensor:
    """Returns the N:M mask: of each `size` neighbours the `kept` largest are kept; of equal ones, the later."""
    if sparsity == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    if abs(sparsity - (1 - kept / size)) > 1e-6:
        raise ValueError(f"a {kept}:{size} mask has sparsity {1 - kept / size:g}, not {sparsity:g}")
    if weight.numel() % size or weight[0].numel() % size:
        raise ValueError(f"groups of {size} do not divide the rows of a weight of {tuple(weight.shape)}")
    groups = weight.detach().abs().float().view(-1, size)
    dropped = groups.argsort(dim=1, stable=True)[:, : size - kept]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(1, dropped, False).view(weight.shape)
