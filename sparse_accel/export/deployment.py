"""The deployment folder: made beside, proven there, and only then put in its place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import onnx
import onnxruntime
import torch
import transformers
from torch import nn

from sparse_accel.checkpoints import write_json
from sparse_accel.errors import UsageError
from sparse_accel.export import measure, report
from sparse_accel.export.archive import ARCHIVE, compress
from sparse_accel.export.lower import lower
from sparse_accel.export.opset import check_opset, lower_opset
from sparse_accel.export.proof import prove
from sparse_accel.export.texts import find_texts
from sparse_accel.export.trace import NATIVE_OPSET, trace
from sparse_accel.layers import quantized_linears, quantizers
from sparse_accel.models import load_for_export
from sparse_accel.run_identity import fingerprint_of_weights, write_text

if TYPE_CHECKING:
    from sparse_accel.export_arguments import ExportArguments

REPORT, READABLE_REPORT, MODEL = "export_report.json", "export_report.md", "model.onnx"
_DEFAULT_OPSET = {"qdq": NATIVE_OPSET, "integer": 14}
_LATENCY_TOKENS = 128
# protobuf's limit for one message, which a model with its weights inside is
_LARGEST_FILE = 2**31


def export(arguments: ExportArguments) -> dict[str, Any]:
    """Exports, proves, measures and puts the deployment folder in its place. Returns the report.

    Raises:
        UsageError: nothing to export there, or not in this form; the target is taken.
        ProofFailed: a check failed; no folder was made, an existing one stands as it was.
    """
    transformers.utils.logging.disable_progress_bar()
    folder = Path(str(arguments.model_path))
    opset = arguments.opset or _DEFAULT_OPSET[arguments.format]
    if opset > onnx.defs.onnx_opset_version():
        raise UsageError(f"--opset {opset}: the installed onnx knows opsets up to {onnx.defs.onnx_opset_version()}")
    model, tokenizer, limit = load_for_export(str(arguments.model_path))
    length = arguments.sequence_length or min(limit, arguments.max_seq_length)
    if length > limit:
        raise UsageError(f"--sequence_length {length}: this model takes up to {limit} tokens")
    source = {
        "folder": str(folder.resolve()) if folder.is_dir() else str(folder),
        "weights": fingerprint_of_weights(model),
        "model_type": str(cast(Any, model).config.model_type),
    }
    home = folder.resolve().parent if folder.is_dir() else Path()  # a Hub id: the working folder
    target = Path(arguments.output_dir) if arguments.output_dir else home / "deployment"
    check_target(target, source["folder"], overwrite=arguments.overwrite)
    if arguments.reduce_range:
        reduce_ranges(model)
    texts, note = find_texts(arguments, model, tokenizer, length)

    with beside(target) as partial, tempfile.TemporaryDirectory() as name:
        scratch, quantized = Path(name), bool(quantizers(model))
        traced = trace(model, tokenizer, sequence_length=arguments.sequence_length, opset=max(opset, NATIVE_OPSET))
        exported, in_float = write_graphs(traced, model, partial, scratch, arguments.format, opset)
        cast(Any, model).config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        proof = prove(exported, model, tokenizer, texts, arguments.format, opset)
        proof.require(quantized)
        if arguments.compress:
            compress(exported, partial / ARCHIVE)
        tokens = arguments.sequence_length or min(_LATENCY_TOKENS, limit)
        timed = contestants(exported, in_float, scratch, quantized)
        latency = measure.latencies(timed, tokens, arguments.deepsparse_python)
        found = {
            "source": source,
            "format": arguments.format,
            "opset": opset,
            "ir_version": onnx.load(exported, load_external_data=False).ir_version,
            "sequence_length": arguments.sequence_length,
            "reduce_range": arguments.reduce_range,
            "quantized_linears": quantized_linears(model)[0],
            "linears": quantized_linears(model)[1],
            **proof.to_dict(),
            "texts": {"source": texts.source, "rows": len(texts.rows), "labels": texts.has_labels},
            "note": note,
            "files": file_sizes(in_float, exported, partial / ARCHIVE),
            "tokens": tokens,
            "latency": latency,
            "gains": {runtime: report.gains(table, quantized) for runtime, table in latency.items()},
            "cpu": measure.cpu(),
            "versions": {each.__name__: each.__version__ for each in (torch, transformers, onnx, onnxruntime)},
        }
        found["advice"] = report.advice(found)
        write_json(partial / REPORT, found)
        write_text(partial / READABLE_REPORT, report.as_text(found))
    return found | {"target": str(target)}


# --- graphs -------------------------------------------------------------------------------------------------


def write_graphs(
    traced: onnx.ModelProto, model: nn.Module, folder: Path, scratch: Path, form: str, opset: int
) -> tuple[Path, Path]:
    """Writes the graph that is deployed into `folder`, and the float one that it is measured by into `scratch`."""
    exported, in_float = folder / MODEL, scratch / "float.onnx"
    for path, its_form in ((in_float, "float"), (exported, form if quantizers(model) else "float")):
        graph = lower(traced, model, its_form)
        graph = lower_opset(graph, opset) if opset < NATIVE_OPSET else graph
        check_opset(graph, opset)
        if graph.ByteSize() >= _LARGEST_FILE:
            raise UsageError(f"the graph ({its_form}) would be larger than 2 GB, which one ONNX file cannot hold")
        onnx.save(graph, path)
    return exported, in_float


def contestants(exported: Path, in_float: Path, scratch: Path, quantized: bool) -> dict[str, Path]:
    """Returns the files to time: float and quantized, each also with its zeros filled in. All lie in `scratch`: the
    worker of another runtime writes beside what it reads."""
    names = {"float": in_float}
    if quantized:
        names["quantized"] = Path(shutil.copy2(exported, scratch / "quantized.onnx"))
    for name, path in list(names.items()):
        names[f"{name}, no zeros"] = scratch / f"{name}_no_zeros.onnx"
        onnx.save(measure.without_zeros(onnx.load(path)), names[f"{name}, no zeros"])
    return names


def file_sizes(in_float: Path, *files: Path) -> dict[str, dict[str, float]]:
    """Returns bytes of each file that is there, and their ratio to the dense float32 model's."""
    sizes = {"float32": os.path.getsize(in_float)}
    sizes |= {path.name: os.path.getsize(path) for path in files if path.exists()}
    return {name: {"bytes": size, "ratio": round(size / sizes["float32"], 4)} for name, size in sizes.items()}


def reduce_ranges(model: nn.Module) -> None:
    """Gives activations 7 bits over the same range: for CPUs whose 8-bit products can overflow."""
    for quantizer in quantizers(model).values():
        if not quantizer.form.signed:
            quantizer.form = replace(quantizer.form, reduce_range=True)
            quantizer.set_range(quantizer.minimum.clone(), quantizer.maximum.clone())


# --- the folder -------------------------------------------------------------------------------------------------------


def check_target(target: Path, source: str, *, overwrite: bool) -> None:
    """Raises UsageError where `target` is taken by something else than an earlier export of the same source."""
    if target.is_file():
        raise UsageError(f"--output_dir {target} is a file: name a folder")
    if not target.is_dir() or not any(target.iterdir()) or overwrite:
        return
    try:
        before = json.loads((target / REPORT).read_text(encoding="utf-8"))["source"]["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        if (target / MODEL).exists() or (target / "config.json").exists():
            raise UsageError(
                f"{target} holds a model that this script did not write. Choose another --output_dir, or pass "
                "--overwrite to have it replaced"
            ) from None
        return  # other files; they stay
    if before != source:
        raise UsageError(
            f"{target} was made from another model, {before}. Choose another --output_dir, or pass --overwrite to have "
            "it replaced"
        )


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Gives a folder beside `target` that takes its place when the block ends well, and vanishes otherwise.

    Files of `target` that the new folder has not are kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = (target.with_name(f".{target.name}.{state}") for state in ("partial", "replaced"))
    if replaced.is_dir() and not target.exists():  # an export was killed between its two renames
        os.rename(replaced, target)
    for left_over in (partial, replaced):
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if target.is_dir():
            for path in target.iterdir():
                if not (partial / path.name).exists() and path.name != ARCHIVE:
                    (shutil.copytree if path.is_dir() else shutil.copy2)(path, partial / path.name)
            os.rename(target, replaced)
        os.rename(partial, target)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.is_dir() and not target.exists():  # the second rename failed
            os.rename(replaced, target)
