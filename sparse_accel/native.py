"""The compiled library of this package, libsparse_accel.so: where it is, and its functions.

It is built with the package, in the folder runtime/; the variable SPARSE_ACCEL_LIBRARY is the path of another one.
Nothing is loaded on import.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "libsparse_accel.so"
VARIABLE = "SPARSE_ACCEL_LIBRARY"
ABI = 3  # increased when a function changes
POINTER, INT32, INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
# The result and the arguments of a function; csrc/ has it with comments.
Signature = tuple[Any, list[Any]]


class LibraryMissing(Exception):
    """The library cannot be used on this machine; the message says why."""


def library_path() -> Path:
    """Returns the path of the library, whether it exists or not."""
    return Path(os.environ.get(VARIABLE) or Path(__file__).with_name("runtime") / NAME)


def load_functions(path: Path, signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Returns functions of the library by name, without their prefix; `instruction_sets` is among them.

    Raises:
        LibraryMissing: it is not there, cannot be loaded, or has another interface.
    """
    if not path.is_file():
        named = f"{VARIABLE} names {path}, which is not there"
        built = f"{path} is not there: `pip install` builds it where there is a C++ compiler"
        raise LibraryMissing(named if os.environ.get(VARIABLE) else built)
    try:
        loaded = ctypes.CDLL(str(path))
        if (found := loaded.sparse_accel_abi()) != ABI:
            raise LibraryMissing(f"{path} has version {found} of its interface, not {ABI}: build it again")
        functions = {name: getattr(loaded, f"sparse_accel_{name}") for name in (*signatures, "instruction_sets")}
    except (OSError, AttributeError) as error:  # no library, for another machine, or without these functions
        raise LibraryMissing(f"{path} cannot be loaded ({error})") from error
    for name, (result, arguments) in {**signatures, "instruction_sets": (ctypes.c_char_p, [])}.items():
        functions[name].restype, functions[name].argtypes = result, arguments
    return functions


def instruction_sets(functions: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns those that this CPU can run, best first; the last one is `portable`."""
    return tuple(name for name in (functions["instruction_sets"]() or b"").decode().split(",") if name)
