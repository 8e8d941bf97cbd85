"""Attention's softmax and dropout of the compiled library, in every instruction set, against NumPy in float64."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from philox import halves

from sparse_accel.native import instruction_sets, library_path, load_functions

P, I32, I64, U64, F32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_float
DROPOUT = [U64, I32, F32, P, I32]
FUNCTIONS = load_functions(
    library_path(),
    {
        "attention_weights": (I32, [ctypes.c_char_p, *[P] * 4, I32, *[I64] * 4, P, F32, *DROPOUT]),
        "attention_gradient": (I32, [ctypes.c_char_p, *[P] * 2, I32, *[I64] * 2, F32, *DROPOUT]),
    },
)
SETS = instruction_sets(FUNCTIONS)
# Texts, heads, queries, keys: less and more than a vector, than the 64 rows that are dropped at once, than a part.
SHAPES = ((1, 1, 1, 1), (2, 3, 5, 7), (3, 2, 16, 16), (2, 2, 17, 33), (1, 1, 65, 64), (2, 2, 40, 300), (1, 1, 1, 8192))
KEY, DROPPED = 77, 6554
FACTOR = 65536 / (65536 - DROPPED)


def to_half(x: np.ndarray) -> np.ndarray:
    """bfloat16 bits, rounded to the nearest even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def to_float(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == np.float32 else (x.astype(np.uint32) << 16).view(np.float32)


def weights_of(
    isa: str, scores: np.ndarray, mask: np.ndarray | None, scale: float, *, dropped: int = DROPPED
) -> tuple[np.ndarray, np.ndarray]:
    """Of the dtype of `scores`: float32, or the bits of bfloat16. Nothing behind the arrays is written."""
    _, heads, queries, keys = scores.shape
    found = [np.full(scores.size + 1, 7, scores.dtype) for _ in range(2)]
    strides = None if mask is None else (I64 * 3)(*(each // 4 for each in mask.strides[:3]))
    failed = FUNCTIONS["attention_weights"](
        isa.encode(), scores.ctypes.data, None if mask is None else mask.ctypes.data, *(x.ctypes.data for x in found),
        5 if scores.dtype == np.uint16 else 0, scores.size // keys, keys, heads, queries, strides, scale,
        KEY, dropped, 65536 / (65536 - dropped), None, 1,
    )  # fmt: skip
    assert failed == 0 and all(x[-1] == 7 for x in found)
    return found[0][:-1].reshape(scores.shape), found[1][:-1].reshape(scores.shape)


def softmax(scores: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        value = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
        value = value / value.sum(-1, keepdims=True)
    return np.where((scores == -np.inf).all(-1, keepdims=True), 0.0, value)


def random(shape: tuple[int, ...], seed: int = 0, size: float = 1.0) -> np.ndarray:
    return (size * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", SETS)
def test_softmax_and_its_dropout(isa: str, shape: tuple[int, ...]) -> None:
    scores = random(shape, size=20.0)
    for mask in (None, random((shape[0], 1, 1, shape[3]), 1), random((1, shape[1], *shape[2:]), 2)):
        spread = None if mask is None else np.broadcast_to(mask, shape)
        weights, dropped = weights_of(isa, scores, spread, 0.25)
        expected = softmax(0.25 * scores.astype(np.float64) + (0 if mask is None else mask))
        assert np.allclose(weights, expected, rtol=3e-5, atol=1e-37)
        kept = halves(scores.size, KEY).reshape(shape) >= DROPPED
        assert np.array_equal(dropped, np.where(kept, weights * np.float32(FACTOR), np.float32(0)))


@pytest.mark.parametrize("isa", SETS)
def test_bfloat16_is_the_rounded_float(isa: str) -> None:
    for shape in SHAPES:
        scores = to_half(random(shape, size=5.0))
        weights, dropped = weights_of(isa, to_float(scores), None, 0.5, dropped=32768)
        half, half_dropped = weights_of(isa, scores, None, 0.5, dropped=32768)
        assert np.array_equal(half, to_half(weights))
        assert np.array_equal(half_dropped != 0, dropped != 0)
        assert np.array_equal(to_float(half_dropped), np.where(dropped == 0, 0, to_float(half) * 2))


@pytest.mark.parametrize("isa", SETS)
def test_masked_keys_have_weight_0_and_rows_without_keys_too(isa: str) -> None:
    scores = random((2, 2, 3, 20), size=1.0)
    mask = np.zeros((2, 1, 3, 20), np.float32)
    mask[0, :, :, 15:], mask[1, :, 1] = -np.inf, -np.inf
    weights, dropped = weights_of(isa, scores, np.broadcast_to(mask, scores.shape), 1.0, dropped=0)
    assert np.allclose(weights, softmax(scores + mask), rtol=3e-6) and np.array_equal(weights, dropped)
    assert not weights[0, :, :, 15:].any() and not weights[1, :, 1].any() and np.allclose(weights[0].sum(-1), 1)
    lowest = np.where(np.isinf(mask), np.finfo(np.float32).min, 0)  # another way to mask: a row has equal weights
    weights, _ = weights_of(isa, scores, np.broadcast_to(lowest.astype(np.float32), scores.shape), 1.0, dropped=0)
    assert not weights[0, :, :, 15:].any() and np.allclose(weights[1, :, 1], 1 / 20)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("isa", SETS)
def test_what_is_no_number_makes_its_row_none(isa: str, bad: float) -> None:
    for keys in (5, 16, 40):
        scores = random((1, 1, 3, keys))
        scores[0, 0, 1, keys - 1] = bad
        weights, _ = weights_of(isa, scores, None, 1.0, dropped=0)
        assert np.isnan(weights[0, 0, 1]).all() and np.isfinite(weights[0, 0, ::2]).all()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("isa", SETS)
def test_the_gradient(isa: str, half: bool) -> None:
    """Of softmax and dropout: with weights w and gradient g of these, scale w (g - sum of w g)."""
    for shape in SHAPES:
        weights, gradient = softmax(random(shape, 3, 3.0)).astype(np.float32), random(shape, 4)
        given: Any = (to_half(weights), to_half(gradient)) if half else (weights, gradient)
        found = np.append(given[1].reshape(-1), given[1].dtype.type(7))
        failed = FUNCTIONS["attention_gradient"](
            isa.encode(), given[0].ctypes.data, found.ctypes.data, 5 if half else 0, weights.size // shape[-1],
            shape[-1], 0.25, KEY, DROPPED, FACTOR, None, 1,
        )  # fmt: skip
        assert failed == 0 and found[-1] == 7
        kept = halves(weights.size, KEY).reshape(shape) >= DROPPED
        w, g = to_float(given[0]).astype(np.float64), np.where(kept, to_float(given[1]) * np.float32(FACTOR), 0)
        g = (to_float(to_half(g)) if half else g).astype(np.float64)
        expected = 0.25 * w * (g - (w * g).sum(-1, keepdims=True))
        away = np.abs(to_float(found[:-1]).reshape(shape) - expected)
        assert (away <= (2**-8 * np.abs(expected) if half else 0) + 1e-5 * np.abs(w * g).max(-1, keepdims=True)).all()


def test_too_many_keys_and_instruction_sets_that_are_not_there() -> None:
    scores = np.zeros((1, 1, 1, 8193), np.float32)
    for isa, keys, expected in (("portable", 8193, 2), ("no such", 8192, 1)):
        addresses = [scores.ctypes.data, None, scores.ctypes.data, scores.ctypes.data]
        rest = (0, 1, keys, 1, 1, None, 1.0, 0, 0, 1.0, None, 1)
        assert FUNCTIONS["attention_weights"](isa.encode(), *addresses, *rest) == expected
    addresses = [scores.ctypes.data, scores.ctypes.data]
    assert FUNCTIONS["attention_gradient"](b"no such", *addresses, 0, 1, 8192, 1.0, 0, 0, 1.0, None, 1) == 1
