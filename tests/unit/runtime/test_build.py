"""How the library is compiled: with what, when again, and what stays where it cannot be. On sources of a few lines."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from compilers import GCC_WARNINGS, WARNINGS, clang, gcc

from sparse_accel.runtime import build

API = """
#include "api.h"
#include <string>
#if defined(__AVX__)
#error "this file runs on every CPU"
#endif
extern "C" __attribute__((visibility("default"))) int sparse_accel_abi() { return kernel() + VERSION; }
extern "C" __attribute__((visibility("default"))) int not_ours() { return 0; }
"""
KERNELS = '#include "api.h"\nint kernel() { return 0; }\n'
FOR_ONE_CPU = '#if !({})\n#error "flags"\n#endif\nnamespace {{ [[maybe_unused]] int here; }}\n'
MACROS = {
    "kernels_avx2.cpp": "__AVX2__ && __FMA__ && !__AVX512F__ && !__AVXVNNI__",
    "kernels_avx_vnni.cpp": "__AVX2__ && __FMA__ && __AVXVNNI__ && !__AVX512F__",
    "kernels_avx512_vnni.cpp": "__AVX512VNNI__ && __AVX512BW__ && __AVX512VL__ && __BMI2__ && !__AVX512VBMI__",
    "kernels_avx512_vbmi.cpp": "__AVX512VNNI__ && __AVX512VBMI__ && __AVX512DQ__",
}


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "api.h").write_text("#define VERSION 1\nint kernel();\n")
    (folder / "api.cpp").write_text(API)
    (folder / "kernels_portable.cpp").write_text(KERNELS)
    (folder / "exports.map").write_text("{ global: sparse_accel_*; local: *; };\n")
    monkeypatch.setenv("CXX", gcc()[0])
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "package" / build.NAME


def symbols(library: Path) -> str:
    return subprocess.run(["objdump", "-T", library], capture_output=True, text=True, check=True).stdout


def only_the_library(target: Path) -> bool:
    return [file.name for file in target.parent.iterdir()] == [target.name]


def test_it_is_built_again_only_for_other_sources_or_another_compiler(
    sources: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.build(target, sources=sources)
    first = target.read_bytes()
    assert not build.build(target, sources=sources) and target.read_bytes() == first
    (sources / "api.h").write_text("#define VERSION 2\nint kernel();\n")
    assert build.build(target, sources=sources) and target.read_bytes() != first
    monkeypatch.setenv("CXX", f"{clang()[0]} -O1")
    assert build.build(target, sources=sources) and not build.build(target, sources=sources)
    assert only_the_library(target)


def test_only_functions_with_our_name_are_visible(sources: Path, target: Path) -> None:
    build.build(target, sources=sources)
    defined = {line.split()[-1] for line in symbols(target).splitlines() if re.match(r"\w{16} g ", line)}
    assert defined == {"sparse_accel_abi", "sparse_accel_build"}


def test_each_file_is_for_the_cpu_in_its_name(sources: Path, target: Path) -> None:
    assert MACROS.keys() == build.INSTRUCTION_SETS.keys()
    for name, condition in MACROS.items():
        (sources / name).write_text(FOR_ONE_CPU.format(re.sub(r"__\w+__", r"defined(\g<0>)", condition)))
    assert build.build(target, sources=sources)


def test_a_compiler_that_does_not_know_avx_vnni(
    sources: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "older"
    older.write_text(f'#!/bin/sh\ncase " $* " in *" -mavxvnni "*) exit 1;; esac\nexec {gcc()[0]} "$@"\n')
    older.chmod(0o755)
    monkeypatch.setenv("CXX", str(older))
    (sources / "kernels_avx_vnni.cpp").write_text("#error\n")
    with (sources / "api.h").open("a") as header:
        header.write("#if !defined(SPARSE_ACCEL_NO_AVX_VNNI)\n#error\n#endif\n")
    assert build.build(target, sources=sources)


def test_an_error_in_the_sources(sources: Path, target: Path) -> None:
    build.build(target, sources=sources)
    (sources / "kernels_portable.cpp").write_text("int kernel() { return nothing; }\n")
    with pytest.raises(build.NotBuilt, match="exit code 1") as raised:
        build.build(target, sources=sources)
    assert "kernels_portable.cpp:1:23: error: " in str(raised.value)
    assert "exit code 1" in build.not_built(raised.value) and "\n" not in build.not_built(raised.value)
    assert list(target.parent.iterdir()) == []  # the older library is of other sources


def test_without_a_compiler_a_library_stays_if_it_is_of_these_sources(
    sources: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.build(target, sources=sources)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.NotBuilt, match=r"no C\+\+ compiler on PATH"):
        build.build(target, sources=sources)
    assert only_the_library(target)
    (sources / "api.h").write_text("#define VERSION 2\nint kernel();\n")
    with pytest.raises(build.NotBuilt):
        build.build(target, sources=sources)
    assert not target.exists()


def test_a_named_compiler_is_not_replaced_by_another_one(
    sources: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(build.NotBuilt, match="CXX=no-such-compiler -O1: there is no such compiler"):
        build.build(target, sources=sources)


def test_a_folder_that_cannot_be_written(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "package").touch()
    with pytest.raises(build.NotBuilt, match="package"):
        build.build(tmp_path / "package" / build.NAME, sources=sources)


def test_an_installed_package_without_sources_keeps_its_library(target: Path, tmp_path: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"of a wheel")
    with pytest.raises(build.NotBuilt, match="there are no sources"):
        build.build(target, sources=tmp_path / "csrc")
    assert target.read_bytes() == b"of a wheel"


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("win32", "AMD64"), ("linux", "aarch64")])
def test_other_platforms(
    sources: Path, target: Path, monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(platform, "machine", lambda: machine)
        patched.setattr(sys, "platform", system)
        with pytest.raises(build.NotBuilt, match="Linux on x86-64"):
            build.build(target, sources=sources)
    assert not target.exists()


def test_what_a_library_needs_of_the_system(sources: Path, target: Path) -> None:
    """As binutils read it."""
    with (sources / "api.cpp").open("a") as stream:
        stream.write("std::string text(int number) { return std::to_string(number + VERSION); }\n#include <thread>\n")
        stream.write("int start() { int done = 0; std::thread([&] { done = 1; }).join(); return done; }\n")
    build.build(target, sources=sources)
    versions = [tuple(map(int, each.split("."))) for each in re.findall(r"\(?GLIBC_([\d.]+)", symbols(target))]
    assert build.glibc_of(target) == max(versions)[:2] > (0, 0)
    headers = subprocess.run(["objdump", "-p", target], capture_output=True, text=True, check=True).stdout
    assert build.needed(target) == set(re.findall(r"NEEDED\s+(\S+)", headers))
    old = build.glibc_of(target) <= build.OLD_GLIBC
    assert build.platform_tag(target).startswith("manylinux" if old else "linux_x86_64")
    build.compile_library(target, compiler=gcc(), sources=sources, release=False)
    assert "libstdc++.so.6" in build.needed(target) and build.platform_tag(target) == "linux_x86_64"


def test_a_program_of_the_sources(sources: Path, tmp_path: Path) -> None:
    main = tmp_path / "main.cpp"
    main.write_text('extern "C" int sparse_accel_abi();\nint main() { return sparse_accel_abi() + 40; }\n')
    program = tmp_path / "program"
    build.compile_library(program, compiler=gcc(), sources=sources, program=[main], release=False, extra_flags=["-g"])
    assert subprocess.run([program]).returncode == 41


def test_it_runs_where_nothing_is_installed() -> None:
    file = build.SOURCES.with_name("build.py")
    done = subprocess.run([sys.executable, "-I", "-S", file, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--optional" in done.stdout, done.stderr


def test_without_a_compiler_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    """In a copy of the file beside sources, so that the library of this checkout is left alone."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "api.cpp").touch()
    (tmp_path / "build.py").write_bytes(build.SOURCES.with_name("build.py").read_bytes())
    variables = {**os.environ, "PATH": str(tmp_path), "CXX": ""}
    for words, code in (([], 1), (["--optional"], 0)):
        command = [sys.executable, str(tmp_path / "build.py"), *words]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        assert done.returncode == code and done.stdout == ""
        assert done.stderr.count("\n") == 1 and "there is no C++ compiler on PATH" in done.stderr


# --- the sources of this checkout -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "flags"), [(gcc, GCC_WARNINGS), (clang, WARNINGS)])
def test_no_compiler_warns(compiler: Callable[[], list[str]], flags: tuple[str, ...], tmp_path: Path) -> None:
    build.compile_library(tmp_path / "library.so", compiler=compiler(), extra_flags=flags)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [gcc, clang])
def test_a_file_for_one_cpu_shares_no_function(compiler: Callable[[], list[str]], tmp_path: Path) -> None:
    """An inline function that two files have is linked once: a CPU without AVX-512 could get the one with AVX-512.

    Nor does one have a static initializer, which runs on every CPU when the library is loaded.
    """
    for name, flags in build.INSTRUCTION_SETS.items():
        made = tmp_path / f"{name}.o"
        command = [*compiler(), *build.FLAGS, *flags, "-c", str(build.SOURCES / name), "-o", str(made)]
        subprocess.run(command, check=True)
        listed = subprocess.run(["nm", "-C", made], capture_output=True, text=True, check=True).stdout
        assert re.findall(r"^.* [WVu] .*$", listed, re.MULTILINE) == [], name
        sections = subprocess.run(["objdump", "-h", made], capture_output=True, text=True, check=True).stdout
        assert ".init_array" not in sections, name
