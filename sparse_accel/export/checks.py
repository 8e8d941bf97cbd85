"""Checks of a written model.onnx: it is read back and compared with its checkpoint, tensor by tensor.

No result of the export is reused here. A quantized weight of the file, dequantized, must equal the tensor that PyTorch
computes with; scales and zero points must equal those of the checkpoint bit by bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from sparse_accel.errors import UsageError
from sparse_accel.export.lower import OFFSET, active, plain, stored_weight_parameters, stored_zero_point
from sparse_accel.export.opset import check_opset
from sparse_accel.nn.fake_quantize import FakeQuantize

# The kernels with which onnxruntime multiplies integers; all others work on floats.
INTEGER_KERNELS = (
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
)
# A float tensor with at least so many numbers that does not belong to a parameter is a copy of one.
_LARGEST_CONSTANT = 4096
_MARKS = {True: "pass", False: "FAIL", None: "not checked"}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: of the check.
        passed: None means not checked.
        detail: what was found, as text.
    """

    name: str
    passed: bool | None
    detail: str

    def to_dict(self) -> dict[str, str]:
        """Returns the check as it is written to export_report.json."""
        return {"name": self.name, "result": _MARKS[self.passed], "detail": self.detail}


@dataclass
class _Tensors:
    """The initializers of a file, and which of them were checked."""

    by_name: dict[str, np.ndarray]
    used_by: dict[str, list[str]]  # operators that read an initializer
    seen: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Tensors:
        used_by: dict[str, list[str]] = {}
        for node in model.graph.node:
            for name in node.input:
                used_by.setdefault(name, []).append(node.op_type)
        return cls({tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}, used_by)

    def differs(self, name: str, expected: np.ndarray) -> str:
        """Returns what is wrong with an initializer; empty if it equals `expected` bit by bit and a node reads it."""
        self.seen.add(name)
        if name not in self.by_name:
            return f"{name} is missing"
        if name not in self.used_by:
            return f"{name} is not read by any node"
        found = self.by_name[name]
        if found.dtype != expected.dtype or found.shape != expected.shape:
            return f"{name} is {found.dtype} {found.shape}, not {expected.dtype} {expected.shape}"
        wrong = int((found != expected).sum())
        same = found.tobytes() == expected.tobytes()  # compares bits: -0.0 == 0.0, but their bits differ
        return "" if same else f"{name}: {max(wrong, 1)} of {found.size} numbers differ"


def check_file(path: Path, opset: int) -> Check:
    """Runs onnx's own checker on the written file, and checks that it has the requested opset."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
        check_opset(model, opset)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, UsageError) as error:
        return Check("ONNX checker", False, str(error).strip().splitlines()[0])
    return Check("ONNX checker", True, f"valid, opset {opset}, IR version {model.ir_version}")


def check_weights(path: Path, model: nn.Module, format: str) -> tuple[Check, Check, dict[str, dict[str, Any]]]:
    """Compares every parameter and every quantizer of the checkpoint with the file.

    Args:
        path: of model.onnx.
        model: the classifier from `sparse_accel.load`, quantizers on.
        format: float, qdq or integer.

    Returns:
        The check of values, the check of zeros, and by name how each weight matrix is stored: zeros, pruned, weights,
        sparsity, dtype.
    """
    tensors = _Tensors.of(onnx.load(path))
    called = _called_modules(model)
    wrong: list[str] = []
    lost_zeros: list[str] = []
    layers: dict[str, dict[str, Any]] = {}
    unused: list[str] = []
    compared = Counter[str]()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name not in called:
                continue
            for found in _compare_quantizers(name, module, tensors, format):
                compared["quantizer"] += 1
                wrong += [found] if found else []
            if isinstance(module, (nn.Linear, nn.Embedding)):
                compared["matrix"] += 1
                error, entry, lost = _compare_matrix(name, cast(Any, module), tensors, format)
                wrong += [error] if error else []
                lost_zeros += [lost] if lost else []
                layers[f"{name}.weight"] = entry
        matrices = set(layers)
        for name, parameter in model.named_parameters():
            if name in matrices:
                continue
            error = _compare_other(name, parameter.detach().numpy(), tensors)
            if error.endswith("is missing") and name.rpartition(".")[0] not in called:
                unused.append(name)  # a part of the model that this classifier does not use
                continue
            compared["other"] += 1
            wrong += [error] if error else []
    wrong += _copies(tensors)
    counts = f"{compared['matrix']} matrices, {compared['quantizer']} quantizers, {compared['other']} other parameters"
    note = f"; not used by the model: {', '.join(unused[:3])}" if unused else ""
    values = Check("weights, scales, zero points", not wrong, _listed(wrong) or f"{counts}: equal bit by bit{note}")
    total = [sum(int(entry[key]) for entry in layers.values()) for key in ("zeros", "weights")]
    shown = (
        f"{total[0]:,} of {total[1]:,} weights are zero in the file ({total[0] / max(total[1], 1):.1%}), as quantized"
    )
    zeros = Check("zeros", not lost_zeros, _listed(lost_zeros) or f"{shown}; every pruned weight is among them")
    return values, zeros, layers


def check_kernels(optimized: Path, path: Path, model: nn.Module) -> tuple[Check, dict[str, int]]:
    """Checks that each quantized Linear runs in integer kernels, in the graph as onnxruntime optimized it.

    Args:
        optimized: the graph that onnxruntime wrote after its optimizations.
        path: model.onnx, to count the uses of each weight (several for a layer that blocks share).

    Returns:
        The check, and the number of nodes of each type in the optimized graph.
    """
    written, running = onnx.load(path), onnx.load(optimized)
    kernels = Counter(node.op_type for node in running.graph.node)
    quantized = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and active(module, "weight_quantizer") and active(module, "input_quantizer")
    ]
    if not quantized:
        return Check("integer kernels", None, "no Linear is quantized: the model runs in float"), dict(kernels)
    calls = _products(written.graph)
    integer = Counter(
        name for node in running.graph.node if node.op_type in INTEGER_KERNELS for name in set(node.input)
    )
    names = {layer: f"{layer}.weight_quantized" for layer in quantized}
    floats = [layer for layer, name in names.items() if integer[name] < max(calls[name], 1)]
    detail = (
        f"{len(quantized) - len(floats)} of {len(quantized)} quantized Linears run in integer kernels of onnxruntime"
    )
    if floats:
        detail += f"; in float: {', '.join(floats[:4])}{' ...' if len(floats) > 4 else ''}"
    return Check("integer kernels", not floats, detail), dict(kernels)


def _products(graph: onnx.GraphProto) -> Counter[str]:
    """Counts, for each quantized weight, the products that depend on the text. The others are constant (DeBERTa's
    projected positions), and onnxruntime computes them once, when it loads the file."""
    depends = {entry.name for entry in graph.input}
    scaled: dict[str, str] = {}  # name of a dequantized weight -> name of the weight
    counts = Counter[str]()
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            scaled[node.output[0]] = node.input[0]
        if depends.isdisjoint(node.input):
            continue
        depends.update(node.output)
        if node.op_type in ("MatMul", "MatMulInteger"):
            counts.update({scaled.get(name, name) for name in node.input})
    return counts


# --- tensor by tensor -------------------------------------------------------------------------------------------------


def _compare_quantizers(name: str, layer: nn.Module, tensors: _Tensors, format: str) -> Iterator[str]:
    """Yields, for each quantizer of a layer, what is wrong with its scale and zero point; empty if nothing is."""
    weight, entry = active(layer, "weight_quantizer"), active(layer, "input_quantizer")
    product = format == "integer" and isinstance(layer, nn.Linear) and weight is not None
    if weight is not None:
        scale, zero_point = stored_weight_parameters(layer, format)
        found = tensors.differs(f"{name}.weight_zero_point", zero_point)
        if product and entry is not None:
            both = plain(entry.scale * weight.scale)
            yield found or tensors.differs(f"{name}.input_scale_times_weight_scale", both)
        else:
            yield found or tensors.differs(f"{name}.weight_scale", scale)
    for which in ("input", "output"):
        quantizer = active(layer, f"{which}_quantizer")
        if quantizer is None:
            continue
        found = tensors.differs(f"{name}.{which}_zero_point", stored_zero_point(quantizer, format))
        found = found or tensors.differs(f"{name}.{which}_scale", plain(quantizer.scale))
        lowest, highest = quantizer.scheme.integers
        if highest - lowest != 255:
            for end, bound in (("lowest", lowest), ("highest", highest)):
                limit = plain((bound - quantizer.zero_point) * quantizer.scale)
                found = found or tensors.differs(f"{name}.{which}_{end}", limit)
        yield found


def _compare_matrix(name: str, layer: Any, tensors: _Tensors, format: str) -> tuple[str, dict[str, Any], str]:
    """Returns what is wrong with a weight, how it is stored, and what is wrong with its zeros."""
    transposed = isinstance(layer, nn.Linear)
    weight = layer.weight.detach()
    quantizer = active(layer, "weight_quantizer")
    if quantizer is None:
        stored = f"{name}.weight"
        expected = (weight.t() if transposed else weight).contiguous().numpy()
        error = tensors.differs(stored, expected)
        found = tensors.by_name.get(stored, expected)
        kept_zeros = found == 0
    else:
        stored = f"{name}.weight_quantized"
        error, found, kept_zeros = _compare_integers(stored, weight, quantizer, tensors, format, transposed)
    if found.shape != tuple(weight.t().shape if transposed else weight.shape):
        return error, {"zeros": 0, "weights": found.size, "sparsity": 0.0, "dtype": str(found.dtype)}, ""
    pruned = (weight.t() if transposed else weight).numpy() == 0
    lost = int((pruned & ~kept_zeros).sum())
    zeros = int(kept_zeros.sum())
    entry = {
        "zeros": zeros,
        "pruned": int(pruned.sum()),
        "weights": found.size,
        "sparsity": round(zeros / found.size, 6),
        "dtype": str(found.dtype),
    }
    return error, entry, f"{stored}: {lost} pruned weights are not zero" if lost else ""


def _compare_integers(
    name: str, weight: torch.Tensor, quantizer: FakeQuantize, tensors: _Tensors, format: str, transposed: bool
) -> tuple[str, np.ndarray, np.ndarray]:
    """Dequantizes the integers of a file and compares them with the tensor that PyTorch computes with."""
    tensors.seen.add(name)
    dtype = "uint8" if format == "integer" else "int8"
    if name not in tensors.by_name or name not in tensors.used_by:
        state = "missing" if name not in tensors.by_name else "not read by any node"
        return f"{name} is {state}", np.zeros(0, dtype=dtype), np.zeros(0, dtype=bool)
    found = tensors.by_name[name]
    values = quantizer(weight)
    scale = quantizer.scale
    if quantizer.scheme.channel_axis is not None:
        scale = scale.reshape([-1 if axis == quantizer.scheme.channel_axis else 1 for axis in range(weight.ndim)])
    expected, scales = values.numpy(), np.broadcast_to(scale.numpy(), tuple(values.shape))
    if transposed:
        expected, scales = expected.T, scales.T
    if found.shape != expected.shape or str(found.dtype) != dtype:
        return f"{name} is {found.dtype} {found.shape}, not {dtype} {expected.shape}", found, np.zeros(0, dtype=bool)
    integers = found.astype(np.int32) - OFFSET[format]
    wrong = int((integers.astype(np.float32) * scales != expected).sum())
    error = f"{name}: {wrong} of {found.size} dequantized values differ from the weights of the checkpoint"
    return error if wrong else "", found, integers == 0


def _compare_other(name: str, expected: np.ndarray, tensors: _Tensors) -> str:
    """Compares a bias, norm or bare parameter: under its own name, or another one, as equal tensors are stored once."""
    error = tensors.differs(name, expected)
    if error.endswith("is missing"):
        for other, found in tensors.by_name.items():
            if found.shape == expected.shape and found.dtype == expected.dtype and np.array_equal(found, expected):
                return tensors.differs(other, expected)
    return error


def _copies(tensors: _Tensors) -> list[str]:
    """Large float tensors that do not belong to a parameter, such as a float copy of a quantized weight."""
    return [
        f"{name}: {array.size} float numbers that are not a parameter of the checkpoint"
        for name, array in tensors.by_name.items()
        if name not in tensors.seen and array.dtype.kind == "f" and array.size >= _LARGEST_CONSTANT
    ]


def _called_modules(model: nn.Module) -> set[str]:
    """Names of the modules that a forward pass calls; it runs one to find out."""
    from sparse_accel.export.trace import plain_inputs

    called: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.add(name)) for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(**plain_inputs())
    finally:
        for handle in handles:
            handle.remove()
    return called


def _listed(errors: list[str]) -> str:
    return "; ".join(errors[:4]) + (f"; and {len(errors) - 4} more" if len(errors) > 4 else "")
