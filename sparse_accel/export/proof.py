"""The proof of an export: all checks on the written file, in order, and their results."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sparse_accel.errors import UsageError
from sparse_accel.export import measure
from sparse_accel.export.checks import Check, check_file, check_kernels, check_weights
from sparse_accel.export.fidelity import (
    AGREEMENT,
    COSINE,
    LOGITS,
    Fidelity,
    check_fidelity,
    compare_runs,
    fixed_length,
    in_pytorch,
    in_session,
)
from sparse_accel.export.texts import Texts
from sparse_accel.nn.layers import quantizers
from sparse_accel.runtime.timing import plain_session
from sparse_accel.tasks import TASKS

_KINDS = [kind for task in TASKS.values() for kind in (task, *task.__subclasses__())]
_OF_OUTPUTS = {AGREEMENT, LOGITS, COSINE, *(kind.proof_words.figures for kind in _KINDS)}


class ProofFailed(UsageError):
    """The written file differs from the exported model."""

    exit_code = 1


@dataclass(frozen=True)
class Proof:
    """The results of all checks.

    Attributes:
        checks: in the order they ran.
        layers: how each weight matrix is stored, by name; see `check_weights`.
        kernels: number of nodes by type in the graph that onnxruntime runs.
        fidelity: differences of outputs; None if onnxruntime did not run the file.
        logits: of the file in onnxruntime, on all texts; empty if it did not run, or they are too many to keep.
    """

    checks: list[Check]
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    kernels: dict[str, int] = field(default_factory=dict)
    fidelity: Fidelity | None = None
    logits: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32), repr=False)

    def require(self, *, overflows: bool) -> None:
        """Raises ProofFailed, with all failed checks, if there are any. `overflows`: see `may_overflow`."""
        failed = [check for check in self.checks if check.passed is False]
        if failed:
            raise ProofFailed(reasons(failed, overflows=overflows))

    def to_dict(self) -> dict[str, Any]:
        """Returns the proof as it is written to export_report.json."""
        return {
            "checks": [check.to_dict() for check in self.checks],
            "fidelity": self.fidelity.to_dict() if self.fidelity else None,
            "kernels": self.kernels,
            "layers": self.layers,
        }


def prove(
    path: Path,
    model: nn.Module,
    tokenizer: Any,
    texts: Texts,
    format: str,
    opset: int,
    trained: nn.Module | None = None,
) -> Proof:
    """Checks a written model.onnx against the model. If the file cannot be read, the proof ends at that check.

    Args:
        path: of model.onnx.
        model: with its quantizers on.
        format: float, qdq or integer.
        opset: the requested opset.
        trained: the model to compare outputs with, if structure was removed from it to get `model`.
    """
    first = check_file(path, opset)
    if not first.passed:
        return Proof([first])
    values, zeros, layers = check_weights(path, model, format)
    with tempfile.TemporaryDirectory() as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        try:
            session = plain_session(path, optimized=optimized)
        except Exception as error:  # onnxruntime's exceptions have no common base class
            reason = str(error).strip().splitlines()[0]
            failed = Check("onnxruntime", False, f"cannot load the file: {reason}")
            return Proof([first, values, zeros, failed], layers)
        kernels, counted = check_kernels(optimized, path, model)
    found, logits = compare_runs(
        in_pytorch(trained or model), in_session(session), tokenizer, texts, fixed_length(session)
    )
    checks = [first, values, zeros, kernels, *check_fidelity(found, texts, quantized=bool(quantizers(model)))]
    return Proof(checks, layers, counted, found, logits)


def may_overflow(model: nn.Module, format: str) -> bool:
    """Returns whether sums of two 8-bit products can overflow 16 bits on a CPU without VNNI: with signed weights, and
    activations above 127. onnxruntime adds 128 to signed ones there."""
    activations = [each for name, each in quantizers(model).items() if not name.endswith(".weight_quantizer")]
    return format == "qdq" and any(each.scheme.signed or each.scheme.integers[1] > 127 for each in activations)


def reasons(failed: list[Check], *, overflows: bool) -> str:
    """Returns the message of a failed proof: the failed checks, and what may help if only outputs differ."""
    lines = ["the exported file differs from the model; no deployment was written."]
    lines += [f"  {check.name}: {check.detail}" for check in failed]
    cpu = measure.cpu()
    if overflows and cpu["vnni"] is False and {check.name for check in failed} <= _OF_OUTPUTS:
        lines.append(
            f"The weights are correct. This CPU ({cpu['name']}) has no VNNI, and onnxruntime's 8-bit sums overflow on "
            "it: export with --reduce_range or --format integer, or on a CPU with VNNI"
        )
    return "\n".join(lines)
