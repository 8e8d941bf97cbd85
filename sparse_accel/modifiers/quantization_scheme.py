"""The scheme that a recipe gives for quantization: a preset or a mapping -> how each tensor of a layer is represented.

    scheme: tensorrt
    scheme: {input_activations: {num_bits: 8}, weights: {num_bits: 8, symmetric: true, strategy: channel}}

This is the language of SparseML's recipes (`QuantizationScheme`, `QuantizationArgs`). All integers are signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparse_accel.errors import nearest, shown
from sparse_accel.modifiers.base import FieldError

if TYPE_CHECKING:
    from sparse_accel.nn.fake_quantize import QuantizationScheme


@dataclass(frozen=True)
class TensorScheme:
    """How one tensor of a layer is represented by integers, and how its range moves.

    Attributes:
        bits: width, 2 to 8.
        signed: True: int (-128..127 at 8 bits); False: uint (0..255).
        symmetric: the zero point is the middle of the integers.
        per_channel: one scale per row of a weight; False: one in all.
        reduce_range: leave one bit unused.
        averaging_constant: weight of a new step in the moving average of the range.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = False
    per_channel: bool = False
    reduce_range: bool = False
    averaging_constant: float = 0.01

    def to_quantization_scheme(self) -> QuantizationScheme:
        """Returns the integers of it, as a quantizer takes them."""
        from sparse_accel.nn.fake_quantize import QuantizationScheme

        axis = 0 if self.per_channel else None
        return QuantizationScheme(self.bits, self.signed, self.symmetric, axis, self.reduce_range)


@dataclass(frozen=True)
class LayerScheme:
    """How input, weight and output of a layer are quantized; None: they stay in float."""

    input: TensorScheme | None = None
    weight: TensorScheme | None = None
    output: TensorScheme | None = None


_AFFINE, _SYMMETRIC = TensorScheme(), TensorScheme(symmetric=True)
PRESETS: dict[str, LayerScheme] = {
    "default": LayerScheme(input=_AFFINE, weight=_SYMMETRIC),
    "deepsparse": LayerScheme(input=_AFFINE, weight=_SYMMETRIC),
    "tensorrt": LayerScheme(input=_SYMMETRIC, weight=_SYMMETRIC),
}
# The keys of a mapping, and the parts of a layer that they are about.
_PARTS = {"input_activations": "input", "weights": "weight", "output_activations": "output"}
_TARGETS = ("deepsparse", "tensorrt", None)
_TENSOR_KEYS = ("num_bits", "symmetric", "strategy", "kwargs")
_KWARGS = ("averaging_constant", "reduce_range")


def parse_scheme(key: str, written: Any, where: str = "") -> LayerScheme:
    """Returns the scheme that a recipe gives. A part that its mapping leaves out is that of the preset `default`; null
    turns it off.

    Args:
        key: of the modifier, for errors: scheme or scheme_overrides.
        written: a preset's name, or a mapping.
        where: what the scheme is for, as the beginning of an error: `Embedding: `; empty: all layers.

    Raises:
        FieldError: there is no such preset, key or value, or it is one that is not supported.
    """
    known = ", ".join(PRESETS)
    if isinstance(written, str):
        if written not in PRESETS:
            raise FieldError(
                key, f"{where}there is no preset '{written}'.{nearest(written, PRESETS)} There are {known}"
            )
        return PRESETS[written]
    if not isinstance(written, Mapping):
        raise FieldError(
            key,
            f"{where}expected a preset ({known}) or a mapping with {', '.join(_PARTS)}, got {shown(written)}. To leave "
            "layers in float, list them under ignore",
        )
    parts = {part: getattr(PRESETS["default"], part) for part in _PARTS.values()}
    for name, value in written.items():
        if name == "target_hardware":  # SparseML writes it into the recipe of a finished run
            if value not in (*_TARGETS, "null"):
                raise FieldError(key, f"{where}target_hardware: expected deepsparse, tensorrt or null, got {value!r}")
        elif name not in _PARTS:
            raise _unknown(key, f"{where}a scheme", name, [*_PARTS, "target_hardware"])
        elif value is None or value == "null":
            parts[_PARTS[name]] = None
        else:
            parts[_PARTS[name]] = _tensor(key, f"{where}{name}: ", value, is_weight=name == "weights")
    return LayerScheme(**parts)


def parse_weight_options(key: str, options: Mapping[str, Any], bits: int) -> TensorScheme:
    """Returns how the weights of the form without a scheme are quantized.

    Args:
        key: of the modifier, for errors.
        options: qscheme (per_tensor_symmetric, per_channel_symmetric), averaging_constant, reduce_range.
        bits: width.

    Raises:
        FieldError: an option is not one of these, or has another value.
    """
    names = {f"{prefix}per_{each}_symmetric": each for each in ("tensor", "channel") for prefix in ("", "torch.")}
    strategy = "tensor"
    for name, value in options.items():
        if name not in ("qscheme", *_KWARGS):
            raise _unknown(key, "a weight's quantizer", name, ["qscheme", *_KWARGS])
        if name == "qscheme":
            if not isinstance(value, str) or value not in names:
                message = "expected per_tensor_symmetric or per_channel_symmetric, because weights are int8 symmetric"
                raise FieldError(key, f"qscheme: {message}; got {shown(value)}")
            strategy = names[value]
    kwargs = {name: value for name, value in options.items() if name in _KWARGS}
    written = {"num_bits": bits, "symmetric": True, "strategy": strategy, "kwargs": kwargs}
    return _tensor(key, "", written, is_weight=True)


def _tensor(key: str, where: str, written: Any, *, is_weight: bool) -> TensorScheme:
    if not isinstance(written, Mapping):
        raise FieldError(
            key, f"{where}expected a mapping with {', '.join(_TENSOR_KEYS)}, or null; got {shown(written)}"
        )
    for name in written:
        if name not in _TENSOR_KEYS:
            raise _unknown(key, where.rstrip(": "), name, _TENSOR_KEYS)
    bits = _number(key, f"{where}num_bits", written.get("num_bits", 8))
    if bits not in range(2, 9):
        raise FieldError(key, f"{where}num_bits: expected 2 to 8, got {shown(written['num_bits'])}")
    strategy = written.get("strategy", "tensor")
    if strategy not in ("tensor", "channel"):
        hint = nearest(str(strategy), ("tensor", "channel"))
        raise FieldError(key, f"{where}strategy: expected tensor or channel, got {shown(strategy)}.{hint}")
    symmetric = _flag(key, f"{where}symmetric", written.get("symmetric", False))
    if is_weight and not symmetric:
        raise FieldError(
            key,
            f"{where}symmetric: false, the default of a mapping, is not supported for weights: a pruned weight must be "
            "the integer 0. Write symmetric: true",
        )
    if strategy == "channel" and not is_weight:
        raise FieldError(
            key,
            f"{where}strategy: channel is for weights: activations would have one scale for each row of a batch. Use "
            "tensor",
        )
    options = written.get("kwargs") or {}
    if not isinstance(options, Mapping):
        raise FieldError(key, f"{where}kwargs: expected a mapping with {', '.join(_KWARGS)}, got {shown(options)}")
    for name in options:
        if name not in _KWARGS:
            raise _unknown(key, f"{where}kwargs", name, _KWARGS)
    constant = _number(key, f"{where}averaging_constant", options.get("averaging_constant", 0.01))
    if not 0 < constant <= 1:
        raise FieldError(key, f"{where}averaging_constant: expected a number above 0, at most 1; got {constant:g}")
    reduce_range = _flag(key, f"{where}reduce_range", options.get("reduce_range", False))
    if reduce_range and bits == 2:
        raise FieldError(key, f"{where}reduce_range: of 2 bits, none may be left unused")
    return TensorScheme(int(bits), True, symmetric, strategy == "channel", reduce_range, constant)


def _flag(key: str, where: str, value: Any) -> bool:
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise FieldError(key, f"{where}: expected true or false, got {shown(value)}")


def _number(key: str, where: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise FieldError(key, f"{where}: expected a number, got {shown(value)}")


def _unknown(key: str, what: str, name: Any, known: list[str] | tuple[str, ...]) -> FieldError:
    hint = nearest(str(name), known)
    return FieldError(key, f"{what} has no key '{name}'.{hint} Its keys: {', '.join(known)}")
