"""Quantization as training sees it: pure functions, and the module that applies them to one tensor of a layer.

Integers q and reals x are related by x = scale * (q - zero_point). A fake-quantized tensor is float32 whose values lie
on that grid; its gradient passes straight through inside the range and is zero outside (Jacob et al. 2018, arXiv
1712.05877). Matched against the figures of SparseML 1.8.0 in `tests/golden/fake_quantize.json`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.nn.cpu_kernels import FakeQuantizeOnCpu

# The scale of a constant tensor would be 0: the smallest that float32 tells apart from 1 stands in.
_SMALLEST_SCALE = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class QuantizationScheme:
    """How one tensor is held in integers.

    Attributes:
        bits: width, 2 to 8.
        signed: int (-128..127 at 8 bits) or uint (0..255).
        symmetric: the zero point is the middle of the integers, so that zero stays exactly zero.
        channel_axis: None for one scale a tensor, else the axis with one scale each (0: an output row of a weight).
        reduce_range: leave one bit unused, for CPUs whose 8-bit dot product overflows 16 bits (before VNNI).
    """

    bits: int = 8
    signed: bool = False
    symmetric: bool = False
    channel_axis: int | None = None
    reduce_range: bool = False

    @property
    def integers(self) -> tuple[int, int]:
        """The smallest and largest integer, both included."""
        width = 2 ** (self.bits - int(self.reduce_range))
        return (-width // 2, width // 2 - 1) if self.signed else (0, width - 1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# --- pure functions ---------------------------------------------------------------------------------------------------


def extrema(x: Tensor, channel_axis: int | None) -> tuple[Tensor, Tensor]:
    """Returns minimum and maximum of `x`, each (1,), or (channels,) with a channel axis; float32."""
    if channel_axis is None:
        minimum, maximum = torch.aminmax(x)
        return minimum.float().reshape(1), maximum.float().reshape(1)
    minimum, maximum = torch.aminmax(x.movedim(channel_axis, 0).flatten(1), dim=1)
    return minimum.float(), maximum.float()


def moving_average(average: Tensor, value: Tensor, averaging_constant: float) -> Tensor:
    """Returns average + averaging_constant * (value - average): how a range follows what each step shows."""
    return average + averaging_constant * (value - average)


def quantization_parameters(minimum: Tensor, maximum: Tensor, scheme: QuantizationScheme) -> tuple[Tensor, Tensor]:
    """Returns (scale float32, zero point int32), of the shape of `minimum`, for a range that is stretched to hold 0."""
    lowest, highest = scheme.integers
    minimum, maximum = minimum.clamp(max=0.0), maximum.clamp(min=0.0)
    if scheme.symmetric:
        scale = torch.maximum(-minimum, maximum) / ((highest - lowest) / 2)
        scale = scale.clamp(min=_SMALLEST_SCALE)
        zero_point = torch.full_like(scale, 0 if scheme.signed else (lowest + highest + 1) // 2, dtype=torch.int32)
        return scale, zero_point
    scale = ((maximum - minimum) / float(highest - lowest)).clamp(min=_SMALLEST_SCALE)
    zero_point = (lowest - torch.round(minimum / scale)).clamp(lowest, highest).to(torch.int32)
    return scale, zero_point


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantizationScheme) -> Tensor:
    """Returns `x` rounded to the grid and clipped to the range, float32, with a straight-through gradient.

    Args:
        x: any shape, float; taken to float32 first, under autocast too.
        scale, zero_point: float32 and int32, (1,) or (channels,).
    """
    lowest, highest = scheme.integers
    if torch.compiler.is_compiling():
        return _fake_quantize_in_a_graph(x.float(), scale, zero_point, scheme)
    if scheme.channel_axis is None:
        if x.device.type == "cpu":
            return FakeQuantizeOnCpu.apply(x.float(), scale, zero_point, lowest, highest)
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point, lowest, highest)
    return torch.fake_quantize_per_channel_affine(x.float(), scale, zero_point, scheme.channel_axis, lowest, highest)


def _fake_quantize_in_a_graph(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantizationScheme) -> Tensor:
    """The same from ordinary operations, for torch.compile, which has no kernel of its own for PyTorch's (2.13)."""
    lowest, highest = scheme.integers
    if scheme.channel_axis is not None:
        shape = [1] * x.ndim
        shape[scheme.channel_axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    integers = torch.round(x.detach() * (1.0 / scale)) + zero_point
    value = (integers.clamp(lowest, highest) - zero_point) * scale
    through = torch.where((integers >= lowest) & (integers <= highest), x, 0.0)
    return value + (through - through.detach())  # adds 0, and the gradient


# --- the module -------------------------------------------------------------------------------------------------------


class FakeQuantize(nn.Module):
    """Fake-quantizes one tensor of a layer: its input, its weight or its output.

    It is put in place before training, off, and Python flags say what it does: `enabled` (rounds), `observing` (gathers
    minimum and maximum, in training mode only), `calibrating` (gathers and does not round yet) and `ready` (has a
    range). During an optimizer step it only gathers; `QuantizationModifier` folds what was gathered into the range
    once, at the step's end, for all quantizers and processes together. The training loop lets it calibrate on the first
    step's rows; in a loop that does not, the first forward of all starts from its own values.

    The buffers are not persistent: a weight file of a quantized model holds the keys of a plain one.
    """

    minimum: Tensor  # (channels or 1,) float32: the range in force
    maximum: Tensor
    scale: Tensor
    zero_point: Tensor
    seen_minimum: Tensor  # extremes of the step under way; +inf and -inf while it has shown nothing
    seen_maximum: Tensor

    def __init__(self, scheme: QuantizationScheme, channels: int = 1) -> None:
        super().__init__()
        self.scheme = scheme
        self.enabled = False
        self.observing = False
        self.calibrating = False
        self.ready = False
        for name, value in (("minimum", 0.0), ("maximum", 0.0), ("scale", 1.0)):
            self.register_buffer(name, torch.full((channels,), value), persistent=False)
        self.register_buffer("zero_point", torch.zeros(channels, dtype=torch.int32), persistent=False)
        self.register_buffer("seen_minimum", torch.full((channels,), torch.inf), persistent=False)
        self.register_buffer("seen_maximum", torch.full((channels,), -torch.inf), persistent=False)

    def forward(self, x: Tensor, whole: Tensor | None = None) -> Tensor:
        """Returns `x` on the grid, or as it is while the quantizer is off.

        Args:
            x: any shape, float; what comes back has its dtype, and is computed in float32.
            whole: what to observe where `x` is a part of it: an embedding's weight, of which a batch uses some rows.
        """
        if not self.enabled:
            return x
        if self.training and self.observing:
            self.observe((x if whole is None else whole).detach())
        if self.calibrating:
            return x
        if not self.ready:
            raise RuntimeError("a quantizer is on before it has seen a batch: it has no range to round to")
        return fake_quantize(x, self.scale, self.zero_point, self.scheme).to(x.dtype)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Widens what this step has shown; the first tensor of all also becomes the range."""
        minimum, maximum = extrema(x, self.scheme.channel_axis)
        torch.minimum(self.seen_minimum, minimum, out=self.seen_minimum)
        torch.maximum(self.seen_maximum, maximum, out=self.seen_maximum)
        if not (self.ready or self.calibrating):
            from sparse_accel.distributed.collectives import reduce_extrema

            self.set_range(*reduce_extrema(minimum, maximum))

    @torch.no_grad()
    def set_range(self, minimum: Tensor, maximum: Tensor) -> None:
        """Takes [minimum, maximum] as the range, and scale and zero point from it. Written in place: the tensors may
        be views into one that is shared by all quantizers."""
        self.minimum.copy_(minimum)
        self.maximum.copy_(maximum)
        scale, zero_point = quantization_parameters(self.minimum, self.maximum, self.scheme)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.ready = True

    def extra_repr(self) -> str:
        state = "off" if not self.enabled else "observing" if self.observing else "frozen"
        return f"{self.scheme.bits} bits, {'symmetric' if self.scheme.symmetric else 'affine'}, {state}"


class Observers:
    """The ranges of many quantizers in one place, so that a step's end costs one all-reduce and a few operations.

    The quantizers' buffers become views of the table's. Make it once they are on their device.

    Args:
        quantizers: any number, of any formats.
        averaging_constant: weight of a new step in the moving average.
    """

    def __init__(self, quantizers: list[FakeQuantize], averaging_constant: float = 0.01) -> None:
        self.averaging_constant = averaging_constant
        # Those of one format lie side by side: their parameters are computed together.
        self.quantizers = sorted(quantizers, key=lambda quantizer: str(quantizer.scheme))
        self.sizes = [quantizer.minimum.numel() for quantizer in self.quantizers]
        self._schemes: list[tuple[QuantizationScheme, slice]] = []
        start = 0
        for quantizer, size in zip(self.quantizers, self.sizes, strict=True):
            if self._schemes and self._schemes[-1][0] == quantizer.scheme:
                self._schemes[-1] = (quantizer.scheme, slice(self._schemes[-1][1].start, start + size))
            else:
                self._schemes.append((quantizer.scheme, slice(start, start + size)))
            start += size
        self.minimum = self._join("minimum")
        self.maximum = self._join("maximum")
        self.scale = self._join("scale")
        self.zero_point = self._join("zero_point")
        self.seen_minimum = self._join("seen_minimum")
        self.seen_maximum = self._join("seen_maximum")
        self.fresh = not any(quantizer.ready for quantizer in self.quantizers)

    def _join(self, name: str) -> Tensor:
        joined = torch.cat([getattr(quantizer, name) for quantizer in self.quantizers])
        for quantizer, part in zip(self.quantizers, joined.split(self.sizes), strict=True):
            setattr(quantizer, name, part)
        return joined

    @torch.no_grad()
    def update(self) -> None:
        """Moves every range towards what the step has shown, on all processes alike, and forgets the step.

        The first step's extremes are the range; a quantizer that saw nothing keeps its own.
        """
        from sparse_accel.distributed.collectives import reduce_extrema

        minimum, maximum = reduce_extrema(self.seen_minimum, self.seen_maximum)
        seen = minimum <= maximum
        constant = 1.0 if self.fresh else self.averaging_constant
        self.fresh = False
        self.minimum.copy_(torch.where(seen, moving_average(self.minimum, minimum, constant), self.minimum))
        self.maximum.copy_(torch.where(seen, moving_average(self.maximum, maximum, constant), self.maximum))
        self._update_parameters()
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Drops what the step under way has shown."""
        self.seen_minimum.fill_(torch.inf)
        self.seen_maximum.fill_(-torch.inf)

    @torch.no_grad()
    def calibrate(self) -> None:
        """Takes what calibration has shown as the ranges to begin with; the first step's own will replace them."""
        shown = (self.seen_minimum <= self.seen_maximum).split(self.sizes)
        self.update()
        for quantizer, seen in zip(self.quantizers, shown, strict=True):
            quantizer.ready = bool(seen.all())
        self.fresh = True

    def load(self, minimum: Tensor, maximum: Tensor, ready: list[bool]) -> None:
        """Takes ranges as another table of the same quantizers held them."""
        self.minimum.copy_(minimum)
        self.maximum.copy_(maximum)
        for quantizer, known in zip(self.quantizers, ready, strict=True):
            quantizer.ready = known
        self.fresh = not any(ready)
        self._update_parameters()

    def _update_parameters(self) -> None:
        for scheme, part in self._schemes:
            scale, zero_point = quantization_parameters(self.minimum[part], self.maximum[part], scheme)
            self.scale[part] = scale
            self.zero_point[part] = zero_point
