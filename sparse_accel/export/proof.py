"""The proof of an export: every check on the written file, run in order, and what they found."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sparse_accel.errors import UsageError
from sparse_accel.export import measure
from sparse_accel.export.checks import Check, check_file, check_kernels, check_weights
from sparse_accel.export.fidelity import Fidelity, check_fidelity, compare
from sparse_accel.export.texts import Texts
from sparse_accel.nn.layers import quantizers

_MARKS = {True: "pass", False: "FAIL", None: "not checked"}


class ProofFailed(UsageError):
    """The file that was written is not the model that it came from."""

    exit_code = 1


@dataclass(frozen=True)
class Proof:
    """What was checked, how each weight is stored, which kernels run, and how far outputs lie apart."""

    checks: list[Check]
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    kernels: dict[str, int] = field(default_factory=dict)
    fidelity: Fidelity | None = None

    def require(self, *, overflows: bool) -> None:
        """Raises ProofFailed, with every check that failed, unless none did. `overflows`: see `may_overflow`."""
        failed = [check for check in self.checks if check.passed is False]
        if failed:
            raise ProofFailed(reasons(failed, overflows=overflows))

    def to_dict(self) -> dict[str, Any]:
        """The proof as export_report.json holds it."""
        return {
            "checks": [{"name": c.name, "result": _MARKS[c.passed], "detail": c.detail} for c in self.checks],
            "fidelity": asdict(self.fidelity) if self.fidelity else None,
            "kernels": self.kernels,
            "layers": self.layers,
        }


def prove(path: Path, model: nn.Module, tokenizer: Any, texts: Texts, format: str, opset: int) -> Proof:
    """Holds a written model.onnx against the model. A file that cannot be read ends the proof at that check."""
    first = check_file(path, opset)
    if not first.passed:
        return Proof([first])
    values, zeros, layers = check_weights(path, model, format)
    with tempfile.TemporaryDirectory() as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        try:
            session = measure.session(path, optimized=optimized)
        except Exception as error:  # onnxruntime has exceptions of its own, without a common base
            reason = str(error).strip().splitlines()[0]
            failed = Check("onnxruntime", False, f"does not load the file: {reason}")
            return Proof([first, values, zeros, failed], layers)
        kernels, counted = check_kernels(optimized, path, model)
    found = compare(model, session, tokenizer, texts)
    checks = [first, values, zeros, kernels, *check_fidelity(found, texts, quantized=bool(quantizers(model)))]
    return Proof(checks, layers, counted, found)


def may_overflow(model: nn.Module, format: str) -> bool:
    """True where sums of two 8-bit products can overflow 16 bits on a CPU without VNNI: signed weights, and activations
    of 8 bits."""
    return format == "qdq" and any(quantizer.scheme.integers[1] > 127 for quantizer in quantizers(model).values())


def reasons(failed: list[Check], *, overflows: bool) -> str:
    """Returns what to say of a failed proof: the checks, and what may help where only outputs differ."""
    lines = ["the export is not the model it came from; no deployment was written."]
    lines += [f"  {check.name}: {check.detail}" for check in failed]
    cpu = measure.cpu()
    if overflows and cpu["vnni"] is False and {check.name for check in failed} <= {"agreement", "logits", "accuracy"}:
        lines.append(
            f"The weights are right. This CPU ({cpu['name']}) has no VNNI, and onnxruntime's 8-bit sums overflow on "
            "it: export with --reduce_range or --format integer, or on a CPU with VNNI"
        )
    return "\n".join(lines)
