"""Older opsets: rewrite the few newer operators of a graph into older ones, and check the result.

PyTorch's exporter can miss the requested opset and still report success, so this does not trust the version number:
every node must exist in the target opset, and the complete model must pass onnx's checker with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sparse_accel.errors import UsageError


def lower_opset(model: onnx.ModelProto, target: int) -> onnx.ModelProto:
    """Returns the model in opset `target`, with the oldest IR version that supports it.

    Args:
        model: of the same or a newer opset; it is not changed.
        target: the opset.

    Raises:
        UsageError: an operator cannot be written in that opset.
    """
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    graph = lowered.graph
    rewriter = _Rewriter(graph)
    nodes = [new for node in graph.node for new in rewriter.rewrite(node, target)]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(rewriter.added)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del lowered.opset_import[:]
    lowered.opset_import.append(helper.make_opsetid("", target))
    lowered.ir_version = helper.find_min_ir_version_for(lowered.opset_import)
    return lowered


def check_opset(model: onnx.ModelProto, target: int) -> None:
    """Raises UsageError unless all nodes of the model exist in opset `target` and onnx's checker accepts it."""
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found != {"": target}:
        raise UsageError(f"opset {target} was requested, but the graph imports {found}")
    for node in model.graph.node:
        try:
            onnx.defs.get_schema(node.op_type, target, node.domain)
        except onnx.defs.SchemaError:
            raise UsageError(
                f"opset {target} was not reached: it has no {node.op_type} ({node.name}). Choose a newer --opset"
            ) from None
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"opset {target} was not reached: {reason}. Choose a newer --opset") from error


class _Rewriter:
    """Rewrites one node at a time; from the graph it needs only the initializers."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.added: list[onnx.TensorProto] = []

    def rewrite(self, node: onnx.NodeProto, target: int) -> Iterator[onnx.NodeProto]:
        rewriters: dict[str, tuple[int, Callable[[onnx.NodeProto], Iterator[onnx.NodeProto]]]] = {
            "LayerNormalization": (17, self._layer_normalization),
            "ReduceMean": (18, self._axes_as_attribute),
            "ReduceMax": (18, self._axes_as_attribute),
            "ReduceMin": (18, self._axes_as_attribute),
            "ReduceL2": (18, self._axes_as_attribute),
            "Split": (18, lambda node: self._without(node, "num_outputs")),  # the number of outputs implies it
            "Shape": (15, self._shape),
            "Reshape": (14, lambda node: self._without(node, "allowzero")),  # not needed for a shape without zeros
        }
        since, rewriter = rewriters.get(node.op_type, (0, self._as_it_is))
        yield from (rewriter if since > target else self._as_it_is)(node)

    def _as_it_is(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        yield node

    def _layer_normalization(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * weight + bias, over the last axis (Ba et al. 2016)."""
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        if attributes.get("axis", -1) != -1 or len(node.output) > 1:
            raise UsageError(f"LayerNormalization {node.name} cannot be written in an opset before 17")
        x, weight, *bias = node.input
        epsilon = self._constant(f"{node.name}/epsilon", np.float32(attributes.get("epsilon", 1e-5)))
        two = self._constant(f"{node.name}/two", np.float32(2.0))

        def make(kind: str, inputs: list[str], last: bool = False) -> onnx.NodeProto:
            count = len(made)
            output = node.output[0] if last else f"{node.output[0]}/{kind}{count}"
            made.append(helper.make_node(kind, inputs, [output], f"{node.name}/{kind}{count}"))
            if kind == "ReduceMean":
                made[-1].attribute.extend([helper.make_attribute("axes", [-1]), helper.make_attribute("keepdims", 1)])
            return made[-1]

        made: list[onnx.NodeProto] = []
        mean = make("ReduceMean", [x]).output[0]
        centred = make("Sub", [x, mean]).output[0]
        variance = make("ReduceMean", [make("Pow", [centred, two]).output[0]]).output[0]
        deviation = make("Sqrt", [make("Add", [variance, epsilon]).output[0]]).output[0]
        normal = make("Div", [centred, deviation]).output[0]
        scaled = make("Mul", [normal, weight], last=not bias).output[0]
        if bias:
            make("Add", [scaled, bias[0]], last=True)
        yield from made

    def _axes_as_attribute(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Reductions have their axes as an input since opset 18, and as an attribute before."""
        (older,) = self._without(node, "noop_with_empty_axes")
        if len(node.input) > 1:
            axes = self._value(node.input[1], node).tolist()
            del older.input[1:]
            older.attribute.append(helper.make_attribute("axes", axes))
        yield older

    def _shape(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """A part of a shape becomes the complete shape and a slice of it."""
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        if not attributes:
            yield node
            return
        whole = f"{node.output[0]}/whole"
        start = self._constant(f"{node.name}/start", np.array([attributes.get("start", 0)], dtype=np.int64))
        end = self._constant(f"{node.name}/end", np.array([attributes.get("end", 2**31)], dtype=np.int64))
        yield helper.make_node("Shape", [node.input[0]], [whole], f"{node.name}/Shape")
        yield helper.make_node("Slice", [whole, start, end], [node.output[0]], f"{node.name}/Slice")

    @staticmethod
    def _without(node: onnx.NodeProto, attribute: str) -> Iterator[onnx.NodeProto]:
        older = onnx.NodeProto()
        older.CopyFrom(node)
        kept = [entry for entry in older.attribute if entry.name != attribute]
        del older.attribute[:]
        older.attribute.extend(kept)
        yield older

    def _value(self, name: str, node: onnx.NodeProto) -> np.ndarray:
        if name not in self.constants:
            raise UsageError(f"{node.op_type} {node.name} has computed axes, which opsets before 18 do not support")
        values: np.ndarray = numpy_helper.to_array(self.constants[name])
        return values

    def _constant(self, name: str, value: Any) -> str:
        self.added.append(numpy_helper.from_array(np.asarray(value), name))
        return name
