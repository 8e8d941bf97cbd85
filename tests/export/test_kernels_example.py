"""examples/kernels: a C++ program that loads model.kernels.onnx and the library answers as the session in Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from compilers import GCC_WARNINGS, gcc
from export_fixtures import copy_of, export
from places import ROOT

from sparse_accel.native import VARIABLE as LIBRARY_VARIABLE
from sparse_accel.native import library_path
from sparse_accel.runtime import session
from sparse_accel.runtime.loading import VARIABLE

pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.usefixtures("quick")

SOURCE = ROOT / "examples" / "kernels" / "classify.cpp"


def built(folder: Path) -> Path:
    """The program, linked with the library in onnxruntime's wheel, as README.md beside it says."""
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.1.*")
    link = folder / "libonnxruntime.so.1"
    link.symlink_to(library)
    words = [*gcc(), "-std=c++17", "-O2", *GCC_WARNINGS, str(SOURCE), str(link), f"-Wl,-rpath,{folder}"]
    done = subprocess.run([*words, "-o", str(folder / "classify")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "classify"


def test_the_example_answers_as_python_does(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    done = export(model_path=copy_of(trained, tmp_path), kernels=True)
    assert done.code == 0, done.all
    folder, program = tmp_path / "deployment", built(tmp_path)
    ids = [2, 5, 9, 14, 7, 3]
    model = folder / "model.kernels.onnx"

    said = subprocess.run(
        [program, library_path(), model, *map(str, ids)], capture_output=True, text=True, timeout=60, check=True
    )
    row = np.array([ids])
    inputs = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
    expected = session(folder, threads=1).run(["logits"], inputs)[0][0]
    np.testing.assert_allclose([float(line) for line in said.stdout.split()], expected, atol=1e-5)

    # A failure is onnxruntime's own message.
    for words in ((tmp_path / "nowhere.so", model), (library_path(), folder / "nowhere.onnx")):
        failed = subprocess.run([program, *words, "2", "3"], capture_output=True, text=True, timeout=60)
        assert failed.returncode == 1 and "nowhere" in failed.stderr and not failed.stdout
    assert subprocess.run([program], capture_output=True, text=True).stderr.startswith("usage: ")
    lines = SOURCE.read_text().splitlines()
    assert len(lines) < 150 and max(map(len, lines)) <= 124
