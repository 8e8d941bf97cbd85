"""Where a graph has quantized Linears, and residual + LayerNorm. See also gelu.py and attention.py.

    Linear      QuantizeLinear(x) -> DequantizeLinear -> MatMul(_, DequantizeLinear(int8 weight)) -> Add(_, bias)
    AddNorm     LayerNormalization(a + b)

What a pattern computes on its way must be read by nothing else, or both would be computed. Values in front of a product
are the exception: Linears may share a quantized input or weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx

from sparse_accel.runtime.graph import Graph, Node

# Beyond it, a sum of products of 8-bit integers may not fit into 32 bits.
LARGEST_DEPTH = 65536
# What int8 integers and their zero point are moved up by, for kernels that read uint8: their differences stay the same.
_SHIFT = 128
# So that neither 1 / scale nor 255 * scale is infinite.
SMALLEST_SCALE, LARGEST_SCALE = 1e-30, 1e30
LARGEST_WIDTH = 1 << 20


@dataclass(frozen=True)
class Kept:
    """A product with a constant matrix that stays as it is.

    Attributes:
        layer: the layer's name, as far as the file has it.
        reason: why, as the end of a sentence that begins with its name.
    """

    layer: str
    reason: str


@dataclass(frozen=True)
class QuantizedInput:
    """A float value x, and the uint8 integers that stand for it: round(x / scale) + zero_point, in lowest..highest.

    Where a file has int8 integers, these are 128 more, and so is the zero point.
    """

    x: str
    scale: float
    zero_point: int
    lowest: int = 0
    highest: int = 255


@dataclass(frozen=True, eq=False)
class Linear:
    """x W + b over the last axis of x, of integers.

    Attributes:
        weight: name of an int8 initializer [K, N], whose zero point is 0.
        scale: name of its constant scale, of one number or N.
        bias: name of a constant [N]; empty if there is none.
        shape: (K, N).
        output: the value that has the result.
        last: the node that computes it.
    """

    layer: str
    input: QuantizedInput
    weight: str
    scale: str
    bias: str
    shape: tuple[int, int]
    output: str
    last: Node


@dataclass(frozen=True, eq=False)
class AddNorm:
    """LayerNorm over the last axis of the sum of two values.

    Attributes:
        terms: the two values.
        gamma, beta: names of constants [N]; beta is empty if there is none.
        last: the node that computes the result.
    """

    terms: tuple[str, str]
    gamma: str
    beta: str
    epsilon: float
    last: Node


class NotThis(Exception):
    """Part of a graph is not what a pattern needs; the message says why, as the end of a sentence."""


# --- Linears ----------------------------------------------------------------------------------------------------------


def find_linears(graph: Graph) -> tuple[list[Linear], list[Kept]]:
    """Returns the Linears that can be replaced, in the order of their products, and the others with reasons.

    A product of two computed matrices, as in attention, is neither.
    """
    found, kept = [], []
    for node in graph.nodes:
        product = node.kind in ("MatMul", "MatMulInteger", "Gemm") and node.output
        weight = _weight_of(graph, node.input(1)) if product else None
        if weight is None:
            continue
        try:
            found.append(_linear(graph, node, weight))
        except NotThis as reason:
            kept.append(Kept(layer_name(weight), str(reason)))
    return found, list(dict.fromkeys(kept))  # a layer that is used several times is named once


def layer_name(weight: str) -> str:
    """The name of the layer whose weight an initializer is."""
    return weight.removesuffix("_quantized").removesuffix(".weight")


def _weight_of(graph: Graph, name: str) -> str | None:
    """The name of the constant that a value is, or is dequantized from; None if it is computed from inputs."""
    node = graph.producer(name, "DequantizeLinear", "Transpose", "Cast", "Identity")
    while node:
        name = node.input(0)
        node = graph.producer(name, "DequantizeLinear", "Transpose", "Cast", "Identity")
    return name if graph.initializer(name) is not None or graph.producer(name, "Constant") else None


def _linear(graph: Graph, product: Node, weight: str) -> Linear:
    if product.kind != "MatMul":
        raise NotThis(f"is written as {product.kind}; only QuantizeLinear, DequantizeLinear, MatMul are replaced")
    scale, shape = _quantized_weight(graph, graph.producer(product.input(1), "DequantizeLinear"))
    quantized = quantized_input(graph, graph.producer(product.input(0), "DequantizeLinear"))
    axes = graph.shape(quantized.x)
    if not graph.is_float(quantized.x) or axes is None or not axes:
        raise NotThis("has an input of unknown shape, or one that is not float32")
    if isinstance(axes[-1], int) and axes[-1] != shape[0]:
        raise NotThis(f"multiplies {axes[-1]} columns with a weight of {shape[0]} rows")
    last = product
    squeeze = graph.only_reader(product.output, "Squeeze")
    unsqueeze = graph.producer(quantized.x, "Unsqueeze")
    if squeeze and unsqueeze and _adds_first_axis(graph, unsqueeze) and _adds_first_axis(graph, squeeze):
        # The exporter makes a stack of one matrix out of a matrix, for onnxruntime's sake.
        last = squeeze
        quantized = replace(quantized, x=unsqueeze.input(0))
        axes = axes[1:]
    if len(axes) < 2:
        raise NotThis("has an input of one axis")
    bias = ""
    add = graph.only_reader(last.output, "Add")
    if add and is_vector(graph, add.other_input(last.output), shape[1]):
        bias, last = add.other_input(last.output), add
    return Linear(layer_name(weight), quantized, weight, scale, bias, shape, last.output, last)


def _quantized_weight(graph: Graph, node: Node | None) -> tuple[str, tuple[int, int]]:
    """Returns the scale's name and the shape of an int8 weight; NotThis if it is anything else."""
    if node is None:
        raise NotThis("has a weight that is not quantized")
    tensor = graph.initializer(node.input(0))
    if tensor is None:
        raise NotThis("has a weight that is no initializer, or is transposed or computed before it is dequantized")
    if tensor.data_type != onnx.TensorProto.INT8:
        names = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
        raise NotThis(f"has a weight of type {names.get(tensor.data_type, tensor.data_type)}, not int8")
    if len(tensor.dims) != 2 or min(tensor.dims) < 1:
        raise NotThis(f"has a weight of shape {list(tensor.dims)}, not a matrix")
    rows, columns = tensor.dims
    if rows > LARGEST_DEPTH:
        raise NotThis(f"adds {rows} products, more than {LARGEST_DEPTH}")
    if columns > LARGEST_WIDTH:
        raise NotThis(f"has {columns} outputs, more than {LARGEST_WIDTH}")
    scales = scales_of(graph, node)
    if scales.size != 1 and (scales.shape != (columns,) or node.attribute("axis", 1) not in (1, -1)):
        raise NotThis("has a weight with scales that are not one per column")
    if node.input(2):
        zeros = graph.constant(node.input(2))
        if zeros is None or zeros.dtype != np.int8 or zeros.any():
            raise NotThis("has a weight whose zero point is not 0")
    return node.input(1), (rows, columns)


def quantized_input(graph: Graph, node: Node | None) -> QuantizedInput:
    """Returns what a DequantizeLinear gives back; NotThis unless it is an activation of 8 bits with one scale."""
    quantize = graph.producer(node.input(0), "QuantizeLinear") if node else None
    if node is None or quantize is None:
        raise NotThis("has an input that is not quantized")
    scale, zero_point, kind = _range(graph, node)
    if (scale, zero_point, kind) != _range(graph, quantize):
        raise NotThis("has an input that is quantized and dequantized with different numbers")
    if quantize.attribute("output_dtype", 0) not in (0, kind):
        raise NotThis("has an input that is not quantized to uint8 or int8")
    clip = graph.producer(quantize.input(0), "Clip")
    bounds = _integer_bounds(graph, clip, scale, zero_point) if clip else None
    if clip and bounds:
        return QuantizedInput(clip.input(0), scale, zero_point, *bounds)
    return QuantizedInput(quantize.input(0), scale, zero_point)


def _integer_bounds(graph: Graph, clip: Node, scale: float, zero_point: int) -> tuple[int, int] | None:
    """Returns the integers that the bounds of a Clip are quantized to; None if they are no constants in order.

    Rounding keeps the order of numbers, so that a clipped value is quantized to a clipped integer.
    """
    found = []
    for name, missing in ((clip.input(1), -math.inf), (clip.input(2), math.inf)):
        bound = graph.scalar(name) if name else missing
        if bound is None or math.isnan(bound) or graph.opset < 11:  # attributes, before
            return None
        with np.errstate(over="ignore"):
            quotient = np.float32(bound) / np.float32(scale)
        found.append(int(np.clip(np.rint(quotient) + zero_point, 0, 255)))
    return (found[0], found[1]) if found[0] < found[1] else None


def _range(graph: Graph, node: Node) -> tuple[float, int, int]:
    """Scale, zero point and type of a node that quantizes or dequantizes an activation; the zero point of int8 is moved
    up to that of uint8."""
    scales = scales_of(graph, node)
    if scales.size != 1:
        raise NotThis("has an input with more than one scale")
    scale = float(scales.reshape(()))
    if not node.input(2):
        return scale, 0, onnx.TensorProto.UINT8  # the default
    zero = graph.constant(node.input(2))
    if zero is None or zero.size != 1 or zero.dtype not in (np.uint8, np.int8):
        raise NotThis("has an input that is not quantized to uint8 or int8")
    if zero.dtype == np.int8:
        return scale, int(zero.reshape(())) + _SHIFT, onnx.TensorProto.INT8
    return scale, int(zero.reshape(())), onnx.TensorProto.UINT8


def scales_of(graph: Graph, node: Node) -> np.ndarray:
    """The scale of QuantizeLinear or DequantizeLinear: float32, without axes or with one."""
    scales = graph.constant(node.input(1))
    if scales is None or scales.dtype != np.float32 or scales.ndim > 1:
        raise NotThis("has a scale that is not a constant number or vector of float32")
    if not (scales.size and (scales > SMALLEST_SCALE).all() and (scales < LARGEST_SCALE).all()):
        raise NotThis("has a scale that is not a positive number of a usual size")
    numbers = [node.attribute("precision", 0)] + [node.attribute("output_dtype", 0)] * (node.kind[0] == "D")
    if any(number not in (0, onnx.TensorProto.FLOAT) for number in numbers):
        raise NotThis("is not computed in float32")
    return scales


def _adds_first_axis(graph: Graph, node: Node) -> bool:
    """Whether an Unsqueeze (Squeeze) adds (drops) just the first axis."""
    axes = graph.constant(node.input(1)) if node.input(1) else np.asarray(node.attribute("axes", ()) or 0)
    return axes is not None and axes.tolist() == [0]


def is_vector(graph: Graph, name: str, length: int) -> bool:
    """Whether a value is a float32 constant [length]."""
    values = graph.constant(name)
    return values is not None and values.shape == (length,) and values.dtype == np.float32


# --- residual and LayerNorm -------------------------------------------------------------------------------------------


def find_add_norms(graph: Graph) -> list[AddNorm]:
    """Returns the LayerNorms over the last axis of a sum of two values, where nothing else reads the sum."""
    found = []
    for node in graph.nodes:
        add = graph.producer(node.input(0), "Add") if node.kind == "LayerNormalization" else None
        if add is None or graph.only_reader(add.output) is not node or len(add.inputs) != 2:
            continue
        axes = graph.shape(add.output)
        if axes is None or node.attribute("axis", -1) not in (-1, len(axes) - 1):
            continue
        if any(name in graph.outputs or graph.readers(name) for name in node.outputs[1:]):
            continue  # mean and deviation
        epsilon = node.attribute("epsilon", 1e-5)
        if epsilon is not None and 0 <= epsilon < 1:
            terms = (add.inputs[0], add.inputs[1])
            found.append(AddNorm(terms, node.input(1), node.input(2), epsilon, node))
    return found
