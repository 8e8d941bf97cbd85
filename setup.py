"""What pyproject.toml cannot say: the runtime's library is compiled where there is a C++ compiler, else left out.

An editable install has it beside its sources, a wheel in its package; a wheel without it is for any platform. With
SPARSE_ACCEL_KERNELS=required in the environment, an install without it fails.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
RUNTIME = Path("sparse_accel") / "runtime"


def _by_path() -> ModuleType:
    """sparse_accel/runtime/build.py, without the package, which imports what this environment does not have."""
    spec = importlib.util.spec_from_file_location("runtime_build", ROOT / RUNTIME / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runtime_build = _by_path()


class build_kernels(Command):
    """Compiles the library into the folder that becomes a wheel, or beside its sources for an editable install."""

    description = "compile the library of sparse_accel.runtime, if there is a C++ compiler"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []
    build_lib: str
    editable_mode: bool

    def initialize_options(self) -> None:
        self.build_lib = ""
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.build_lib = self.build_lib or self.get_finalized_command("build_py").build_lib

    @property
    def library(self) -> Path:
        return (ROOT if self.editable_mode else Path(self.build_lib)) / RUNTIME / runtime_build.NAME

    def run(self) -> None:
        try:
            runtime_build.build(self.library)
        except runtime_build.NotBuilt as error:
            print(*str(error).splitlines()[1:], runtime_build.not_built(error), sep="\n")
            if os.environ.get("SPARSE_ACCEL_KERNELS") == "required":
                raise SystemExit(1) from error

    def get_source_files(self) -> list[str]:
        sources = (file for file in (ROOT / RUNTIME / "csrc").rglob("*") if file.is_file())
        return sorted(os.path.relpath(file, ROOT) for file in sources)

    def get_outputs(self) -> list[str]:
        return [] if self.editable_mode or not self.library.exists() else [str(self.library)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class wheel(bdist_wheel):
    """Names a wheel after what is in it: no Python's ABI, and a platform only where the library is."""

    platform = ""

    def run(self) -> None:
        self.run_command("build")
        library = self.get_finalized_command("build_kernels").library
        if library.exists():
            self.platform = runtime_build.platform_tag(library)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", self.platform) if self.platform else super().get_tag()

    def write_wheelfile(self, wheelfile_base: str, *more: str) -> None:
        self.root_is_pure = not self.platform
        super().write_wheelfile(wheelfile_base, *more)


build.sub_commands.append(("build_kernels", None))
setup(cmdclass={"build_kernels": build_kernels, "bdist_wheel": wheel})
