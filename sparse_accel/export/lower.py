"""Lowering: replace the placeholder of each layer in a traced graph by the operators that a runtime executes.

    float     MatMul(x, W) + b                                                             the reference
    qdq       MatMul(DQ(Q(x)), DQ(W int8)) + b                                             onnxruntime, OpenVINO
    integer   Cast(MatMulInteger(Q(x), W uint8, zero points)) * (x scale * W scale) + b    DeepSparse 1.8

A quantized weight is in the file only once, as 8-bit integers, with pruned weights equal to the zero point. The weight
of a Linear is transposed, (in, out), as MatMul expects it; one scale per row of it is one per column then. An Embedding
looks up integer rows and dequantizes them. In front of any other layer with an input quantizer, both quantized formats
have DQ(Q(x)). Signed integers stay int8 in qdq, and are moved up by 128 to uint8 in integer, activations too.
Every initializer is named after its layer: `LAYER.weight_quantized`, `LAYER.input_scale`, ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from sparse_accel.errors import UsageError, listed
from sparse_accel.export.trace import DOMAIN
from sparse_accel.nn.fake_quantize import FakeQuantize
from sparse_accel.nn.layers import export_obstacles

# How signed integers are stored: unchanged, or shifted to unsigned, so that 128 is the zero of a weight.
OFFSET = {"qdq": 0, "integer": 128}


def lower(traced: onnx.ModelProto, model: nn.Module, format: str) -> onnx.ModelProto:
    """Returns the graph with every placeholder replaced.

    Args:
        traced: from `trace`; it is not changed.
        model: the traced model, with its quantizers on.
        format: float, qdq or integer.

    Raises:
        UsageError: the model has quantizers that such a graph cannot express.
    """
    _check_quantizers(model)
    layers = dict(model.named_modules())
    lowered = onnx.ModelProto()
    lowered.CopyFrom(traced)
    graph = lowered.graph
    builder = _GraphBuilder(format)
    nodes: list[onnx.NodeProto] = []
    for node in traced.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        name = helper.get_node_attr_value(node, "layer").decode()
        layer, x, y = cast(Any, layers[name]), node.input[0], node.output[0]
        if node.op_type == "Embedding":
            nodes += builder.embedding(name, layer, x, y)
        elif node.op_type == "InputQuantizer":
            nodes += builder.input_quantizer(name, layer, x, y)
        else:
            nodes += builder.linear(name, layer, x, y, is_matrix=helper.get_node_attr_value(node, "rank") == 2)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(builder.initializers.values())
    kept = [entry for entry in lowered.opset_import if entry.domain != DOMAIN]
    del lowered.opset_import[:]
    lowered.opset_import.extend(kept)
    lowered.producer_name = "sparse_accel"
    _drop_unused_initializers(graph)
    # Runtimes infer the shapes of values by themselves. Where onnxruntime reads that both terms of a residual sum have
    # one shape, it makes one SkipLayerNormalization of the sum and the norm, which takes longer than both: the
    # quickstart's INT8 file is 1.11 times as fast without these shapes for 16 tokens, and 1.15 times for 128
    # (onnxruntime 1.31.1, one thread).
    del graph.value_info[:]
    return lowered


def integer_weight(layer: Any) -> Tensor:
    """Returns the integers of a layer's quantized weight: int32, in the weight's shape, without offset.

    They come from the tensor that PyTorch computes with: fake-quantized values divided by their scale.
    """
    quantizer: FakeQuantize = layer.weight_quantizer
    axis = quantizer.scheme.channel_axis
    shape = [1] * layer.weight.ndim
    if axis is not None:
        shape[axis] = -1
    with torch.no_grad():
        grid = quantizer(layer.weight) / quantizer.scale.reshape(shape)
        return torch.round(grid).to(torch.int32) + quantizer.zero_point.reshape(shape)


class _GraphBuilder:
    """Makes the nodes of one layer at a time, and collects their initializers: only once each, also for a layer that
    several blocks share."""

    def __init__(self, format: str) -> None:
        self.format = format
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._calls = 0

    def linear(self, name: str, layer: Any, x: str, y: str, *, is_matrix: bool) -> Iterator[onnx.NodeProto]:
        self._calls += 1
        prefix = f"{name}/{self._calls}"
        has_bias = layer.bias is not None
        output = None if self.format == "float" else active(layer, "output_quantizer")
        product = f"{prefix}/product" if has_bias or output else y
        result = f"{prefix}/sum" if output else y
        if self.format != "float" and active(layer, "weight_quantizer"):
            if is_matrix and self.format == "qdq":
                # Otherwise onnxruntime first fuses a MatMul of matrices and its bias to a float Gemm, before it looks
                # for integers.
                axis = self._keep("axis_0", np.array([0], dtype=np.int64))
                yield helper.make_node("Unsqueeze", [x, axis], [f"{prefix}/unsqueezed"], f"{prefix}/Unsqueeze")
                x, squeezed, product = f"{prefix}/unsqueezed", product, f"{prefix}/unsqueezed_product"
                yield from self._quantized_product(name, layer, x, product, prefix)
                yield helper.make_node("Squeeze", [product, axis], [squeezed], f"{prefix}/Squeeze")
                product = squeezed
            else:
                yield from self._quantized_product(name, layer, x, product, prefix)
        else:
            weight = self._keep(f"{name}.weight", layer.weight.detach().t().contiguous().numpy())
            if self.format != "float" and active(layer, "input_quantizer"):
                yield from self._fake_quantize(f"{name}.input", layer.input_quantizer, x, f"{prefix}/input", prefix)
                x = f"{prefix}/input"
            yield helper.make_node("MatMul", [x, weight], [product], f"{prefix}/MatMul")
        if has_bias:
            bias = self._keep(f"{name}.bias", layer.bias.detach().numpy())
            yield helper.make_node("Add", [product, bias], [result], f"{prefix}/Add")
        elif output:
            result = product
        if output:
            yield from self._fake_quantize(f"{name}.output", output, result, y, f"{prefix}/output")

    def embedding(self, name: str, layer: Any, ids: str, y: str) -> Iterator[onnx.NodeProto]:
        self._calls += 1
        prefix = f"{name}/{self._calls}"
        output = None if self.format == "float" else active(layer, "output_quantizer")
        rows = f"{prefix}/rows" if output else y
        if self.format != "float" and active(layer, "weight_quantizer"):
            yield from self._quantized_rows(name, layer, ids, rows, prefix)
        else:
            weight = self._keep(f"{name}.weight", layer.weight.detach().numpy())
            yield helper.make_node("Gather", [weight, ids], [rows], f"{prefix}/Gather")
        if output:
            yield from self._fake_quantize(f"{name}.output", output, rows, y, f"{prefix}/output")

    def input_quantizer(self, name: str, layer: Any, x: str, y: str) -> Iterator[onnx.NodeProto]:
        self._calls += 1
        prefix = f"{name}/{self._calls}/input"
        quantizer = None if self.format == "float" else active(layer, "input_quantizer")
        if quantizer is None:
            yield helper.make_node("Identity", [x], [y], f"{prefix}/Identity")
        else:
            yield from self._fake_quantize(f"{name}.input", quantizer, x, y, prefix)

    # --- parts of a layer ---------------------------------------------------------------------------------------------

    def _quantized_rows(self, name: str, layer: Any, ids: str, y: str, prefix: str) -> Iterator[onnx.NodeProto]:
        """Yields the nodes that look up rows of integers and dequantize them. Where each row has its own scale, scales
        are looked up, too: a DequantizeLinear of the whole table would come before the lookup."""
        weight, scale, zero = self._weight(name, layer, transposed=False)
        integers, by_row = f"{prefix}/integers", layer.weight_quantizer.scheme.channel_axis is not None
        yield helper.make_node("Gather", [weight, ids], [integers], f"{prefix}/Gather")
        if not by_row:
            yield helper.make_node("DequantizeLinear", [integers, scale, zero], [y], f"{prefix}/DequantizeLinear")
            return
        one, unscaled, scales = (
            self._keep("scale_1", np.ones((), dtype=np.float32)),
            f"{prefix}/unscaled",
            f"{prefix}/scales",
        )
        yield helper.make_node("DequantizeLinear", [integers, one, zero], [unscaled], f"{prefix}/DequantizeLinear")
        yield helper.make_node("Gather", [scale, ids], [scales], f"{prefix}/scales/Gather")
        yield helper.make_node("Mul", [unscaled, scales], [y], f"{prefix}/Mul")

    def _quantized_product(self, name: str, layer: Any, x: str, y: str, prefix: str) -> Iterator[onnx.NodeProto]:
        """Yields the nodes of x times the quantized weight, in the operators of the format."""
        weight, weight_scale, weight_zero = self._weight(name, layer, transposed=True)
        if self.format == "qdq":
            yield from self._fake_quantize(f"{name}.input", layer.input_quantizer, x, f"{prefix}/input", prefix)
            inputs = [weight, weight_scale, weight_zero]
            node = helper.make_node("DequantizeLinear", inputs, [f"{prefix}/weight"], f"{prefix}/weight/DQ")
            if layer.weight_quantizer.scale.numel() > 1:
                node.attribute.append(helper.make_attribute("axis", 1))
            yield node
            yield helper.make_node("MatMul", [f"{prefix}/input", f"{prefix}/weight"], [y], f"{prefix}/MatMul")
            return
        integers = f"{prefix}/input/integers"
        _, zero = yield from self._quantize(f"{name}.input", layer.input_quantizer, x, integers, prefix)
        inputs = [integers, weight, zero, weight_zero]
        yield helper.make_node("MatMulInteger", inputs, [f"{prefix}/integers"], f"{prefix}/MatMulInteger")
        yield helper.make_node(
            "Cast", [f"{prefix}/integers"], [f"{prefix}/cast"], f"{prefix}/Cast", to=TensorProto.FLOAT
        )
        both = layer.input_quantizer.scale * layer.weight_quantizer.scale
        product = self._keep(f"{name}.input_scale_times_weight_scale", plain(both))
        yield helper.make_node("Mul", [f"{prefix}/cast", product], [y], f"{prefix}/Mul")

    def _fake_quantize(
        self, name: str, quantizer: FakeQuantize, x: str, y: str, prefix: str
    ) -> Iterator[onnx.NodeProto]:
        """Yields the nodes that quantize an activation and dequantize it to float again."""
        scale, zero = yield from self._quantize(name, quantizer, x, f"{prefix}/quantized", prefix)
        inputs = [f"{prefix}/quantized", scale, zero]
        yield helper.make_node("DequantizeLinear", inputs, [y], f"{prefix}/DequantizeLinear")

    def _quantize(self, name: str, quantizer: FakeQuantize, x: str, y: str, prefix: str) -> Any:
        """Yields the nodes that quantize an activation to 8 bits; returns the names of scale and zero point."""
        lowest, highest = quantizer.scheme.integers
        scale = self._keep(f"{name}_scale", plain(quantizer.scale))
        zero = self._keep(f"{name}_zero_point", stored_zero_point(quantizer, self.format))
        if highest - lowest != 255:  # fewer bits: the type itself does not clip at the lowest and highest integer
            limits = [
                self._keep(f"{name}_{end}", plain((bound - quantizer.zero_point) * quantizer.scale))
                for end, bound in (("lowest", lowest), ("highest", highest))
            ]
            yield helper.make_node("Clip", [x, *limits], [f"{prefix}/clipped"], f"{prefix}/Clip")
            x = f"{prefix}/clipped"
        yield helper.make_node("QuantizeLinear", [x, scale, zero], [y], f"{prefix}/QuantizeLinear")
        return scale, zero

    def _weight(self, name: str, layer: Any, *, transposed: bool) -> tuple[str, str, str]:
        """Adds a layer's integers, scale and zero point as initializers, and returns their names."""
        integers = integer_weight(layer) + OFFSET[self.format]
        integers = integers.t() if transposed else integers
        scale, zero_point = stored_weight_parameters(layer, self.format)
        return (
            self._keep(f"{name}.weight_quantized", np.ascontiguousarray(integers.numpy()).astype(zero_point.dtype)),
            self._keep(f"{name}.weight_scale", scale),
            self._keep(f"{name}.weight_zero_point", zero_point),
        )

    def _keep(self, name: str, values: np.ndarray) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(values, name)
        return name


def active(layer: Any, which: str) -> FakeQuantize | None:
    """Returns a layer's quantizer by attribute name (`weight_quantizer`, ...); None if there is none, or it is off."""
    quantizer: FakeQuantize | None = getattr(layer, which, None)
    return quantizer if quantizer is not None and quantizer.enabled else None


def stored_zero_point(quantizer: FakeQuantize, format: str) -> np.ndarray:
    """Returns the zero point of a quantizer as a file has it: int8 for signed integers in qdq, else uint8."""
    offset = OFFSET[format] if quantizer.scheme.signed else 0
    return plain(quantizer.zero_point + offset).astype(np.int8 if quantizer.scheme.signed and not offset else np.uint8)


def stored_weight_parameters(layer: Any, format: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and zero point of a layer's weight as a file has them. An Embedding with one scale per row has
    (rows, 1) scales, to be looked up, and one zero point, because weights are symmetric."""
    quantizer: FakeQuantize = layer.weight_quantizer
    scale, zero_point = plain(quantizer.scale), stored_zero_point(quantizer, format)
    if isinstance(layer, nn.Embedding) and quantizer.scheme.channel_axis is not None:
        return scale.reshape(-1, 1), zero_point.reshape(-1)[:1].reshape(())
    return scale, zero_point


def plain(values: Tensor) -> np.ndarray:
    """Returns an array on the CPU: a scalar for one value, otherwise unchanged."""
    array: np.ndarray = values.detach().cpu().numpy()
    return array.reshape(()) if array.size == 1 else array


def _check_quantizers(model: nn.Module) -> None:
    """Raises UsageError for quantizers on layers that `lower` does not replace, or of a kind that it cannot write."""
    for reason, names in export_obstacles(model, only_enabled=True).items():
        raise UsageError(f"{listed(names, 3)}: {reason}")


def _drop_unused_initializers(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
