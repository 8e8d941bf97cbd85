"""Latency of sessions: medians of interleaved runs of random rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

Inputs = dict[str, np.ndarray]
Run = Callable[[Inputs], Any]

_SECONDS, _FEWEST, _MOST = 6.0, 3, 60  # seconds per comparison, and the minimum and maximum number of rounds


def plain_session(
    path: Path, *, threads: int = 0, optimized: Path | None = None, library: Path | None = None
) -> onnxruntime.InferenceSession:
    """Returns onnxruntime's own session on the CPU.

    Args:
        threads: number of threads; 0 lets onnxruntime choose.
        optimized: where to write the optimized graph; None does not write it.
        library: of operators that the file has beside onnxruntime's own.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def interleaved(runs: dict[str, Run], feed: Inputs, *, seconds: float = _SECONDS) -> dict[str, float]:
    """Returns the median milliseconds of each contestant; each round runs all of them once, in rotating order.

    Args:
        seconds: of the whole comparison, about; there are at least 3 and at most 60 rounds.
    """
    for run in runs.values():
        run(feed)
    names, times = list(runs), {name: list[float]() for name in runs}
    began = time.perf_counter()
    for turn in range(_MOST):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            runs[name](feed)
            times[name].append(time.perf_counter() - start)
        if turn + 1 >= _FEWEST and time.perf_counter() - began > seconds:
            break
    return {name: statistics.median(values) * 1000 for name, values in times.items()}


def random_inputs(path: Path, batch: int, tokens: int) -> Inputs:
    """Returns rows of random token ids without padding, int64 [batch, tokens], by input name. The ids do not affect the
    latency."""
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


def openvino_run(path: Path, threads: int) -> Run:
    """Returns a function that runs a file in OpenVINO on the CPU, in float32 where it is not in integers."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled: Run = openvino.Core().compile_model(str(path), "CPU", settings)
    return compiled
