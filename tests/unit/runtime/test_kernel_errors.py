"""What does not fit the operators is an error of onnxruntime. All cases run in this process: none may crash it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_models import ISAS, LIBRARY, in_form, one_operator, quantization, run, sparse_weight
from onnx import TensorProto, helper

from sparse_accel.runtime.library import PackedWeight

Array = np.ndarray


@dataclass(frozen=True)
class Fed:
    """An input of the graph; other arrays are initializers."""

    value: Array


RANDOM = np.random.default_rng(0)
K, N, UNITS = 40, 70, 130
INPUTS = {
    "Linear": ("x", "weight", "weight_scale", "bias"),
    "LinearAddNorm": ("x", "weight", "weight_scale", "bias", "residual", "gamma", "beta"),
    "FeedForward": ("x", *(f"{name}_{i}" for i in (1, 2) for name in ("weight", "scale", "bias")), "gamma", "beta"),
    "Attention": ("q", "k", "v", "mask"),
    "Lookup": ("ids", "table"),
}


def floats(*shape: int) -> Array:
    return np.ones(shape, np.float32)


ONE_LINEAR = {
    "x": Fed(floats(2, 3, K)),
    "weight": sparse_weight(RANDOM, K, N, 0.05),
    "weight_scale": floats(1),
    "bias": floats(N),
    **quantization("x", 0.1),
}
FITTING: dict[str, dict[str, Any]] = {
    "Linear": ONE_LINEAR,
    "LinearAddNorm": {
        **ONE_LINEAR,
        "residual": Fed(floats(2, 3, N)),
        "gamma": floats(N),
        "beta": floats(N),
        "epsilon": 1e-5,
    },
    "FeedForward": {
        "x": Fed(floats(2, 3, K)),
        "weight_1": sparse_weight(RANDOM, K, UNITS, 0.05),
        "weight_2": sparse_weight(RANDOM, UNITS, K, 0.05),
        "scale_1": floats(1),
        "scale_2": floats(1),
        "bias_1": floats(UNITS),
        "bias_2": floats(K),
        "gamma": floats(K),
        "beta": floats(K),
        "activation": 1,
        "epsilon": 1e-5,
        **quantization("x", 0.1),
        **quantization("hidden", 0.1),
    },
    "Attention": {
        **{name: Fed(floats(2, 3, 8)) for name in "qkv"},
        "mask": Fed(floats(2, 1, 3, 3)),
        "heads": 2,
        "head_size": 4,
    },
    "Lookup": {
        "ids": Fed(np.array([[0, 4, -5]])),
        "table": np.ones((5, 20), np.int8),
        "scale": 0.1,
        "zero_point": -3,
        **quantization("y", 0.1),
    },
}


def attempt(isa: str, operator: str, changes: dict[str, Any]) -> Array:
    """Runs the fitting case with other inputs and attributes; None: without one."""
    values = {**FITTING[operator], **changes}
    given = [values.pop(name, None) for name in INPUTS[operator]]
    fed = {name: each.value for name, each in zip(INPUTS[operator], given, strict=True) if isinstance(each, Fed)}
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in fed.items()}
    inputs = [name if name in fed else each for name, each in zip(INPUTS[operator], given, strict=True)]
    return run(isa, one_operator(operator, inputs, kinds, **values), **fed)


@pytest.mark.parametrize("operator", FITTING)
def test_the_cases_fit_without_their_change(operator: str) -> None:
    for isa in ISAS:
        assert np.isfinite(attempt(isa, operator, {})).all()


WEIGHT, NAN, INF = ONE_LINEAR["weight"], float("nan"), float("inf")
REFUSED_BY_ONNXRUNTIME = "INVALID_GRAPH"
TABLE: list[tuple[str, dict[str, Any], str]] = [
    # The weight, its scale, its bias.
    ("Linear", {"weight": WEIGHT.astype(np.float32)}, "weight must be int8"),
    ("Linear", {"weight": WEIGHT.astype(np.int16)}, "weight must be int8"),
    ("Linear", {"weight": np.full((K, N), "a")}, "weight must be int8"),
    ("Linear", {"weight": WEIGHT.view(np.uint8)}, "weight must be int8"),
    ("Linear", {"weight": WEIGHT[0]}, "weight must be int8"),
    ("Linear", {"weight": WEIGHT[None]}, "weight must be int8"),
    ("Linear", {"weight": np.int8(1)}, "weight must be int8"),
    ("Linear", {"weight": WEIGHT[:0]}, "1 to 1,048,576 rows"),
    ("Linear", {"weight": WEIGHT[:, :0]}, "1 to 1,048,576 rows"),
    ("Linear", {"weight": np.zeros((65537, N), np.int8)}, "65,536 columns"),
    ("Linear", {"weight": np.zeros((1, 2**20 + 1), np.int8)}, "1 to 1,048,576 rows"),
    ("Linear", {"weight": Fed(WEIGHT)}, "weight must be an initializer"),
    ("Linear", {"weight": None}, REFUSED_BY_ONNXRUNTIME),
    ("Linear", {"weight_scale": floats(3)}, "scale must be one number, or one for each output"),
    ("Linear", {"weight_scale": floats(0)}, "scale must be one number, or one for each output"),
    ("Linear", {"weight_scale": np.ones(1)}, "scales and biases must be float"),
    ("Linear", {"weight_scale": Fed(floats(1))}, "weight_scale must be an initializer"),
    ("Linear", {"bias": floats(N - 1)}, "bias must have a number for each output"),
    ("Linear", {"bias": floats(N, 2)}, "bias must have a number for each output"),
    ("Linear", {"bias": np.ones(N, np.int32)}, "scales and biases must be float"),
    ("Linear", {"bias": Fed(floats(N))}, "bias must be an initializer"),
    ("Linear", {"bias": None}, REFUSED_BY_ONNXRUNTIME),
    # Numbers.
    *(("Linear", {"x_scale": value}, "scale of an input") for value in (None, 0.0, -1.0, NAN, INF, 1e-31, 1e31)),
    ("Linear", {"x_scale": 1}, "x_scale has another type"),
    ("Linear", {"x_zero_point": 1.0}, "x_zero_point has another type"),
    *(("Linear", {"x_zero_point": value}, "zero point") for value in (-1, 256, 2**62)),
    *(("Linear", {"x_lowest": value}, "lowest") for value in (-1, 255, -(2**63))),
    *(("Linear", {"x_highest": value}, "lowest") for value in (0, 256, 2**63 - 1)),
    *(("Linear", {"activation": value}, "activation must be") for value in (-1, 3, 2**32)),
    *(("LinearAddNorm", {"epsilon": value}, "epsilon") for value in (-1e-9, 1.0, NAN, INF)),
    ("LinearAddNorm", {"gamma": floats(N + 1)}, "gamma must be float"),
    ("LinearAddNorm", {"beta": np.ones(N)}, "beta must be float"),
    ("LinearAddNorm", {"beta": Fed(floats(N))}, "beta must be an initializer"),
    ("FeedForward", {"hidden_scale": None}, "scale of an input"),
    ("FeedForward", {"weight_2": np.zeros((UNITS + 1, K), np.int8)}, "do not fit together"),
    ("FeedForward", {"weight_2": np.zeros((UNITS - 1, K), np.int8)}, "do not fit together"),
    ("FeedForward", {"weight_2": np.zeros((UNITS, K + 1), np.int8), "bias_2": floats(K + 1)}, "gamma"),
    (
        "FeedForward",
        {
            "weight_2": np.zeros((UNITS, K + 1), np.int8),
            **dict.fromkeys(("bias_2", "gamma", "beta"), floats(K + 1)),
        },
        "must return what it gets",
    ),
    *(("Attention", {"heads": value}, "from 1 to 4096") for value in (None, 0, -1, 4097, 2**62)),
    *(("Attention", {"head_size": value}, "from 1 to 4096") for value in (None, 0, -1, 4097, 2**62)),
    *(("Attention", {"q_offset": value}, "offset") for value in (-1, 2**21, 2**63 - 1)),
    *(("Attention", {"scale": value}, "finite") for value in (NAN, INF)),
    *(("Lookup", {"table": np.ones((5, 20), kind)}, "table must be") for kind in (np.float32, np.int16, np.int64)),
    ("Lookup", {"table": np.ones(5, np.int8)}, "table must be"),
    ("Lookup", {"table": Fed(np.ones((5, 20), np.int8))}, "table must be an initializer"),
    ("Lookup", {"table": None}, REFUSED_BY_ONNXRUNTIME),
    *(("Lookup", {"scale": value}, "scale of a table") for value in (None, 0.0, -0.1, NAN, INF)),
    *(("Lookup", {"zero_point": value}, "zero point of a table") for value in (-129, 128, 2**62)),
    ("Lookup", {"table": np.ones((5, 20), np.uint8)}, "zero point of a table"),
    ("Lookup", {"y_scale": NAN}, "scale of an input"),
    ("Lookup", {"y_zero_point": 256}, "zero point"),
    # What a run gives.
    *(("Lookup", {"ids": Fed(np.array([0, value]))}, "outside of the table") for value in (5, -6, 2**40, -(2**63))),
    ("Lookup", {"ids": Fed(np.zeros(500, np.int64)), "table": np.ones((0, 20), np.int8)}, "outside of the table"),
    *(("Lookup", {"ids": Fed(np.zeros(3, kind))}, "of another type") for kind in (np.int32, np.float32, np.bool_)),
    *(("Linear", {"x": Fed(floats(*shape))}, "x has another size") for shape in [(K + 1,), (3, 1), (K, 0), (0, 3)]),
    ("Linear", {"x": Fed(np.array(1, np.float32))}, "x has another size"),
    *(
        ("Linear", {"x": Fed(np.ones((2, K), kind))}, "of another type")
        for kind in (np.float64, np.float16, np.int64, np.uint8, np.bool_)
    ),
    ("Linear", {"x": Fed(np.full((2, K), "a", dtype=object))}, "of another type"),
    ("LinearAddNorm", {"residual": Fed(floats(2, 3, N - 1))}, "residual has another shape"),
    ("LinearAddNorm", {"residual": Fed(floats(3, 2, N))}, "residual has another shape"),
    ("LinearAddNorm", {"residual": Fed(floats(6, N))}, "residual has another shape"),
    ("LinearAddNorm", {"residual": Fed(np.ones((2, 3, N)))}, "of another type"),
    ("FeedForward", {"x": Fed(floats(2, K - 1))}, "x has another size"),
    *(("Attention", {"q": Fed(floats(*shape))}, "q must have 3 axes") for shape in [(8,), (3, 8), (2, 3, 2, 4)]),
    *(
        ("Attention", {name: Fed(floats(*shape))}, "same rows and tokens")
        for name in "qkv"
        for shape in [(2, 4, 8), (1, 3, 8), (2, 3, 7), (2, 0, 8), (0, 3, 8)]
    ),
    ("Attention", {"v": Fed(floats(3, 8))}, "same rows and tokens"),
    *(("Attention", {f"{name}_offset": 1}, "room for all heads") for name in "qkv"),
    *(
        ("Attention", {"mask": Fed(floats(*shape))}, "mask must be")
        for shape in [(3,), (2, 3), (2, 1, 3), (2, 2, 3, 3), (3, 1, 1, 3), (2, 1, 2, 3), (2, 1, 3, 4)]
    ),
    *(("Attention", {"mask": Fed(np.ones((2, 1, 1, 3), kind))}, "of another type") for kind in (np.int64, np.bool_)),
]


@pytest.mark.parametrize(("operator", "changes", "message"), TABLE)
def test_it_is_an_error(operator: str, changes: dict[str, Any], message: str) -> None:
    for isa in ISAS:
        with pytest.raises(Exception, match=message):  # onnxruntime's exceptions have no common base class
            attempt(isa, operator, changes)


def test_an_initializer_that_a_caller_may_replace_is_an_error() -> None:
    values = {**ONE_LINEAR}
    inputs = [values.pop(name) for name in INPUTS["Linear"]]
    model = one_operator("Linear", ["x", *inputs[1:]], **values)
    model.graph.input.append(helper.make_tensor_value_info("constant_1", TensorProto.INT8, None))
    with pytest.raises(Exception, match="weight must be an initializer"):
        run(ISAS[0], model)


def test_an_instruction_set_that_nobody_has_is_an_error() -> None:
    with pytest.raises(Exception, match="SPARSE_ACCEL_ISA"):
        attempt("sse9", "Linear", {})


# --- packed weights ---------------------------------------------------------------------------------------------------


def packed_weight(isa: str) -> Array:
    packed = LIBRARY.pack(isa, WEIGHT)
    assert packed is not None
    return packed.data.copy()


@pytest.mark.parametrize("isa", ISAS)
def test_a_packed_weight_that_is_not_whole(isa: str) -> None:
    data = packed_weight(isa)
    for size in [0, 1, 63, 64, 65, 300, len(data) // 2, len(data) - 1]:
        with pytest.raises(Exception, match="packed weight: "):
            attempt(isa, "Linear", {"weight": data[:size]})
    for longer in (1, 64, 4096):
        with pytest.raises(Exception, match="packed weight: "):
            attempt(isa, "Linear", {"weight": np.concatenate([data, np.zeros(longer, np.uint8)])})
    with pytest.raises(Exception, match="weight must be int8"):
        attempt(isa, "Linear", {"weight": data[:, None]})


def test_a_packed_weight_of_another_kind_of_cpu() -> None:
    data = {packed_weight(isa).tobytes(): isa for isa in ISAS}
    assert len(data) > 1
    for other, owner in data.items():
        for isa in ISAS:
            weight = np.frombuffer(other, np.uint8)
            if packed_weight(isa).tobytes() == other:
                attempt(isa, "Linear", {"weight": weight})
            elif {isa, owner} <= {"avx512_vnni", "avx_vnni", "avx2"}:
                continue  # one form, packed with another limit
            else:
                with pytest.raises(Exception, match="another instruction set"):
                    attempt(isa, "Linear", {"weight": weight})


@pytest.mark.parametrize("isa", ISAS)
def test_a_packed_weight_of_another_place(isa: str) -> None:
    """The order of one that a feed-forward block begins with is known to its partner only."""
    first, second = in_form(isa, "packed", FITTING["FeedForward"]["weight_1"], FITTING["FeedForward"]["weight_2"])
    attempt(isa, "FeedForward", {"weight_1": first, "weight_2": second})
    attempt(isa, "FeedForward", {"weight_1": first})
    if ISAS[-1] != isa:  # the portable kernels have no order
        with pytest.raises(Exception, match="another place"):
            attempt(isa, "FeedForward", {"weight_1": second, "weight_2": first})
        with pytest.raises(Exception, match="another place"):
            attempt(isa, "Linear", {"weight": first, "bias": floats(UNITS)})
    (wider,) = in_form(isa, "packed", np.zeros((UNITS + 20, K), np.int8))
    with pytest.raises(Exception, match="do not fit together"):
        attempt(isa, "FeedForward", {"weight_1": first, "weight_2": wider})


@settings(max_examples=120)
@given(
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4),
    header=st.lists(st.tuples(st.integers(0, 15), st.sampled_from([0, 1, 2, 3, 63, 64, 2**16, 2**31 - 1, 2**32 - 1]))),
    seed=st.one_of(st.none(), st.integers(0, 99)),
)
def test_damaged_packed_weights(edits: list[tuple[int, int]], header: list[tuple[int, int]], seed: int | None) -> None:
    """They are refused, or give wrong numbers: what they are about stays within its memory."""
    for isa in ISAS:
        data = packed_weight(isa)
        if seed is not None:  # all but the header is random
            data[64:] = np.random.default_rng(seed).integers(0, 256, len(data) - 64, np.uint8)
        for position, value in header:
            data[:64].view(np.uint32)[position] = value
        for position, byte in edits:
            data[position % len(data)] = byte
        try:
            attempt(isa, "Linear", {"weight": data})
        except Exception as error:  # onnxruntime's
            assert "sparse_accel: " in str(error)
        with suppress(ValueError):
            LIBRARY.sums(isa, PackedWeight(data, np.empty(0, np.int32), 1.0, True), np.zeros((1, K), np.uint8), N)


@pytest.mark.parametrize(("columns", "rows"), [(K + 1, N), (K - 1, N), (K, N + 1), (K, N - 1), (0, N), (K, 0)])
def test_sums_of_another_shape_are_an_error(columns: int, rows: int) -> None:
    for isa in ISAS:
        packed = LIBRARY.pack(isa, WEIGHT)
        assert packed is not None
        with pytest.raises(ValueError):
            LIBRARY.sums(isa, packed, np.zeros((2, columns), np.uint8), rows)


@pytest.mark.parametrize(
    ("isa", "weight", "order"),
    [
        ("sse9", WEIGHT, None),
        (ISAS[0], WEIGHT[:0], None),
        (ISAS[0], np.zeros((65537, 1), np.int8), None),
        (ISAS[0], WEIGHT, np.array([0, -1])),
        (ISAS[0], WEIGHT, np.zeros(65537)),
    ],
)
def test_weights_that_cannot_be_packed(isa: str, weight: Array, order: Array | None) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        LIBRARY.pack(isa, weight, input_order=order)
