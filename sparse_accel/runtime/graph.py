"""An ONNX graph to look things up in, and to assemble a changed graph from.

    graph = Graph(model)
    graph.producer("y")            the node that computes a value
    graph.readers("y")             the nodes that read it
    graph.constant("w")            its numbers, where no input of the model can change them
    graph.shape("y")               its axes, as far as onnx can infer them
    graph.assemble({node: [new]})  a new model, in which other nodes stand at the place of some

A node that holds a graph of its own (If, Loop) reads what is read inside of it; nothing inside is ever changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

# A length of an axis: a number, the name of an open axis, or None where nothing is known.
Length = int | str | None

T = TypeVar("T", int, float, bytes, "tuple[int, ...]")

_FIELDS = {
    onnx.AttributeProto.INT: "i",
    onnx.AttributeProto.FLOAT: "f",
    onnx.AttributeProto.STRING: "s",
    onnx.AttributeProto.INTS: "ints",
}
_STANDARD_DOMAINS = ("", "ai.onnx")
# Shapes are inferred from integers such as the target of a Reshape, never from a weight: larger constants are left out.
_SMALL, _LARGE = 64, 2**16


@dataclass(frozen=True, eq=False)
class Node:
    """A node of a graph; two nodes are equal only if they are the same.

    Attributes:
        kind: the operator: MatMul; for one of another domain, or defined by the model itself, domain::operator.
        inputs: names of the values that it is given; an empty name is an input left out.
        outputs: names of the values that it computes.
        reads: the inputs, and what the graphs inside of it read.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reads: frozenset[str]
    proto: onnx.NodeProto

    @property
    def output(self) -> str:
        """The first output; empty if it is left out."""
        return self.outputs[0] if self.outputs else ""

    def input(self, position: int) -> str:
        """The name of an input; empty if it is left out."""
        return self.inputs[position] if position < len(self.inputs) else ""

    def attribute(self, name: str, default: T) -> T | None:
        """The value of an attribute, lists as tuples; `default` if there is none, None if it is of another type."""
        found = next((each for each in self.proto.attribute if each.name == name), None)
        if found is None:
            return default
        value = getattr(found, _FIELDS.get(found.type, "s"))
        value = tuple(value) if isinstance(default, tuple) and found.type == onnx.AttributeProto.INTS else value
        return value if isinstance(value, type(default)) else None

    def other_input(self, name: str) -> str:
        """The other one of two inputs; empty if there are not exactly two, or if both are `name`."""
        if len(self.inputs) != 2 or name not in self.inputs or self.inputs[0] == self.inputs[1]:
            return ""
        return self.inputs[1] if self.inputs[0] == name else self.inputs[0]


class Graph:
    """A model's main graph, as it was when it was read.

    Args:
        model: any model; it must not be changed while this exists.

    Raises:
        ValueError: the graph cannot run: a value is computed twice, or read before it is computed.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        own = {(function.domain, function.name) for function in model.functions}
        self.nodes = [_node(proto, own) for proto in graph.node]
        self.outputs = {value.name for value in graph.output}
        self._inputs = {value.name for value in graph.input}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        sparse = {tensor.values.name for tensor in graph.sparse_initializer}
        if len(self._initializers) != len(graph.initializer):
            raise ValueError("this graph has two initializers of one name")
        self._producers: dict[str, Node] = {}
        self._readers: dict[str, list[Node]] = {}
        known = self._inputs | self._initializers.keys() | sparse | {""}
        for node in self.nodes:
            # What the graph inside of an If reads may also be computed inside.
            if unknown := set(node.inputs) - known:
                raise ValueError(f"this graph reads {min(unknown)!r} before it is computed")
            for name in node.reads - {""}:
                self._readers.setdefault(name, []).append(node)
            for name in node.outputs:
                if name and name in known:
                    raise ValueError(f"this graph computes {name!r} twice")
                known.add(name)
                self._producers[name] = node
        if missing := self.outputs - known:
            raise ValueError(f"nothing in this graph computes its output {min(missing)!r}")
        self._names = known | {node.proto.name for node in self.nodes}
        self._constants: dict[str, np.ndarray | None] = {}

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators; 1 if the model does not say."""
        versions = [each.version for each in self.model.opset_import if each.domain in _STANDARD_DOMAINS]
        return max(versions, default=1)

    def producer(self, name: str, *kinds: str) -> Node | None:
        """The node that computes a value, if it is of one of these kinds (none given: of any kind)."""
        node = self._producers.get(name) if name else None
        return node if node and (not kinds or node.kind in kinds) else None

    def readers(self, name: str) -> Sequence[Node]:
        """The nodes that read a value, each once; that the graph has it as an output is not among them."""
        return self._readers.get(name, ()) if name else ()

    def only_reader(self, name: str, *kinds: str) -> Node | None:
        """The only node that reads a value; None if there are more, if it is of no such kind, or for an output."""
        readers = self.readers(name)
        if len(readers) != 1 or name in self.outputs or (kinds and readers[0].kind not in kinds):
            return None
        return readers[0]

    def initializer(self, name: str) -> onnx.TensorProto | None:
        """A constant tensor that stands in the file by name; None for one that an input of the model can replace."""
        return None if name in self._inputs else self._initializers.get(name)

    def constant(self, name: str) -> np.ndarray | None:
        """The numbers of an initializer or Constant node; None if the value is not constant, or not in the file."""
        if name not in self._constants:
            tensor: Any = self.initializer(name)
            node = self.producer(name, "Constant")
            if node and len(node.proto.attribute) == 1:
                tensor = helper.get_attribute_value(node.proto.attribute[0])
            numbers = _numbers(tensor)
            if numbers is not None and numbers.nbytes > _LARGE:
                return numbers  # a copy of a weight, which nobody asks for often
            self._constants[name] = numbers
        return self._constants[name]

    def scalar(self, name: str) -> float | None:
        """A constant of one number, without axes or with one; None for any other value."""
        values = self.constant(name)
        if values is None or values.size != 1 or values.ndim > 1 or values.dtype.kind not in "fiu":
            return None
        return float(values.reshape(()))

    def shape(self, name: str) -> tuple[Length, ...] | None:
        """The axes of a value, as far as known; None if not even their number is."""
        return self._types.get(name, (0, None))[1]

    def is_float(self, name: str) -> bool:
        """Whether a value is known to be float32."""
        return self._types.get(name, (0, None))[0] == onnx.TensorProto.FLOAT

    def is_int64(self, name: str) -> bool:
        """Whether a value is known to be int64."""
        return self._types.get(name, (0, None))[0] == onnx.TensorProto.INT64

    def token_axes(self, axis: int) -> set[Length]:
        """The lengths of an axis, 0 or 1, over the inputs of the model that have two: token ids [batch, tokens]."""
        shapes = [self._types[name][1] for name in self._inputs & self._types.keys()]
        return {shape[axis] for shape in shapes if shape is not None and len(shape) == 2}

    def fresh_name(self, name: str) -> str:
        """Returns a name for a new value or node: this one, or one like it that nothing has yet."""
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name

    def assemble(
        self,
        replaced: Mapping[Node, Sequence[onnx.NodeProto]],
        initializers: Iterable[onnx.TensorProto] = (),
        opsets: Iterable[onnx.OperatorSetIdProto] = (),
    ) -> onnx.ModelProto:
        """Returns a new model in which other nodes stand at the place of some, without what is then unused.

        Args:
            replaced: the new nodes by the node whose place they take; together they compute its outputs that are read.
            initializers: those that the new nodes read and the graph does not have.
            opsets: domains that the new nodes need.
        """
        nodes = [proto for node in self.nodes for proto in replaced.get(node, (node.proto,))]
        wanted, kept = set(self.outputs), []
        for proto in reversed(nodes):  # backwards, a node comes after all that read it
            if wanted.intersection(proto.output):
                wanted.update(_reads(proto))
                kept.append(proto)
        model, graph = onnx.ModelProto(), self.model.graph
        for field, value in self.model.ListFields():
            if field.name != "graph":
                _set(model, field.name, value)
        for field, value in graph.ListFields():
            # Shapes of values are left out, because many of the values are gone; see also `lower` of the export.
            if field.name not in ("node", "initializer", "value_info", "quantization_annotation"):
                _set(model.graph, field.name, value)
        model.graph.node.extend(reversed(kept))
        model.graph.initializer.extend(
            each for each in graph.initializer if each.name in wanted or each.name in self._inputs
        )
        model.graph.initializer.extend(each for each in initializers if each.name in wanted)
        there = {each.domain for each in model.opset_import}
        model.opset_import.extend(each for each in opsets if each.domain not in there)
        return model

    @cached_property
    def _types(self) -> dict[str, tuple[int, tuple[Length, ...] | None]]:
        """Element type and shape of each value that onnx can say something about."""
        graph = self.model.graph
        small = onnx.ModelProto(ir_version=self.model.ir_version, opset_import=self.model.opset_import)
        for each in small.opset_import:
            # Opsets 14 to 17 only add to 13, and onnx follows the lengths in a Reshape's target only since 14.
            if each.domain in _STANDARD_DOMAINS and 13 <= each.version < 17:
                each.version = 17
        small.graph.name = "without weights"
        small.graph.node.extend(graph.node)
        small.graph.input.extend(graph.input)
        small.graph.output.extend(graph.output)
        for tensor in graph.initializer:
            if tensor.name in self._inputs:
                continue
            if math.prod(tensor.dims) <= _SMALL:
                small.graph.initializer.append(tensor)
            else:
                small.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        try:
            small = onnx.shape_inference.infer_shapes(small, data_prop=True)
        except Exception:  # of many classes, for graphs that cannot run: nothing is known then
            return {}
        values = [*small.graph.input, *small.graph.output, *small.graph.value_info]
        tensors = {each.name: each.type.tensor_type for each in values if each.type.HasField("tensor_type")}
        return {name: (tensor.elem_type, _axes(tensor)) for name, tensor in tensors.items()}


def _node(proto: onnx.NodeProto, own: set[tuple[str, str]]) -> Node:
    standard = proto.domain in _STANDARD_DOMAINS and (proto.domain, proto.op_type) not in own
    kind = proto.op_type if standard else f"{proto.domain}::{proto.op_type}"
    return Node(kind, tuple(proto.input), tuple(proto.output), frozenset(_reads(proto)), proto)


def _reads(proto: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads, with those that graphs inside of it read, wherever these come from."""
    yield from proto.input
    for attribute in proto.attribute:
        inside = [attribute.g] if attribute.HasField("g") else attribute.graphs
        for graph in inside:
            yield from (value.name for value in graph.output)
            for node in graph.node:
                yield from _reads(node)


def _numbers(value: Any) -> np.ndarray | None:
    """The array of a tensor or of the value of a Constant node; None if it has none that can be read."""
    if isinstance(value, onnx.TensorProto):
        if value.data_location == onnx.TensorProto.EXTERNAL:
            return None
        try:
            return numpy_helper.to_array(value)
        except Exception:  # of many classes: too few bytes for its shape, an unknown type
            return None
    if not isinstance(value, int | float | list):
        return None
    values = np.asarray(value)
    return values.astype(np.float32) if values.dtype.kind == "f" else values


def _axes(tensor: onnx.TypeProto.Tensor) -> tuple[Length, ...] | None:
    if not tensor.HasField("shape"):
        return None
    fields = [(axis, axis.WhichOneof("value")) for axis in tensor.shape.dim]
    return tuple(getattr(axis, field) if field else None for axis, field in fields)


def _set(message: Any, field: str, value: Any) -> None:
    """Gives a protobuf message a copy of another one's field."""
    if hasattr(value, "extend"):
        getattr(message, field).extend(value)
    elif hasattr(value, "CopyFrom"):
        getattr(message, field).CopyFrom(value)
    else:
        setattr(message, field, value)
