"""Latency of a file in several runtimes: medians of interleaved runs, on one thread.

Four models separate the gain from quantization and the gain from zeros: the float model, the quantized model, and
each of them with its zeros filled in. Where structure was removed, the first two also run in full size. onnxruntime is
always measured, with this package's kernels beside it where they are proven; OpenVINO if it is installed; DeepSparse in
its own environment (Python up to 3.11).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from sparse_accel.errors import UsageError, first_line
from sparse_accel.runtime.loading import session_with_kernels
from sparse_accel.runtime.other_interpreter import DeepSparse
from sparse_accel.runtime.timing import Inputs, Run, interleaved, openvino_run, plain_session, random_inputs

Latencies = dict[str, dict[str, dict[str, float]]]  # milliseconds by runtime, batch size and contestant

# Rows at once; fewer where logits of a whole vocabulary would take half a GB for 32 rows, in each session.
BATCHES, BATCHES_OF_MANY_LOGITS = (1, 32), (1, 8)
KERNELS = "sparse kernels"
# Of which structure was removed: what follows the name of the file with it.
FULL_SIZE = "full size"
_SECONDS = 6.0  # for each batch size


def latencies(
    files: Mapping[str, Path],
    tokens: int,
    deepsparse_python: str | None,
    *,
    kernels: bool,
    batches: Sequence[int] = BATCHES,
) -> tuple[Latencies, list[str]]:
    """Returns milliseconds by runtime, batch size and contestant, as {"onnxruntime": {"1": {"float": 31.5, ...}}}, and
    one line for each other runtime that failed, which does not affect the proof.

    Args:
        files: the file of each contestant, by name.
        tokens: number of tokens per row.
        deepsparse_python: the interpreter of an environment with DeepSparse; None skips DeepSparse.
        kernels: whether the quantized files also run with the kernels of this package.
        batches: numbers of rows that run at once.
    """
    inputs = {batch: random_inputs(next(iter(files.values())), batch, tokens) for batch in batches}
    runs: dict[str, Run] = {name: partial(plain_session(path, threads=1).run, None) for name, path in files.items()}
    if kernels:
        runs |= _runs_with_kernels(files)
    found = {"onnxruntime": _of_batches(runs, inputs)}
    del runs
    failed: list[str] = []
    if importlib.util.find_spec("openvino") is not None:
        try:
            found["OpenVINO"] = _of_batches({name: openvino_run(path, 1) for name, path in files.items()}, inputs)
        except Exception as error:
            failed.append(f"OpenVINO cannot run the file: {first_line(error)}")
    if deepsparse_python is not None:
        try:
            found["DeepSparse"] = _of_deepsparse(files, inputs, tokens, deepsparse_python)
        except UsageError as error:
            failed.append(str(error))
    return found, failed


def _of_batches(runs: Mapping[str, Run], inputs: Mapping[int, Inputs]) -> dict[str, dict[str, float]]:
    return {str(batch): interleaved(dict(runs), feed, seconds=_SECONDS) for batch, feed in inputs.items()}


def _runs_with_kernels(files: Mapping[str, Path]) -> dict[str, Run]:
    """The quantized files with kernels. Without zeros, one may be too dense for the kernels of this CPU: it is left
    out, because its session would be onnxruntime's own."""
    made = {name: session_with_kernels(path, 1)[0] for name, path in files.items() if name.startswith("quantized")}
    return {name.replace("quantized", KERNELS): partial(each.run, None) for name, each in made.items() if each}


def _of_deepsparse(
    files: Mapping[str, Path], inputs: Mapping[int, Inputs], tokens: int, python: str
) -> dict[str, dict[str, float]]:
    found = {}
    for batch, feed in inputs.items():
        with ExitStack() as stack:
            runs: dict[str, Run] = {
                name: stack.enter_context(DeepSparse(python, path, batch, tokens, 1)) for name, path in files.items()
            }
            found[str(batch)] = interleaved(runs, feed, seconds=_SECONDS)
    return found


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
