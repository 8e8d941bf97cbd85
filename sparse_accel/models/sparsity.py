"""The sparsity of a model, with every denominator stated, and its structure: heads and neurons that are not zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.distributed.weights import full_weight, reshard
from sparse_accel.nn.blocks import without_skipped
from sparse_accel.nn.layers import SparseLayer, is_encoder_linear, prunable_names
from sparse_accel.nn.structure import HEADS, NEURONS, Units, encoder_units
from sparse_accel.nn.structure_removal import Structure


@torch.no_grad()
def sparsity_report(model: nn.Module) -> dict[str, Any]:
    """Returns the counts of zeros in the effective (masked) weights. All processes must call it: sharded weights are
    gathered.

    Returns:
        A dict with `encoder_linear` (Linear weights in the encoder's blocks), `prunable` (all Linear and convolution
        weights) and `model` (all parameters), each with `zeros`, `weights` and `sparsity` = zeros / weights; `layers`:
        the same for each weight matrix by name; and `structure`, for architectures whose heads and neurons are known:
        the size `before` and `after` those that are zero are removed, each with the entries of `Structure.to_dict`.
    """
    reshard(model)
    with without_skipped(model):  # a dropped layer does not count
        return _report(model)


def structure_figures(report: Mapping[str, Any]) -> dict[str, int]:
    """Returns the heads, neurons, parameters and multiply-adds of a `sparsity_report` without the units that are zero,
    and, as NAME_full_size, with them; empty if none is zero."""
    structure = report.get("structure")
    if structure is None or structure["before"] == structure["after"]:
        return {}
    names = (HEADS, NEURONS, "parameters", "multiply_adds")
    sizes = {"": structure["after"], "_full_size": structure["before"]}
    return {f"{name}{suffix}": _whole(size[name]) for name in names for suffix, size in sizes.items()}


def _whole(value: int | Sequence[int]) -> int:
    """A figure of the whole model, which may be given by block."""
    return value if isinstance(value, int) else sum(value)


def _report(model: nn.Module) -> dict[str, Any]:
    layers: dict[str, dict[str, float]] = {}
    totals = {name: [0, 0] for name in ("encoder_linear", "prunable", "model")}
    prunable = set(prunable_names(model))
    modules = dict(model.named_modules())
    try:
        units = encoder_units(model)
    except ValueError:
        units = []
    used = {each: torch.zeros(each.count * each.size, dtype=torch.bool) for each in units}
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".")
        module = modules.get(owner)
        weight = full_weight(parameter)
        mask = _mask(module, kind)
        if mask is not None:
            weight = weight.masked_fill(~mask, 0.0)
        zeros, count = _zeros(weight), weight.numel()
        groups = ["model"] + ["prunable"] * (name in prunable)
        if kind == "weight" and module is not None and is_encoder_linear(owner, module):
            groups.append("encoder_linear")
        for group in groups:
            totals[group][0] += zeros
            totals[group][1] += count
        if name in prunable or (kind == "weight" and isinstance(module, nn.Embedding)):
            layers[name] = _entry(zeros, count)
        for each in units:
            if owner in each.inputs:
                used[each] |= (weight != 0).view(len(weight), -1).any(1).cpu()
            elif owner == each.output and kind == "weight":
                used[each] |= (weight != 0).any(0).cpu()
    report: dict[str, Any] = {**{group: _entry(*counts) for group, counts in totals.items()}, "layers": layers}
    if units:
        report["structure"] = _structure(model, used, totals["model"][1], totals["encoder_linear"][1])
    return report


def _mask(module: nn.Module | None, kind: str) -> Tensor | None:
    """Returns the mask of a layer's weight or bias; None if it has none."""
    if not isinstance(module, SparseLayer):
        return None
    return module.mask_in_use() if kind == "weight" else module.bias_mask if kind == "bias" else None


def _structure(model: nn.Module, used: dict[Units, Tensor], parameters: int, multiply_adds: int) -> dict[str, Any]:
    """Returns the structure of a model, with and without units that are zero. Each block keeps one.

    Args:
        used: which rows and columns of all units are not zero, (count * size,) bool.
        parameters: of the model.
        multiply_adds: of the encoder's Linear layers, for one token.
    """
    counts: dict[str, list[int]] = {}
    left: dict[str, list[int]] = {}
    less_parameters = less_multiply_adds = 0
    for each, lines in used.items():
        kept = max(int(lines.view(each.count, each.size).any(1).sum()), 1)
        counts.setdefault(each.part, []).append(each.count)
        left.setdefault(each.part, []).append(kept)
        inputs: list[Any] = [model.get_submodule(name) for name in each.inputs]
        output: Any = model.get_submodule(each.output)
        of_unit = each.size * (sum(layer.in_features for layer in inputs) + output.out_features)
        biases = each.size * sum(layer.bias is not None for layer in inputs)
        less_multiply_adds += (each.count - kept) * of_unit
        less_parameters += (each.count - kept) * (of_unit + biases)
    before = Structure(tuple(counts[HEADS]), tuple(counts[NEURONS]), parameters, multiply_adds)
    after = replace(
        before,
        attention_heads=tuple(left[HEADS]),
        ffn_neurons=tuple(left[NEURONS]),
        parameters=parameters - less_parameters,
        multiply_adds=multiply_adds - less_multiply_adds,
    )
    return {"before": before.to_dict(), "after": after.to_dict()}


def _zeros(weight: Tensor) -> int:
    return int((weight == 0).sum())


def _entry(zeros: int, weights: int) -> dict[str, float]:
    return {"zeros": zeros, "weights": weights, "sparsity": round(zeros / weights, 6) if weights else 0.0}
