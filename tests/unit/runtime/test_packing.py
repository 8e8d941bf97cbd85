"""What is packed, how often and in which order; the library is one of numpy, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from qdq_graphs import GraphBuilder

from sparse_accel.native import VARIABLE, LibraryMissing, library_path
from sparse_accel.runtime.library import PackedWeight, load_library
from sparse_accel.runtime.packing import PackedModel, TooDense, WrongSums, pack
from sparse_accel.runtime.rewrite import Rewrite, rewrite


class NumpyLibrary:
    """Packs a weight as its bytes; ordered ones have their columns backwards, and one of padding."""

    def __init__(self, *, too_dense: tuple[int, ...] = (), wrong: bool = False) -> None:
        self.too_dense, self.wrong = too_dense, wrong
        self.calls: list[tuple[tuple[int, ...], bool, bool]] = []
        self._weights: dict[int, np.ndarray] = {}

    def pack(
        self, isa: str, weight: np.ndarray, *, input_order: np.ndarray | None = None, ordered: bool = False
    ) -> PackedWeight | None:
        self.calls.append((weight.shape, input_order is not None, ordered))
        if weight.shape[1] in self.too_dense:
            return None
        rows = np.vstack([weight, np.zeros((1, weight.shape[1]), np.int8)])  # the row of padding adds nothing
        read = weight if input_order is None else rows[np.minimum(input_order, len(weight))]
        data = np.ascontiguousarray(read).view(np.uint8).reshape(-1)
        self._weights[id(data)] = read
        order = np.arange(weight.shape[1] + 1, dtype=np.int32)[:: -1 if ordered else 1]
        return PackedWeight(data, order, 0.25, True)

    def sums(self, isa: str, packed: PackedWeight, x: np.ndarray, columns: int, zero_point: int = 0) -> np.ndarray:
        found: np.ndarray = x.astype(np.int32) @ self._weights[id(packed.data)].astype(np.int32) + self.wrong
        return found


def rewritten(shared: bool = False) -> Rewrite:
    """Linear, feed-forward block (8, 20), and another Linear, of the first one's weight if `shared`."""
    builder = GraphBuilder()
    y = builder.linear("first", builder.input("x", ["batch", 8]), 8, 8)
    y = builder.feed_forward("block", builder.op("Neg", y), 8, 20)
    last = builder.op("MatMul", builder.quantize(y), "DequantizeLinear_0")
    return rewrite(builder.model(last if shared else builder.linear("last", y, 8, 16)))


def packed(library: Any, shared: bool = False) -> PackedModel:
    return pack(rewritten(shared).model, library, "any")


def test_every_weight_is_packed() -> None:
    library = NumpyLibrary()
    found = packed(library)
    # A feed-forward block's first weight may order its columns; the second one takes its rows in that order.
    assert library.calls == [
        ((8, 8), False, False),
        ((8, 20), False, True),
        ((20, 8), True, False),
        ((8, 16), False, False),
    ]
    stored = {tensor.name: tensor for tensor in found.model.graph.initializer}
    assert not [name for name, tensor in stored.items() if tensor.data_type == TensorProto.INT8]
    for name, weight in found.weights.items():
        assert stored[name].data_type == TensorProto.UINT8 and list(stored[name].dims) == [weight.size]
        assert 0.3 < weight.zeros < 0.7 and weight.density == 0.25 and weight.is_sparse
    block = next(node for node in found.model.graph.node if node.op_type == "FeedForward")
    assert [found.weights[block.input[position]].weight for position in (1, 4)] == [
        "block.up.weight_quantized",
        "block.down.weight_quantized",
    ]


def test_shared_weights_are_packed_once() -> None:
    library = NumpyLibrary()
    found = packed(library, shared=True)
    assert [shape for shape, _, _ in library.calls].count((8, 8)) == 1
    linears = [node for node in found.model.graph.node if node.op_type == "Linear"]
    assert len(linears) == 2 and linears[0].input[1] == linears[1].input[1]


def test_weights_with_too_few_zeros_are_named_with_their_operators() -> None:
    with pytest.raises(TooDense) as error:
        packed(NumpyLibrary(too_dense=(20, 16)))
    names = {weight: node for node, weight in error.value.weights}
    assert set(names) == {"block.up.weight_quantized", "last.weight_quantized"}
    operators = {each.node: each.operator for each in rewritten().operators}
    assert operators[names["block.up.weight_quantized"]] == "FeedForward"


def test_a_library_that_computes_something_else_is_seen() -> None:
    with pytest.raises(WrongSums, match=r"first\.weight_quantized"):
        packed(NumpyLibrary(wrong=True))


def test_a_graph_that_is_packed_already_is_refused() -> None:
    library = NumpyLibrary()
    with pytest.raises(ValueError, match="no int8 matrix"):
        pack(packed(library).model, library, "any")  # type: ignore[arg-type]


def test_a_library_that_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library_path().name == "libsparse_accel.so"
    missing = tmp_path / "missing.so"
    monkeypatch.setenv(VARIABLE, str(missing))
    assert library_path() == missing
    with pytest.raises(LibraryMissing, match=f"{VARIABLE} names .*missing.so, which is not there"):
        load_library()
    monkeypatch.delenv(VARIABLE)
    text = tmp_path / "text.so"
    text.write_text("no library")
    with pytest.raises(LibraryMissing, match=r"text\.so cannot be loaded"):
        load_library(text)
