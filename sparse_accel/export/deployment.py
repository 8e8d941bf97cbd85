"""The export from end to end: trace, write, prove, measure, report; folder.py puts the result in its place."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import onnx
import onnxruntime
import torch
import transformers
from torch import nn
from transformers import AutoConfig

from sparse_accel.cli.export import EXPORTED
from sparse_accel.errors import UsageError
from sparse_accel.export import measure, report
from sparse_accel.export.archive import ARCHIVE, compress
from sparse_accel.export.folder import MODEL, PAGE, READABLE_REPORT, REPORT, acquire, staged
from sparse_accel.export.kernels import KERNEL_MODEL, prove_kernels, require_library, write_kernel_model
from sparse_accel.export.lower import lower
from sparse_accel.export.measure import FULL_SIZE
from sparse_accel.export.opset import check_opset, lower_opset
from sparse_accel.export.proof import may_overflow, prove
from sparse_accel.export.structure import check_structure, remove_structure
from sparse_accel.export.texts import find_texts
from sparse_accel.export.trace import NATIVE_OPSET, trace
from sparse_accel.files import write_json, write_text
from sparse_accel.fingerprints import fingerprint_of_weights
from sparse_accel.hub import model_address
from sparse_accel.models.files import save_tokenizer
from sparse_accel.models.loading import load_for_export
from sparse_accel.nn.layers import quantized_linears, quantizers
from sparse_accel.runtime.other_interpreter import require_deepsparse
from sparse_accel.tasks import TASKS, Task, TextClassification, task_class

if TYPE_CHECKING:
    from sparse_accel.cli.export import ExportArguments

_DEFAULT_OPSET = {"qdq": NATIVE_OPSET, "integer": 14}
_LATENCY_TOKENS = 128
# protobuf's limit for one message; a model with its weights is one message
_LARGEST_FILE = 2**31


def export(arguments: ExportArguments) -> dict[str, Any]:
    """Exports a model, proves and measures the result, and writes the deployment folder. Returns the report.

    Raises:
        UsageError: the model cannot be read, or not be exported with these flags; or the target belongs to something
            else.
        ProofFailed: a check failed. No folder was created; an existing one is unchanged.
    """
    transformers.utils.logging.disable_progress_bar()
    folder = Path(str(arguments.model_path))
    opset = arguments.opset or _DEFAULT_OPSET[arguments.format]
    if opset > onnx.defs.onnx_opset_version():
        raise UsageError(f"--opset {opset}: the installed onnx supports opsets up to {onnx.defs.onnx_opset_version()}")
    kind = task_to_export(arguments)
    arguments.check_task(kind.name)
    model, tokenizer, limit = load_for_export(str(arguments.model_path), kind)
    if obstacle := kind.export_obstacle(model):
        raise UsageError(f"--model_path {arguments.model_path}: {obstacle}")
    length = arguments.sequence_length or min(limit, arguments.max_seq_length or kind.arguments.max_seq_length)
    if length > limit:
        raise UsageError(f"--sequence_length {length}: this model accepts up to {limit} tokens")
    source = {
        "folder": str(folder.resolve()) if folder.is_dir() else str(folder),
        "weights": fingerprint_of_weights(model),
        "model_type": str(cast(Any, model).config.model_type),
    }
    home = folder.resolve().parent if folder.is_dir() else Path()  # for a Hub id, the working folder
    target = (Path(arguments.output_dir) if arguments.output_dir else home / "deployment").resolve()
    acquire(target, source["folder"], overwrite=arguments.overwrite)
    if arguments.deepsparse_python:
        require_deepsparse(arguments.deepsparse_python)
    quantized = bool(quantizers(model))
    format = arguments.format if quantized else "float"
    if arguments.kernels:
        if not quantized:
            raise UsageError("--kernels: the kernels multiply quantized weights, but this model is float: leave it out")
        require_library()
    if arguments.reduce_range and not quantized:
        raise UsageError("--reduce_range acts on quantized activations, but this model has none: leave it out")
    if arguments.reduce_range:
        reduce_ranges(model)
    deployed = remove_structure(model, keep=arguments.keep_structure)
    texts, note = find_texts(arguments, kind, model, tokenizer, length)

    with staged(target) as partial, tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        traced, *full_size = (
            trace(each, tokenizer, sequence_length=arguments.sequence_length, opset=max(opset, NATIVE_OPSET))
            for each in ([deployed.model, model] if deployed.is_smaller else [model])
        )
        exported, in_float = write_graphs(traced, deployed.model, partial, scratch, format, opset)
        full = write_full_size(full_size[0], model, scratch, format, opset) if full_size else None
        cast(Any, deployed.model).config.save_pretrained(partial)
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)  # so that it truncates for this model
        save_tokenizer(tokenizer, partial)
        proof = prove(exported, deployed.model, tokenizer, texts, format, opset, model)
        if deployed.is_smaller:
            proof = replace(proof, checks=[check_structure(deployed), *proof.checks])
        proof.require(overflows=may_overflow(model, format))
        kernels = prove_kernels(exported, proof.logits, tokenizer, texts, format)
        if arguments.kernels:
            write_kernel_model(exported, partial / KERNEL_MODEL, kernels, proof.logits, tokenizer, texts)
        if arguments.compress:
            compress(exported, partial / ARCHIVE)
        tokens = arguments.sequence_length or min(_LATENCY_TOKENS, limit)
        timed = models_to_time(exported, in_float, scratch, quantized) | (full or {})
        batches = measure.BATCHES if kind.has_few_logits else measure.BATCHES_OF_MANY_LOGITS
        latency, failed = measure.latencies(
            timed, tokens, arguments.deepsparse_python, kernels=not kernels.reason, batches=batches
        )
        found = {
            "source": source,
            "format": format,
            "opset": opset,
            "ir_version": onnx.load(exported, load_external_data=False).ir_version,
            "sequence_length": arguments.sequence_length,
            "reduce_range": arguments.reduce_range,
            "quantized_linears": quantized_linears(model)[0],
            "linears": quantized_linears(model)[1],
            **proof.to_dict(),
            "task": kind.name,
            "head": type(model).__name__,
            "texts": {"source": texts.source, "rows": texts.count, "labels": texts.has_labels},
            "structure": deployed.to_dict(),
            "notes": [line for line in (note, *deployed.notes, *failed) if line],
            "files": file_sizes(
                full[f"float, {FULL_SIZE}"] if full else in_float, exported, partial / KERNEL_MODEL, partial / ARCHIVE
            ),
            "tokens": tokens,
            "latency": latency,
            "gains": report.gains_of_runtimes(latency, quantized),
            "sparse_kernels": kernels.to_dict(),
            "cpu": measure.cpu(),
            "may_overflow": may_overflow(model, format),
            "versions": {each.__name__: each.__version__ for each in (torch, transformers, onnx, onnxruntime)},
        }
        found["advice"] = report.advice(found)
        found["written"] = sorted({path.name for path in partial.iterdir()} | {REPORT, READABLE_REPORT, PAGE})
        write_json(partial / REPORT, found)
        write_text(partial / READABLE_REPORT, report.as_text(found))
    return found | {"target": str(target)}


def task_to_export(arguments: ExportArguments) -> type[Task]:
    """Returns the task of --task; without it, that of the head in the model's config.json, else text classification."""
    if arguments.task_name is not None:
        return TASKS[arguments.task_name]
    with suppress(Exception):  # reading the model says what is wrong with it
        config = AutoConfig.from_pretrained(model_address("--model_path", str(arguments.model_path)))
        found = task_class(config)
        return found if found is not None and found.name in EXPORTED else TextClassification
    return TextClassification


# --- graphs -------------------------------------------------------------------------------------------------


def write_graphs(
    traced: onnx.ModelProto, model: nn.Module, folder: Path, scratch: Path, format: str, opset: int
) -> tuple[Path, Path]:
    """Writes the deployed graph to `folder` and the float graph, to compare it with, to `scratch`; returns both paths.

    Raises:
        UsageError: a graph is larger than 2 GB, or cannot be written in this format or opset.
    """
    exported, in_float = folder / MODEL, scratch / "float.onnx"
    for path, its_format in ((in_float, "float"), (exported, format)):
        graph = lower(traced, model, its_format)
        if graph.ByteSize() >= _LARGEST_FILE:
            raise UsageError(f"the graph ({its_format}) would be larger than 2 GB, which one ONNX file cannot hold")
        graph = lower_opset(graph, opset) if opset < NATIVE_OPSET else graph
        check_opset(graph, opset)
        onnx.save(graph, path)
    return exported, in_float


def write_full_size(
    traced: onnx.ModelProto, model: nn.Module, scratch: Path, format: str, opset: int
) -> dict[str, Path]:
    """Writes a model with the structure that the deployed one lacks, to compare with. Returns its files by the names of
    the contestants that they are."""
    folder = scratch / "full_size"
    folder.mkdir()
    exported, in_float = write_graphs(traced, model, folder, folder, format, opset)
    files = {"float": in_float} | ({} if format == "float" else {"quantized": exported})
    return {f"{name}, {FULL_SIZE}": path for name, path in files.items()}


def models_to_time(exported: Path, in_float: Path, scratch: Path, quantized: bool) -> dict[str, Path]:
    """Returns the files to time: float and quantized, each also with its zeros filled in, which are in `scratch`."""
    names = {"float": in_float}
    if quantized:
        names["quantized"] = exported
    for name, path in list(names.items()):
        names[f"{name}, no zeros"] = scratch / f"{name}_no_zeros.onnx"
        onnx.save(measure.without_zeros(onnx.load(path)), names[f"{name}, no zeros"])
    return names


def file_sizes(in_float: Path, *files: Path) -> dict[str, dict[str, float]]:
    """Returns the size in bytes of each existing file, and its ratio to the dense float32 model."""
    sizes = {"float32": os.path.getsize(in_float)}
    sizes |= {path.name: os.path.getsize(path) for path in files if path.exists()}
    return {name: {"bytes": size, "ratio": round(size / sizes["float32"], 4)} for name, size in sizes.items()}


def reduce_ranges(model: nn.Module) -> None:
    """Sets activations to 7 bits over the same range, for CPUs on which 8-bit sums can overflow. Changes the model.

    They are unsigned then: onnxruntime would add 128 to signed integers, and they would be too large again."""
    for name, quantizer in quantizers(model).items():
        if not name.endswith(".weight_quantizer"):
            quantizer.scheme = replace(quantizer.scheme, signed=False, reduce_range=True)
            quantizer.set_range(quantizer.minimum.clone(), quantizer.maximum.clone())
