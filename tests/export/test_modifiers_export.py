"""The table of all modifiers drives exports: what each of them trained is a file that is proven to be the model."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from export_fixtures import texts
from modifier_table import CASES, begin
from onnx import numpy_helper
from tiny import make_tokenizer
from torch import nn

from sparse_accel.distributed.weights import plain_model
from sparse_accel.export.lower import OFFSET, lower
from sparse_accel.export.opset import check_opset, lower_opset
from sparse_accel.export.proof import prove
from sparse_accel.export.trace import NATIVE_OPSET, trace
from sparse_accel.nn.layers import masks, sparse_layers

pytestmark = pytest.mark.slow  # tracing takes two to three seconds a case

FLOAT, QUANTIZED = [("float", 18)], [("qdq", 18), ("integer", 14)]


@pytest.mark.parametrize("which", CASES)
def test_exports(which: str, tmp_path: Path) -> None:
    name, case = CASES[which]
    session = begin(name, case.keys).train()
    model: nn.Module = plain_model(session.accelerator, session.model).eval()
    traced = trace(model, make_tokenizer())
    for form, opset in QUANTIZED if case.quantized_linears else FLOAT:
        path = tmp_path / f"{form}.onnx"
        graph = lower(traced, model, form)
        graph = lower_opset(graph, opset) if opset < NATIVE_OPSET else graph
        check_opset(graph, opset)
        onnx.save(graph, path)
        proof = prove(path, model, make_tokenizer(), texts(), form, opset)
        assert not [check for check in proof.checks if check.passed is False]

        kernels = next(check for check in proof.checks if check.name == "integer kernels")
        count = case.quantized_linears
        assert (f"{count} of {count} quantized" if count else "the model runs in float") in kernels.detail
        in_integers = {weight for weight, entry in proof.layers.items() if "int8" in entry["dtype"]}
        assert in_integers == {f"{layer}.weight" for layer, it in sparse_layers(model) if it.weight_quantizer}
        assert pruned_share(path, model, form) == pytest.approx(case.pruned, abs=1e-3)


def pruned_share(path: Path, model: nn.Module, form: str) -> float:
    """Returns the share of weights with masks that these prune; each of them is zero in the file."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    pruned = weights = 0
    for name, mask in masks(model).items():
        stored = tensors[f"{name}_quantized"] == OFFSET[form] if f"{name}_quantized" in tensors else tensors[name] == 0
        is_linear = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
        stored = stored.T if is_linear and stored.ndim == 2 else stored  # stored transposed
        assert stored[~mask.numpy()].all(), name
        pruned, weights = pruned + int((~mask).sum()), weights + mask.numel()
    return pruned / weights if weights else 0.0
