"""Each instruction set that this CPU has computes the same: integers bit by bit, floats to the last bits but few."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_models import (
    ISAS,
    LIBRARY,
    in_form,
    layer_norm,
    linear,
    one_operator,
    quantization,
    quantized,
    run,
    sparse_weight,
    sums,
)
from kernel_reference import run_plain
from onnx import TensorProto, helper, numpy_helper
from scipy.special import erfc

Array = np.ndarray
SIZES = st.one_of(
    st.sampled_from([1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128]), st.integers(1, 200)
)
FORMS = ("int8", "packed")
every_isa = pytest.mark.parametrize("isa", ISAS)
every_form = pytest.mark.parametrize("form", FORMS)


def floats(random: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    return (random.normal(size=shape) * scale).astype(np.float32)


# --- sums -----------------------------------------------------------------------------------------------------------


@settings(max_examples=400)
@given(
    columns=SIZES,
    rows=SIZES,
    density=st.sampled_from([0.0, 0.02, 0.1, 0.2, 0.35, 0.5, 1.0]),
    pattern=st.sampled_from(["any", "blocks", "one row"]),
    extremes=st.booleans(),
    count=st.integers(0, 40),
    zero_point=st.sampled_from([0, 1, 127, 128, 255]),
    largest=st.booleans(),
    seed=st.integers(0, 99),
)
@example(200, 64, 0.2, "any", True, 16, 0, True, 0)  # neighbours of 255 * -128 do not fit into 16 bits
@example(200, 64, 1.0, "any", True, 9, 0, True, 0)
@example(64, 200, 0.1, "one row", True, 1, 255, True, 0)
def test_sums_are_exact(
    columns: int,
    rows: int,
    density: float,
    pattern: str,
    extremes: bool,
    count: int,
    zero_point: int,
    largest: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    weight = sparse_weight(random, columns, rows, density, pattern=pattern, extremes=extremes)
    x = np.full((count, columns), 255, np.uint8) if largest else random.integers(0, 256, (count, columns), np.uint8)
    expected = (x.astype(np.int64) - zero_point) @ weight.astype(np.int64)
    for isa in ISAS:
        np.testing.assert_array_equal(sums(isa, weight, x, zero_point), expected, err_msg=isa)


@settings(max_examples=40)
@given(inputs=SIZES, units=SIZES, outputs=SIZES, density=st.sampled_from([0.02, 0.1, 0.2]), seed=st.integers(0, 99))
def test_a_matrix_reads_the_results_of_an_ordered_one(
    inputs: int, units: int, outputs: int, density: float, seed: int
) -> None:
    """As in a feed-forward block. Rows that fill up a group may hold anything."""
    random = np.random.default_rng(seed)
    first = sparse_weight(random, inputs, units, density)
    second = sparse_weight(random, units, outputs, density, extremes=True)
    x = random.integers(0, 256, (3, inputs), np.uint8)
    hidden = random.integers(0, 256, (3, units), np.uint8)
    for isa in ISAS:
        packed = LIBRARY.pack(isa, first, ordered=True)
        if packed is None:
            continue
        assert sorted(packed.order) == list(range(len(packed.order))) and len(packed.order) >= units
        expected = x.astype(np.int64) @ first.astype(np.int64)
        np.testing.assert_array_equal(LIBRARY.sums(isa, packed, x, units), expected, err_msg=isa)
        partner = LIBRARY.pack(isa, second, input_order=packed.order)
        if partner is None:
            continue
        filled = np.full((3, len(packed.order)), 255, np.uint8)
        filled[:, :units] = hidden
        found = LIBRARY.sums(isa, partner, np.ascontiguousarray(filled[:, packed.order]), outputs, 7)
        np.testing.assert_array_equal(found, (hidden.astype(np.int64) - 7) @ second.astype(np.int64), err_msg=isa)


@every_isa
def test_the_largest_sum(isa: str) -> None:
    """65,536 inputs are the most for which 32 bits suffice."""
    weight = np.zeros((65536, 3), np.int8)
    weight[:, 1] = -128
    weight[::7, 2] = 127
    x = np.full((2, 65536), 255, np.uint8)
    found = sums(isa, weight, x)
    np.testing.assert_array_equal(found, (x.astype(np.int64) @ weight.astype(np.int64)).astype(found.dtype))


@every_isa
def test_sums_are_those_of_onnxruntime(isa: str) -> None:
    """Weights of 7 bits: with others, onnxruntime itself overflows on CPUs without VNNI."""
    random = np.random.default_rng(0)
    weight = (sparse_weight(random, 300, 70, 0.2) // 2).astype(np.int8)
    x = random.integers(0, 256, (20, 300), np.uint8)
    expected = of_onnxruntime("MatMulInteger", TensorProto.INT32, x, weight, np.array(77, np.uint8))
    np.testing.assert_array_equal(sums(isa, weight, x, 77), expected)


def of_onnxruntime(operator: str, kind: int, x: Array, *constants: Array) -> Array:
    """What its own operator makes of x."""
    names = [f"constant_{number}" for number in range(len(constants))]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *names], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), None)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for value, name in zip(constants, names, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return run_plain(model, {"x": x})[0]


# --- from float to integer --------------------------------------------------------------------------------------------


def hard_numbers(scale: float) -> Array:
    """Around all ties, far outside, and no numbers at all."""
    ties = (np.arange(-300, 300) + 0.5).astype(np.float32) * np.float32(scale)
    around = [ties]
    for direction in (np.float32(-np.inf), np.float32(np.inf)):
        step = ties
        for _ in range(3):
            step = np.nextafter(step, direction)
            around.append(step)
    special = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38, np.inf, -np.inf, np.nan], np.float32)
    anywhere = np.random.default_rng(0).uniform(-300, 300, 2000) * scale
    return np.concatenate([*around, special, anywhere.astype(np.float32)])


@every_isa
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.0078125, 0.037215468, 1 / 3, 1.9999999, 1e-6, 3000.0, 1e-29, 1e29])
def test_integers_are_those_of_onnxruntime(isa: str, scale: float) -> None:
    x = hard_numbers(scale)
    x = np.concatenate([x, np.zeros(-len(x) % 16, np.float32)]).reshape(-1, 16)
    x[-1, 3] = np.nan
    for zero_point, (lowest, highest) in itertools.product((0, 128, 255), ((0, 255), (0, 127), (64, 191))):
        scale_and_zero = np.array(scale, np.float32), np.array(zero_point, np.uint8)
        integers = of_onnxruntime("QuantizeLinear", TensorProto.UINT8, x, *scale_and_zero)
        expected = np.clip(integers, lowest, highest).astype(np.int64)
        # y of the identity is the integers' distance from the zero point.
        numbers = quantization("x", scale, zero_point, lowest, highest)
        one, none = np.full(1, 1 / scale, np.float32), np.zeros(16, np.float32)
        found = run(isa, one_operator("Linear", ["x", np.eye(16, dtype=np.int8), one, none], **numbers), x=x)
        np.testing.assert_array_equal(np.rint(found).astype(np.int64) + zero_point, expected)
        np.testing.assert_array_equal(quantized(x, "x", numbers) + zero_point, expected)  # and what tests expect


# --- Linear ---------------------------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("kind", [1, 2])
def test_gelu(isa: str, kind: int) -> None:
    """Of the bias, with a weight that is zero."""
    random = np.random.default_rng(0)
    far = [1e4, -1e4, 1e30, -1e30, 0.0, -0.0, 3.92 * 2**0.5, -3.92 * 2**0.5]
    x = np.concatenate([np.linspace(-9, 9, 30011), random.normal(size=5000) * 100, far]).astype(np.float32)
    numbers = quantization("x", 0.1)
    weight = in_form(isa, "packed", np.zeros((1, len(x)), np.int8))
    model = one_operator("Linear", ["x", *weight, np.ones(1, np.float32), x], activation=kind, **numbers)
    found = run(isa, model, x=np.ones((2, 1), np.float32))
    double = x.astype(np.float64)
    if kind == 1:
        expected = 0.5 * double * erfc(-double / np.sqrt(2))
    else:
        with np.errstate(over="ignore"):
            expected = double / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (double + 0.044715 * double**3)))
    assert np.abs((found - expected) / np.maximum(1, np.abs(expected))).max() < 1e-6
    np.testing.assert_array_equal(found[0], found[1])


@every_isa
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_what_is_no_number_stays_none(isa: str, kind: int) -> None:
    bias = np.full(40, np.nan, np.float32)
    weight = np.zeros((3, 40), np.int8)
    inputs = ["x", weight, np.ones(1, np.float32), bias]
    model = one_operator("Linear", inputs, activation=kind, **quantization("x", 0.1))
    assert np.isnan(run(isa, model, x=np.ones((1, 3), np.float32))).all()


LINEARS = [  # leading axes, K, N, density
    ((), 33, 17, 0.08),
    ((1,), 1, 1, 1.0),
    ((7,), 64, 64, 0.1),
    ((0,), 16, 16, 0.2),
    ((2, 0), 16, 8, 0.05),
    ((3, 5), 100, 130, 0.15),
    ((2, 1, 3, 2), 31, 15, 0.1),
    ((130,), 65, 63, 0.1),
    ((29,), 48, 20, 1.0),
    ((4,), 20, 200, 0.0),
]


def linear_case(
    leading: tuple[int, ...], columns: int, rows: int, density: float
) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
    random = np.random.default_rng(columns)
    weight = sparse_weight(random, columns, rows, density)
    scale = np.abs(floats(random, rows if columns % 2 else 1, scale=0.01)) + 1e-3
    return floats(random, *leading, columns), weight, scale, floats(random, rows), quantization("x", 0.0213, 119)


@every_isa
@every_form
@pytest.mark.parametrize("case", LINEARS, ids=str)
def test_linear(isa: str, form: str, case: tuple[tuple[int, ...], int, int, float]) -> None:
    x, weight, scale, bias, numbers = linear_case(*case)
    model = one_operator("Linear", ["x", *in_form(isa, form, weight), scale, bias], **numbers)
    found = run(isa, model, x=x)
    assert found.shape == (*case[0], case[2]) and found.dtype == np.float32
    np.testing.assert_allclose(found, linear(x, weight, scale, bias, "x", numbers), atol=2e-6, rtol=1e-6)


@every_isa
@every_form
@pytest.mark.parametrize("case", LINEARS, ids=str)
def test_linear_add_norm(isa: str, form: str, case: tuple[tuple[int, ...], int, int, float]) -> None:
    x, weight, scale, bias, numbers = linear_case(*case)
    random = np.random.default_rng(1)
    residual, gamma, beta = floats(random, *case[0], case[2]), floats(random, case[2]), floats(random, case[2])
    inputs = ["x", *in_form(isa, form, weight), scale, bias, "residual", gamma, beta]
    model = one_operator("LinearAddNorm", inputs, epsilon=1e-3, **numbers)
    found = run(isa, model, x=x, residual=residual)
    expected = layer_norm(linear(x, weight, scale, bias, "x", numbers) + residual, gamma, beta, 1e-3)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)


# --- FeedForward ----------------------------------------------------------------------------------------------------


@every_isa
@every_form
@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize(
    ("columns", "units", "densities"),
    [
        (1, 1, (1, 1)),
        (24, 100, (0.1, 0.1)),
        (65, 130, (0.05, 0.1)),
        (40, 80, (1, 0.2)),
        (40, 80, (0.2, 1)),
        (16, 64, (1, 1)),
    ],
)
def test_feed_forward(isa: str, form: str, kind: int, columns: int, units: int, densities: tuple[float, float]) -> None:
    random = np.random.default_rng(units)
    weights = [
        sparse_weight(random, columns, units, densities[0]),
        sparse_weight(random, units, columns, densities[1]),
    ]
    scales = [np.abs(floats(random, count, scale=0.01)) + 1e-3 for count in (units, 1)]
    biases = [floats(random, units), floats(random, columns)]
    gamma, beta = floats(random, columns), floats(random, columns)
    numbers = quantization("x", 0.0213, 119) | quantization("hidden", 0.017, 12, 0, 127)
    first, second = in_form(isa, form, *weights)
    inputs = ["x", first, scales[0], biases[0], second, scales[1], biases[1], gamma, beta]
    model = one_operator("FeedForward", inputs, activation=kind, epsilon=1e-5, **numbers)
    # Hidden units as Linear gives them: a tie must be the same tie.
    of_x = quantization("x", 0.0213, 119)
    up = one_operator("Linear", ["x", weights[0], scales[0], biases[0]], activation=kind, **of_x)
    for leading in ((), (0,), (1,), (2, 17)):
        x = floats(random, *leading, columns)
        found = run(isa, model, x=x)
        hidden = run(isa, up, x=x)
        expected = layer_norm(
            linear(hidden, weights[1], scales[1], biases[1], "hidden", numbers) + x, gamma, beta, 1e-5
        )
        assert found.shape == x.shape
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-5)


# --- Lookup -----------------------------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("rounded", [False, True])
def test_lookup(isa: str, kind: type[np.integer], rounded: bool) -> None:
    """Bit by bit what onnxruntime's Gather, DequantizeLinear, QuantizeLinear and DequantizeLinear give."""
    random = np.random.default_rng(0)
    lowest = np.iinfo(kind).min
    for entries, size, shape in [(1, 1, ()), (7, 33, (2, 0)), (50, 16, (3, 70)), (300, 100, (2, 1, 5)), (5, 0, (4,))]:
        table = random.integers(lowest, lowest + 256, (entries, size)).astype(kind)
        ids = random.integers(-entries, entries, shape)
        scale, zero_point = np.float32(0.0137), lowest + 100
        numbers = quantization("y", 0.0219, 77, 0, 127) if rounded else {}
        model = one_operator(
            "Lookup", ["ids", table], {"ids": TensorProto.INT64}, scale=0.0137, zero_point=zero_point, **numbers
        )
        expected = (table[ids].astype(np.int32) - zero_point).astype(np.float32) * scale
        if rounded:
            expected = quantized(expected, "y", numbers).astype(np.float32) * np.float32(0.0219)
        np.testing.assert_array_equal(run(isa, model, ids=ids), expected)
