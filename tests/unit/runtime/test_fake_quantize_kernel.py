"""Masks and fake quantization of the compiled library, in every instruction set, against NumPy: the same bits."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from sparse_accel.native import instruction_sets, library_path, load_functions

P, I32, I64, F32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
SIGNATURE = (I32, [ctypes.c_char_p, P, P, P, P, I32, I64, F32, I32, I32, I32, P, P, P, I32])
FUNCTIONS = load_functions(library_path(), {"fake_quantize": SIGNATURE})
SETS = instruction_sets(FUNCTIONS)
PART = 32768  # numbers that one thread takes at a time
LENGTHS = (0, 1, 7, 8, 15, 16, 17, 33, 1000, PART - 1, PART + 17, 3 * PART + 5)


def address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def call(
    isa: str,
    x: np.ndarray,
    out: np.ndarray | None,
    *,
    mask: Any = None,
    gradient: Any = None,
    grid: Any = None,
    seen: Any = None,
) -> None:
    arguments = (
        isa.encode(),
        address(x),
        address(mask),
        address(gradient),
        address(out),
        sum(bit for bit, each in ((1, x), (2, gradient), (4, out)) if each is not None and each.dtype == np.uint16),
        len(x),
        *(grid or (0.0, 0, 0, 0)),
        *(map(address, seen) if seen else (None, None)),
        None,
        1,
    )
    assert FUNCTIONS["fake_quantize"](*arguments) == 0


def made(length: int, seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = (3 * random.standard_normal(length)).astype(np.float32)
    x[::5] = np.round(x[::5] / 0.5) * 0.5 + 0.25  # ties
    return random, x, random.random(length) < 0.5


@pytest.mark.parametrize("integers", [(0, 255, 113), (-128, 127, 0), (-8, 7, 0), (0, 127, 127)])
@pytest.mark.parametrize("isa", SETS)
def test_the_same_bits_as_numpy(isa: str, integers: tuple[int, int, int]) -> None:
    lowest, highest, zero = integers
    scale = np.float32(0.0173)
    for length in LENGTHS:
        random, x, mask = made(length, length)
        gradient, y, back = random.standard_normal(length).astype(np.float32), np.empty_like(x), np.empty_like(x)
        seen = np.array([np.inf], np.float32), np.array([-np.inf], np.float32)
        grid = (float(scale), zero, lowest, highest)
        call(isa, x, y, mask=mask, grid=grid, seen=seen)
        call(isa, x, back, mask=mask, gradient=gradient, grid=grid)
        masked = np.where(mask, x, np.float32(0))
        rounded = np.rint(masked * (np.float32(1) / scale))
        assert np.array_equal(y, np.clip(rounded, lowest - zero, highest - zero) * scale)
        inside = (rounded > lowest - zero - 1) & (rounded < highest - zero + 1)
        assert np.array_equal(back, np.where(mask & inside, gradient, np.float32(0)))
        if length:
            assert (seen[0][0], seen[1][0]) == (masked.min(), masked.max())


@pytest.mark.parametrize("isa", SETS)
def test_masks_alone(isa: str) -> None:
    """Of infinity and NaN too, and with the result in place of the input."""
    for length in LENGTHS:
        _, x, mask = made(length, length)
        x[::3], x[1::7] = np.inf, np.nan
        expected = np.where(mask, x, np.float32(0))
        call(isa, x, x, mask=mask)
        assert np.array_equal(x, expected, equal_nan=True)


@pytest.mark.parametrize("where", [0, 5, 40, 2 * PART + 3])
@pytest.mark.parametrize("isa", SETS)
def test_what_is_no_number(isa: str, where: int) -> None:
    """It stays, makes the extremes no number for the rest of the step, and gets no gradient. Infinity is clipped."""
    x = np.linspace(-9, 9, 3 * PART, dtype=np.float32)
    x[1], x[2] = np.inf, -np.inf
    grid = (0.05, 0, -128, 127)
    y, back, seen = (
        np.empty_like(x),
        np.empty_like(x),
        (np.array([np.inf], np.float32), np.array([-np.inf], np.float32)),
    )
    call(isa, x, y, grid=grid, seen=seen)
    assert (seen[0][0], seen[1][0]) == (-np.inf, np.inf)
    assert (y[1], y[2]) == (np.float32(0.05) * np.float32(127), np.float32(0.05) * np.float32(-128))
    x[where] = np.nan
    call(isa, x, y, grid=grid, seen=seen)
    call(isa, x, back, gradient=np.ones_like(x), grid=grid)
    assert np.isnan(seen[0][0]) and np.isnan(seen[1][0]) and np.isnan(y).nonzero()[0].tolist() == [where]
    assert back[where] == 0 and back[3 * PART // 2 + 1] == 1
    call(isa, np.ones_like(x), y, grid=grid, seen=seen)
    assert np.isnan(seen[0][0]) and np.isnan(seen[1][0])


def halved(x: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, rounded to the nearest even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def doubled(halves: np.ndarray) -> np.ndarray:
    return (halves.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("rounds", [True, False])
@pytest.mark.parametrize("half_input", [True, False])
@pytest.mark.parametrize("isa", SETS)
def test_bfloat16_in_place_of_float(isa: str, half_input: bool, rounds: bool) -> None:
    """Activations are bfloat16 on both sides; weights are float, and what the product uses and its gradient are not."""
    grid = (0.0173, 113, 0, 255) if rounds else (0.0, 0, 0, 0)
    for length in LENGTHS:
        random, x, mask = made(length, length)
        x[::11], x[3::13], x[5::17], x[6::19] = np.nan, np.inf, 1e-41, np.float32(3.4e38)
        gradient = halved(random.standard_normal(length))
        given = halved(x) if half_input else x
        wide = doubled(given) if half_input else given
        expected, back, found = np.empty_like(x), np.empty_like(x), np.empty(length + 1, np.uint16)
        call(isa, wide, expected, mask=mask, grid=grid)
        call(isa, wide, back, mask=mask, gradient=doubled(gradient), grid=grid)
        found[:] = 0xABCD
        call(isa, given, found[:-1], mask=mask, grid=grid)
        assert np.array_equal(found[:-1], halved(expected)) and found[-1] == 0xABCD
        found_back = np.empty_like(given)
        call(isa, given, found_back, mask=mask, gradient=gradient, grid=grid)
        assert np.array_equal(found_back, halved(back) if half_input else back)


def test_an_instruction_set_that_is_not_there() -> None:
    x = np.ones(4, np.float32)
    arguments = (b"no such", address(x), None, None, address(x), 0, 4, 0.0, 0, 0, 0, None, None, None, 1)
    assert FUNCTIONS["fake_quantize"](*arguments) == 1 and x.tolist() == [1, 1, 1, 1]
