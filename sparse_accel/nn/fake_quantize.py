"""Quantization in training: pure functions, and the module that applies them to one tensor of a layer.

Integers q and reals x are related by x = scale * (q - zero_point). A fake-quantized tensor is float32 with values on
that grid; its gradient passes straight through inside the range and is zero outside (Jacob et al. 2018, arXiv
1712.05877). Tests compare the results with SparseML 1.8.0 (`tests/golden/fake_quantize.json`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.nn.cpu_kernels import Grid, fake_quantize_on_cpu, kernel, masked_on_cpu

# The smallest scale, because a tensor of zeros would get scale 0: the epsilon of float32.
_SMALLEST_SCALE = torch.finfo(torch.float32).eps
# The weight of a new step in the moving average of a range.
AVERAGING_CONSTANT = 0.01


@dataclass(frozen=True)
class QuantizationScheme:
    """How one tensor is represented by integers.

    Attributes:
        bits: width, 2 to 8.
        signed: True: int (-128..127 at 8 bits); False: uint (0..255).
        symmetric: the zero point is the middle of the integers, so that 0 stays exactly 0.
        channel_axis: None: one scale per tensor; else the axis with one scale per index (0: per row of a weight).
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
        """Returns the attributes by name."""
        return asdict(self)


# --- pure functions ---------------------------------------------------------------------------------------------------


def extrema(x: Tensor, channel_axis: int | None) -> tuple[Tensor, Tensor]:
    """Returns (minimum, maximum) of `x`, each float32 of shape (1,), or (channels,) with a channel axis."""
    if channel_axis is None:
        minimum, maximum = torch.aminmax(x)
        return minimum.float().reshape(1), maximum.float().reshape(1)
    minimum, maximum = torch.aminmax(x.movedim(channel_axis, 0).flatten(1), dim=1)
    return minimum.float(), maximum.float()


def moving_average(average: Tensor, value: Tensor, averaging_constant: float | Tensor) -> Tensor:
    """Returns average + averaging_constant * (value - average): the update of a range after a step."""
    return average + averaging_constant * (value - average)


def quantization_parameters(minimum: Tensor, maximum: Tensor, scheme: QuantizationScheme) -> tuple[Tensor, Tensor]:
    """Returns the (scale, zero point) of a range, which is extended to contain 0.

    Args:
        minimum, maximum: float32, (1,) or (channels,).
        scheme: the integers to map the range to.

    Returns:
        scale float32 and zero point int32, both of the shape of `minimum`.
    """
    lowest, highest = scheme.integers
    minimum, maximum = minimum.clamp(max=0.0), maximum.clamp(min=0.0)
    if scheme.symmetric:
        scale = _quotient(torch.maximum(-minimum, maximum), (highest - lowest) / 2).clamp(min=_SMALLEST_SCALE)
        zero_point = torch.full_like(scale, 0 if scheme.signed else (lowest + highest + 1) // 2, dtype=torch.int32)
        return scale, zero_point
    scale = _quotient(maximum - minimum, highest - lowest).clamp(min=_SMALLEST_SCALE)
    zero_point = (lowest - torch.round(minimum / scale)).clamp(lowest, highest).to(torch.int32)
    return scale, zero_point


def _quotient(x: Tensor, number: float) -> Tensor:
    """Returns `x` / `number`, the same bits on all devices: by a plain number, a GPU multiplies with its reciprocal."""
    return x / torch.full_like(x, number)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantizationScheme) -> Tensor:
    """Returns `x` rounded to the grid and clipped to the range, float32, with a straight-through gradient.

    Args:
        x: any shape, float; converted to float32 first, also under autocast.
        scale, zero_point: float32 and int32, (1,) or (channels,).
        scheme: the integers that `scale` and `zero_point` belong to.
    """
    lowest, highest = scheme.integers
    if torch.compiler.is_compiling():
        return _fake_quantize_in_a_graph(x.float(), scale, zero_point, scheme)
    if scheme.channel_axis is None:
        if x.device.type == "cpu":
            return fake_quantize_on_cpu(x, _grid(scale, zero_point, scheme))
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point, lowest, highest)
    return torch.fake_quantize_per_channel_affine(x.float(), scale, zero_point, scheme.channel_axis, lowest, highest)


def _grid(scale: Tensor, zero_point: Tensor, scheme: QuantizationScheme) -> Grid:
    return Grid(scale.item(), int(zero_point.item()), *scheme.integers)


def _fake_quantize_in_a_graph(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantizationScheme) -> Tensor:
    """Does the same with ordinary operations, because torch.compile (2.13) has no kernel for PyTorch's functions."""
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

    It is added before training, switched off. Python flags control it: `enabled` (rounds), `observing` (collects
    minimum and maximum, in training mode only), `calibrating` (collects, does not round yet), `ready` (has a range).
    During an optimizer step it only collects; at the end of the step `QuantizationModifier` updates the range once, for
    all quantizers and processes together. The training loop calibrates it on the rows of the first step; in a loop that
    does not, the very first forward sets the range from its own values.

    The buffers are not persistent: a weight file of a quantized model has the same keys as that of a plain model.

    Args:
        scheme: how the tensor is represented by integers.
        channels: number of scales, 1 for one per tensor.
        averaging_constant: weight of a new step in the moving average of the range.
    """

    minimum: Tensor  # (channels or 1,) float32: the current range
    maximum: Tensor
    scale: Tensor
    zero_point: Tensor
    seen_minimum: Tensor  # extremes of the current step; +inf and -inf before its first forward
    seen_maximum: Tensor

    def __init__(
        self, scheme: QuantizationScheme, channels: int = 1, averaging_constant: float = AVERAGING_CONSTANT
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.averaging_constant = averaging_constant
        self.enabled = False
        self.observing = False
        self.calibrating = False
        self.ready = False
        for name, value in (("minimum", 0.0), ("maximum", 0.0), ("scale", 1.0)):
            self.register_buffer(name, torch.full((channels,), value), persistent=False)
        self.register_buffer("zero_point", torch.zeros(channels, dtype=torch.int32), persistent=False)
        self.register_buffer("seen_minimum", torch.full((channels,), torch.inf), persistent=False)
        self.register_buffer("seen_maximum", torch.full((channels,), -torch.inf), persistent=False)

    def in_one_pass(self, x: Tensor) -> bool:
        """Returns whether the next forward masks, observes and rounds `x` in one pass over the memory."""
        if torch.compiler.is_compiling() or x.device.type != "cpu" or self.scheme.channel_axis is not None:
            return False
        return self.enabled and not self.calibrating and kernel() is not None

    def forward(
        self,
        x: Tensor,
        whole: Tensor | None = None,
        rows: Tensor | None = None,
        bits: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Returns `x` rounded to the grid, or unchanged while the quantizer is off.

        Args:
            x: any shape, float; the result has its dtype, and is computed in float32.
            whole: the tensor to observe if `x` is only a part of it: the weight of an embedding, of which a batch uses
                some rows.
            rows: int64, of the shape of `x` without its last axis: which rows of `whole` these are.
            bits: the mask of `x`, see `mask_bits`; only if it is computed `in_one_pass`.
            dtype: of the result instead of that of `x`, if it is computed `in_one_pass`.

        Raises:
            RuntimeError: it is on and has no range.
        """
        if not self.enabled:
            return x
        observed = (x if whole is None else whole) if self.training and self.observing else None
        if self.in_one_pass(x):
            # The very first forward observes before it rounds. It is the same operation, because activations may be
            # recomputed in the backward, when there is a range.
            seen = (self.seen_minimum, self.seen_maximum) if observed is x and self.ready else None
            if observed is not None and seen is None:
                self.observe(observed.detach() if bits is None else masked_on_cpu(observed.detach(), bits))
            self._check_ready()
            grid = _grid(self.scale, self.zero_point, self.scheme)
            return fake_quantize_on_cpu(x, grid, bits, seen, dtype or x.dtype)
        if observed is not None:
            self.observe(observed.detach())
        if self.calibrating:
            return x
        self._check_ready()
        if rows is None or self.scheme.channel_axis is None:
            return fake_quantize(x, self.scale, self.zero_point, self.scheme).to(x.dtype)
        each = rows.flatten()
        flat = fake_quantize(x.reshape(-1, x.shape[-1]), self.scale[each], self.zero_point[each], self.scheme)
        return flat.reshape(x.shape).to(x.dtype)

    def _check_ready(self) -> None:
        if not self.ready:
            raise RuntimeError("a quantizer is on but has no range: run a batch in training mode first")

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Updates the extremes of the current step; the very first tensor also sets the range."""
        minimum, maximum = extrema(x, self.scheme.channel_axis)
        torch.minimum(self.seen_minimum, minimum, out=self.seen_minimum)
        torch.maximum(self.seen_maximum, maximum, out=self.seen_maximum)
        if not (self.ready or self.calibrating):
            from sparse_accel.distributed.collectives import reduce_extrema

            self.set_range(*reduce_extrema(minimum, maximum))

    @torch.no_grad()
    def set_range(self, minimum: Tensor, maximum: Tensor) -> None:
        """Sets the range to [minimum, maximum], and scale and zero point accordingly.

        Writes in place, because the buffers may be views of tensors that all quantizers share.

        Args:
            minimum, maximum: float32, (1,) or (channels,).
        """
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
    """The ranges of many quantizers in one place, so that the end of a step costs one all-reduce and few operations.

    The buffers of the quantizers become views of the tensors here. Create it when they are on their final device.

    Args:
        quantizers: any number, with any schemes.
    """

    def __init__(self, quantizers: list[FakeQuantize]) -> None:
        # Quantizers of one scheme are next to each other, because their parameters are computed together.
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
        each = torch.tensor([quantizer.averaging_constant for quantizer in self.quantizers])
        self._constants = each.repeat_interleave(torch.tensor(self.sizes)).to(self.minimum.device)
        self.fresh = not any(quantizer.ready for quantizer in self.quantizers)

    def _join(self, name: str) -> Tensor:
        joined = torch.cat([getattr(quantizer, name) for quantizer in self.quantizers])
        for quantizer, part in zip(self.quantizers, joined.split(self.sizes), strict=True):
            setattr(quantizer, name, part)
        return joined

    @torch.no_grad()
    def update(self) -> None:
        """Moves every range towards the extremes of the step, equally on all processes, and resets the extremes.

        After the first step the range is its extremes. A quantizer that observed nothing keeps its range.
        """
        from sparse_accel.distributed.collectives import reduce_extrema

        minimum, maximum = reduce_extrema(self.seen_minimum, self.seen_maximum)
        seen = minimum <= maximum
        constant = 1.0 if self.fresh else self._constants
        self.fresh = False
        self.minimum.copy_(torch.where(seen, moving_average(self.minimum, minimum, constant), self.minimum))
        self.maximum.copy_(torch.where(seen, moving_average(self.maximum, maximum, constant), self.maximum))
        self._update_parameters()
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Drops the extremes of the current step."""
        self.seen_minimum.fill_(torch.inf)
        self.seen_maximum.fill_(-torch.inf)

    @torch.no_grad()
    def calibrate(self) -> None:
        """Sets the initial ranges from the calibration. The extremes of the first step will replace them."""
        shown = (self.seen_minimum <= self.seen_maximum).split(self.sizes)
        self.update()
        for quantizer, seen in zip(self.quantizers, shown, strict=True):
            quantizer.ready = bool(seen.all())
        self.fresh = True

    def load(self, minimum: Tensor, maximum: Tensor, ready: list[bool]) -> None:
        """Restores the ranges of another `Observers` with the same quantizers.

        Args:
            minimum, maximum: float32, the ranges of all quantizers, concatenated in the order of `quantizers`.
            ready: per quantizer, whether it has a range.
        """
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
