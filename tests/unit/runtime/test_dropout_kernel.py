"""Dropout of the compiled library, in every instruction set, against Philox in NumPy: the same bits."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from philox import halves, philox

from sparse_accel.native import instruction_sets, library_path, load_functions

P, I32, I64, U64, F32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_float
FUNCTIONS = load_functions(library_path(), {"dropout": (I32, [ctypes.c_char_p, P, P, I32, I64, U64, I32, F32, P, I32])})
SETS = instruction_sets(FUNCTIONS)
PART = 32768  # numbers that one thread takes at a time
LENGTHS = (0, 1, 7, 8, 15, 17, 63, 64, 65, 1000, PART - 1, PART + 17, 3 * PART + 5)


def call(isa: str, x: np.ndarray, out: np.ndarray, key: int, dropped: int, scale: float = 1.0) -> int:
    half = 5 if x.dtype == np.uint16 else 0
    addresses = x.ctypes.data, out.ctypes.data
    return int(FUNCTIONS["dropout"](isa.encode(), *addresses, half, len(x), key, dropped, scale, None, 1))


def test_the_numbers_are_those_of_philox() -> None:
    """Known answers of its authors' library, for counter and key 0."""
    of = {rounds: [f"{word:08x}" for word in philox(np.zeros(1, np.uint64), 0, rounds)[0]] for rounds in (7, 10)}
    assert of[10] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert of[7] == ["5f6fb709", "0d893f64", "4f121f81", "4f730a48"]


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, 0xFEDC_BA98_7654_3210])
@pytest.mark.parametrize("isa", SETS)
def test_the_same_bits_as_numpy(isa: str, key: int) -> None:
    for length in LENGTHS:
        x = np.random.default_rng(length).standard_normal(length).astype(np.float32)
        for dropped in (0, 1, 6554, 32768, 65535):
            found = np.full(length + 1, 7, np.float32)
            assert call(isa, x, found[:-1], key, dropped, scale=1.25) == 0
            kept = halves(length, key) >= dropped
            assert np.array_equal(found[:-1], np.where(kept, x * np.float32(1.25), np.float32(0))) and found[-1] == 7


@pytest.mark.parametrize("isa", SETS)
def test_bfloat16(isa: str) -> None:
    """The same numbers stay, and twice a number is exact."""
    for length in LENGTHS:
        x = np.random.default_rng(length).standard_normal(length).astype(np.float32).view(np.uint32) >> 16 << 16
        found, half = np.empty(length, np.float32), np.full(length + 1, 7, np.uint16)
        assert call(isa, x.view(np.float32), found, 5, 32768, scale=2.0) == 0
        assert call(isa, (x >> 16).astype(np.uint16), half[:-1], 5, 32768, scale=2.0) == 0
        assert np.array_equal(half[:-1], (found.view(np.uint32) >> 16).astype(np.uint16)) and half[-1] == 7


@pytest.mark.parametrize("isa", SETS)
def test_what_is_dropped_is_zero_whatever_it_was(isa: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, -1.0] * 4096, np.float32)
    call(isa, x, x, 3, 32768, scale=2.0)
    dropped = halves(len(x), 3) < 32768
    assert (x[dropped] == 0).all() and not np.signbit(x[dropped]).any() and (np.abs(x[~dropped][3:]) != 0).all()


def test_an_instruction_set_that_is_not_there() -> None:
    x = np.ones(4, np.float32)
    assert call("no such", x, x, 0, 32768) == 1 and x.tolist() == [1, 1, 1, 1]
