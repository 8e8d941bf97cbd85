"""The empirical Fisher matrix of a weight in diagonal blocks, and what second-order pruning computes with its inverse.

Kurtic et al. 2022 (oBERT), arXiv 2203.07259. A weight is flattened row by row and cut into runs of B weights; each run
has a B x B block, and weights of different runs do not interact:

    F = damp * I + 1/m * sum of g g^T over m gradient samples

The paper (and SparseML) starts from the inverse I / damp and changes it once per sample (rank-one updates). In float32
that loses all digits once g^2 / damp is near 1e7: SparseML's scores are then up to 41% off. Here the sum comes first
and is inverted once, in float64, where products of float32 numbers are exact. As only the lower half of a symmetric
block is stored, it needs the memory of float32 blocks: 4 * (B + 1) bytes per weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

EPSILON = 2.0**-23  # SparseML's, of float32; added to 2 * [F^-1]_ii in a score, and to [F^-1]_ii in an update
GROUP = 4  # weights of a unit of `block4`

# Numbers in the temporary blocks of one step of the arithmetic: on a CPU they stay in its cache.
_AT_ONCE_ON_CPU, _AT_ONCE_ON_GPU = 2**16, 2**25


def fisher_bytes(weights: int, block_size: int) -> int:
    """Returns the bytes that `FisherBlocks` of so many weights need at most, with the samples not yet added."""
    return weights * (4 * (block_size + 1) + 4 * _samples_at_once(block_size))


def _samples_at_once(block_size: int) -> int:
    """How many samples are collected before they are added to the blocks; more are faster, and need more memory."""
    return max(1, block_size // 4)


class FisherBlocks:
    """The Fisher blocks of one weight, from gradient samples; after `invert`, their inverses.

    Args:
        numel: number of weights.
        block_size: B; a longer one than the weight is the weight's length. The last run is padded with zero gradients.
        device: of the blocks, and of the gradients and weights that are given.
    """

    def __init__(self, numel: int, block_size: int, device: torch.device | str = "cpu") -> None:
        self.numel, self.size = numel, min(block_size, numel)
        self.device = torch.device(device)
        self.count = -(-numel // self.size)
        self.samples = 0
        row, column = torch.tril_indices(self.size, self.size, device=self.device)
        self._lower = row * self.size + column  # where the stored numbers are in a complete block
        # Where the numbers of a complete block are among the stored ones.
        position = torch.zeros(self.size, self.size, dtype=torch.int64, device=self.device)
        position[row, column] = position[column, row] = torch.arange(len(row), device=self.device)
        self._complete = position.flatten()
        self._blocks = torch.zeros(self.count, len(row), dtype=torch.float64, device=self.device)
        self._waiting: Tensor | None = None  # (samples, count * B) float32, not yet added
        self._filled = 0

    def add(self, gradient: Tensor) -> None:
        """Adds a sample.

        Args:
            gradient: of the weight, float32 of any shape with `numel` entries; 0 for pruned weights.
        """
        if self._waiting is None:
            at_once = _samples_at_once(self.size)
            self._waiting = torch.zeros(at_once, self.count * self.size, device=self.device)
        self._waiting[self._filled, : self.numel] = gradient.reshape(-1)
        self._filled += 1
        self.samples += 1
        if self._filled == len(self._waiting):
            self._add_waiting()

    def _add_waiting(self) -> None:
        if self._waiting is None or not self._filled:
            return
        waiting = self._waiting[: self._filled].view(self._filled, self.count, self.size)
        for part in self._parts():
            samples = waiting[:, part].movedim(0, 1).double()  # (blocks, samples, B)
            if self.size == 1:
                self._blocks[part] += samples.square().sum(1)
            else:
                products = torch.bmm(samples.transpose(1, 2), samples)
                self._blocks[part] += products.flatten(1)[:, self._lower]
        self._filled = 0

    def invert(self, damp: float) -> None:
        """Replaces the blocks by their inverses. Call it once, after the last sample.

        Args:
            damp: added to the diagonal, more than 0.
        """
        self._add_waiting()
        self._waiting = None
        for part in self._parts():
            blocks = self._unpacked(part).div_(max(self.samples, 1))
            blocks.diagonal(dim1=1, dim2=2).add_(damp)
            self._blocks[part] = _inverse(blocks, damp).flatten(1)[:, self._lower]

    def inverse(self) -> Tensor:
        """Returns all inverses complete, (blocks, B, B) float64; for tests and small weights."""
        return self._unpacked(slice(0, self.count))

    def scores(self, weight: Tensor, mask_type: str = "unstructured") -> Tensor:
        """Returns how much the loss grows, to second order, if a weight (or a group of 4) is pruned.

        unstructured: w_i^2 / (2 [F^-1]_ii); block4: 1/2 w_Q^T ([F^-1]_QQ)^-1 w_Q, the same for the 4 weights of Q.

        Args:
            weight: effective, of any shape with `numel` entries; for block4, B divides `numel` and is a multiple of 4.

        Returns:
            float32, of the weight's shape.
        """
        values = self._cut(weight)
        found = torch.empty_like(values)
        for part in self._parts():
            w = values[part]
            if mask_type == "unstructured":
                found[part] = w.square() / (2 * self._diagonals(part) + EPSILON)
            else:
                groups = w.view(-1, GROUP)
                score = 0.5 * (groups * _solved_in_groups(self._unpacked(part), groups)).sum(1, keepdim=True)
                found[part] = score.expand(-1, GROUP).reshape(w.shape)
        return found.flatten()[: self.numel].view(weight.shape).float()

    def update(self, weight: Tensor, pruned: Tensor, mask_type: str = "unstructured") -> Tensor:
        """Returns the weight after pruning: the other weights of a block move so that the loss grows the least.

        The steps for single weights (or groups) are added, as in the paper; it is not the joint solution for all.

        Args:
            weight: effective, as for `scores`.
            pruned: bool, of the weight's shape: True for those that are pruned now; they are 0 in the result. Those
                that were pruned before do not move, because their gradients are 0.
        """
        values, chosen = self._cut(weight), self._cut(pruned)
        found = torch.empty_like(values)
        for part in self._parts():
            w, inverse = values[part], self._unpacked(part)
            if mask_type == "unstructured":
                pulls = w / (self._diagonals(part) + EPSILON)
            else:
                pulls = _solved_in_groups(inverse, w.view(-1, GROUP)).reshape(w.shape)
            found[part] = w - torch.bmm(inverse, (pulls * chosen[part])[:, :, None])[:, :, 0]
        return found.flatten()[: self.numel].view(weight.shape).float().masked_fill_(pruned, 0.0)

    def _cut(self, values: Tensor) -> Tensor:
        """Returns values of a weight's shape as (blocks, B) float64, with zeros as padding."""
        padded = torch.zeros(self.count * self.size, dtype=torch.float64, device=self.device)
        padded[: self.numel] = values.detach().reshape(-1)
        return padded.view(self.count, self.size)

    def _parts(self) -> Iterator[slice]:
        """Yields runs of blocks, so that temporary memory does not grow with the weight."""
        at_once = _AT_ONCE_ON_CPU if self.device.type == "cpu" else _AT_ONCE_ON_GPU
        step = max(1, at_once // self.size**2)
        return (slice(start, min(start + step, self.count)) for start in range(0, self.count, step))

    def _diagonals(self, part: slice) -> Tensor:
        return self._blocks[part][:, self._complete[:: self.size + 1]]

    def _unpacked(self, part: slice) -> Tensor:
        return self._blocks[part][:, self._complete].view(-1, self.size, self.size)


def _solved_in_groups(inverse: Tensor, groups: Tensor) -> Tensor:
    """Returns ([F^-1]_QQ)^-1 w_Q for each group Q of 4 weights.

    Args:
        inverse: (blocks, B, B) float64.
        groups: (blocks * B / 4, 4) float64: the weights.
    """
    count = inverse.shape[1] // GROUP
    cut = inverse.view(-1, count, GROUP, count, GROUP).diagonal(dim1=1, dim2=3)  # (blocks, 4, 4, B / 4)
    return torch.linalg.solve(cut.movedim(3, 1).reshape(-1, GROUP, GROUP), groups)


def _inverse(blocks: Tensor, damp: float) -> Tensor:
    """Returns the inverses of symmetric matrices whose eigenvalues are at least `damp` but for rounding."""
    if blocks.shape[1] == 1:
        return 1 / blocks
    factors, failed = torch.linalg.cholesky_ex(blocks)
    found = torch.cholesky_inverse(factors)
    if failed.any():  # gradients so large that float64 rounds `damp` away
        values, vectors = torch.linalg.eigh(blocks[failed > 0])
        found[failed > 0] = (vectors / values.clamp(min=damp)[:, None]) @ vectors.transpose(1, 2)
    return found
