"""The deployment folder: made beside, proven there, and only then put in its place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
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
from sparse_accel.export.checks import Check, check_file, check_kernels, check_weights
from sparse_accel.export.fidelity import Fidelity, check_fidelity, compare
from sparse_accel.export.lower import lower
from sparse_accel.export.opset import check_opset, lower_opset
from sparse_accel.export.texts import Texts, find_texts
from sparse_accel.export.trace import NATIVE_OPSET, trace
from sparse_accel.layers import quantized_linears, quantizers
from sparse_accel.models import load_for_export
from sparse_accel.recipe_run import problem_type_of
from sparse_accel.run_identity import fingerprint_of_weights, write_text

if TYPE_CHECKING:
    from sparse_accel.export_arguments import ExportArguments

REPORT, READABLE_REPORT, MODEL = "export_report.json", "export_report.md", "model.onnx"
_LATENCY_TOKENS = 128
# protobuf's limit for one message, which a model with its weights inside is
_LARGEST_FILE = 2**31


class ProofFailed(UsageError):
    """The file that was written is not the model that it came from."""

    exit_code = 1


def export(arguments: ExportArguments) -> dict[str, Any]:
    """Exports, proves, measures and puts the deployment folder in its place. Returns the report.

    Raises:
        UsageError: nothing to export there, or not in this form; the target is taken.
        ProofFailed: a check failed; no folder was made, an existing one stands as it was.
    """
    folder = Path(str(arguments.model_path))
    target = Path(arguments.output_dir) if arguments.output_dir else folder.resolve().parent / "deployment"
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer, limit = load_for_export(str(arguments.model_path))
    source = {
        "folder": str(folder.resolve()) if folder.exists() else str(folder),
        "weights": fingerprint_of_weights(model),
        "model_type": str(cast(Any, model).config.model_type),
    }
    check_target(target, source["folder"], overwrite=arguments.overwrite)
    length = arguments.sequence_length or min(limit, arguments.max_seq_length)
    if length > limit:
        raise UsageError(f"--sequence_length {length}: this model takes up to {limit} tokens")
    if arguments.reduce_range:
        reduce_ranges(model)
    opset = arguments.opset or (NATIVE_OPSET if arguments.format == "qdq" else 14)
    texts, note = find_texts(
        folder,
        model,
        tokenizer,
        length,
        data=arguments.data,
        input_columns=arguments.input_column_names,
        label_column=arguments.label_column_name,
        most_rows=arguments.max_eval_samples,
    )
    with beside(target) as partial, tempfile.TemporaryDirectory() as scratch:
        traced = trace(model, tokenizer, sequence_length=arguments.sequence_length, opset=max(opset, NATIVE_OPSET))
        files = write_graphs(traced, model, partial, Path(scratch), arguments.format, opset)
        cast(Any, model).config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        proof = prove(files["exported"], model, tokenizer, texts, arguments.format, opset)
        checks = proof.checks
        failed = [check for check in checks if check.passed is False]
        if failed:
            raise ProofFailed(_reasons(failed, bool(quantizers(model))))
        sizes = {"float32": os.path.getsize(files["float"]), MODEL: os.path.getsize(files["exported"])}
        if arguments.compress:
            compress(partial / MODEL, partial / ARCHIVE)
            sizes[ARCHIVE] = os.path.getsize(partial / ARCHIVE)
        quantized = bool(quantizers(model))
        tokens = arguments.sequence_length or min(_LATENCY_TOKENS, limit)
        latency = measure.latencies(contestants(files, Path(scratch), quantized), tokens, arguments.deepsparse_python)
        name, vnni = measure.cpu()
        found: dict[str, Any] = {
            "source": source,
            "format": arguments.format,
            "opset": opset,
            "ir_version": onnx.load(files["exported"], load_external_data=False).ir_version,
            "sequence_length": arguments.sequence_length,
            "reduce_range": arguments.reduce_range,
            "quantized_linears": quantized_linears(model)[0],
            "linears": quantized_linears(model)[1],
            "checks": [{"name": check.name, "result": report.mark(check), "detail": check.detail} for check in checks],
            "note": note,
            "texts": {"source": texts.source, "rows": len(texts.rows), "labels": texts.has_labels},
            "files": {
                name: {"bytes": size, "ratio": round(size / sizes["float32"], 4)} for name, size in sizes.items()
            },
            "tokens": tokens,
            "latency": latency,
            "gains": {runtime: report.gains(table, quantized) for runtime, table in latency.items()},
            "fidelity": asdict(proof.fidelity) if proof.fidelity else None,
            "kernels": proof.kernels,
            "layers": proof.layers,
            "cpu": {"name": name, "vnni": vnni},
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "onnx": onnx.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
        }
        found["advice"] = report.advice(found)
        write_json(partial / REPORT, found)
        write_text(partial / READABLE_REPORT, report.as_text(found))
    return found | {"target": str(target)}


# --- graphs and proof -------------------------------------------------------------------------------------------------


def write_graphs(
    traced: onnx.ModelProto, model: nn.Module, folder: Path, scratch: Path, form: str, opset: int
) -> dict[str, Path]:
    """Writes the graph that is deployed into `folder`, and the float one that it is measured by into `scratch`."""
    files = {"exported": folder / MODEL, "float": scratch / "float.onnx"}
    quantized = bool(quantizers(model))
    for name, path in files.items():
        if name == "float" and not quantized:
            shutil.copy2(files["exported"], path)
            continue
        graph = lower(traced, model, form if name == "exported" and quantized else "float")
        graph = lower_opset(graph, opset) if opset < NATIVE_OPSET else graph
        check_opset(graph, opset)
        if graph.ByteSize() >= _LARGEST_FILE:
            raise UsageError(f"the {name} graph would be larger than 2 GB, which one ONNX file cannot hold")
        onnx.save(graph, path)
    return files


@dataclass(frozen=True)
class Proof:
    """What was checked, how each weight is stored, which kernels run, and how far outputs lie apart."""

    checks: list[Check]
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    kernels: dict[str, int] = field(default_factory=dict)
    fidelity: Fidelity | None = None


def prove(path: Path, model: nn.Module, tokenizer: Any, texts: Texts, form: str, opset: int) -> Proof:
    """Holds a written model.onnx against the model. A file that cannot be read ends the proof at that check."""
    first = check_file(path, opset)
    if not first.passed:
        return Proof([first])
    values, zeros, layers = check_weights(path, model, form)
    with tempfile.TemporaryDirectory() as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        try:
            session = measure.session(path, optimized=optimized)
        except Exception as error:  # onnxruntime has exceptions of its own, without a common base
            reason = str(error).strip().splitlines()[0]
            failed = Check("onnxruntime", False, f"does not load the file: {reason}")
            return Proof([first, values, zeros, failed], layers)
        kernels, counted = check_kernels(optimized, path, model)
    found = compare(model, session, tokenizer, texts, problem_type_of(model))
    checks = [first, values, zeros, kernels, *check_fidelity(found, texts, quantized=bool(quantizers(model)))]
    return Proof(checks, layers, counted, found)


def _reasons(failed: list[Check], quantized: bool) -> str:
    lines = ["the export is not the model it came from; no deployment was written."]
    lines += [f"  {check.name}: {check.detail}" for check in failed]
    name, vnni = measure.cpu()
    if quantized and vnni is False and {check.name for check in failed} <= {"agreement", "logits", "accuracy"}:
        lines.append(
            f"The weights are right. This CPU ({name}) has no VNNI, and onnxruntime's 8-bit sums overflow on it: "
            "export with --reduce_range or --format integer, or on a CPU with VNNI"
        )
    return "\n".join(lines)


def contestants(files: dict[str, Path], scratch: Path, quantized: bool) -> dict[str, Path]:
    """Returns the files to time: float and quantized, each also with its zeros filled in."""
    names = {"float": files["float"]} | ({"quantized": files["exported"]} if quantized else {})
    for name, path in list(names.items()):
        dense = scratch / f"{name}_without_zeros.onnx"
        onnx.save(measure.without_zeros(onnx.load(path)), dense)
        names[f"{name}, no zeros"] = dense
    # The worker of another runtime writes beside what it reads: never into the deployment folder.
    return {name: Path(shutil.copy2(path, scratch / f"timed{i}.onnx")) for i, (name, path) in enumerate(names.items())}


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
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    replaced = target.with_name(f".{target.name}.{os.getpid()}.replaced")
    shutil.rmtree(partial, ignore_errors=True)
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
        if replaced.is_dir() and not target.exists():  # cut off between two renames
            os.rename(replaced, target)
