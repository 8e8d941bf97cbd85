"""The sources of the kernels under sanitizers, and with memory that ends where it should: support/fuzz_kernels.cpp."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from compilers import FUZZER, SANITIZERS, clang, gcc
from places import SUPPORT

from sparse_accel.runtime import build

INCLUDE = f"-I{build.SOURCES}"
FUZZED, DRIVER = SUPPORT / "fuzz_kernels.cpp", SUPPORT / "kernels_driver.cpp"
SECONDS = 30


def compiled(target: Path, compiler: list[str], program: list[Path], *flags: str) -> Path:
    extra = [INCLUDE, *flags]
    build.compile_library(target, compiler=compiler, extra_flags=extra, program=program, release=False)
    return target


@pytest.mark.slow
def test_the_code_of_a_release_stays_within_its_memory(tmp_path: Path) -> None:
    """As g++ compiles it for users. Pages that cannot be read end a program that reads on."""
    program = compiled(tmp_path / "driver", gcc(), [DRIVER, FUZZED])
    done = subprocess.run([program, "20000", "1"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout == "20000 inputs\n", done.stderr


@pytest.mark.slow
def test_fuzzing(tmp_path: Path) -> None:
    """A finding is printed with the input that leads to it."""
    program = compiled(tmp_path / "fuzzer", clang(), [FUZZED], *FUZZER)
    # Its own limit of resident memory would count the peak of this Python: Linux keeps that of before the exec.
    options = [f"-max_total_time={SECONDS}", "-seed=1", "-timeout=300", "-rss_limit_mb=0", "-malloc_limit_mb=2048"]
    done = subprocess.run([program, *options], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-8000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs and int(runs[1]) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [gcc, clang])
def test_kernels_share_no_function(compiler: Callable[[], list[str]], tmp_path: Path) -> None:
    """Of a function that several files define, the linker keeps one: perhaps one that another CPU cannot run."""
    for name in (*build.INSTRUCTION_SETS, "kernels_portable.cpp"):
        flags = [*build.FLAGS, *build.INSTRUCTION_SETS.get(name, ())]
        subprocess.run(
            [*compiler(), *flags, "-c", str(build.SOURCES / name), "-o", "kernels.o"], cwd=tmp_path, check=True
        )
        listed = subprocess.run(
            ["nm", "-C", "--defined-only", "kernels.o"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        shared = [line for line in listed.splitlines() if line.split()[1] not in "trbd"]
        assert len(shared) == 1 and shared[0].endswith(f"sparse_accel::{Path(name).stem[8:]}_kernels"), shared


@pytest.mark.slow
def test_the_operators_in_onnxruntime(tmp_path: Path) -> None:
    """The whole library under AddressSanitizer and UBSan, in a Python that runs the tests of operators and bad input.

    onnxruntime itself is not compiled for it: what the library reads and writes is seen all the same.
    """
    library = tmp_path / build.NAME
    build.compile_library(library, compiler=gcc(), extra_flags=SANITIZERS, release=False)
    assert b"__asan_report" in library.read_bytes()
    preloaded = [
        subprocess.run([*gcc(), f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")  # the last: exceptions are seen only if it is there
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",
        "SPARSE_ACCEL_LIBRARY": str(library),
    }
    names = (
        "test_kernel_errors.py",
        "test_kernels_attention.py",
        "test_lookup.py",
        "test_kernels_in_threads.py",
        "test_fake_quantize_kernel.py",
        "test_dropout_kernel.py",
        "test_attention_weights_kernel.py",
    )
    tests = [str(Path(__file__).with_name(name)) for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow"]
    command += ["-k", "not memory_behind", *tests]  # AddressSanitizer keeps what was freed for a while
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert "ERROR: AddressSanitizer" not in done.stderr and "runtime error" not in done.stderr
