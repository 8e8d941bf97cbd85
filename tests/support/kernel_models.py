"""Models of one operator of the domain sparse_accel, run in onnxruntime with the library of kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from sparse_accel.runtime.library import load_library
from sparse_accel.runtime.loading import VARIABLE

Array = np.ndarray
DOMAIN = "sparse_accel"
LIBRARY = load_library()  # a checkout without it fails here: `make kernels`
ISAS = LIBRARY.instruction_sets


@contextmanager
def forced(isa: str) -> Iterator[None]:
    """Sessions that are made inside have the kernels of this instruction set."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = isa
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def one_operator(
    operator: str,
    inputs: Sequence[Any],
    kinds: Mapping[str, int] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """Returns a model of one operator.

    Args:
        inputs: a name is an input of the graph, an array an initializer; None is left out.
        kinds: element types of inputs of the graph; float without.
        attributes: those that are None are left out.
    """
    names: list[str] = []
    initializers: list[onnx.TensorProto] = []
    values: list[onnx.ValueInfoProto] = []
    for position, each in enumerate(inputs):
        if isinstance(each, str):
            kind = (kinds or {}).get(each, TensorProto.FLOAT)
            if each not in [value.name for value in values]:
                values.append(helper.make_tensor_value_info(each, kind, None))
            names.append(each)
        elif each is None:
            names.append("")
        else:
            names.append(f"constant_{position}")
            initializers.append(numpy_helper.from_array(each, names[-1]))
    given = {name: value for name, value in attributes.items() if value is not None}
    node = helper.make_node(operator, names, ["y"], domain=DOMAIN, **given)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", values, [y], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def session_of(model: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(LIBRARY.path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(isa: str, model: onnx.ModelProto, **inputs: Array) -> Array:
    with forced(isa):
        session = session_of(model)
    found: Array = session.run(None, inputs)[0]
    return found


def in_form(isa: str, form: str, *weights: Array) -> list[Array]:
    """Weights as they are, or packed: two of them as those of a FeedForward.

    What is too dense for an instruction set cannot be packed for it beforehand, but by the operator.
    """
    if form == "int8":
        return list(weights)
    made: list[Array] = []
    order = None
    for number, weight in enumerate(weights, 1):
        packed = LIBRARY.pack(isa, weight, input_order=order, ordered=number < len(weights))
        if packed is None:
            return list(weights)
        made.append(packed.data)
        order = packed.order
    return made


def quantization(name: str, scale: float, zero_point: int = 0, lowest: int = 0, highest: int = 255) -> dict[str, Any]:
    """The attributes of a quantized input."""
    numbers = {"scale": scale, "zero_point": zero_point, "lowest": lowest, "highest": highest}
    return {f"{name}_{each}": value for each, value in numbers.items()}


def sparse_weight(
    random: np.random.Generator,
    columns: int,
    rows: int,
    density: float,
    *,
    pattern: str = "any",
    extremes: bool = False,
) -> Array:
    """An int8 weight [columns, rows] = [K, N].

    Args:
        pattern: "any": nonzeros anywhere; "blocks": of 4 inputs; "one row": one dense output among empty ones.
        extremes: -128 and 127 alone.
    """
    if pattern == "blocks":
        kept = np.repeat(random.random((-(-columns // 4), rows)) < density, 4, axis=0)[:columns]
    elif pattern == "one row":
        kept = np.zeros((columns, rows), dtype=bool)
        kept[:, random.integers(rows)] = True
    else:
        kept = random.random((columns, rows)) < density
    values = random.choice([-128, 127], (columns, rows)) if extremes else random.integers(-128, 128, (columns, rows))
    return np.where(kept, values, 0).astype(np.int8)


def sums(isa: str, weight: Array, x: Array, zero_point: int = 0) -> Array:
    """(x - zero_point) W as int32; where W is too dense to be packed, as float32: y of a Linear whose scales are 1."""
    packed = LIBRARY.pack(isa, weight)
    if packed is not None:
        return LIBRARY.sums(isa, packed, x, weight.shape[1], zero_point)
    one, none = np.ones(1, np.float32), np.zeros(weight.shape[1], np.float32)
    model = one_operator("Linear", ["x", weight, one, none], **quantization("x", 1.0, zero_point))
    return run(isa, model, x=(x.astype(np.int32) - zero_point).astype(np.float32))


# --- what the operators must compute, in float64 ----------------------------------------------------------------------


def quantized(x: Array, name: str, numbers: dict[str, Any]) -> Array:
    """The integers of x, without their zero point."""
    scale, zero, lowest, highest = (numbers[f"{name}_{each}"] for each in ("scale", "zero_point", "lowest", "highest"))
    with np.errstate(all="ignore"):
        steps = x.astype(np.float32) / np.float32(scale)  # float32, as onnxruntime divides; 0.5 is then a tie
    steps = np.where(np.isnan(steps), -np.inf, steps)
    found: Array = np.clip(np.rint(steps.astype(np.float64)) + zero, lowest, highest).astype(np.int64) - zero
    return found


def linear(x: Array, weight: Array, scale: Array, bias: Array, name: str, numbers: dict[str, Any]) -> Array:
    """Without activation."""
    both = (np.float32(numbers[f"{name}_scale"]) * scale).astype(np.float64)
    found: Array = quantized(x, name, numbers) @ weight.astype(np.int64) * both + bias.astype(np.float64)
    return found


def layer_norm(y: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    away = y - y.mean(axis=-1, keepdims=True)
    found: Array = away / np.sqrt((away**2).mean(axis=-1, keepdims=True) + epsilon) * gamma + beta
    return found


def attention(
    q: Array, k: Array, v: Array, mask: Array | None, heads: int, size: int, offsets: Sequence[int], scale: float
) -> Array:
    """A row whose keys are all masked has the mean of v."""
    rows, tokens = q.shape[:2]

    def split(values: Array, offset: int) -> Array:
        """[B, S, *] -> [B, heads, S, size]."""
        cut = values[:, :, offset : offset + heads * size].astype(np.float64)
        return cut.reshape(rows, tokens, heads, size).transpose(0, 2, 1, 3)

    queries, keys, contents = (split(each, offset) for each, offset in zip((q, k, v), offsets, strict=True))
    scores = queries @ keys.swapaxes(2, 3) * scale
    if mask is not None:
        scores = (scores.astype(np.float32) + mask).astype(np.float64)  # the lowest float32 swallows the scores
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(np.where(np.isneginf(top), 0, scores - np.where(np.isneginf(top), 0, top)))
    mixed = weights / weights.sum(axis=-1, keepdims=True) @ contents
    return mixed.transpose(0, 2, 1, 3).reshape(rows, tokens, heads * size)
