"""Packing: the int8 weights of a rewritten graph become bytes in the form that the kernels of one CPU read.

A packed weight stands in the graph as uint8 [bytes], once for all operators that read it alike. The second weight of a
FeedForward takes its rows in the order in which the first one gives its columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from sparse_accel.runtime.graph import Graph, Node
from sparse_accel.runtime.library import Library, PackedWeight
from sparse_accel.runtime.rewrite import DOMAIN

# The inputs of each operator that are weights.
_WEIGHTS = {
    f"{DOMAIN}::Linear": (1,),
    f"{DOMAIN}::LinearAddNorm": (1,),
    f"{DOMAIN}::FeedForward": (1, 4),
}
_ROWS_TO_CHECK = 3


class TooDense(ValueError):
    """Weights have too few zeros for these kernels, and no dense kernel is faster on this CPU.

    Attributes:
        weights: pairs of an operator's name and an initializer that it reads.
    """

    def __init__(self, weights: frozenset[tuple[str, str]]) -> None:
        super().__init__(f"too few zeros: {', '.join(sorted({weight for _, weight in weights}))}")
        self.weights = weights


class WrongSums(ValueError):
    """The library computes other sums than numpy."""


@dataclass(frozen=True)
class PackedInitializer:
    """A packed weight of a graph.

    Attributes:
        weight: name of the int8 initializer that it was made of.
        shape: its (K, N).
        zeros: fraction of its numbers that are zero.
        size: bytes of the packed form.
        density: fraction of its numbers that are stored, zeros among them; 1.0 for the dense form.
        is_sparse: whether the kernel skips zeros.
        order: int32: the row of the int8 weight that each input is multiplied with (K and more: padding); None: the
            inputs are in the weight's own order.
    """

    weight: str
    shape: tuple[int, int]
    zeros: float
    size: int
    density: float
    is_sparse: bool
    order: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class PackedModel:
    """A model whose operators have packed weights, and these weights by the names of their initializers."""

    model: onnx.ModelProto
    weights: dict[str, PackedInitializer]


def pack(model: onnx.ModelProto, library: Library, isa: str) -> PackedModel:
    """Returns a copy of a rewritten model with packed weights; int8 weights that nothing reads any more are left out.

    The library's sums with each packed weight are compared with numpy's, of a few random rows.

    Args:
        model: from `rewrite`; it is not changed.
        isa: one of the library's instruction sets.

    Raises:
        TooDense: some operators should not have been replaced.
        WrongSums: the library is not to be used.
        ValueError: a weight is no int8 matrix of the file, or the library refused one.
    """
    graph = Graph(model)
    packer = _Packer(graph, library, isa)
    replaced = {node: [packer.with_packed_weights(node)] for node in graph.nodes if node.kind in _WEIGHTS}
    if packer.too_dense:
        raise TooDense(frozenset(packer.too_dense))
    return PackedModel(graph.assemble(replaced, packer.initializers), packer.weights)


class _Packer:
    def __init__(self, graph: Graph, library: Library, isa: str) -> None:
        self.graph, self.library, self.isa = graph, library, isa
        self.initializers: list[onnx.TensorProto] = []
        self.weights: dict[str, PackedInitializer] = {}
        self.too_dense: set[tuple[str, str]] = set()
        self._made: dict[tuple[str, ...], list[str]] = {}
        self._random = np.random.default_rng(0)

    def with_packed_weights(self, node: Node) -> onnx.NodeProto:
        """Returns a copy of an operator that reads packed weights."""
        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        positions = _WEIGHTS[node.kind]
        weights = tuple(node.input(position) for position in positions)
        names = self._made.get(weights) or self._pack_all(proto.name, weights)
        for position, name in zip(positions, names, strict=True):
            proto.input[position] = name
        return proto

    def _pack_all(self, node: str, weights: tuple[str, ...]) -> list[str]:
        """Packs one weight, or the pair of a FeedForward; returns the names of the initializers."""
        order: np.ndarray | None = None
        names = []
        for count, weight in enumerate(weights, 1):
            values = self._matrix(weight)
            ordered = count < len(weights)  # the columns of a weight with a partner may change places
            packed = self.library.pack(self.isa, values, input_order=order, ordered=ordered)
            if packed is None:
                self.too_dense.add((node, weight))
                names.append(weight)
                continue
            self._check_sums(weight, values, packed, order)
            names.append(self._add(weight, values, packed, order))
            order = packed.order if ordered else None
        self._made[weights] = names
        return names

    def _matrix(self, weight: str) -> np.ndarray:
        values = self.graph.constant(weight) if self.graph.initializer(weight) is not None else None
        if values is None or values.dtype != np.int8 or values.ndim != 2:
            raise ValueError(f"{weight!r} is no int8 matrix of this file")
        return values

    def _check_sums(self, weight: str, values: np.ndarray, packed: PackedWeight, order: np.ndarray | None) -> None:
        """Compares the sums of random activations."""
        inputs = len(values) if order is None else len(order)
        x = self._random.integers(0, 256, (_ROWS_TO_CHECK, inputs), dtype=np.uint8)
        found = self.library.sums(self.isa, packed, x, values.shape[1])
        if order is not None:
            in_order = np.zeros((len(x), max(len(values), inputs)), dtype=np.uint8)
            in_order[:, order] = x
            x = in_order[:, : len(values)]
        # float64 holds each sum exactly, and its product is the fastest that numpy has.
        if not np.array_equal(found, x.astype(np.float64) @ values.astype(np.float64)):
            raise WrongSums(f"its sums with {weight} are wrong")

    def _add(self, weight: str, values: np.ndarray, packed: PackedWeight, order: np.ndarray | None) -> str:
        name = self.graph.fresh_name(f"{weight}/packed")
        self.initializers.append(numpy_helper.from_array(packed.data, name))
        zeros = 1 - np.count_nonzero(values) / values.size
        rows, columns = values.shape
        self.weights[name] = PackedInitializer(
            weight, (rows, columns), zeros, packed.data.size, packed.density, packed.is_sparse, order
        )
        return name
