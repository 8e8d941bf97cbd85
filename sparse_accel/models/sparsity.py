"""The sparsity of a model, with every denominator stated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.distributed.weights import full_weight, reshard
from sparse_accel.nn.blocks import without_skipped
from sparse_accel.nn.layers import SparseLayer, is_encoder_linear, prunable_names


@torch.no_grad()
def sparsity_report(model: nn.Module) -> dict[str, Any]:
    """Returns the counts of zeros in the effective (masked) weights. All processes must call it: sharded weights are
    gathered.

    Returns:
        A dict with `encoder_linear` (Linear weights in the encoder's blocks), `prunable` (all Linear and convolution
        weights) and `model` (all parameters), each with `zeros`, `weights` and `sparsity` = zeros / weights, and
        `layers`: the same for each weight matrix by name.
    """
    reshard(model)
    with without_skipped(model):  # a dropped layer does not count
        return _report(model)


def _report(model: nn.Module) -> dict[str, Any]:
    layers: dict[str, dict[str, float]] = {}
    totals = {name: [0, 0] for name in ("encoder_linear", "prunable", "model")}
    prunable = set(prunable_names(model))
    owners = {f"{name}.weight": module for name, module in model.named_modules() if hasattr(module, "weight")}
    for name, parameter in model.named_parameters():
        module = owners.get(name)
        weight = full_weight(parameter)
        if isinstance(module, SparseLayer) and module.mask is not None:
            weight = weight.masked_fill(~module.mask, 0.0)
        zeros, count = _zeros(weight), weight.numel()
        groups = ["model"] + ["prunable"] * (name in prunable)
        if module is not None and is_encoder_linear(name.removesuffix(".weight"), module):
            groups.append("encoder_linear")
        for group in groups:
            totals[group][0] += zeros
            totals[group][1] += count
        if name in prunable or isinstance(module, nn.Embedding):
            layers[name] = _entry(zeros, count)
    return {**{group: _entry(*counts) for group, counts in totals.items()}, "layers": layers}


def _zeros(weight: Tensor) -> int:
    return int((weight == 0).sum())


def _entry(zeros: int, weights: int) -> dict[str, float]:
    return {"zeros": zeros, "weights": weights, "sparsity": round(zeros / weights, 6) if weights else 0.0}
