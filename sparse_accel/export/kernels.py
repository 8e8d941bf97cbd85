"""The proof of the runtime's kernels on one exported file, and model.kernels.onnx for programs in other languages.

Each packed matrix is multiplied alone: its int32 sums must be onnxruntime's. Then the session with kernels must decide
like onnxruntime's own on the export's texts. The file itself is proven against PyTorch (proof.py), whatever comes out
here: kernels that fail are not used, and the report says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from sparse_accel.errors import UsageError, first_line, listed
from sparse_accel.export.checks import Check
from sparse_accel.export.fidelity import (
    Fidelity,
    check_fidelity,
    compare,
    compare_runs,
    fixed_length,
    in_session,
    logits_of,
    rows_at_once,
    session_logits,
)
from sparse_accel.export.proof import ProofFailed
from sparse_accel.export.texts import Texts
from sparse_accel.native import LibraryMissing
from sparse_accel.runtime.library import Library, PackedWeight, load_library
from sparse_accel.runtime.loading import Explanation, Prepared, instruction_set, prepare, session_with_kernels
from sparse_accel.runtime.rewrite import rewrite
from sparse_accel.runtime.timing import plain_session, random_inputs

KERNEL_MODEL = "model.kernels.onnx"
# Between onnxruntime and the kernels, which round alike but for the order of float additions.
MAX_ACCURACY_GAP = 0.002
# Of the mean difference of logits, as a fraction of their spread: about 0.001 was measured.
MAX_LOGIT_DIFFERENCE = 0.02
_LENGTHS = (0.05, 0.3, 0.6, 1.0)  # of rows that are padded to one length, as fractions of it
_ROWS = 33  # of random activations: a number that no block of rows divides
_ZERO_POINTS = (0, 131, 255)


@dataclass(frozen=True)
class KernelProof:
    """What is known of the kernels for a file.

    Attributes:
        reason: why they are not used, in one line; empty: they are proven.
        explanation: of the session with kernels; None: there is none.
        left: names of weights that onnxruntime multiplies here, because they have too few zeros.
        checks: in the order they ran.
        difference: of the session with kernels from onnxruntime's own.
    """

    reason: str = ""
    explanation: Explanation | None = None
    left: frozenset[str] = frozenset()
    checks: list[Check] = field(default_factory=list)
    difference: Fidelity | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the proof as it is written to export_report.json."""
        found: dict[str, Any] = {"reason": self.reason}
        if self.explanation is None:
            return found
        matrices = {
            each.layer: {
                "shape": list(each.shape),
                "zeros": round(each.zeros, 6),
                "density": round(each.density, 6),
                "kernel": "sparse" if each.is_sparse else "dense",
            }
            for each in self.explanation.matrices
        }
        return found | {
            "instruction_set": self.explanation.instruction_set,
            "operators": self.explanation.operators,
            "matrices": matrices,
            "kept": {each.layer: each.reason for each in self.explanation.kept},
            "checks": [check.to_dict() for check in self.checks],
            **(self.difference.to_dict() if self.difference else {}),
        }


def require_library() -> tuple[Library, str]:
    """Returns the library of kernels, and the instruction set that sessions use here.

    Raises:
        UsageError: there is none for this machine: what --kernels asks for cannot be had.
    """
    try:
        library = load_library()
        isa = instruction_set(library)
    except (LibraryMissing, ValueError) as error:
        raise UsageError(f"--kernels: there are none for this machine: {error}") from error
    if not isa:
        raise UsageError("--kernels: nobody has measured them on CPUs like this one")
    return library, isa


def prove_kernels(path: Path, plain: np.ndarray, tokenizer: Any, texts: Texts, format: str) -> KernelProof:
    """Compares the kernels with onnxruntime, matrix by matrix and on all texts.

    Args:
        path: of model.onnx, which is proven.
        plain: its logits in onnxruntime, float32 [answers, labels]; empty where they are too many to keep.
        tokenizer: pads the batches.
        texts: those of `plain`.
        format: float, qdq or integer.

    Raises:
        UsageError: SPARSE_ACCEL_ISA names an instruction set that this CPU does not have.
    """
    if format != "qdq":
        form = "the model is float" if format == "float" else "the format is integer"
        return KernelProof(f"{form}: the kernels replace quantized Linears of the format qdq")
    try:
        session, explanation = session_with_kernels(path)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if session is None:
        return KernelProof(explanation.reason)
    library, isa = require_library()
    prepared = prepare(path, library, isa)
    sums = check_sums(path, prepared, library, isa)
    longest = max(len(ids) for ids in texts.rows["input_ids"])
    try:
        found = _compare(path, plain, session, tokenizer, texts)
        padding = check_padding(path, session, fixed_length(session) or longest, found.spread)
    except Exception as error:  # onnxruntime's exceptions have no common base class
        return KernelProof(f"they cannot run this model ({first_line(error)})", explanation, prepared.left, [sums])
    checks = [sums, *_check_answers(found, texts), padding]
    failed = [f"{check.name}: {check.detail}" for check in checks if check.passed is False]
    reason = f"they differ from onnxruntime ({'; '.join(failed)})" if failed else ""
    return KernelProof(reason, explanation, prepared.left, checks, found)


def write_kernel_model(
    path: Path, target: Path, proof: KernelProof, plain: np.ndarray, tokenizer: Any, texts: Texts
) -> None:
    """Writes the rewritten graph with int8 weights, and checks it: loaded as other programs load it, with the library.

    Args:
        path: of model.onnx.
        target: of model.kernels.onnx.
        proof: of the kernels.
        plain, tokenizer, texts: see `prove_kernels`.

    Raises:
        UsageError: the kernels are not used for this model.
        ProofFailed: the written file decides otherwise than model.onnx.
    """
    if proof.reason:
        raise UsageError(f"--kernels: {KERNEL_MODEL} was not written, and no deployment: {proof.reason}")
    onnx.save(rewrite(onnx.load(path), proof.left).model, target)
    try:
        session = plain_session(target, library=require_library()[0].path)
        found = _compare(path, plain, session, tokenizer, texts)
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise ProofFailed(f"{KERNEL_MODEL} cannot be run: {first_line(error)}; no deployment was written") from error
    checks = _check_answers(found, texts)
    if failed := [f"{check.name}: {check.detail}" for check in checks if check.passed is False]:
        raise ProofFailed(
            f"{KERNEL_MODEL} differs from model.onnx ({'; '.join(failed)}); no deployment was written. Without "
            "--kernels, model.onnx is exported"
        )


def _compare(path: Path, plain: np.ndarray, session: Any, tokenizer: Any, texts: Texts) -> Fidelity:
    """Returns the differences of a session with kernels from onnxruntime's own of model.onnx, whose logits are `plain`;
    if there were too many to keep, it runs again."""
    second, length = in_session(session, "kernels"), fixed_length(session)
    if plain.size:
        return compare(("onnxruntime", second.name), plain, logits_of(second, tokenizer, texts, length), texts)
    return compare_runs(in_session(plain_session(path)), second, tokenizer, texts, length)[0]


def _check_answers(found: Fidelity, texts: Texts) -> list[Check]:
    """Returns the checks of decisions, logits and accuracy. Two decisions may change an accuracy, however few there
    are: a model that is hardly trained has many logits that nearly tie."""
    return check_fidelity(found, texts, True, max(MAX_ACCURACY_GAP, 2 / found.rows), MAX_LOGIT_DIFFERENCE)


def check_padding(path: Path, session: Any, tokens: int, spread: float) -> Check:
    """Runs rows of very different lengths, padded to one, with kernels and in onnxruntime alone. Batches of texts are
    sorted by length, so that they hardly have padding.

    Args:
        path: of model.onnx.
        session: with kernels.
        tokens: of the longest row.
        spread: of the logits of texts, the unit for the difference.
    """
    feed = random_inputs(path, len(_LENGTHS), tokens)
    if "attention_mask" not in feed:
        return Check("padding", None, "this model has no attention mask")
    plain, whole = plain_session(path), dict(feed)
    mask = feed["attention_mask"].copy()
    for row, fraction in enumerate(_LENGTHS):
        mask[row, max(1, round(fraction * tokens)) :] = 0
    feed["attention_mask"] = mask
    rows = rows_at_once(tokens)
    ours, theirs, without = (
        session_logits(run, inputs, rows) for run, inputs in ((session, feed), (plain, feed), (plain, whole))
    )
    if ours.ndim == 3:  # logits for each token: those of padding mean nothing
        ours, theirs, without = (logits[mask == 1] for logits in (ours, theirs, without))
    difference, effect = (float(np.abs(logits - theirs).mean()) for logits in (ours, without))
    # Of a model that is hardly trained, rounding moves the logits of such rows far, in units of the spread.
    allowed = max(MAX_LOGIT_DIFFERENCE * spread, effect / 4, 1e-8)
    detail = (
        f"logits of padded rows differ by {difference:.2g} on average (at most {allowed:.2g}; the mask moves them by "
    )
    return Check("padding", difference <= allowed, f"{detail}{effect:.2g})")


# --- each matrix alone ------------------------------------------------------------------------------------------------


def check_sums(path: Path, prepared: Prepared, library: Library, isa: str) -> Check:
    """Multiplies random activations with each packed matrix, and in onnxruntime with the weights of the file.

    Args:
        path: of model.onnx.
        prepared: the file as it is packed.
        library: that packed it.
        isa: the instruction set that it is packed for.
    """
    assert prepared.packed is not None
    stored = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    packed = {tensor.name: tensor for tensor in prepared.packed.model.graph.initializer}
    random = np.random.default_rng(1)
    wrong: list[str] = []
    parts_of = _parts(prepared)
    for name, parts in parts_of.items():
        found = prepared.packed.weights[name]
        data, nothing = numpy_helper.to_array(packed[name]), np.empty(0, dtype=np.int32)
        weight = PackedWeight(data, nothing, found.density, found.is_sparse)
        x = random.integers(0, 256, (_ROWS, found.shape[0]), dtype=np.uint8)
        x[0], x[1] = 0, 255
        for zero_point in _ZERO_POINTS:
            in_order = x if found.order is None else _ordered(x, found.order)
            ours = library.sums(isa, weight, in_order, found.shape[1], zero_point)
            theirs = [_onnxruntime_sums(numpy_helper.to_array(stored[part]), x, zero_point) for part in parts]
            if not np.array_equal(ours, np.concatenate(theirs, axis=1)):
                wrong.append(found.weight)
                break
    count = len(prepared.packed.weights)
    wrong += [f"{name} (not compared)" for name in prepared.packed.weights.keys() - parts_of.keys()]
    detail = f"{count} packed matrices: their int32 sums equal those of onnxruntime's MatMulInteger, bit by bit"
    if wrong:
        detail = f"{len(wrong)} of {count} packed matrices have other int32 sums than onnxruntime: {listed(wrong, 3)}"
    return Check("sums of each matrix", not wrong, detail)


def _parts(prepared: Prepared) -> dict[str, tuple[str, ...]]:
    """Returns, for each packed matrix, the weights of the file whose columns it has: one, or query, key and value."""
    assert prepared.packed is not None
    nodes = {node.name: node for node in prepared.packed.model.graph.node}
    found: dict[str, tuple[str, ...]] = {}
    for operator in prepared.operators:
        names = [name for name in nodes[operator.node].input if name in prepared.packed.weights]
        many = len(operator.weights) // max(len(names), 1)
        found |= {name: operator.weights[at * many : (at + 1) * many] for at, name in enumerate(names)}
    return found


def _ordered(x: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Activations in the order in which a matrix reads them; padding is 0."""
    padded = np.zeros((len(x), max(x.shape[1], int(order.max()) + 1)), dtype=np.uint8)
    padded[:, : x.shape[1]] = x
    return padded[:, order]


def _onnxruntime_sums(weight: np.ndarray, x: np.ndarray, zero_point: int) -> np.ndarray:
    """Returns (x - zero_point) W as int32 [M, N], for a weight W int8 [K, N] and activations uint8 [M, K].

    The weight is uint8 with zero point 128 here: with int8, onnxruntime's sums may overflow on CPUs without VNNI.
    """
    constants = {
        "weight": (weight.astype(np.int16) + 128).astype(np.uint8),
        "zero": np.array(zero_point, dtype=np.uint8),
        "middle": np.array(128, dtype=np.uint8),
    }
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight", "zero", "middle"], ["sums"])],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, [len(x), weight.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found
