"""Attention is found in every form that exporters write, and only where it is attention over heads of one width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from qdq_graphs import GraphBuilder
from rewriting import rewritten

from sparse_accel.runtime.rewrite import Rewrite, rewrite

ROWS, COLUMNS = [0, 2, 1, 3], [0, 2, 3, 1]
HEADS, SIZE = 3, 4
WIDTH = HEADS * SIZE


class Parts:
    """What one test changes of the usual form; each part is a function from the builder and its inputs to a value."""

    def __init__(self, **changed: Any) -> None:
        self.q = self.k = self.v = lambda builder, x: x
        self.cut_q = lambda builder, x: builder.split(x, HEADS, SIZE, ROWS)
        self.cut_k = lambda builder, x: builder.split(x, HEADS, SIZE, COLUMNS)
        self.cut_v = lambda builder, x: builder.split(x, HEADS, SIZE, ROWS)
        self.scores = lambda builder, x: builder.op("Mul", x, builder.constant(0.5))
        self.softmax = lambda builder, x: builder.op("Softmax", x, axis=-1)
        self.weights = lambda builder, x: x
        self.joined = lambda builder, x: builder.join(x)
        for name, function in changed.items():
            setattr(self, name, function)


def attention(parts: Parts, inputs: tuple[Any, ...] = ("batch", "tokens", WIDTH), **settings: Any) -> onnx.ModelProto:
    """A model with attention over three Linears; settings are of the quantizers of q, k and v."""
    builder = GraphBuilder()
    x = builder.input("x", list(inputs))
    builder.input("mask", ["batch", 1, 1, "tokens"])
    linears = [builder.linear(name, x, WIDTH, WIDTH, **settings.get(name, {})) for name in ("query", "key", "value")]
    q, k, v = (getattr(parts, name)(builder, linear) for name, linear in zip("qkv", linears, strict=True))
    scores = builder.op("MatMul", parts.cut_q(builder, q), parts.cut_k(builder, k))
    mixing = parts.weights(builder, parts.softmax(builder, parts.scores(builder, scores)))
    return builder.model(parts.joined(builder, builder.op("MatMul", mixing, parts.cut_v(builder, v))))


def attributes(found: Rewrite, operator: str = "Attention") -> dict[str, Any]:
    node = next(node for node in found.model.graph.node if node.op_type == operator)
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def scaled(kind: str, value: float) -> Callable[[GraphBuilder, str], str]:
    return lambda builder, x: builder.op(kind, x, builder.constant(value))


def then(*steps: Callable[[GraphBuilder, str], str]) -> Callable[[GraphBuilder, str], str]:
    def make(builder: GraphBuilder, x: str) -> str:
        for step in steps:
            x = step(builder, x)
        return x

    return make


def masked(builder: GraphBuilder, x: str) -> str:
    return builder.op("Add", x, "mask")


def same(builder: GraphBuilder, x: str) -> str:
    return x


def cut(*orders: list[int], shape: tuple[int, ...] = (0, 0, HEADS, SIZE), scale: float = 0.0) -> Any:
    """Reshape to heads; scale, if there is one; transposes."""

    def make(builder: GraphBuilder, x: str) -> str:
        x = builder.op("Reshape", x, builder.constant(np.array(shape)))
        x = scaled("Mul", scale)(builder, x) if scale else x
        for order in orders:
            x = builder.op("Transpose", x, perm=order)
        return x

    return make


FORMS = {
    "the usual": (Parts(), 0.5),
    "divided": (Parts(scores=scaled("Div", 2.0)), 0.5),
    "constant first": (Parts(scores=lambda b, x: b.op("Mul", b.constant(0.25), x)), 0.25),
    "not scaled": (Parts(scores=same), 1.0),
    "masked": (Parts(scores=then(scaled("Mul", 0.5), masked)), 0.5),
    "mask first": (Parts(scores=then(scaled("Mul", 0.5), lambda b, x: b.op("Add", "mask", x))), 0.5),
    "q scaled before it is cut": (Parts(q=scaled("Div", 2.0), scores=masked), None),
    "q scaled after": (Parts(cut_q=cut(ROWS, scale=0.5), scores=masked), 0.5),
    "q and k scaled": (Parts(cut_q=cut(ROWS, scale=0.6), cut_k=cut(COLUMNS, scale=0.5), scores=masked), 0.3),
    "k scaled last": (Parts(cut_k=then(cut(COLUMNS), scaled("Mul", 0.5)), scores=same), 0.5),
    "k transposed twice": (Parts(cut_k=cut(ROWS, [0, 1, 3, 2])), 0.5),
    "v transposed there and back": (Parts(cut_v=cut(ROWS, [0, 1, 3, 2], [0, 1, 3, 2])), 0.5),
    "heads of any number": (Parts(cut_q=cut(ROWS, shape=(0, 0, -1, SIZE))), 0.5),
    "size of any number": (Parts(cut_v=cut(ROWS, shape=(0, 0, HEADS, -1))), 0.5),
    "last axis by number": (Parts(softmax=lambda b, x: b.op("Softmax", x, axis=3)), 0.5),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_attention(form: str) -> None:
    parts, scale = FORMS[form]
    merged = scale is not None
    found = rewritten(attention(parts), ["Linear", "Attention"] if merged else ["Linear"] * 3 + ["Attention"])
    values = attributes(found)
    assert (values["heads"], values["head_size"]) == (HEADS, SIZE)
    assert values["scale"] == pytest.approx(scale or 1.0)
    assert [values[f"{name}_offset"] for name in "qkv"] == ([0, WIDTH, 2 * WIDTH] if merged else [0, 0, 0])
    assert not {"Softmax", "Reshape", "Transpose"} & {node.op_type for node in found.model.graph.node}


def test_the_linears_of_q_k_and_v_are_one() -> None:
    settings: dict[str, Any] = {"query": {"per_column": True}, "key": {"bias": False}}
    found = rewritten(attention(Parts(), **settings), ["Linear", "Attention"])
    assert found.operators[0].layers == ("query", "key", "value")
    weights = found.operators[0].weights
    assert weights == ("query.weight_quantized", "key.weight_quantized", "value.weight_quantized")
    stored = {tensor.name: list(tensor.dims) for tensor in found.model.graph.initializer}
    (linear,) = (node for node in found.model.graph.node if node.op_type == "Linear")
    assert [stored[name] for name in linear.input[1:]] == [[WIDTH, 3 * WIDTH], [3 * WIDTH], [3 * WIDTH]]
    assert not set(weights) & set(stored)


@pytest.mark.parametrize("differing", [{"scale": 0.03}, {"zero_point": 121}, {"bounds": (-1.0, 1.0)}], ids=str)
def test_inputs_that_are_quantized_differently_stay_apart(differing: dict[str, Any]) -> None:
    rewritten(attention(Parts(), key=differing), ["Linear", "Linear", "Linear", "Attention"])


def test_attention_without_one_of_its_linears() -> None:
    leave = frozenset({"key.weight_quantized"})
    found = rewritten(attention(Parts()), ["Linear", "Linear", "Attention"], leave)
    assert [each.layer for each in found.kept] == ["key"]


def test_layers_that_share_query_key_and_value_share_what_is_made_of_them() -> None:
    model = attention(Parts())
    second = onnx.ModelProto()
    second.CopyFrom(model)
    constants = {tensor.name for tensor in model.graph.initializer} | {"mask"}
    between = model.graph.output[0].name
    for node in second.graph.node:
        node.name += "'"
        for names in (node.input, node.output):
            names[:] = [name if name in constants else between if name == "x" else f"{name}'" for name in names]
    model.graph.node.extend(second.graph.node)
    model.graph.output[0].name += "'"
    found = rewritten(model, ["Linear", "Attention"] * 2)
    matrices = [tensor for tensor in found.model.graph.initializer if tensor.data_type == TensorProto.INT8]
    assert [list(tensor.dims) for tensor in matrices] == [[WIDTH, 3 * WIDTH]]


def guarded(builder: GraphBuilder, x: str) -> str:
    """What PyTorch's fused attention is exported with, for rows that are masked completely."""
    return builder.op("Where", builder.op("IsNaN", x), builder.constant(0.0), x)


def a_mask_for_each_head(builder: GraphBuilder, x: str) -> str:
    values = np.random.default_rng(0).normal(size=(1, HEADS, 1, 5))
    return builder.op("Add", x, builder.constant(values))


OTHERS = {
    "another softmax": Parts(softmax=lambda b, x: b.op("Softmax", x, axis=2)),
    "guards": Parts(weights=guarded),
    "dropout of scores": Parts(weights=scaled("Mul", 0.9)),
    "a mask for each head": Parts(scores=a_mask_for_each_head),
    "a mask of two axes": Parts(scores=lambda b, x: b.op("Add", x, b.constant(np.ones((5, 5), np.float32)))),
    "scores that are scaled after the mask": Parts(scores=then(masked, scaled("Mul", 0.5))),
    "scores divided by a vector": Parts(scores=lambda b, x: b.op("Div", x, b.constant(np.ones(5, np.float32)))),
    "a constant divided by scores": Parts(scores=lambda b, x: b.op("Div", b.constant(2.0), x)),
    "v scaled": Parts(cut_v=cut(ROWS, scale=0.5)),
    "the result is not joined": Parts(joined=same),
    "joined in another order": Parts(joined=cut([0, 2, 3, 1], shape=(0, 0, 0, 0))),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_attention_stays(what: str) -> None:
    found = rewritten(attention(OTHERS[what]), ["Linear"] * 3)
    assert "Softmax" in [node.op_type for node in found.model.graph.node]


@pytest.mark.parametrize("part", ["cut_q", "cut_k", "cut_v", "scores", "softmax"])
def test_a_part_that_is_read_elsewhere_stays(part: str) -> None:
    usual = Parts()
    found = {}

    def remembered(builder: GraphBuilder, x: str) -> str:
        found[part] = getattr(usual, part)(builder, x)
        return found[part]

    model = attention(Parts(**{part: remembered}))
    model.graph.node.append(helper.make_node("Neg", [found[part]], ["elsewhere"]))
    model.graph.output.append(helper.make_tensor_value_info("elsewhere", TensorProto.FLOAT, None))
    assert [each.operator for each in rewrite(model).operators] == ["Linear"] * 3


def test_axes_that_change_places_are_no_attention() -> None:
    """[tokens, batch, width] as [batch, tokens, ...]: as many numbers, but another attention."""
    model = attention(Parts(), ("tokens", "batch", WIDTH))
    model.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"]))
    lengths = [helper.make_node("Shape", ["ids"], ["lengths"])]
    rest = helper.make_tensor("rest", TensorProto.INT64, [2], [HEADS, SIZE])
    model.graph.initializer.append(rest)
    lengths.append(helper.make_node("Concat", ["lengths", "rest"], ["shape"], axis=0))
    for node in reversed(lengths):
        model.graph.node.insert(0, node)
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[0].startswith("Add"):
            node.input[1] = "shape"
    assert [each.operator for each in rewrite(model).operators] == ["Linear"] * 3


def test_rows_that_were_one_matrix_are_no_attention() -> None:
    """[batch * tokens, width]: the operator would not know where a row ends."""
    parts = {f"cut_{name}": cut(COLUMNS if name == "k" else ROWS, shape=(2, 5, HEADS, SIZE)) for name in "qkv"}
    model = attention(Parts(**parts), (10, WIDTH))
    found = rewritten(model, ["Linear"] * 3)
    assert "Softmax" in [node.op_type for node in found.model.graph.node]


def test_a_batch_in_one_row_is_no_attention() -> None:
    """[1, batch * tokens, width]: its only row is cut into as many as the ids have."""
    builder = GraphBuilder()
    ids = builder.input("ids", ["batch", "tokens"], TensorProto.INT64)
    table = builder.constant(np.ones((9, WIDTH), np.float32))
    rows = builder.op("Reshape", builder.op("Gather", table, ids), builder.constant(np.array([1, -1, WIDTH])))
    lengths = builder.op("Concat", builder.op("Shape", ids), builder.constant(np.array([HEADS, SIZE])), axis=0)
    q, k, v = (
        builder.op("Transpose", builder.op("Reshape", builder.linear(name, rows, WIDTH, WIDTH), lengths), perm=order)
        for name, order in (("query", ROWS), ("key", COLUMNS), ("value", ROWS))
    )
    mixed = builder.op("MatMul", builder.op("Softmax", builder.op("MatMul", q, k), axis=-1), v)
    back = builder.op("Transpose", mixed, perm=ROWS)
    y = builder.op("Reshape", back, builder.constant(np.array([1, -1, WIDTH])))
    assert "Attention" not in [each.operator for each in rewrite(builder.model(y)).operators]


def test_tokens_that_become_one_are_no_attention() -> None:
    """[batch, tokens, width] as [batch, tokens / 2, heads, 2 size]: the heads of two tokens side by side."""
    parts = {f"cut_{name}": cut(COLUMNS if name == "k" else ROWS, shape=(0, -1, HEADS, 2 * SIZE)) for name in "qkv"}
    assert [each.operator for each in rewrite(attention(Parts(**parts))).operators] == ["Linear"] * 3
