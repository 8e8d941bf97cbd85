"""Compiles csrc/ into the shared library libsparse_accel.so.

    python sparse_accel/runtime/build.py               # beside this file, if sources, flags or compiler changed
    python sparse_accel/runtime/build.py --optional    # without a compiler: one line that says so, exit code 0

On another platform than Linux on x86-64 there is nothing to build.

Standard library only, and nothing of this package: setup.py and `make kernels` run this file by its path.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAME = "libsparse_accel.so"
SOURCES = Path(__file__).resolve().parent / "csrc"
LIBRARY = SOURCES.with_name(NAME)

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off")
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mbmi2", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
# By file name; any other file runs on every x86-64 CPU. In the order of the link: where two files hold the same inline
# function of a header, the linker keeps the first one, which must be the one that needs the least of a CPU.
INSTRUCTION_SETS = {
    "kernels_avx2.cpp": _AVX2,
    "kernels_avx_vnni.cpp": (*_AVX2, "-mavxvnni"),
    "kernels_avx512_vnni.cpp": _AVX512,
    "kernels_avx512_vbmi.cpp": (*_AVX512, "-mavx512vbmi"),
}

# What a wheel of the tag manylinux_2_17 may need of the system that it is installed on.
OLD_GLIBC = (2, 17)
_SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"}


class NotBuilt(Exception):
    """There is no library: no compiler, another platform, or an error in the sources. The first line says which."""


def for_this_platform() -> bool:
    """Returns whether there are kernels for this machine: on Linux on x86-64."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and sys.maxsize > 1 << 32


def find_compiler() -> list[str]:
    """Returns the command of the C++ compiler: $CXX, which may have flags, else c++, g++ or clang++ on PATH."""
    if words := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(words[0]) is None:
            raise NotBuilt(f"CXX={shlex.join(words)}: there is no such compiler")
        return words
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise NotBuilt("there is no C++ compiler on PATH (c++, g++ or clang++); install one, or name it in CXX")


def compile_library(
    target: Path,
    *,
    compiler: Sequence[str] | None = None,
    extra_flags: Sequence[str] = (),
    program: Sequence[Path] = (),
    release: bool = True,
    sources: Path = SOURCES,
    label: str = "",
) -> None:
    """Compiles and links all sources, in two processes; `target` is replaced when it is complete, or not at all.

    Args:
        compiler: the command; by default what `find_compiler` finds.
        extra_flags: for each file and for the link, after the usual ones.
        program: more source files. With them, `target` is a program that calls the library's functions.
        release: without symbols, and with the C++ library inside. Not for sanitizers.
        label: text in the library, by which `build` knows what it was made from.

    Raises:
        NotBuilt: with what the compiler printed.
    """
    compiler = list(compiler or find_compiler())
    files = _files(sources)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        flags = [*FLAGS, f"-ffile-prefix-map={sources}=csrc"]
        if not _knows_avx_vnni(compiler, folder):
            flags.append("-DSPARSE_ACCEL_NO_AVX_VNNI")
            files = [file for file in files if "-mavxvnni" not in INSTRUCTION_SETS.get(file.name, ())]
        (folder / "label.cpp").write_text(
            f'extern "C" {{ extern __attribute__((visibility("default"))) const char sparse_accel_build[];\n'
            f'const char sparse_accel_build[] = "sparse_accel {label}"; }}\n'
        )
        files = [folder / "label.cpp", *program, *files]
        objects = [str(folder / f"{number}.o") for number in range(len(files))]
        commands = [
            [*compiler, *flags, *INSTRUCTION_SETS.get(file.name, ()), *extra_flags, "-c", str(file), "-o", made]
            for file, made in zip(files, objects, strict=True)
        ]
        link = [*compiler, "-O3", *extra_flags, *objects, "-pthread", "-o", str(partial)]
        if not program:
            link += ["-shared", f"-Wl,--version-script={sources / 'exports.map'}"]
        if release:
            link += ["-s", "-Wl,--no-undefined"]
        try:
            with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
                list(pool.map(_run, reversed(commands)))  # the long ones first
            try:
                _run([*link, *(("-static-libstdc++", "-static-libgcc") if release else ())])
            except NotBuilt:  # this system has the C++ library as a shared one only
                _run(link)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def build(target: Path = LIBRARY, *, sources: Path = SOURCES) -> bool:
    """Makes the library if there is none of these sources, flags and compiler. Returns whether it compiled anything.

    Raises:
        NotBuilt: and `target` is then there only if it is of these sources.
    """
    _files(sources)  # an installed wheel has none: its library stays
    made_from = f"sources={_digest(sources)}"
    present = target.read_bytes() if target.is_file() else b""
    try:
        if not for_this_platform():
            raise NotBuilt("its kernels are for Linux on x86-64 alone")
        compiler = find_compiler()
        label = f"{made_from} compiler={hashlib.sha256(_version(compiler).encode()).hexdigest()}"
        if label.encode() in present:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        compile_library(target, compiler=compiler, sources=sources, label=label)
    except (NotBuilt, OSError) as error:
        if present and made_from.encode() not in present:
            target.unlink()  # what runs must not be of other sources than those beside it
        if isinstance(error, OSError):
            raise NotBuilt(str(error)) from error
        raise
    return True


def not_built(error: NotBuilt, target: Path = LIBRARY) -> str:
    """Returns one line for users: what is missing, and what works all the same."""
    reason = str(error).splitlines()[0]
    return f"sparse_accel: {target.name} was not built: {reason}. Everything but the kernels of the runtime works."


def glibc_of(library: Path) -> tuple[int, int]:
    """Returns the newest version of glibc's symbols that a library needs; (0, 0) if it needs none."""
    found = re.findall(rb"\0GLIBC_(\d+)\.(\d+)(?=[.\0])", library.read_bytes())
    return max(((int(major), int(minor)) for major, minor in found), default=(0, 0))


def needed(library: Path) -> set[str]:
    """Returns the names of the shared libraries that a library needs."""
    return {name.decode() for name in re.findall(rb"\0([\w+-]+\.so(?:\.\d+)*)(?=\0)", library.read_bytes())}


def platform_tag(library: Path) -> str:
    """Returns the platform tag of a wheel with this library: manylinux2014, if it runs on any Linux since 2014."""
    others = needed(library) - {library.name}
    if "libc.so.6" in others and others <= _SYSTEM_LIBRARIES and glibc_of(library) <= OLD_GLIBC:
        return "manylinux_2_17_x86_64.manylinux2014_x86_64"
    return "linux_x86_64"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise NotBuilt(f"{command[0]} failed with exit code {done.returncode}\n{shlex.join(command)}\n{done.stderr}")


def _knows_avx_vnni(compiler: list[str], folder: Path) -> bool:
    (folder / "empty.cpp").touch()
    command = [*compiler, "-mavxvnni", "-c", str(folder / "empty.cpp"), "-o", str(folder / "empty.o")]
    return subprocess.run(command, capture_output=True).returncode == 0


def _files(sources: Path) -> list[Path]:
    """The files to compile, in the order of the link."""
    if files := list(sources.glob("*.cpp")):
        return sorted(files, key=lambda file: (_rank(file.name), file.name))
    raise NotBuilt(f"there are no sources in {sources}")


def _rank(name: str) -> int:
    return [*INSTRUCTION_SETS].index(name) if name in INSTRUCTION_SETS else -1


def _version(compiler: list[str]) -> str:
    """The command and what it says of itself."""
    said = subprocess.run([*compiler, "--version"], capture_output=True, text=True, errors="replace").stdout
    return f"{shlex.join(compiler)}\n{said}"


def _digest(sources: Path) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted(sources.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            digest.update(f"{file.relative_to(sources).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=f"Compiles {NAME}, if sources, flags or compiler changed.")
    parser.add_argument("--optional", action="store_true", help="exit with 0 where it cannot be built")
    options = parser.parse_args()
    try:
        made = build()
    except NotBuilt as error:
        print(*str(error).splitlines()[1:], not_built(error), sep="\n", file=sys.stderr)
        return 0 if options.optional or not for_this_platform() else 1
    print(f"{LIBRARY}: {'built' if made else 'up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
