"""What NVIDIA's documentation of TensorRT demands of a network with QuantizeLinear and DequantizeLinear nodes.

From "Working with Quantized Types" in the TensorRT developer guide: integers are signed and have 8 bits, quantization
is symmetric, scales are constant and positive, activations have one scale and weights one or one per output, and both
inputs of a product in integers come from a DequantizeLinear. TensorRT itself does not run in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from sparse_accel.runtime.graph import Graph, Node

# A table of integers is looked up before its DequantizeLinear.
_LOOKUP = "Gather"


def tensorrt_faults(model: onnx.ModelProto) -> list[str]:
    """Returns where a model does not fulfil the demands, one line each; empty if it does."""
    graph = Graph(model)
    found = [f"opset {graph.opset} has no scales per axis"] if graph.opset < 13 else []
    for node in graph.nodes:
        if node.kind in ("QuantizeLinear", "DequantizeLinear"):
            found += [f"{node.proto.name}: {fault}" for fault in _faults(graph, node)]
        if node.kind in ("MatMulInteger", "DynamicQuantizeLinear", "QLinearMatMul"):
            found.append(f"{node.proto.name}: {node.kind} is no operator that TensorRT imports")
        if node.kind == "MatMul":
            quantized = [graph.producer(name, "DequantizeLinear") is not None for name in node.inputs]
            if any(quantized) and not all(quantized):
                found.append(f"{node.proto.name}: one input is quantized and one is not")
    return found


def _faults(graph: Graph, node: Node) -> Iterator[str]:
    scale, zero = graph.constant(node.input(1)), graph.constant(node.input(2))
    if scale is None or scale.dtype != np.float32 or not (scale > 0).all():
        yield "the scale is not a positive constant"
        return
    if zero is None or zero.dtype != np.int8:
        yield f"integers are {'unknown' if zero is None else zero.dtype}, not int8"
    elif zero.any():
        yield "the zero point is not 0"
    source = node.input(0)
    if node.kind == "QuantizeLinear":
        if scale.size != 1:
            yield "an activation has several scales"
        pairs = [reader for reader in graph.readers(node.output) if reader.kind == "DequantizeLinear"]
        if not pairs or any(reader.inputs[1:] != node.inputs[1:] for reader in pairs):
            yield "no DequantizeLinear with the same numbers follows"
        return
    if lookup := graph.producer(source, _LOOKUP):
        source = lookup.input(0)
    weight = graph.initializer(source)
    if weight is None and graph.producer(source, "QuantizeLinear") is None:
        yield "its input is neither a weight nor quantized"
    if weight is None:
        return
    if weight.data_type != onnx.TensorProto.INT8:
        yield "a weight is not int8"
    if scale.size != 1 and (node.attribute("axis", 1) != 1 or scale.shape != (weight.dims[1],)):
        yield "a weight has scales that are not one for each output"
