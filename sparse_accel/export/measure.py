"""Latency of a file in several runtimes: medians of interleaved runs, on one thread.

Four models separate the gain from quantization and the gain from zeros: the float model, the quantized model, and
each of them with its zeros filled in. onnxruntime is always measured, OpenVINO if it is installed, and DeepSparse in
its own environment (Python up to 3.11), where `deepsparse_worker.py` runs.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from sparse_accel.errors import UsageError

Inputs = dict[str, np.ndarray]
Run = Callable[[Inputs], Any]

BATCHES = (1, 32)
_SECONDS, _FEWEST, _MOST = 6.0, 3, 60  # seconds per batch size, and the minimum and maximum number of rounds
_DEEPSPARSE_TIMEOUT = 900


def session(path: Path, *, threads: int = 0, optimized: Path | None = None) -> Any:
    """Returns an onnxruntime session on the CPU.

    Args:
        threads: number of threads; 0 lets onnxruntime choose.
        optimized: where to write the optimized graph; None does not write it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def latencies(
    files: dict[str, Path], tokens: int, deepsparse_python: str | None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Returns milliseconds by runtime, batch size and contestant, as {"onnxruntime": {"1": {"float": 31.5, ...}}}, and
    one line for each other runtime that failed, which does not affect the proof.

    Args:
        files: the file of each contestant, by name.
        tokens: number of tokens per row.
        deepsparse_python: the interpreter of an environment with DeepSparse; None skips DeepSparse.
    """
    inputs = {batch: random_inputs(next(iter(files.values())), batch, tokens) for batch in BATCHES}
    sessions = {name: session(path, threads=1) for name, path in files.items()}
    runs: dict[str, Run] = {name: partial(found.run, None) for name, found in sessions.items()}
    found: dict[str, dict[str, Any]] = {"onnxruntime": {str(b): interleaved(runs, inputs[b]) for b in BATCHES}}
    del sessions, runs
    failed: list[str] = []
    if importlib.util.find_spec("openvino") is not None:
        try:
            runs = openvino_runs(files)
            found["OpenVINO"] = {str(batch): interleaved(runs, inputs[batch]) for batch in BATCHES}
        except Exception as error:
            failed.append(f"OpenVINO cannot run the file: {str(error).strip().splitlines()[0]}")
    if deepsparse_python is not None:
        try:
            found["DeepSparse"] = deepsparse_latencies(files, tokens, deepsparse_python)
        except UsageError as error:
            failed.append(str(error))
    return found, failed


def interleaved(runs: dict[str, Run], feed: Inputs) -> dict[str, float]:
    """Returns the median milliseconds of each contestant; each round runs all of them once, in rotating order."""
    for run in runs.values():
        run(feed)
    names, times = list(runs), {name: list[float]() for name in runs}
    began = time.perf_counter()
    for turn in range(_MOST):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            runs[name](feed)
            times[name].append(time.perf_counter() - start)
        if turn + 1 >= _FEWEST and time.perf_counter() - began > _SECONDS:
            break
    return {name: statistics.median(values) * 1000 for name, values in times.items()}


def random_inputs(path: Path, batch: int, tokens: int) -> Inputs:
    """Returns rows of random token ids without padding, by input name. The ids do not affect the latency."""
    model = onnx.load(path)
    vocabulary = min(
        tensor.dims[0]
        for node in model.graph.node
        if node.op_type == "Gather" and node.input[1] == "input_ids"
        for tensor in model.graph.initializer
        if tensor.name == node.input[0]
    )
    ids = np.random.default_rng(0).integers(2, vocabulary, (batch, tokens), dtype=np.int64)
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {entry.name: values.get(entry.name, np.zeros_like(ids)) for entry in model.graph.input}


def without_zeros(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the same graph with random weight matrices, to measure its latency without sparsity."""
    dense = onnx.ModelProto()
    dense.CopyFrom(model)
    random = np.random.default_rng(0)
    for tensor in dense.graph.initializer:
        if len(tensor.dims) != 2 or not tensor.name.endswith((".weight", ".weight_quantized")):
            continue
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f":
            filled = random.normal(0, 0.02, array.shape).astype(array.dtype)
        else:
            filled = random.integers(np.iinfo(array.dtype).min, np.iinfo(array.dtype).max, array.shape, array.dtype)
        tensor.CopyFrom(numpy_helper.from_array(filled, tensor.name))
    return dense


def openvino_runs(files: dict[str, Path]) -> dict[str, Run]:
    """Returns a function per contestant that runs it in OpenVINO, on one thread of the CPU."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = {name: core.compile_model(str(path), "CPU", settings) for name, path in files.items()}
    return dict(compiled)


def require_deepsparse(python: str) -> None:
    """Raises UsageError unless the interpreter `python` starts and can import DeepSparse."""
    try:
        done = subprocess.run(
            [python, "-c", "import deepsparse, onnx"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--deepsparse_python {python}: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"--deepsparse_python {python} cannot import DeepSparse: {last}")


def deepsparse_latencies(files: dict[str, Path], tokens: int, python: str) -> dict[str, Any]:
    """Returns milliseconds by batch size and contestant in DeepSparse: runs `deepsparse_worker.py` with `python`.

    Raises:
        UsageError: the interpreter cannot be started, or DeepSparse failed in it.
    """
    worker = Path(__file__).with_name("deepsparse_worker.py")
    order = json.dumps({"files": {name: str(path) for name, path in files.items()}, "tokens": tokens})
    try:
        done = subprocess.run(
            [python, str(worker), order],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_DEEPSPARSE_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--deepsparse_python {python}: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"--deepsparse_python {python}: DeepSparse failed: {last}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def cpu() -> dict[str, Any]:
    """Returns the CPU's `name`, and `vnni`: True if its 8-bit dot products cannot overflow (None: not known)."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {"name": "a CPU", "vnni": None}
    text = path.read_text()
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "CPU")
    flags = set(next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "").split())
    if "sse2" not in flags:  # VNNI exists only on x86
        return {"name": name, "vnni": None}
    return {"name": name, "vnni": bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})}
