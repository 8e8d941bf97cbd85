"""The runtime's library as it is installed: from a wheel where nothing else is, and beside its sources."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from compilers import without_compilers
from make_wheel import LIBRARY, TAG, copy_sources, make_wheel
from places import GOLDEN, ROOT

pytestmark = pytest.mark.slow

# In an environment without torch and transformers: text -> tokens -> logits.
PROGRAM = """
import importlib.util, json, sys
import numpy, onnxruntime, tokenizers
from sparse_accel.runtime import explain, session
from sparse_accel.runtime.library import load_library

folder = sys.argv[1]
tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.enable_padding()
rows = tokenizer.encode_batch(["good film", "a bad bad film"])
held = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
fast, plain = session(folder), onnxruntime.InferenceSession(f"{folder}/model.onnx")
inputs = {each.name: numpy.array([getattr(row, held[each.name]) for row in rows]) for each in plain.get_inputs()}
print(json.dumps({
    "logits": fast.run(["logits"], inputs)[0].tolist(),
    "expected": plain.run(["logits"], inputs)[0].tolist(),
    "instruction_set": explain(fast).instruction_set,
    "library": str(load_library().path),
    "unwanted": [name for name in ("torch", "transformers", "datasets") if importlib.util.find_spec(name)],
}))
"""


def ran(*words: object, folder: Path, **variables: str) -> str:
    """The output of a command, with another PATH and other variables."""
    clean = {name: value for name, value in os.environ.items() if name not in ("CXX", "PYTHONPATH")}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=clean | variables, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def pip(*words: object, folder: Path, python: object = sys.executable, **variables: str) -> str:
    return ran(python, "-m", "pip", "--disable-pip-version-check", *words, folder=folder, **variables)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of this checkout: building leaves files beside what it builds."""
    copy_sources(tmp_path / "sources")
    return tmp_path / "sources"


def test_the_wheel_runs_on_old_systems(wheel: Path, tmp_path: Path) -> None:
    """As binutils read its library; make_wheel itself has looked with a few lines of Python."""
    assert wheel.name == f"sparse_accel-0.1.0-{TAG}.whl"
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract(LIBRARY, tmp_path)
        assert not [name for name in archive.namelist() if "csrc" in name]
        (described,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: false" in archive.read(described).decode()
    read = ran("objdump", "-T", library, folder=tmp_path)
    versions = {tuple(map(int, each.split("."))) for each in re.findall(r"GLIBC_([\d.]+)", read)}
    assert (2, 2, 5) <= max(versions) <= (2, 17)
    assert not re.search("GLIBCXX|CXXABI|GCC_", read)


def test_the_runtime_alone_in_an_environment_without_torch(wheel: Path, tmp_path: Path) -> None:
    ran(sys.executable, "-m", "venv", tmp_path / "venv", folder=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    only = {"PATH": str(python.parent)}  # no compiler, no other Python
    pip("install", "-q", "--no-deps", wheel, folder=tmp_path, python=python, **only)
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    named = re.findall(r"^Requires-Dist: (\S+); extra == .runtime.$", metadata, re.MULTILINE)
    assert [re.split("[<>=]", name)[0] for name in named] == ["numpy", "onnx", "onnxruntime"]
    pip(
        *("install", "-q", "-c", ROOT / "constraints.txt", *named, "tokenizers"),
        folder=tmp_path,
        python=python,
        **only,
    )
    said = ran(
        *(python, "-c", PROGRAM, GOLDEN / "old_run" / "deployment"),
        folder=tmp_path,
        SPARSE_ACCEL_ISA="portable",
        **only,
    )
    found = json.loads(said.splitlines()[-1])
    assert found["unwanted"] == []
    assert found["instruction_set"] == "portable", said
    assert Path(found["library"]).is_relative_to(tmp_path / "venv")
    for one, other in zip(found["logits"], found["expected"], strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_an_editable_install_has_the_library_beside_its_sources(sources: Path, tmp_path: Path) -> None:
    ran(sys.executable, "-m", "venv", tmp_path / "venv", folder=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    install = ("install", "-v", "--no-deps", "-e", sources)
    library = sources / LIBRARY
    without = pip(*install, folder=tmp_path, python=python, PATH=str(python.parent))
    (line,) = (line for line in without.splitlines() if "was not built" in line)
    assert "there is no C++ compiler on PATH" in line and not library.exists()
    pip(*install, folder=tmp_path, python=python)
    assert library.exists()
    seen = ran(python, "-c", "import sparse_accel; print(sparse_accel.__path__[0])", folder=tmp_path)
    assert Path(seen.strip()) == sources / "sparse_accel"


def test_without_a_compiler_a_wheel_is_for_every_platform(sources: Path, tmp_path: Path) -> None:
    words = ("wheel", "-v", "--no-deps", "-w", tmp_path / "wheels", sources)
    said = pip(*words, folder=tmp_path, PATH=without_compilers())
    assert said.count("was not built: there is no C++ compiler") == 1
    (made,) = (tmp_path / "wheels").glob("*.whl")
    assert made.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(made) as archive:
        assert LIBRARY not in archive.namelist()


def test_an_archive_of_the_sources_has_those_of_the_library(sources: Path, tmp_path: Path) -> None:
    ran(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path / "made", folder=sources)
    (made,) = (tmp_path / "made").glob("*.tar.gz")
    with tarfile.open(made) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    csrc = (sources / LIBRARY).with_name("csrc")
    assert {"setup.py", "pyproject.toml", *(str(file.relative_to(sources)) for file in csrc.iterdir())} <= packed
