"""What quantizers see: the fraction of values that their range clips, and histograms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_accel.distributed.collectives import reduce_sum
from sparse_accel.nn.fake_quantize import FakeQuantize
from sparse_accel.nn.layers import quantizers

BINS = 64
# The bins cover the quantizer's range and half its width on both sides; values beyond are in the outermost bins.
_MARGIN = 0.5


@dataclass
class QuantizerValues:
    """The values that went through one quantizer.

    Attributes:
        min, max, scale: of the quantizer: with several channels the smallest minimum, the largest maximum and
            the largest scale.
        clipped: fraction of the values that lie outside the range.
        counts: (BINS,), values per bin.
        edges: (BINS + 1,), the limits of the bins.
    """

    min: float
    max: float
    scale: float
    clipped: float
    counts: list[int]
    edges: list[float]


@contextmanager
def watch_quantizers(model: nn.Module) -> Iterator[dict[str, QuantizerValues]]:
    """Yields a dict that at the end of the block holds, by name, what went through each active quantizer in the block;
    one that saw no values has no entry.

    All processes must call it: the values of all are counted together. The names end in `.weight`, `.input` or
    `.output`. In the block, compiled models run uncompiled.
    """
    counts: dict[str, Tensor] = {}
    hooks = []
    active = {name: each for name, each in quantizers(model).items() if each.enabled and each.ready}

    def watch(name: str, quantizer: FakeQuantize) -> None:
        def count(_: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            with torch.no_grad():
                found = _counts(inputs[0].detach().float(), quantizer, options.get("rows"))
                counts[name] = counts[name] + found if name in counts else found

        hooks.append(quantizer.register_forward_pre_hook(count, with_kwargs=True))

    for name, quantizer in active.items():
        watch(name, quantizer)
    values: dict[str, QuantizerValues] = {}
    try:
        with torch.compiler.set_stance("force_eager"):  # graphs that were compiled before would skip the hooks
            yield values
    finally:
        for hook in hooks:
            hook.remove()
    if not active:
        return
    device = next(iter(active.values())).minimum.device
    empty = torch.zeros(BINS + 1, dtype=torch.int64, device=device)
    sums = reduce_sum(torch.stack([counts.get(name, empty) for name in active])).tolist()
    for (name, quantizer), (clipped, *bins) in zip(active.items(), sums, strict=True):
        if not (total := sum(bins)):
            continue
        low, high = float(quantizer.minimum.min().clamp(max=0)), float(quantizer.maximum.max().clamp(min=0))
        values[name.removesuffix("_quantizer").replace("_quantizer", "")] = QuantizerValues(
            float(quantizer.minimum.min()),
            float(quantizer.maximum.max()),
            float(quantizer.scale.max()),
            clipped / total,
            bins,
            _edges(low, high).tolist(),
        )


def _edges(low: float, high: float) -> Tensor:
    width = max(high - low, torch.finfo(torch.float32).tiny)
    return torch.linspace(low - _MARGIN * width, high + _MARGIN * width, BINS + 1)


def _counts(x: Tensor, quantizer: FakeQuantize, rows: Tensor | None = None) -> Tensor:
    """Returns [clipped values, values per bin ...], (BINS + 1,) int64; `rows` as in `FakeQuantize.forward`."""
    scheme = quantizer.scheme
    lowest, highest = scheme.integers
    scale, zero_point = quantizer.scale, quantizer.zero_point
    if scheme.channel_axis is not None and rows is not None:
        scale, zero_point = scale[rows].unsqueeze(-1), zero_point[rows].unsqueeze(-1)
    elif scheme.channel_axis is not None:
        shape = [1] * x.ndim
        shape[scheme.channel_axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    integers = torch.round(x * (1.0 / scale)) + zero_point
    clipped = ((integers < lowest) | (integers > highest)).sum()
    low, high = float(quantizer.minimum.min().clamp(max=0)), float(quantizer.maximum.max().clamp(min=0))
    edges = _edges(low, high)
    bins = torch.histc(x.clamp(float(edges[0]), float(edges[-1])), BINS, float(edges[0]), float(edges[-1]))
    return torch.cat([clipped[None], bins.to(torch.int64)])
