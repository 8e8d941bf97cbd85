"""Removal of heads and neurons whose weights are all zero: the layers of a plain model become smaller, in place.

A zero unit adds nothing to its block, so the smaller model computes the same, up to the order of float additions; with
quantizers on too, because 0 is exact on every grid and no range changes. What training writes keeps its full size, with
zeros, and is removed where it is deployed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparse_accel.nn.fake_quantize import FakeQuantize
from sparse_accel.nn.layers import SparseLayer, is_encoder_linear
from sparse_accel.nn.structure import HEADS, NEURONS, Units, encoder_units

# What architectures call the number of heads in their attention.
_HEAD_COUNTS = ("num_attention_heads", "n_heads")


@dataclass(frozen=True)
class Structure:
    """How large a model is.

    Attributes:
        attention_heads, ffn_neurons: of each block.
        parameters: of the whole model; a shared one counts once.
        multiply_adds: of the Linear layers in the blocks, for one token.
    """

    attention_heads: tuple[int, ...]
    ffn_neurons: tuple[int, ...]
    parameters: int
    multiply_adds: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the attributes by name, with `layers`, the number of blocks."""
        return {"layers": len(self.attention_heads), **asdict(self)}


@dataclass(frozen=True)
class Removal:
    """What was removed from a model.

    Attributes:
        units: the removed ones, by number; none of a block that is not named.
        before, after: the model's structure.
        kept: why some units that are zero stay, as sentences.
    """

    units: Mapping[Units, tuple[int, ...]]
    before: Structure
    after: Structure
    kept: tuple[str, ...] = field(default=())


def structure_of(model: nn.Module) -> Structure:
    """Returns the structure of a plain model, as it is.

    Raises:
        ValueError: as `encoder_units`.
    """
    units = encoder_units(model)
    heads, neurons = (tuple(each.count for each in units if each.part == part) for part in (HEADS, NEURONS))
    linears = [cast(Any, module).weight for name, module in model.named_modules() if is_encoder_linear(name, module)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Structure(heads, neurons, parameters, sum(weight.numel() for weight in linears))


@torch.no_grad()
def zero_units(model: nn.Module) -> dict[Units, tuple[int, ...]]:
    """Returns the numbers of the units of a plain model of which everything is exactly 0: the weights in use of their
    rows and columns, and their biases. Blocks without any are left out.

    Raises:
        ValueError: as `encoder_units`.
    """
    found = {}
    for units in encoder_units(model):
        used = _in_use(model, units.output, axis=1)
        for name in units.inputs:
            used = used | _in_use(model, name, axis=0)
        zero = (~used.view(units.count, units.size).any(dim=1)).nonzero().flatten().tolist()
        if zero:
            found[units] = tuple(zero)
    return found


def remove_zero_units(model: nn.Module) -> Removal:
    """Removes the zero units of a plain model, in place, but the last one of a block.

    Its config.json says so afterwards if it can: if all heads are there, and each block has as many neurons. Only then
    does a folder that the model is saved to load with `from_pretrained`.

    Raises:
        ValueError: as `encoder_units`.
    """
    zero, kept = zero_units(model), []
    before = structure_of(model)
    chosen: dict[Units, tuple[int, ...]] = {}
    for units, numbers in zero.items():
        if len(numbers) == units.count:
            noun = "head" if units.part == HEADS else "neuron"
            kept.append(
                f"a zero {noun} of block {units.block} stays, because all of them are zero and a block needs one"
            )
            numbers = numbers[1:]
        if numbers:
            chosen[units] = numbers
    remove_units(model, chosen)
    return Removal(chosen, before, structure_of(model), tuple(kept))


@torch.no_grad()
def remove_units(model: nn.Module, units: Mapping[Units, Sequence[int]]) -> None:
    """Removes units from a plain model, in place, whatever their weights are: their rows and columns, with biases,
    masks and scales per row. Other scales and the ranges of activations stay as they are.

    Args:
        units: numbers of the units to remove, by what `encoder_units` returns.

    Raises:
        ValueError: no unit of a block would be left.
    """
    for each, numbers in units.items():
        gone = set(numbers)
        stays = [number for number in range(each.count) if number not in gone]
        if not stays:
            raise ValueError(f"no unit of {each.part} would be left in block {each.block}")
        lines = (torch.tensor(stays)[:, None] * each.size + torch.arange(each.size)).flatten()
        for name in each.inputs:
            _keep(model.get_submodule(name), lines, axis=0)
        _keep(model.get_submodule(each.output), lines, axis=1)
        if each.part == HEADS:
            attention: Any = model.get_submodule(each.inputs[0].rpartition(".")[0])
            setattr(attention, next(name for name in _HEAD_COUNTS if hasattr(attention, name)), len(stays))
            if hasattr(attention, "all_head_size"):
                attention.all_head_size = len(lines)
    _describe(model)


def _in_use(model: nn.Module, name: str, axis: int) -> Tensor:
    """Whether any weight of each row (axis 0), or its bias, or of each column (axis 1) of a layer is not 0: bool."""
    layer: Any = model.get_submodule(name)
    weight, bias = layer.weight, layer.bias
    if isinstance(layer, SparseLayer):
        weight, bias = layer.masked_weight(), layer.bias_in_use()
    used: Tensor = (weight != 0).any(dim=1 - axis)
    return used | (bias != 0) if axis == 0 and bias is not None else used


def _keep(layer: Any, lines: Tensor, axis: int) -> None:
    """Keeps these rows (axis 0) or columns (axis 1) of a Linear."""
    lines = lines.to(layer.weight.device)
    layer.weight = _part(layer.weight, lines, axis)
    layer.out_features, layer.in_features = layer.weight.shape
    if axis == 0 and layer.bias is not None:
        layer.bias = _part(layer.bias, lines, 0)
    if not isinstance(layer, SparseLayer):
        return
    if layer.mask is not None:
        layer.mask = layer.mask.index_select(axis, lines)
    for name in ("row_mask", "bias_mask") if axis == 0 else ("column_mask",):
        if (mask := getattr(layer, name)) is not None:
            setattr(layer, name, mask.index_select(0, lines))
    quantizer = layer.weight_quantizer
    if quantizer is not None and quantizer.scheme.channel_axis == axis:
        _keep_channels(quantizer, lines)


def _keep_channels(quantizer: FakeQuantize, lines: Tensor) -> None:
    for name, values in list(quantizer.named_buffers()):
        setattr(quantizer, name, values.index_select(0, lines))


def _part(parameter: nn.Parameter, lines: Tensor, axis: int) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(axis, lines), requires_grad=parameter.requires_grad)


def _describe(model: nn.Module) -> None:
    """Corrects the number of neurons in the model's configuration, if that makes it the configuration of this model."""
    config: Any = model.config
    structure = structure_of(model)
    if set(structure.attention_heads) == {config.num_attention_heads} and len(set(structure.ffn_neurons)) == 1:
        name = "hidden_dim" if config.model_type == "distilbert" else "intermediate_size"
        setattr(config, name, structure.ffn_neurons[0])
