"""Rewriting: parts of an exported graph become operators of the domain sparse_accel, whose kernels skip zeros.

    Linear          quantize, multiply, bias, and GELU if it follows
    LinearAddNorm   Linear, residual, LayerNorm
    FeedForward     Linear, GELU, Linear, residual, LayerNorm
    Attention       softmax(scale * q k^T + mask) v; the Linears of q, k and v become one
    Lookup          rows of an embedding of integers, dequantized, and quantized again if they are

The largest operator that fits takes its place. Weights are still int8 afterwards; packing.py packs them for a CPU.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sparse_accel.runtime.attention import Attention, find_attentions
from sparse_accel.runtime.embedding import find_lookups
from sparse_accel.runtime.gelu import Gelu, find_gelus
from sparse_accel.runtime.graph import Graph, Node
from sparse_accel.runtime.patterns import (
    AddNorm,
    Kept,
    Linear,
    QuantizedInput,
    find_add_norms,
    find_linears,
    is_vector,
)

DOMAIN = "sparse_accel"
VERSION = 1
# Linears by themselves with one input: how many are many, and how many outputs are few. And the fraction of zeros from
# which on one gains although its result is quantized. Measured on one CPU.
_MANY, _NARROW, _TINY, _SPARSE = 4, 128, 8, 0.85
AS_ASKED = "is left as it is, as asked"  # the reason for those that `rewrite` is told to leave


@dataclass(frozen=True)
class Rewritten:
    """An operator of the new graph.

    Attributes:
        operator: Linear, LinearAddNorm, FeedForward, Attention or Lookup.
        node: its name in the graph.
        layers: the layers that it computes; Attention has none.
        weights: names of their int8 initializers in the old graph.
        shapes: the (K, N) of these.
    """

    operator: str
    node: str
    layers: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    shapes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Rewrite:
    """What became of a graph.

    Attributes:
        model: the new model; the old one itself if nothing could be replaced.
        operators: the operators of the new graph, in its order.
        kept: the products with a constant matrix that stay as they are.
    """

    model: onnx.ModelProto
    operators: tuple[Rewritten, ...]
    kept: tuple[Kept, ...]


def rewrite(model: onnx.ModelProto, leave: Collection[str] = frozenset()) -> Rewrite:
    """Replaces what it can of a model.

    Args:
        model: an exported model; it is not changed.
        leave: names of weight initializers whose layers stay as they are.

    Raises:
        ValueError: the graph cannot run: a value is computed twice, or read before it is computed.
    """
    graph = Graph(model)
    linears, kept = find_linears(graph)
    kept += dict.fromkeys(Kept(each.layer, AS_ASKED) for each in linears if each.weight in leave)
    rewriter = _Rewriter(graph, [each for each in linears if each.weight not in leave])
    rewriter.replace_all()
    kept += dict.fromkeys(rewriter.left)
    if not rewriter.replaced:
        return Rewrite(model, (), tuple(kept))
    operators = tuple(found for node in graph.nodes for found in rewriter.operators.get(node, ()))
    opset = helper.make_opsetid(DOMAIN, VERSION)
    assembled = graph.assemble(rewriter.replaced, rewriter.constants.added.values(), [opset])
    return Rewrite(assembled, operators, tuple(kept))


class _Rewriter:
    """Chooses operators, the largest ones first; a Linear is used up by the first that takes it."""

    def __init__(self, graph: Graph, linears: list[Linear]) -> None:
        self.graph = graph
        self.linears = {linear.output: linear for linear in linears}
        self.gelus = find_gelus(graph, self.linears)
        self._before_gelu = {gelu.last.output: output for output, gelu in self.gelus.items()}
        self.constants = _Constants(graph)
        self.replaced: dict[Node, list[onnx.NodeProto]] = {}
        self.operators: dict[Node, list[Rewritten]] = {}
        self.left: list[Kept] = []
        self._alone: list[Linear] = []
        self._count = 0

    def replace_all(self) -> None:
        for norm in find_add_norms(self.graph):
            self._feed_forward(norm) or self._linear_add_norm(norm)
        for attention in find_attentions(self.graph):
            self._attention(attention)
        self._alone = list(self.linears.values())
        for linear in list(self.linears.values()):
            if reason := self._left(linear):
                self.left.append(Kept(linear.layer, reason))
                continue
            gelu = self.gelus.get(linear.output)
            last = gelu.last if gelu else linear.last
            inputs = [linear.input.x, *self._weights(linear)]
            self._put(last, "Linear", inputs, [linear], _range("x", linear.input) | {"activation": _kind(gelu)})
        for lookup in find_lookups(self.graph):
            numbers: dict[str, float | int] = {"scale": lookup.scale, "zero_point": lookup.zero_point}
            numbers |= _range("y", lookup.output) if lookup.output else {}
            self._put(lookup.last, "Lookup", [lookup.ids, lookup.table], [], numbers)

    def _left(self, linear: Linear) -> str:
        """Why a Linear by itself stays; empty if it does not. onnxruntime quantizes an input of many products once, and
        computes a product whose result is quantized in integers throughout: then only zeros can gain something."""
        alike = [each for each in self._alone if each.input == linear.input]
        widest = max(each.shape[1] for each in alike)
        if (len(alike) >= _MANY and widest <= _NARROW) or (len(alike) > 1 and widest <= _TINY):
            return f"is one of {len(alike)} small products with one quantized input"
        if self.graph.only_reader(linear.output, "QuantizeLinear") and self.constants.zeros(linear.weight) < _SPARSE:
            return "has a result that is quantized, and few zeros"
        return ""

    # --- operators ----------------------------------------------------------------------------------------------------

    def _feed_forward(self, norm: AddNorm) -> bool:
        """Replaces two Linears with a GELU between them, whose input is also the residual."""
        for term, residual in (norm.terms, norm.terms[::-1]):
            second = self._normed(norm, term)
            first = self._before(second.input.x) if second else None
            if first is None or second is None or first.input.x != residual:
                continue
            gelu = self.gelus[first.output]
            inputs = [residual, *self._weights(first), *self._weights(second), *self._norm(norm)]
            numbers = {"activation": gelu.kind, "epsilon": norm.epsilon}
            numbers |= _range("x", first.input) | _range("hidden", second.input)
            self._put(norm.last, "FeedForward", inputs, [first, second], numbers)
            return True
        return False

    def _before(self, value: str) -> Linear | None:
        """The Linear whose GELU a value is, if it has only one reader."""
        if self.graph.only_reader(value) is None:
            return None
        return self.linears.get(self._before_gelu.get(value, ""))

    def _linear_add_norm(self, norm: AddNorm) -> bool:
        for term, residual in (norm.terms, norm.terms[::-1]):
            linear = self._normed(norm, term)
            # The kernel adds number to number: a residual that is broadcast to the sum's shape is none for it.
            if linear is None or not self._alike(term, residual):
                continue
            inputs = [linear.input.x, *self._weights(linear), residual, *self._norm(norm)]
            numbers = {"epsilon": norm.epsilon} | _range("x", linear.input)
            self._put(norm.last, "LinearAddNorm", inputs, [linear], numbers)
            return True
        return False

    def _normed(self, norm: AddNorm, term: str) -> Linear | None:
        """The Linear whose output a term of a sum is, if the LayerNorm over it fits."""
        linear = self.linears.get(term)
        if linear is None or self.graph.only_reader(term) is None or norm.terms[0] == norm.terms[1]:
            return None
        width = linear.shape[1]
        fits = is_vector(self.graph, norm.gamma, width)
        return linear if fits and (not norm.beta or is_vector(self.graph, norm.beta, width)) else None

    def _alike(self, one: str, other: str) -> bool:
        """Whether two values have as many axes, and as far as known the same lengths."""
        left, right = self.graph.shape(one), self.graph.shape(other)
        if left is None or right is None or len(left) != len(right) or left[-1] != right[-1]:
            return False
        return all(a == b for a, b in zip(left, right, strict=True) if isinstance(a, int) or isinstance(b, int))

    def _attention(self, attention: Attention) -> None:
        sources = (attention.q, attention.k, attention.v)
        width = attention.heads * attention.head_size
        offsets = (0, 0, 0)
        if linears := self._mergeable(attention):
            name = self.graph.fresh_name(f"{attention.last.output}/qkv")
            inputs = [linears[0].input.x, *self.constants.side_by_side(linears)]
            numbers = _range("x", linears[0].input) | {"activation": 0}
            self._put(attention.last, "Linear", inputs, linears, numbers, name)
            sources, offsets = (name, name, name), (0, width, 2 * width)
        numbers = {"heads": attention.heads, "head_size": attention.head_size, "scale": attention.scale}
        numbers |= zip(("q_offset", "k_offset", "v_offset"), offsets, strict=True)
        self._put(attention.last, "Attention", [*sources, attention.mask], [], numbers)

    def _mergeable(self, attention: Attention) -> list[Linear]:
        """The Linears of q, k and v, if they can be one: of one input, quantized alike, read by nothing else."""
        sources = (attention.q, attention.k, attention.v)
        linears = [self.linears[source] for source in sources if source in self.linears]
        if len(linears) != 3 or len({(linear.input, linear.shape) for linear in linears}) != 1:
            return []
        readers = [self.graph.only_reader(linear.output) for linear in linears]
        return linears if readers == list(attention.splits) else []

    # --- parts of an operator -----------------------------------------------------------------------------------------

    def _weights(self, linear: Linear) -> list[str]:
        """The inputs weight, weight_scale and bias."""
        constants = self.constants
        bias = constants.vector(linear.bias) if linear.bias else constants.filled(0.0, linear.shape[1])
        return [linear.weight, constants.vector(linear.scale), bias]

    def _norm(self, norm: AddNorm) -> list[str]:
        """The inputs gamma and beta."""
        gamma = self.constants.vector(norm.gamma)
        width = len(self.constants.values(norm.gamma))
        return [gamma, self.constants.vector(norm.beta) if norm.beta else self.constants.filled(0.0, width)]

    def _put(
        self,
        last: Node,
        operator: str,
        inputs: Sequence[str],
        linears: Sequence[Linear],
        attributes: Mapping[str, float | int],
        output: str = "",
    ) -> None:
        """Puts an operator at the place of a node, after those that are there, and takes its Linears off the list."""
        self._count += 1
        name = self.graph.fresh_name(f"{linears[0].layer if linears else last.output}/{operator}/{self._count}")
        node = helper.make_node(operator, inputs, [output or last.output], name, domain=DOMAIN)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.replaced.setdefault(last, []).append(node)
        layers = tuple(linear.layer for linear in linears)
        weights = tuple(linear.weight for linear in linears)
        shapes = tuple(linear.shape for linear in linears)
        found = Rewritten(operator, name, layers, weights, shapes)
        self.operators.setdefault(last, []).append(found)
        for linear in linears:
            del self.linears[linear.output]


class _Constants:
    """Makes initializers for the new operators: each only once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.added: dict[str, onnx.TensorProto] = {}
        self._made: dict[Any, str] = {}

    def vector(self, name: str) -> str:
        """The name of a constant as an initializer with one axis."""
        values = self.values(name)
        if values.ndim == 1 and self.graph.initializer(name) is not None:
            return name
        return self._add(("vector", name), f"{name}/vector", values.reshape(-1))

    def filled(self, value: float, length: int) -> str:
        return self._add((value, length), f"{DOMAIN}/{value}/{length}", np.full(length, value, dtype=np.float32))

    def side_by_side(self, linears: list[Linear]) -> list[str]:
        """The weight [K, 3 N], scale [3 N] and bias [3 N] of three Linears as one."""
        names = ["weight_quantized", "weight_scale", "bias"]
        key = tuple((linear.weight, linear.scale, linear.bias) for linear in linears)
        made = [self._made.get((key, name)) for name in names]
        if None not in made:  # layers that share their weights
            return [name for name in made if name]
        width = linears[0].shape[1]
        columns = [self.values(linear.weight) for linear in linears]
        scales = [np.broadcast_to(self.values(linear.scale).reshape(-1), width) for linear in linears]
        zeros = np.zeros(width, dtype=np.float32)
        biases = [self.values(linear.bias) if linear.bias else zeros for linear in linears]
        arrays = [np.concatenate(columns, axis=1), np.concatenate(scales), np.concatenate(biases)]
        prefix = f"{linears[0].layer}+2"
        return [self._add((key, name), f"{prefix}.{name}", array) for name, array in zip(names, arrays, strict=True)]

    def zeros(self, name: str) -> float:
        """The fraction of a constant's numbers that are zero."""
        values = self.values(name)
        return 1 - np.count_nonzero(values) / max(values.size, 1)

    def values(self, name: str) -> np.ndarray:
        values = self.graph.constant(name)
        if values is None:
            raise ValueError(f"the constant {name!r} of this model cannot be read")
        return values

    def _add(self, key: Any, name: str, values: np.ndarray) -> str:
        if key not in self._made:
            self._made[key] = self.graph.fresh_name(name)
            self.added[self._made[key]] = numpy_helper.from_array(np.ascontiguousarray(values), self._made[key])
        return self._made[key]


def _kind(gelu: Gelu | None) -> int:
    return gelu.kind if gelu else 0


def _range(prefix: str, quantized: QuantizedInput) -> dict[str, float | int]:
    """The attributes that say how a value is quantized."""
    numbers: dict[str, float | int] = {"scale": quantized.scale, "zero_point": quantized.zero_point}
    numbers |= {"lowest": quantized.lowest, "highest": quantized.highest}
    return {f"{prefix}_{key}": value for key, value in numbers.items()}
