"""The float model that an INT8 file was made from, up to the rounding of its weights: to time it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from sparse_accel.runtime.graph import Graph, Node


def in_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a model without 8-bit integers: weights are dequantized, activations are no longer quantized.

    Rows of an embedding, which are looked up as integers, are still dequantized one by one.

    Args:
        model: a QDQ graph; it is not changed.
    """
    graph = Graph(model)
    same: dict[str, str] = {}
    weights: list[onnx.TensorProto] = []
    replaced: dict[Node, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        if node.kind == "DequantizeLinear":
            before = graph.producer(node.input(0), "QuantizeLinear")
            values = _dequantized(graph, node)
            if before is not None:
                same[node.output] = same.get(before.input(0), before.input(0))
                replaced[node] = []
            elif values is not None:
                weights.append(numpy_helper.from_array(values, node.output))
                replaced[node] = []
        elif changed := set(node.inputs) & same.keys():
            proto = onnx.NodeProto()
            proto.CopyFrom(node.proto)
            for position, name in enumerate(node.inputs):
                if name in changed:
                    proto.input[position] = same[name]
            replaced[node] = [proto]
    return graph.assemble(replaced, weights)


def _dequantized(graph: Graph, node: Node) -> np.ndarray | None:
    """The float weight that a DequantizeLinear makes of a constant; None for anything else."""
    values, scale = graph.constant(node.input(0)), graph.constant(node.input(1))
    if values is None or scale is None:
        return None
    zero = graph.constant(node.input(2)) if node.input(2) else np.zeros((), values.dtype)
    if zero is None:
        return None
    shape = [1] * values.ndim
    if scale.size > 1:
        shape[node.attribute("axis", 1) or 0] = -1
    return ((values.astype(np.float32) - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape)).astype(
        np.float32
    )
