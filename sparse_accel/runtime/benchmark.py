"""Latency and throughput of a deployment in several runtimes, in one interleaved run."""

from __future__ import annotations

import importlib.util
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from sparse_accel.errors import UsageError
from sparse_accel.runtime.float_graph import in_float
from sparse_accel.runtime.graph import Graph
from sparse_accel.runtime.loading import Explanation, explain, model_file, session
from sparse_accel.runtime.other_interpreter import DeepSparse
from sparse_accel.runtime.patterns import find_linears
from sparse_accel.runtime.timing import Run, interleaved, openvino_run, plain_session, random_inputs

FLOAT, INT8, KERNELS, OPENVINO, DEEPSPARSE = "float", "INT8", "INT8 + kernels", "OpenVINO INT8", "DeepSparse INT8"


@dataclass(frozen=True)
class Benchmark:
    """The result of a benchmark.

    Attributes:
        milliseconds: of a batch, the median, by contestant.
        batch_size: rows of a batch.
        explanation: of the session with kernels.
        notes: contestants that could not take part, and why.
    """

    milliseconds: dict[str, float]
    batch_size: int
    explanation: Explanation
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{'':<16} {'ms':>8} {'rows/s':>9} {'over float':>11} {'over INT8':>10}"]
        for name, milliseconds in self.milliseconds.items():
            speeds = [self.milliseconds[other] / milliseconds for other in (FLOAT, INT8)]
            rows = self.batch_size / milliseconds * 1000
            lines.append(f"{name:<16} {milliseconds:>8.2f} {rows:>9.1f} {speeds[0]:>10.2f}x {speeds[1]:>9.2f}x")
        return "\n".join([*lines, *self.notes])


def benchmark(
    folder_or_file: str | Path,
    *,
    threads: int = 1,
    batch_size: int = 1,
    tokens: int = 128,
    seconds: float = 6.0,
    deepsparse_python: str | None = None,
    deepsparse_model: str | Path | None = None,
) -> Benchmark:
    """Times a deployment: in float, as it is, with kernels, in OpenVINO if that is installed, and in DeepSparse if its
    interpreter is given.

    Args:
        folder_or_file: a deployment folder of an INT8 model, or its ONNX file.
        tokens: of each row; no row is padded.
        seconds: of the whole comparison, about.
        deepsparse_python: the interpreter of an environment with DeepSparse 1.8.
        deepsparse_model: the same model exported with `--format integer`, which DeepSparse is faster with.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: it has no quantized Linears of the format qdq, or DeepSparse cannot run the model.
    """
    path = model_file(folder_or_file)
    linears, _ = find_linears(Graph(onnx.load(path)))
    if not linears:
        raise UsageError(f"{path} has no quantized Linears of the format qdq: there is nothing to compare")
    feed = random_inputs(path, batch_size, tokens)
    notes = []
    fast = session(path, threads)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        float_file = Path(scratch) / "float.onnx"
        onnx.save(in_float(onnx.load(path)), float_file)
        runs: dict[str, Run] = {
            FLOAT: partial(plain_session(float_file, threads=threads).run, None),
            INT8: partial(plain_session(path, threads=threads).run, None),
        }
        if explain(fast).instruction_set:
            runs[KERNELS] = partial(fast.run, None)
        else:
            notes.append(f"{KERNELS}: {explain(fast).reason}")
        if importlib.util.find_spec("openvino") is None:
            notes.append(f"{OPENVINO}: not installed")
        else:
            runs[OPENVINO] = openvino_run(path, threads)
        if deepsparse_python:
            model = model_file(deepsparse_model or path)
            runs[DEEPSPARSE] = stack.enter_context(DeepSparse(deepsparse_python, model, batch_size, tokens, threads))
        return Benchmark(interleaved(runs, feed, seconds=seconds), batch_size, explain(fast), tuple(notes))
