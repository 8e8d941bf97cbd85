"""Sessions: a model.onnx -> an onnxruntime.InferenceSession that is as fast as this CPU allows, with the same answers.

The file is rewritten in memory: see rewrite.py and packing.py. Where that is not possible or brings nothing, it is
onnxruntime's own session of the file as it is.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import onnx
import onnxruntime

from sparse_accel.distributed.threads import share
from sparse_accel.errors import first_line
from sparse_accel.native import LibraryMissing
from sparse_accel.runtime.library import Library, load_library
from sparse_accel.runtime.packing import PackedModel, TooDense, WrongSums, pack
from sparse_accel.runtime.patterns import Kept
from sparse_accel.runtime.rewrite import AS_ASKED, DOMAIN, Rewritten, rewrite

VARIABLE = "SPARSE_ACCEL_ISA"
NONE = "none"  # in place of an instruction set: no kernels
FILE = "model.onnx"
REPORT = "export_report.json"
_TOO_DENSE = "has too few zeros for the kernels of this CPU"
_SUFFIX = ".weight_quantized"  # of an initializer's name, after its layer
_LOG = logging.getLogger("sparse_accel.runtime")


@dataclass(frozen=True)
class MatrixInUse:
    """A weight matrix of a session.

    Attributes:
        layer: the layers that it belongs to: one, or query, key and value.
        shape: (K, N): inputs, outputs.
        zeros: fraction of its weights that are zero.
        density: of sets: fraction of its weights that the kernel multiplies, zeros among them. 1.0 for a dense one.
        is_sparse: whether its kernel skips zeros.
    """

    layer: str
    shape: tuple[int, int]
    zeros: float
    density: float
    is_sparse: bool


@dataclass(frozen=True)
class Explanation:
    """What a session is made of.

    Attributes:
        instruction_set: of the kernels; None: this is onnxruntime's own session of the file.
        reason: why there are no kernels; empty where there are.
        operators: number of operators of each kind in the rewritten graph.
        matrices: the weights that the kernels read.
        kept: products with a weight that onnxruntime computes, and why.
    """

    instruction_set: str | None
    reason: str = ""
    operators: dict[str, int] = field(default_factory=dict)
    matrices: tuple[MatrixInUse, ...] = ()
    kept: tuple[Kept, ...] = ()

    def __str__(self) -> str:
        if self.instruction_set is None:
            return f"onnxruntime's own session: {self.reason}"
        counted = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        lines = [f"kernels: {self.instruction_set}; {counted}"]
        if not self.matrices:
            return f"{lines[0]}; they pack the weights of this file when it is loaded"
        lines.append("")
        width = max((len(matrix.layer) for matrix in self.matrices), default=5)
        lines.append(f"{'layer':<{width}}  {'inputs':>6} {'outputs':>7} {'zeros':>6} {'density':>7}  kernel")
        for each in self.matrices:
            kernel = "sparse" if each.is_sparse else "dense"
            shape = f"{each.shape[0]:>6} {each.shape[1]:>7}"
            lines.append(f"{each.layer:<{width}}  {shape} {each.zeros:>6.1%} {each.density:>7.3f}  {kernel}")
        lines += [f"{each.layer} is left to onnxruntime: it {each.reason}" for each in self.kept]
        return "\n".join(lines)


_EXPLANATIONS: WeakKeyDictionary[Any, Explanation] = WeakKeyDictionary()


def session(
    folder_or_file: str | Path,
    threads: int | None = None,
    options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """Returns a session for a deployment: with kernels that skip zeros where they are faster on this CPU.

    Inputs, outputs and names are those of model.onnx. `explain` says what was done. The environment variable
    SPARSE_ACCEL_ISA forces an instruction set, or, with `none`, onnxruntime's own session.

    Args:
        folder_or_file: a deployment folder, or an ONNX file.
        threads: of onnxruntime's pool; None: as many as it chooses, or as the quota of the container allows, or as
            `options` say.
        options: for this session alone: the operators are registered with it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: SPARSE_ACCEL_ISA names an instruction set that this CPU does not have, or `threads` is not positive.
        Exception: onnxruntime's own, where it cannot load the file.
    """
    path = model_file(folder_or_file)
    options = options or _options()
    if threads is not None:
        if not isinstance(threads, int) or threads < 1:
            raise ValueError(f"threads={threads!r}: expected a whole number from 1 on, or None")
        options.intra_op_num_threads = threads
    made, explanation = session_with_kernels(path, options=options)
    if made is None:
        _LOG.warning("%s: %s; this is onnxruntime's own session", path, explanation.reason)
        made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    _EXPLANATIONS[made] = explanation
    return made


def explain(session: onnxruntime.InferenceSession) -> Explanation:
    """Returns what a session from `session` is made of.

    Raises:
        ValueError: it is from elsewhere.
    """
    try:
        return _EXPLANATIONS[session]
    except (KeyError, TypeError):
        raise ValueError("explain() knows only sessions that sparse_accel.runtime.session() has made") from None


def instruction_set(library: Library) -> str:
    """Returns the instruction set that sessions use; empty if none.

    Raises:
        ValueError: SPARSE_ACCEL_ISA names one that this CPU does not have.
    """
    forced = os.environ.get(VARIABLE, "")
    if forced == NONE:
        return ""
    if forced and forced not in library.instruction_sets:
        known = ", ".join(library.instruction_sets)
        raise ValueError(f"{VARIABLE}={forced}: expected one of those that this CPU has ({known}), or {NONE}")
    return forced or library.default


def model_file(folder_or_file: str | Path) -> Path:
    """Returns the ONNX file of a deployment folder, or the file itself.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(folder_or_file)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"{path}: there is no {FILE} in this folder" if path.is_dir() else f"{path}: no such file or folder"
        )
    return file


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if (found := share()).by_quota:  # onnxruntime knows the cores of the machine alone
        options.intra_op_num_threads = found.cpus
    return options


def session_with_kernels(
    path: Path, threads: int | None = None, options: onnxruntime.SessionOptions | None = None
) -> tuple[onnxruntime.InferenceSession | None, Explanation]:
    """Returns a session of a file with kernels, and what it is made of; None and the reason, where there are none.

    Raises:
        ValueError: SPARSE_ACCEL_ISA names an instruction set that this CPU does not have.
    """
    if os.environ.get(VARIABLE) == NONE:
        return None, Explanation(None, f"{VARIABLE}={NONE}")
    try:
        library = load_library()
    except LibraryMissing as missing:
        return None, Explanation(None, str(missing))
    isa = instruction_set(library)
    if not isa:
        return None, Explanation(
            None, f"nobody has measured the kernels on CPUs like this one ({VARIABLE} forces them)"
        )
    if reason := _disproof(path, isa):
        return None, Explanation(None, f"the export's proof of these kernels failed: {reason}")
    options = options or _options()
    if threads:
        options.intra_op_num_threads = threads
    try:
        options.register_custom_ops_library(str(library.path))
    except Exception as error:  # onnxruntime's exceptions have no common base class
        reason = f"onnxruntime {onnxruntime.__version__} cannot use the library ({first_line(error)})"
        return None, Explanation(None, reason)
    try:
        prepared = prepare(path, library, isa)
        explanation = prepared.explanation
        if explanation.instruction_set is None:
            return None, explanation
        model = path if prepared.packed is None else prepared.packed.model.SerializeToString()
        del prepared
        _give_back_memory()
        made = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        _give_back_memory()
    except WrongSums as wrong:
        return None, Explanation(None, f"{library.path} is not used: {wrong}")
    except Exception as error:  # whatever a file holds that cannot be rewritten: onnxruntime's own session judges it
        return None, Explanation(None, f"the graph cannot be rewritten ({first_line(error)})")
    return made, explanation


def _disproof(path: Path, isa: str) -> str:
    """Why the export of a file found that the kernels of an instruction set must not be used; empty: it did not."""
    try:
        found = json.loads((path.parent / REPORT).read_text(encoding="utf-8"))["sparse_kernels"]
        return str(found["reason"]) if path.name == FILE and found.get("instruction_set") == isa else ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no report, or none of an export
        return ""


@dataclass(frozen=True)
class Prepared:
    """A file as it is rewritten for one instruction set.

    Attributes:
        packed: the graph with packed weights; None: nothing in the file gains from the kernels, or the file has their
            operators already, as model.kernels.onnx does: they pack their weights themselves.
        operators: of that graph.
        left: names of weights that are too dense for these kernels: onnxruntime multiplies them.
        explanation: of a session of it.
    """

    packed: PackedModel | None
    operators: tuple[Rewritten, ...]
    left: frozenset[str]
    explanation: Explanation


def prepare(path: Path, library: Library, isa: str) -> Prepared:
    """Rewrites a file, and packs its weights.

    Raises:
        ValueError: the file cannot be rewritten, or the library computes wrong sums (WrongSums).
    """
    leave: set[str] = set()
    while True:
        # Each model is dropped once the next one is made from it, so that there are never more than two in memory.
        model = onnx.load(path)
        if there := Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN):
            return Prepared(None, (), frozenset(), Explanation(isa, operators=dict(there)))
        rewritten = rewrite(model, leave)
        del model
        operators = rewritten.operators
        kept = [Kept(each.layer, _TOO_DENSE) if each.reason == AS_ASKED else each for each in rewritten.kept]
        if not any(operator.layers for operator in operators):
            first = f" (the first weight of {len(kept)}: {kept[0].layer} {kept[0].reason})" if kept else ""
            explanation = Explanation(None, f"no part of this graph gains from the kernels{first}", kept=tuple(kept))
            return Prepared(None, (), frozenset(leave), explanation)
        model = rewritten.model
        del rewritten
        try:
            packed = pack(model, library, isa)
        except TooDense as found:
            leave |= _weights_of(found, operators)
            continue
        return Prepared(packed, operators, frozenset(leave), _explanation(isa, operators, kept, packed))


def _weights_of(found: TooDense, operators: Sequence[Rewritten]) -> set[str]:
    """The weights of the file that are too dense: where query, key and value became one weight, all three."""
    by_node = {operator.node: operator.weights for operator in operators}
    return {weight for node, read in found.weights for weight in ([read] if read in by_node[node] else by_node[node])}


def _explanation(isa: str, operators: Sequence[Rewritten], kept: Sequence[Kept], packed: PackedModel) -> Explanation:
    counted = Counter(operator.operator for operator in operators)
    matrices = [
        MatrixInUse(each.weight.removesuffix(_SUFFIX), each.shape, each.zeros, each.density, each.is_sparse)
        for each in packed.weights.values()
    ]
    return Explanation(isa, "", dict(counted), tuple(matrices), tuple(kept))


def _give_back_memory() -> None:
    """Gives the system back what the dropped models had: glibc keeps it, and the session would come on top."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
