"""The C++ compilers that tests need. A missing one is a failure: .ci/run installs them, and nothing is skipped."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

# Of tests alone: a later compiler that warns of more must still install.
WARNINGS = ("-Wall", "-Wextra", "-Werror")
# gcc 12 takes the undefined registers of its own AVX-512 header for uninitialized ones; clang++ looks for real ones.
GCC_WARNINGS = (*WARNINGS, "-Wno-uninitialized", "-Wno-maybe-uninitialized")
# Sanitizers end a program at the first finding, with a nonzero exit code.
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
FUZZER = ("-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")  # clang++ alone has libFuzzer


def gcc() -> list[str]:
    return [_found("g++", "apt-get install g++")]


def clang() -> list[str]:
    return [_found("clang++", "apt-get install clang libclang-rt-dev")]


def without_compilers() -> str:
    """A PATH on which there is no compiler: the folder of this Python."""
    path = str(Path(sys.executable).parent)
    assert not any(shutil.which(name, path=path) for name in ("c++", "g++", "clang++", "cc", "gcc", "clang"))
    return path


def _found(name: str, remedy: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not on PATH: {remedy}")
    return found
