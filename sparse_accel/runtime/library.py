"""The library of kernels, as inference uses it: which instruction sets it has here, packing of weights."""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse_accel.native import INT32 as _I32
from sparse_accel.native import INT64 as _I64
from sparse_accel.native import POINTER as _P
from sparse_accel.native import VARIABLE, LibraryMissing, Signature, instruction_sets, library_path, load_functions
from sparse_accel.runtime.build import for_this_platform

_FUNCTIONS: dict[str, Signature] = {
    "default_instruction_set": (ctypes.c_char_p, []),
    "pack": (_P, [ctypes.c_char_p, _P, _I64, _I64, _P, _I64, _I32, ctypes.POINTER(ctypes.c_char_p)]),
    "packed_data": (_P, [_P]),
    "packed_size": (_I64, [_P]),
    "packed_order": (_P, [_P]),
    "packed_rows": (_I64, [_P]),
    "packed_density": (ctypes.c_double, [_P]),
    "packed_is_sparse": (_I32, [_P]),
    "packed_free": (None, [_P]),
    "sums": (_I32, [ctypes.c_char_p, _P, _I64, _P, _I64, _I64, _I64, _I32, _P]),
}


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight in the form that one kernel reads.

    Attributes:
        data: uint8 [bytes]; begins with a description of itself.
        order: int32 [N rounded up]: the output column at each position; N and more is padding.
        density: share of the weight's numbers that are stored: 1.0 for the dense form.
        is_sparse: whether the kernel skips zeros.
    """

    data: np.ndarray
    order: np.ndarray
    density: float
    is_sparse: bool


class Library:
    """A loaded library.

    Attributes:
        path: the file; onnxruntime registers its operators from there.
        instruction_sets: those that this CPU can run, best first.
        default: the one that is used unless another one is asked for; empty: none, the kernels would not gain here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._functions = _load(path)
        self.instruction_sets = instruction_sets(self._functions)
        self.default = (self._functions["default_instruction_set"]() or b"").decode()

    def pack(
        self, isa: str, weight: np.ndarray, *, input_order: np.ndarray | None = None, ordered: bool = False
    ) -> PackedWeight | None:
        """Packs a weight; None: it has too few zeros for these kernels, and no dense kernel is faster here.

        Args:
            isa: one of `instruction_sets`.
            weight: int8 [K, N].
            input_order: the `order` of the weight whose outputs are this one's K inputs, if that was ordered.
            ordered: sort the output columns, so that those with as many nonzeros are together: their results are then
                in the order of `order`.

        Raises:
            ValueError: the library refused; the message is its own.
        """
        if weight.dtype != np.int8 or weight.ndim != 2:
            raise ValueError(f"a weight is int8 [K, N], not {weight.dtype} {list(weight.shape)}")
        weight = np.ascontiguousarray(weight)
        order = None if input_order is None else np.ascontiguousarray(input_order, dtype=np.int32)
        error = ctypes.c_char_p()
        arguments = (order.ctypes.data, len(order)) if order is not None else (None, 0)
        handle = self._functions["pack"](
            isa.encode(), weight.ctypes.data, *weight.shape, *arguments, int(ordered), ctypes.byref(error)
        )
        if error.value:
            raise ValueError(error.value.decode())
        if not handle:
            return None
        try:
            size, rows = (self._functions[f"packed_{what}"](handle) for what in ("size", "rows"))
            return PackedWeight(
                _copied(self._functions["packed_data"](handle), size, np.uint8),
                _copied(self._functions["packed_order"](handle), rows, np.int32),
                float(self._functions["packed_density"](handle)),
                bool(self._functions["packed_is_sparse"](handle)),
            )
        finally:
            self._functions["packed_free"](handle)

    def sums(self, isa: str, packed: PackedWeight, x: np.ndarray, columns: int, zero_point: int = 0) -> np.ndarray:
        """Returns (x - zero_point) W as int32 [M, N].

        Args:
            isa: the instruction set that the weight is packed for.
            packed: the weight W [K, N].
            x: uint8 [M, K].
            columns: N.

        Raises:
            ValueError: the library refused: this is no packed weight, of another shape, or not for this CPU.
        """
        x = np.ascontiguousarray(x, dtype=np.uint8)
        count, inputs = x.shape
        out = np.empty((count, columns), dtype=np.int32)
        data = packed.data
        arguments = (data.ctypes.data, data.size, x.ctypes.data, count, inputs, columns, zero_point, out.ctypes.data)
        failed = self._functions["sums"](isa.encode(), *arguments)
        if failed:
            raise ValueError("the library cannot multiply with this packed weight")
        return out


def load_library(path: Path | None = None) -> Library:
    """Returns the library; each file is loaded only once.

    Args:
        path: the file; None: `library_path()`.

    Raises:
        LibraryMissing: it is not there, cannot be loaded, or has another interface.
    """
    return _library(path or library_path())


@functools.cache
def _library(path: Path) -> Library:
    return Library(path)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file() and not os.environ.get(VARIABLE) and not for_this_platform():
        raise LibraryMissing("the kernels are for Linux on x86-64 alone")
    return load_functions(path, _FUNCTIONS)


def _copied(address: int | None, length: int, dtype: Any) -> np.ndarray:
    """A copy of numbers that belong to the library."""
    if not address or length <= 0:
        return np.empty(0, dtype=dtype)
    size = length * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, size), dtype=dtype)
