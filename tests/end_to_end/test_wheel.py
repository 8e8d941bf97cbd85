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
from typing import Any

import pytest
from compilers import without_compilers
from make_wheel import LIBRARY, TAG, copy_sources, make_sdist, make_wheel
from places import GOLDEN, ROOT
from script_fixtures import make_model, sentences, words, write_csv

from sparse_accel import __version__

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
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made right after the archive of the sources, so that both are of the same files."""
    return make_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of this checkout: building leaves files beside what it builds."""
    copy_sources(tmp_path / "sources")
    return tmp_path / "sources"


def test_the_wheel_runs_on_old_systems(wheel: Path, tmp_path: Path) -> None:
    """As binutils read its library; make_wheel itself has looked with a few lines of Python."""
    assert wheel.name == f"sparse_accel-{__version__}-{TAG}.whl"
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


def listed_by_git(*patterns: str) -> set[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name for name in found if (ROOT / name).is_file()}


def test_the_wheel_carries_everything_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {name for name in listed_by_git("sparse_accel") if "/runtime/csrc/" not in name}
    assert packed == package | {LIBRARY} | {
        f"sparse_accel/{name}" for name in listed_by_git("scripts", "accelerate_configs")
    }


def test_a_wheel_from_the_archive_of_the_sources_is_the_same(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    assert sdist.name == f"sparse_accel-{__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
    build = {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt"}
    made = {name for name in packed if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert packed - made == build | listed_by_git("sparse_accel", "scripts", "accelerate_configs")
    other = make_wheel(tmp_path / "wheel", sdist)
    assert other.name == wheel.name
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(other) as two:
        assert sorted(one.namelist()) == sorted(two.namelist())
        different = [name for name in one.namelist() if one.read(name) != two.read(name)]
    assert different == []


def test_the_command_where_nothing_but_the_wheel_is(wheel: Path, tmp_path: Path) -> None:
    """The tutorial's command on CSV files, launch files, a script and a launcher: in an empty folder, without a clone.
    The libraries are those of this environment."""
    ran(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", folder=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    pip("--python", python, "install", "-q", "--no-deps", wheel, folder=tmp_path)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    command, bare = python.with_name("sparse_accel"), {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    assert ran(command, "--version", folder=empty, **bare) == f"sparse_accel {__version__}\n"
    assert "files copied" in ran(command, "launch-files", folder=empty, **bare)

    make_model(empty / "model", sparse=True)
    write_csv(empty / "train.csv", sentences(40, seed=1))
    write_csv(empty / "validation.csv", sentences(16, seed=2))
    flags: dict[str, Any] = {
        "model_name_or_path": "model",
        "recipe": "zoo:nlp/sentiment_analysis/obert-base/pytorch/huggingface/sst2/pruned90_quant-none",
        "recipe_args": {"num_epochs": 2, "qat_start_epoch": 1.0, "observer_epoch": 1.5},
        "distill_teacher": "disable",
        "train_file": "train.csv",
        "validation_file": "validation.csv",
        "input_column_names": "text",
        "label_column_name": "label",
        "output_dir": "run",
        "do_train": True,
        "do_eval": True,
    }
    said = ran(command, "train", "text-classification", *words(**flags), folder=empty, **bare)
    assert "── results" in said and (empty / "run" / "quantization.json").is_file()
    assert "quantization-aware training begins" in ran(command, "recipe", flags["recipe"], folder=empty, **bare)
    ran(command, "export", "--model_path", "run", "--task", "text_classification", folder=empty, **bare)
    assert (empty / "deployment" / "model.onnx").is_file()
    launched = [command.with_name("python"), "-m", "accelerate.commands.launch", "--config_file"]
    launched += ["accelerate_configs/cpu.yaml", "-m", "sparse_accel", "train", "text-classification"]
    assert "── results" in ran(*launched, *words(**flags | {"output_dir": "launched"}), folder=empty, **bare)
