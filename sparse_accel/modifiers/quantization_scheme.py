"""The scheme that a recipe gives for quantization: a preset or a mapping -> how each tensor of a layer is represented.

    scheme: tensorrt
    scheme: {input_activations: {num_bits: 8}, weights: {num_bits: 8, symmetric: true, strategy: channel}}

This is the language of SparseML's recipes (`QuantizationScheme`, `QuantizationArgs`). All integers are signed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
# The keys that lead to an entry of a key's value, from the outside.
Entry = tuple[str, ...]


def parse_scheme(key: str, written: Any, entry: Entry = ()) -> LayerScheme:
    """Returns the scheme that a recipe gives. A part that its mapping leaves out is that of the preset `default`; null
    turns it off.

    Args:
        key: of the modifier, for errors: scheme or scheme_overrides.
        written: a preset's name, or a mapping.
        entry: which entry of the key's value it is, for errors: the layers of scheme_overrides; empty: the value.

    Raises:
        FieldError: there is no such preset, key or value, or it is one that is not supported; it names the entry.
    """
    known = ", ".join(PRESETS)
    if isinstance(written, str):
        if written not in PRESETS:
            message = f"there is no preset '{written}'.{nearest(written, PRESETS)} There are {known}"
            raise _error(key, entry, message)
        return PRESETS[written]
    if not isinstance(written, Mapping):
        message = (
            f"expected a preset ({known}) or a mapping with {', '.join(_PARTS)}, got {shown(written)}. To leave layers "
            "in float, list them under ignore"
        )
        raise _error(key, entry, message)
    parts = {part: getattr(PRESETS["default"], part) for part in _PARTS.values()}
    for name, value in written.items():
        if name == "target_hardware":  # SparseML writes it into the recipe of a finished run
            if value not in (*_TARGETS, "null"):
                message = f"expected deepsparse, tensorrt or null, got {shown(value)}"
                raise _error(key, (*entry, name), message)
        elif name not in _PARTS:
            raise _unknown(key, entry, name, [*_PARTS, "target_hardware"], "a scheme")
        elif value is None or value == "null":
            parts[_PARTS[name]] = None
        else:
            parts[_PARTS[name]] = _tensor(key, (*entry, name), value, is_weight=name == "weights")
    return LayerScheme(**parts)


def parse_weight_options(key: str, options: Mapping[str, Any], bits: int) -> TensorScheme:
    """Returns how the weights of the form without a scheme are quantized.

    Args:
        key: of the modifier, for errors.
        options: qscheme (per_tensor_symmetric, per_channel_symmetric), averaging_constant, reduce_range.
        bits: width, 2 to 8.

    Raises:
        FieldError: an option is not one of these, or has another value; it names the option.
    """
    names = {f"{prefix}per_{each}_symmetric": each for each in ("tensor", "channel") for prefix in ("", "torch.")}
    strategy = "tensor"
    for name, value in options.items():
        if name not in ("qscheme", *_KWARGS):
            raise _unknown(key, (), name, ["qscheme", *_KWARGS], "a weight's quantizer")
        if name == "qscheme":
            if not isinstance(value, str) or value not in names:
                message = "expected per_tensor_symmetric or per_channel_symmetric, because weights are int8 symmetric"
                raise _error(key, (name,), f"{message}; got {shown(value)}")
            strategy = names[value]
    return TensorScheme(bits, True, True, strategy == "channel", *_options(key, (), options, bits))


def _tensor(key: str, entry: Entry, written: Any, *, is_weight: bool) -> TensorScheme:
    if not isinstance(written, Mapping):
        message = f"expected a mapping with {', '.join(_TENSOR_KEYS)}, or null; got {shown(written)}"
        raise _error(key, entry, message)
    for name in written:
        if name not in _TENSOR_KEYS:
            raise _unknown(key, entry, name, _TENSOR_KEYS)
    bits = _number(key, (*entry, "num_bits"), written.get("num_bits", 8))
    if bits not in range(2, 9):
        raise _error(key, (*entry, "num_bits"), f"expected 2 to 8, got {shown(written['num_bits'])}")
    strategy = written.get("strategy", "tensor")
    if strategy not in ("tensor", "channel"):
        hint = nearest(str(strategy), ("tensor", "channel"))
        raise _error(key, (*entry, "strategy"), f"expected tensor or channel, got {shown(strategy)}.{hint}")
    symmetric = _flag(key, (*entry, "symmetric"), written.get("symmetric", False))
    if is_weight and not symmetric:
        message = (
            "false, the default of a mapping, is not supported for weights: a pruned weight must be the integer 0. "
            "Write symmetric: true"
        )
        raise _error(key, (*entry, "symmetric"), message)
    if strategy == "channel" and not is_weight:
        message = "channel is for weights: activations would have one scale for each row of a batch. Use tensor"
        raise _error(key, (*entry, "strategy"), message)
    options = written.get("kwargs") or {}
    if not isinstance(options, Mapping):
        message = f"expected a mapping with {', '.join(_KWARGS)}, got {shown(options)}"
        raise _error(key, (*entry, "kwargs"), message)
    for name in options:
        if name not in _KWARGS:
            raise _unknown(key, (*entry, "kwargs"), name, _KWARGS)
    reduce_range, constant = _options(key, (*entry, "kwargs"), options, int(bits))
    return TensorScheme(int(bits), True, symmetric, strategy == "channel", reduce_range, constant)


def _options(key: str, entry: Entry, options: Mapping[str, Any], bits: int) -> tuple[bool, float]:
    """Returns reduce_range and averaging_constant."""
    constant = _number(key, (*entry, "averaging_constant"), options.get("averaging_constant", 0.01))
    if not 0 < constant <= 1:
        message = f"expected a number above 0, at most 1; got {constant:g}"
        raise _error(key, (*entry, "averaging_constant"), message)
    reduce_range = _flag(key, (*entry, "reduce_range"), options.get("reduce_range", False))
    if reduce_range and bits == 2:
        raise _error(key, (*entry, "reduce_range"), "of 2 bits, none may be left unused")
    return reduce_range, constant


def _flag(key: str, entry: Entry, value: Any) -> bool:
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise _error(key, entry, f"expected true or false, got {shown(value)}")


def _number(key: str, entry: Entry, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise _error(key, entry, f"expected a number, got {shown(value)}")


def _unknown(key: str, entry: Entry, name: Any, known: Sequence[str], what: str = "") -> FieldError:
    """The error for a key that a mapping does not have; `what` it is, if not the last name of `entry` says it."""
    within = entry if what else entry[:-1]
    message = f"{what or entry[-1]} has no key '{name}'.{nearest(str(name), known)} Its keys: {', '.join(known)}"
    return FieldError(key, ": ".join([*within, message]), entry=(*entry, name))


def _error(key: str, entry: Entry, message: str) -> FieldError:
    return FieldError(key, ": ".join([*entry, message]), entry=entry)
