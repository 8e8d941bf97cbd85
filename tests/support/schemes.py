"""Recipes of one QuantizationModifier, and what quantizers they give a model."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from sparse_accel.nn.fake_quantize import FakeQuantize
from sparse_accel.nn.layers import quantizers
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

IGNORE = "ignore: [LayerNorm, Tanh, GELUActivation]"
PER_CHANNEL = "scheme: {weights: {symmetric: true, strategy: channel}}"


def recipe(keys: str | dict[str, Any], epochs: int = 2) -> str:
    keys = keys if isinstance(keys, str) else json.dumps(keys)[1:-1]
    return f"modifiers:\n  - !EpochRangeModifier {{end_epoch: {epochs}}}\n  - !QuantizationModifier {{{keys}}}"


def attach(model: nn.Module, keys: str | dict[str, Any]) -> RecipeRun:
    run = RecipeRun(load_recipe(recipe(keys)))
    run.attach(model)
    return run


def in_words(quantizer: FakeQuantize) -> str:
    """A quantizer as the figures have it: i8s/channel, u8a[0, 127]."""
    scheme, (lowest, highest) = quantizer.scheme, quantizer.scheme.integers
    words = f"{'i' if scheme.signed else 'u'}8{'s' if scheme.symmetric else 'a'}"
    words += "/channel" if scheme.channel_axis == 0 else ""
    words += f"[{lowest}, {highest}]" if highest - lowest < 255 else ""
    constant = quantizer.averaging_constant
    return words + (f" c={constant}" if constant != 0.01 else "")


def layers_of(model: nn.Module) -> dict[str, str]:
    found: dict[str, dict[str, str]] = {}
    for name, quantizer in quantizers(model).items():
        layer, _, which = name.rpartition(".")
        found.setdefault(layer, {})[which.removesuffix("_quantizer")] = in_words(quantizer)
    return {layer: " ".join(f"{which} {kind}" for which, kind in sorted(each.items())) for layer, each in found.items()}
