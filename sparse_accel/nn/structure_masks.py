"""Masks of units: the rows and columns that one head, one neuron or one output owns are kept or removed together.

Rankings are pure functions of scores. `MaskedUnits` applies one mask to all layers that its units own a part of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from sparse_accel.distributed.collectives import reduce_sum
from sparse_accel.distributed.weights import clear_weight, full_weight, is_sharded, local_part, local_part_of
from sparse_accel.nn.layers import SparseLayer, make_sparse, mask_inputs, mask_outputs
from sparse_accel.nn.masks import keep_all_but_lowest
from sparse_accel.nn.structure import Units

Layers: TypeAlias = Sequence[nn.Module]

# --- scores -> masks --------------------------------------------------------------------------------------------------


def masks_of_units(scores: Sequence[Tensor], removed: int, kept: Sequence[Tensor]) -> list[Tensor]:
    """Returns which units stay, with one ranking over all layers: the lowest scores go, of equal ones the earlier unit.

    Units that are removed already stay removed, and count. The highest score of each layer stays.

    Args:
        scores: (units,) float of each layer; not NaN.
        removed: how many units are to be removed, in all layers together.
        kept: (units,) bool of each layer: which are left now.

    Raises:
        ValueError: a layer would have no unit left.
    """
    ranked = _ranked(scores, kept)
    sizes = [score.numel() for score in scores]
    if removed > sum(sizes) - len(sizes):
        raise ValueError(f"{removed} of {sum(sizes)} units cannot be removed: each of {len(sizes)} layers needs one")
    flat = keep_all_but_lowest(torch.cat(ranked), removed)
    return [found & mask for found, mask in zip(flat.split(sizes), kept, strict=True)]


def masks_within_budget(
    scores: Sequence[Tensor], costs: Sequence[int], budget: float, kept: Sequence[Tensor]
) -> list[Tensor]:
    """Returns which units stay: the lowest scores go, one after another, until those left cost at most `budget`.

    Args:
        scores: (units,) float of each layer, for each unit of cost; not NaN.
        costs: of one unit of each layer.
        budget: what the units that are left may cost.
        kept: as for `masks_of_units`, and what it says of removed units and of the highest score holds here.

    Raises:
        ValueError: the units that must stay cost more.
    """
    if sum(costs) > budget:
        raise ValueError(f"one unit of each layer costs {sum(costs):,}, which is more than {budget:,.0f}")
    sizes = [score.numel() for score in scores]
    order = torch.cat(_ranked(scores, kept)).argsort(stable=True)
    each = torch.cat([torch.full((size,), cost, dtype=torch.int64) for size, cost in zip(sizes, costs, strict=True)])
    sorted_costs = each.to(order.device)[order]
    left_before = sorted_costs.sum() - sorted_costs.cumsum(0) + sorted_costs  # before each is removed
    flat = torch.empty(len(order), dtype=torch.bool, device=order.device)
    flat[order] = left_before <= budget
    return [found & mask for found, mask in zip(flat.split(sizes), kept, strict=True)]


def _ranked(scores: Sequence[Tensor], kept: Sequence[Tensor]) -> list[Tensor]:
    """Returns the scores, with -inf for removed units and inf for the highest of each layer."""
    ranked = [score.masked_fill(~mask, -math.inf) for score, mask in zip(scores, kept, strict=True)]
    for score in ranked:
        score[score.argmax()] = math.inf
    return ranked


# --- masks in layers --------------------------------------------------------------------------------------------------


class MaskedUnits:
    """Units with the layers that they own a part of; one mask for all of them.

    Args:
        name: in state and messages.
        size: rows and columns of a unit.
        rows: the layers whose rows belong to the units, by the name of the weight; several for a tied weight.
        columns: the layers whose columns belong to the units, likewise.
        part: HEADS or NEURONS, to which the biases of `rows` belong, too; empty: rows or columns alone, without them.

    Raises:
        ValueError: these layers do not all have the same number of rows (columns).
    """

    def __init__(
        self, name: str, size: int, rows: Mapping[str, Layers], columns: Mapping[str, Layers], *, part: str = ""
    ) -> None:
        self.name, self.size, self.part, self.bias = name, size, part, bool(part)
        self.rows = {each: [make_sparse(layer) for layer in layers] for each, layers in rows.items()}
        self.columns = {each: [make_sparse(layer) for layer in layers] for each, layers in columns.items()}
        lines = {each: layers[0].whole_shape[0] for each, layers in self.rows.items()}
        lines |= {each: layers[0].whole_shape[1] for each, layers in self.columns.items()}
        if len(set(lines.values())) != 1:
            raise ValueError(", ".join(f"{each} has {number}" for each, number in lines.items()))
        total = next(iter(lines.values()))
        self.count = total // size
        for layer in self._row_layers:
            mask_outputs(layer, torch.ones(total, dtype=torch.bool, device=layer.weight.device), bias=self.bias)
        for layer in self._column_layers:
            mask_inputs(layer, torch.ones(total, dtype=torch.bool, device=layer.weight.device))

    @property
    def _row_layers(self) -> list[SparseLayer]:
        return [layer for layers in self.rows.values() for layer in layers]

    @property
    def _column_layers(self) -> list[SparseLayer]:
        return [layer for layers in self.columns.values() for layer in layers]

    @property
    def layers(self) -> list[SparseLayer]:
        """All layers, those of tied weights included."""
        return [*self._row_layers, *self._column_layers]

    @property
    def lines(self) -> list[str]:
        """What is masked, in words."""
        return [f"rows of {name}" for name in self.rows] + [f"columns of {name}" for name in self.columns]

    @property
    def cost(self) -> int:
        """Multiply-adds of one unit for one token, in Linear layers."""
        of_rows = sum(layers[0].whole_shape[1] for layers in self.rows.values())
        of_columns = sum(layers[0].whole_shape[0] for layers in self.columns.values())
        return self.size * (of_rows + of_columns)

    @property
    def kept(self) -> Tensor:
        """Which units are left: (units,) bool."""
        mask = self._row_layers[0].row_mask if self.rows else self._column_layers[0].column_mask
        assert mask is not None
        return mask.view(self.count, self.size)[:, 0].clone()

    def set_kept(self, kept: Tensor) -> None:
        """Changes the mask, in place, for compiled graphs and other references to it.

        Args:
            kept: (units,) bool.
        """
        lines = kept.repeat_interleave(self.size)
        for layer in self._row_layers:
            assert layer.row_mask is not None
            layer.row_mask.copy_(lines)
            if self.bias and layer.bias_mask is not None:
                layer.bias_mask.copy_(lines)
        for layer in self._column_layers:
            assert layer.column_mask is not None
            layer.column_mask.copy_(lines)

    def change(self, kept: Tensor) -> None:
        """Changes the mask; units that are no longer pruned restart at 0. All processes must call it.

        Args:
            kept: (units,) bool.
        """
        given_back = kept & ~self.kept
        if given_back.any():
            self.clear(~given_back)
        self.set_kept(kept)

    def clear(self, kept: Tensor) -> None:
        """Sets the stored weights, and biases, of units to 0. All processes must call it.

        Args:
            kept: (units,) bool, False for the units to clear.
        """
        lines = kept.repeat_interleave(self.size)
        for layers in self.rows.values():
            clear_weight(layers[0].weight, _along(lines, 0, layers[0]))
            if self.bias and (bias := _bias(layers[0])) is not None:
                clear_weight(bias, lines)
        for layers in self.columns.values():
            clear_weight(layers[0].weight, _along(lines, 1, layers[0]))

    # --- scores -------------------------------------------------------------------------------------------------------

    def squares(self) -> Tensor:
        """Returns (units,) float32: the sum of squares of all that each unit owns, as the model uses it. All processes
        must call it."""
        found = [_lines(_effective(layers[0]), 0).square().sum(1) for layers in self.rows.values()]
        found += [_lines(_effective(layers[0]), 1).square().sum(1) for layers in self.columns.values()]
        found += [bias.square() for layers in self.rows.values() for bias in self._effective_bias(layers[0])]
        return self._of_units(found)

    def sum_of_norms(self) -> Tensor:
        """Returns (units,) float32: the L2 norm of each row (column), summed over the layers, for units of size 1. All
        processes must call it."""
        found = [_lines(_effective(layers[0]), 0).norm(dim=1) for layers in self.rows.values()]
        found += [_lines(_effective(layers[0]), 1).norm(dim=1) for layers in self.columns.values()]
        return self._of_units(found)

    def gradient_products(self) -> Tensor:
        """Returns (units,) float32: the sum of weight * gradient over all that each unit owns; a parameter without a
        gradient counts as 0. All processes must call it, and get the same."""
        first = [*self._row_layers, *self._column_layers][0].weight
        found = [torch.zeros(self.count * self.size, device=local_part(first).device)]
        parts: list[Tensor] = []  # of this process
        for layers in self.rows.values():
            for tensor in [layers[0].weight, _bias(layers[0])] if self.bias else [layers[0].weight]:
                if tensor is None or tensor.grad is None:
                    continue
                sums = _product(layers[0], tensor).flatten(1).sum(1) if tensor.ndim > 1 else _product(layers[0], tensor)
                if is_sharded(tensor):
                    parts.append(torch.zeros_like(found[0]).index_copy_(0, _rows_here(tensor), sums))
                else:
                    found.append(sums)
        for layers in self.columns.values():
            if layers[0].weight.grad is not None:
                sums = _lines(_product(layers[0], layers[0].weight), 1).sum(1)
                (parts if is_sharded(layers[0].weight) else found).append(sums)
        if parts:
            found.append(reduce_sum(torch.stack(parts).sum(0)))
        return self._of_units(found)

    @torch.no_grad()
    def _effective_bias(self, layer: SparseLayer) -> list[Tensor]:
        """Returns the complete masked bias, float32, in a list; an empty one if there is none or it does not belong."""
        bias = _bias(layer)
        if not self.bias or bias is None:
            return []
        assert layer.bias_mask is not None
        return [full_weight(bias).float().masked_fill(~layer.bias_mask, 0.0)]

    def _of_units(self, lines: Sequence[Tensor]) -> Tensor:
        """Returns the sum over the rows and columns of each unit: tensors of (count * size,) -> (count,)."""
        return torch.stack(list(lines)).sum(0).view(self.count, self.size).sum(1)


def masked_units(model: nn.Module, units: Units) -> MaskedUnits:
    """Gives the layers of a block's heads, or neurons, masks that keep all of them."""
    rows = {f"{name}.weight": [model.get_submodule(name)] for name in units.inputs}
    columns = {f"{units.output}.weight": [model.get_submodule(units.output)]}
    return MaskedUnits(f"{units.part}:{units.block}", units.size, rows, columns, part=units.part)


def _bias(layer: SparseLayer) -> nn.Parameter | None:
    return cast(nn.Parameter | None, getattr(layer, "bias", None))


def _lines(tensor: Tensor, axis: int) -> Tensor:
    """Returns the rows (axis 0) or the columns (axis 1) of a weight: (out, in, ...) -> (out or in, the others)."""
    return tensor.transpose(0, axis).flatten(1)


def _along(lines: Tensor, axis: int, layer: SparseLayer) -> Tensor:
    """Returns a mask of rows (axis 0) or columns (axis 1), expanded to the shape of the layer's complete weight."""
    shape = layer.whole_shape
    return lines.view([-1 if number == axis else 1 for number in range(len(shape))]).expand(shape)


@torch.no_grad()
def _effective(layer: SparseLayer) -> Tensor:
    """Returns the complete masked weight, float32."""
    mask = layer.mask_in_use()
    assert mask is not None
    return full_weight(layer.weight).float().masked_fill(~mask, 0.0)


@torch.no_grad()
def _product(layer: SparseLayer, tensor: Tensor) -> Tensor:
    """Returns this process's part of parameter * gradient, float32; 0 where the mask of the weight prunes."""
    assert tensor.grad is not None
    product = local_part(tensor).float() * local_part(tensor.grad).float()
    if tensor is layer.weight and layer.mask is not None and layer.straight_through:  # else, these gradients are 0
        product = product.masked_fill(~local_part_of(layer.mask, tensor), 0.0)
    return product


def _rows_here(tensor: Tensor) -> Tensor:
    """Returns the numbers of the rows of a sharded tensor that this process holds."""
    numbers = torch.arange(tensor.shape[0], device=local_part(tensor).device).view(-1, *[1] * (tensor.ndim - 1))
    return local_part_of(numbers, tensor).flatten()
