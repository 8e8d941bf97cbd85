"""SparseML's figures for OBSPruningModifier, in golden/obs.json: two weights, their gradients, and what came out."""

from __future__ import annotations

import base64
import itertools
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from places import golden
from torch import Tensor, nn

from sparse_accel.nn.layers import masks

GOLDEN: dict[str, Any] = golden("obs")
SHAPES = {"a.weight": (6, 8), "b.weight": (4, 12)}
SIZE = 48  # of each


def tensors(flat: list[float] | Tensor) -> dict[str, Tensor]:
    """Returns the two weights that 96 numbers hold."""
    parts = torch.as_tensor(flat, dtype=torch.float32).split(SIZE)
    return {name: part.view(shape).clone() for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def gradients(key: str) -> list[dict[str, Tensor]]:
    """Returns samples: `gradients` has 16, `more_gradients` 64."""
    return [tensors(list(struct.unpack("<96f", base64.b64decode(text)))) for text in GOLDEN[key]]


def weights() -> dict[str, Tensor]:
    return tensors(GOLDEN["weights"])


class Two(nn.Module):
    """A model of two Linears with these weights; it has no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6, bias=False), nn.Linear(12, 4, bias=False)
        for name, weight in weights().items():
            self.get_parameter(name).data.copy_(weight)

    def weights(self) -> dict[str, Tensor]:
        return {name: self.get_parameter(name).detach().clone() for name in SHAPES}


class Recorded:
    """Gradient samples that are known beforehand, one after another and from the start again.

    Attributes:
        draws: the arguments of each draw.
    """

    def __init__(self, samples: list[dict[str, Tensor]], model: nn.Module | None = None) -> None:
        self.model = model  # its masks cut gradients off, as its forward would
        self.samples: Iterator[dict[str, Tensor]] = itertools.cycle(samples)
        self.draws: list[dict[str, Any]] = []

    def sizes(self, options: Mapping[str, Any]) -> tuple[int | None, int | None]:
        return None, None

    def draw(
        self, weights: Mapping[str, nn.Parameter], count: int, take: Callable[[str, Tensor], None], **options: Any
    ) -> None:
        self.draws.append({"count": count, **options})
        for sample in itertools.islice(self.samples, count):
            for name in weights:
                mask = None if self.model is None else masks(self.model).get(name)
                take(name, sample[name] if mask is None else sample[name].masked_fill(~mask, 0.0))


def farthest(found: Mapping[str, Tensor], expected: list[float]) -> float:
    """Returns the largest difference, relative to the largest number of its weight; where one is 0, both must be."""
    worst = 0.0
    for name, other in tensors(expected).items():
        assert torch.equal(found[name] == 0, other == 0), f"{name}: other weights are pruned"
        worst = max(worst, float((found[name] - other).abs().max() / other.abs().max()))
    return worst
