"""The measurements of an export: who takes part, in turn, and that a model without zeros is otherwise the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from places import GOLDEN, ROOT

from sparse_accel.errors import UsageError
from sparse_accel.export import measure
from sparse_accel.runtime.other_interpreter import require_deepsparse
from sparse_accel.runtime.timing import Run, interleaved, openvino_run, plain_session, random_inputs

MODEL = GOLDEN / "old_run" / "deployment" / "model.onnx"
DENSE = "bert.encoder.layer.0.output.dense.weight_quantized"


def test_contestants_take_turns() -> None:
    order: list[str] = []

    def run_of(name: str) -> Run:
        return lambda feed: order.append(name)

    runs = {name: run_of(name) for name in "abc"}
    found = interleaved(runs, {})
    assert set(found) == set("abc") and all(value >= 0 for value in found.values())
    assert order[:12] == [*"abc", *"abc", *"bca", *"cab"]  # the first round warms up


def test_without_zeros_only_the_zeros_change(tmp_path: Path) -> None:
    graph = onnx.load(MODEL)
    dense = measure.without_zeros(graph)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in dense.graph.initializer}
    assert (weights[DENSE] == 0).mean() < 0.05
    assert [node.op_type for node in dense.graph.node] == [node.op_type for node in graph.graph.node]
    onnx.save(dense, tmp_path / "dense.onnx")
    feed = random_inputs(tmp_path / "dense.onnx", batch=2, tokens=8)
    assert plain_session(tmp_path / "dense.onnx").run(None, feed)[0].shape == (2, 2)


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_runs_the_file(tmp_path: Path) -> None:
    run = openvino_run(MODEL, threads=1)
    assert next(iter(run(random_inputs(MODEL, 2, 8)).values())).shape == (2, 2)


def test_deepsparse_errors_name_the_interpreter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--deepsparse_python .*no_such_python"):
        require_deepsparse(str(tmp_path / "no_such_python"))
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'deepsparse'\" >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(UsageError, match="cannot import DeepSparse: ModuleNotFoundError"):
        require_deepsparse(str(broken))


def test_deepsparse_takes_turns_in_processes_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the interpreter: one process for each contestant and batch size, all of them ended."""
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    stand_in = tmp_path / "python"
    said = f'echo "$@" >> {tmp_path}/started; echo about itself; echo ready; while read line; do echo 0.1; done'
    stand_in.write_text(f"#!/bin/sh\n{said}\n")
    stand_in.chmod(0o755)
    files = {"float": MODEL, "quantized": MODEL}
    found, failed = measure.latencies(files, 8, str(stand_in), kernels=False)
    assert not [line for line in failed if "deepsparse" in line]
    assert {batch: set(times) for batch, times in found["DeepSparse"].items()} == {"1": set(files), "32": set(files)}
    started = (tmp_path / "started").read_text().split("\n")[:-1]
    worker = ROOT / "sparse_accel" / "runtime" / "deepsparse_worker.py"
    assert started == [f"{worker} {MODEL} {batch} 8 1" for batch in (1, 1, 32, 32)]

    stand_in.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    found, failed = measure.latencies(files, 8, str(stand_in), kernels=False)
    assert "DeepSparse" not in found and "DeepSparse failed: no room" in failed[-1]
