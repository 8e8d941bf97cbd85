"""Makes a wheel with the runtime's library, for any Linux on x86-64 since 2014, and proves that it needs nothing newer.

    make wheel      # python tests/support/make_wheel.py --output dist
    make dist       # python tests/support/make_wheel.py --output dist --sdist: the sources too, and the wheel from them

The compiler is zig's, from PyPI: a clang that links against glibc 2.17 and puts its own C++ library into what it
makes. The sources are what git lists, committed or not, in a folder of their own: no leftover gets into the wheel.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "sparse_accel/runtime/libsparse_accel.so"
TAG = "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64"


def compiler() -> list[str]:
    """Returns the command of zig's C++ compiler, by its path: pip builds where no package of this environment is."""
    found = importlib.util.find_spec("ziglang")
    if found is None or found.origin is None:
        raise SystemExit("error: ziglang is not installed: pip install -c constraints.txt ziglang")
    return [str(Path(found.origin).with_name("zig")), "c++", "-target", "x86_64-linux-gnu.2.17"]


def copy_sources(target: Path) -> None:
    """Copies the files that git lists, as they are now."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def make_sdist(output: Path) -> Path:
    """Returns the archive of the sources in `output`; SystemExit with setuptools' words if there is none."""
    with tempfile.TemporaryDirectory() as scratch:
        copy_sources(Path(scratch) / "sources")
        output.mkdir(parents=True, exist_ok=True)
        code = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(output.resolve())!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(scratch) / "sources", text=True, capture_output=True
        )
        if done.returncode != 0:
            raise SystemExit(f"{done.stdout}{done.stderr}\nerror: setuptools made no archive of the sources")
        return output / done.stdout.splitlines()[-1]


def make_wheel(output: Path, sdist: Path | None = None) -> Path:
    """Returns the wheel in `output`; SystemExit with the compiler's or pip's words if there is none.

    Args:
        sdist: an archive of the sources to make it from; None: what git lists here.
    """
    with tempfile.TemporaryDirectory() as scratch:
        sources, made = sdist or Path(scratch) / "sources", Path(scratch) / "made"
        if sdist is None:
            copy_sources(sources)
        words = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps", "-w", made]
        variables = os.environ | {"CXX": shlex.join(compiler()), "SPARSE_ACCEL_KERNELS": "required"}
        done = subprocess.run(
            [*map(str, words), str(sources)], env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode != 0:
            raise SystemExit(f"{done.stdout}\nerror: pip wheel failed with exit code {done.returncode}")
        (wheel,) = made.glob("*.whl")
        if not wheel.name.endswith(f"-{TAG}.whl"):
            raise SystemExit(f"{done.stdout}\nerror: {_fault(wheel, Path(scratch))}")
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy2(wheel, output))


def _fault(wheel: Path, scratch: Path) -> str:
    """Why a wheel is not one for old systems."""
    spec = importlib.util.spec_from_file_location("runtime_build", ROOT / "sparse_accel" / "runtime" / "build.py")
    assert spec and spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    with zipfile.ZipFile(wheel) as archive:
        if LIBRARY not in archive.namelist():
            return f"{wheel.name} has no {LIBRARY}: what the compiler said is above"
        library = Path(archive.extract(LIBRARY, scratch))
    newest = ".".join(map(str, build.glibc_of(library)))
    return (
        f"{LIBRARY} runs on newer systems alone: glibc {newest} (2.17 is allowed) and {sorted(build.needed(library))}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the wheel with the runtime's library.")
    parser.add_argument("--output", type=Path, default=Path("dist"))
    parser.add_argument("--sdist", action="store_true", help="an archive of the sources too, and the wheel from it")
    arguments = parser.parse_args()
    sdist = make_sdist(arguments.output) if arguments.sdist else None
    print(*filter(None, (sdist, make_wheel(arguments.output, sdist))), sep="\n")


if __name__ == "__main__":
    main()
