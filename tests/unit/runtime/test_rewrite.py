"""Linears, norms and feed-forward blocks become operators; all else stays as it is, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from qdq_graphs import GraphBuilder
from rewriting import built, rewritten

from sparse_accel.runtime.rewrite import rewrite

# --- Linears ----------------------------------------------------------------------------------------------------------


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    scale=st.floats(0.001, 0.2),
    zero_point=st.integers(0, 255),
    axes=st.sampled_from([("batch",), ("batch", "tokens"), ("batch", "tokens", "more")]),
    bias=st.booleans(),
    per_column=st.booleans(),
    bounds=st.one_of(st.just(()), st.tuples(st.floats(-2, -0.1), st.floats(0.1, 2))),
    signed=st.booleans(),
)
def test_linears_of_all_sizes_and_scales(
    rows: int, columns: int, axes: tuple[str, ...], bias: bool, per_column: bool, **quantized: Any
) -> None:
    builder, x = built(rows, axes)
    y = builder.linear("layer", x, rows, columns, bias=bias, per_column=per_column, **quantized)
    found = rewritten(builder.model(y), ["Linear"])
    (operator,) = found.operators
    assert (operator.layers, operator.shapes) == (("layer",), ((rows, columns),))
    assert operator.weights == ("layer.weight_quantized",)
    assert found.kept == ()
    nodes = [node.op_type for node in found.model.graph.node]
    assert nodes == ["Linear"]
    stored = {tensor.name: tensor for tensor in found.model.graph.initializer}
    assert list(stored["layer.weight_quantized"].dims) == [rows, columns]
    assert not found.model.graph.value_info


def test_a_matrix_that_the_exporter_stacks() -> None:
    builder, x = built(8, ("batch",))
    hidden = builder.matrix_linear("one", x, 8, 6)
    found = rewritten(builder.model(builder.matrix_linear("two", hidden, 6, 2, bias=False)), ["Linear", "Linear"])
    assert [node.op_type for node in found.model.graph.node] == ["Linear", "Linear"]


def test_a_seven_bit_input_keeps_its_bounds() -> None:
    """Clip's bounds become integers, also where they are not on the grid."""
    builder, x = built()
    y = builder.linear("layer", x, 8, 4, scale=0.01, zero_point=60, bounds=(-0.604, 0.666))
    (node,) = rewritten(builder.model(y), ["Linear"]).model.graph.node
    values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    assert (values["x_lowest"], values["x_highest"], values["x_zero_point"]) == (0, 127, 60)
    assert node.input[0] == "x"


def test_a_clip_whose_bounds_cross_stays() -> None:
    builder, x = built()
    y = builder.linear("layer", x, 8, 4, bounds=(0.5, -0.5))
    found = rewritten(builder.model(y), ["Linear"])
    assert [node.op_type for node in found.model.graph.node] == ["Clip", "Linear"]


def test_what_else_reads_a_quantized_input_still_gets_it() -> None:
    builder, x = built()
    inputs = builder.quantize(x)
    products = [builder.op("MatMul", inputs, builder.weight(name, 8, 16)) for name in ("one", "two")]
    y = builder.op("Add", builder.op("ReduceSum", builder.op("Sub", *products)), inputs)
    found = rewritten(builder.model(y), ["Linear", "Linear"])
    assert [node.op_type for node in found.model.graph.node].count("QuantizeLinear") == 1


@pytest.mark.parametrize(
    "count, width, taken", [(2, 8, 0), (1, 8, 1), (3, 16, 3), (4, 16, 0), (4, 128, 0), (4, 129, 4)]
)
def test_many_small_products_of_one_input_are_left(count: int, width: int, taken: int) -> None:
    """onnxruntime quantizes their input once."""
    builder, x = built()
    inputs = builder.quantize(x)
    products = [builder.op("MatMul", inputs, builder.weight(f"layer_{at}", 8, width)) for at in range(count)]
    y = products[0] if count == 1 else builder.op("Concat", *products, axis=-1)
    found = rewritten(builder.model(y), ["Linear"] * taken)
    assert all("small products with one quantized input" in each.reason for each in found.kept)
    assert len(found.kept) == count - taken


@pytest.mark.parametrize("zeros, taken", [(0.5, 0), (0.9, 1)])
def test_a_result_that_is_quantized_needs_zeros(zeros: float, taken: int) -> None:
    """onnxruntime then computes in integers throughout."""
    builder, x = built()
    y = builder.quantize(builder.op("MatMul", builder.quantize(x), builder.weight("layer", 8, 64)))
    random = np.random.default_rng(0)
    weight = (random.integers(1, 128, (8, 64)) * (random.random((8, 64)) >= zeros)).astype(np.int8)
    model = builder.model(builder.op("Neg", y), **{"layer.weight_quantized": weight})
    found = rewrite(model)
    assert len(found.operators) == taken and len(found.kept) == 1 - taken
    assert all(each.reason == "has a result that is quantized, and few zeros" for each in found.kept)


def test_an_output_in_the_middle_stays() -> None:
    builder, x = built()
    product = builder.linear("layer", x, 8, 8, bias=False)
    biased = builder.add_bias("layer", product, 8)
    found = rewritten(builder.model(product, biased), ["Linear"])
    assert [node.op_type for node in found.model.graph.node] == ["Linear", "Add"]


# How to spoil a Linear: new initializers, and what the reason says.
SPOILED: dict[str, tuple[dict[str, Any], str]] = {
    "a zero point": ({"w.weight_zero_point": np.int8(1)}, "zero point is not 0"),
    "a uint8 weight": (
        {"w.weight_quantized": np.full((8, 4), 128, np.uint8), "w.weight_zero_point": np.uint8(128)},
        "of type uint8, not int8",
    ),
    "a scale of 0": ({"w.weight_scale": np.float32(0)}, "not a positive number"),
    "a scale of NaN": ({"w.weight_scale": np.float32(np.nan)}, "not a positive number"),
    "a negative scale": ({"w.weight_scale": np.float32(-1)}, "not a positive number"),
    "an infinite scale": ({"w.weight_scale": np.float32(np.inf)}, "not a positive number"),
    "an input scale of 0": ({"constant_0": np.float32(0)}, "not a positive number"),
    "an int32 input": ({"constant_1": np.int32(0)}, "not quantized to uint8 or int8"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_linear_that_no_kernel_fits_is_kept(what: str) -> None:
    changed, reason = SPOILED[what]
    builder, x = built()
    inputs = builder.quantize(x)
    model = builder.model(builder.op("MatMul", inputs, builder.weight("w", 8, 4)), **changed)
    found = rewrite(model)
    assert found.model is model and found.operators == ()
    assert [each.layer for each in found.kept] == ["w"] and reason in found.kept[0].reason


def keep(make: Callable[[GraphBuilder, str], str]) -> str:
    """Rewrites a graph of one product and returns the reason for which it is kept."""
    builder, x = built()
    model = builder.model(make(builder, x))
    found = rewrite(model)
    assert found.operators == () and found.model is model
    return " ".join(f"{each.layer} {each.reason}" for each in found.kept)


def test_other_products_with_a_constant_are_kept() -> None:
    def float_weight(builder: GraphBuilder, x: str) -> str:
        return builder.op("MatMul", builder.quantize(x), builder.constant(np.ones((8, 4), np.float32), "w.weight"))

    def float_input(builder: GraphBuilder, x: str) -> str:
        return builder.op("MatMul", x, builder.weight("w", 8, 4))

    def scale_per_row(builder: GraphBuilder, x: str) -> str:
        numbers = [np.ones((8, 8), np.int8), np.ones(8, np.float32)]
        weight = builder.op("DequantizeLinear", *(builder.constant(each) for each in numbers), axis=0)
        return builder.op("MatMul", builder.quantize(x), weight)

    def transposed(builder: GraphBuilder, x: str) -> str:
        weight = builder.op("Transpose", builder.constant(np.ones((4, 8), np.int8), "w.weight"), perm=[1, 0])
        weight = builder.op("DequantizeLinear", weight, builder.constant(1.0))
        return builder.op("MatMul", builder.quantize(x), weight)

    def three_axes(builder: GraphBuilder, x: str) -> str:
        weight = builder.op("DequantizeLinear", builder.constant(np.ones((1, 8, 4), np.int8)), builder.constant(1.0))
        return builder.op("MatMul", builder.quantize(x), weight)

    def deep(builder: GraphBuilder, x: str) -> str:
        x = builder.op("Expand", builder.constant(1.0), builder.constant(np.array([1, 65537])))
        weight = builder.constant(np.ones((65537, 1), np.int8))
        return builder.op("MatMul", builder.quantize(x), builder.op("DequantizeLinear", weight, builder.constant(1.0)))

    def two_numbers(builder: GraphBuilder, x: str) -> str:
        quantized = builder.op("QuantizeLinear", x, builder.constant(0.1), builder.constant(np.uint8(5)))
        inputs = builder.op("DequantizeLinear", quantized, builder.constant(0.2), builder.constant(np.uint8(5)))
        return builder.op("MatMul", inputs, builder.weight("w", 8, 4))

    def integers(builder: GraphBuilder, x: str) -> str:
        quantized = builder.op("QuantizeLinear", x, builder.constant(0.1), builder.constant(np.uint8(5)))
        product = builder.op("MatMulInteger", quantized, builder.constant(np.ones((8, 4), np.int8), "w"))
        return builder.op("Cast", product, to=TensorProto.FLOAT)

    assert keep(float_weight) == "w has a weight that is not quantized"
    assert "w has an input that is not quantized" in keep(float_input)
    assert "not one per column" in keep(scale_per_row)
    assert "transposed or computed" in keep(transposed)
    assert "not a matrix" in keep(three_axes)
    assert "more than 65536" in keep(deep)
    assert "different numbers" in keep(two_numbers)
    assert "MatMulInteger" in keep(integers)


def test_a_weight_that_an_input_can_replace_is_none() -> None:
    builder, x = built()
    model = builder.model(builder.linear("layer", x, 8, 4))
    model.graph.input.append(helper.make_tensor_value_info("layer.weight_quantized", TensorProto.INT8, [8, 4]))
    assert rewrite(model).operators == ()


def test_a_weight_outside_of_the_file_is_left_alone() -> None:
    """Its numbers are elsewhere; its scales, too, would be needed here."""
    builder, x = built()
    model = builder.model(builder.linear("layer", x, 8, 4))
    for tensor in model.graph.initializer:
        if tensor.name == "layer.weight_scale":
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
    assert rewrite(model).operators == ()


# --- residual, norm, feed-forward -------------------------------------------------------------------------------------


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("settings", [{}, {"epsilon": 1e-12}, {"axis": -1}, {"axis": 2}], ids=str)
def test_residual_and_norm(settings: dict[str, Any], swapped: bool) -> None:
    builder, x = built()
    terms = [builder.linear("layer", x, 8, 8), builder.op("Neg", x)]
    total = builder.op("Add", *terms[:: -1 if swapped else 1])
    found = rewritten(builder.model(builder.norm("norm", total, 8, **settings)), ["LinearAddNorm"])
    assert [node.op_type for node in found.model.graph.node] == ["Neg", "LinearAddNorm"]


def test_a_norm_without_bias() -> None:
    builder, x = built()
    total = builder.op("Add", builder.linear("layer", x, 8, 8), x)
    gamma = builder.constant(np.linspace(0.5, 1.5, 8))
    rewritten(builder.model(builder.op("LayerNormalization", total, gamma)), ["LinearAddNorm"])


def test_sums_and_norms_that_are_not_one_operator() -> None:
    builder, x = built()
    linear = builder.linear("layer", x, 8, 8)
    # A residual of another shape
    for shape in ([8], [1, 1, 8], [1, 5, 8]):
        total = builder.op("Add", linear, builder.constant(np.ones(shape, np.float32)))
        rewritten(builder.model(builder.norm(f"norm {shape}", total, 8)), ["Linear"])
    # Linear + itself; a sum that is an output; a norm over two axes; a mean that is read
    rewritten(builder.model(builder.norm("twice", builder.op("Add", linear, linear), 8)), ["Linear"])
    total = builder.op("Add", linear, x)
    rewritten(builder.model(builder.norm("norm", total, 8), total), ["Linear"])
    fixed = GraphBuilder()
    y = fixed.linear("layer", fixed.input("x", [2, 3, 8]), 8, 8)
    numbers = [fixed.constant(np.ones((3, 8), np.float32)) for _ in range(2)]
    y = fixed.op("LayerNormalization", fixed.op("Add", y, "x"), *numbers, axis=1)
    rewritten(fixed.model(y), ["Linear"])
    builder, x = built()
    y = builder.norm("norm", builder.op("Add", builder.linear("layer", x, 8, 8), x), 8)
    builder.nodes[-1].output.append("mean")
    rewritten(builder.model(y, "mean"), ["Linear"])


def test_feed_forward() -> None:
    builder, x = built()
    found = rewritten(builder.model(builder.feed_forward("block", x, 8, 20)), ["FeedForward"])
    assert [node.op_type for node in found.model.graph.node] == ["FeedForward"]
    (operator,) = found.operators
    assert operator.layers == ("block.up", "block.down") and operator.shapes == ((8, 20), (20, 8))


def test_feed_forward_of_a_matrix() -> None:
    builder, x = built(8, ("batch",))
    inner = builder.gelu(builder.matrix_linear("up", x, 8, 12))
    total = builder.op("Add", x, builder.matrix_linear("down", inner, 12, 8))
    rewritten(builder.model(builder.norm("norm", total, 8)), ["FeedForward"])


def test_a_block_whose_residual_is_another_value() -> None:
    builder, x = built()
    inner = builder.gelu(builder.linear("up", x, 8, 12))
    total = builder.op("Add", builder.linear("down", inner, 12, 8), builder.op("Neg", x))
    rewritten(builder.model(builder.norm("norm", total, 8)), ["Linear", "LinearAddNorm"])


@pytest.mark.parametrize(
    "leave, expected",
    [
        (["up"], ["LinearAddNorm"]),
        (["down"], ["Linear"]),
        (["up", "down"], []),
        (["another"], ["FeedForward"]),
    ],
    ids=str,
)
def test_what_is_to_be_left_makes_smaller_operators(leave: list[str], expected: list[str]) -> None:
    builder, x = built()
    model = builder.model(builder.feed_forward("block", x, 8, 20))
    names = frozenset(f"block.{name}.weight_quantized" for name in leave)
    found = rewritten(model, expected, names)
    stored = {tensor.name for tensor in found.model.graph.initializer}
    assert {name for name in names if "another" not in name} <= stored
    assert {each.layer for each in found.kept} == {f"block.{name}" for name in leave if name != "another"}
    kept = [node.op_type for node in found.model.graph.node].count("MatMul")
    assert kept == len(found.kept)
