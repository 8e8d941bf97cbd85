"""Quantizers in front of other layers (`custom_quantizable_module_types`) in exported files, and the kernels there."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_fixtures import encoded, make_sparse_bert, quantize, texts, vary
from onnx import numpy_helper
from tiny import make_albert, make_tokenizer
from torch import nn

from sparse_accel.export.checks import check_weights
from sparse_accel.export.fidelity import in_session, logits_of
from sparse_accel.export.kernels import prove_kernels
from sparse_accel.export.lower import lower
from sparse_accel.export.opset import lower_opset
from sparse_accel.export.proof import prove
from sparse_accel.export.trace import trace
from sparse_accel.nn.layers import quantizers
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.runtime.timing import plain_session

KINDS = ["GELUActivation", "LayerNorm", "Tanh", "Dropout"]
GELU = "bert.encoder.layer.0.intermediate.intermediate_act_fn"


@functools.cache
def quantized(*kinds: str) -> tuple[nn.Module, onnx.ModelProto]:
    model = make_albert() if "NewGELUActivation" in kinds else make_sparse_bert(num_hidden_layers=1)
    vary(model)
    quantize(model, custom_quantizable_module_types=list(kinds))
    return model, trace(model, make_tokenizer())


def write(path: Path, kinds: list[str], form: str, opset: int = 18) -> nn.Module:
    model, traced = quantized(*kinds)
    graph = lower(traced, model, form)
    onnx.save(lower_opset(graph, opset) if opset < 18 else graph, path)
    return model


@pytest.mark.parametrize(("form", "opset"), [("qdq", 18), ("qdq", 13), ("integer", 14)])
@pytest.mark.parametrize("kinds", [KINDS[:1], KINDS, ["NewGELUActivation"]], ids=len)
def test_are_proven(kinds: list[str], form: str, opset: int, tmp_path: Path) -> None:
    """The last one is in a block that is used twice: one scale, and two nodes with it."""
    path = tmp_path / "model.onnx"
    model = write(path, kinds, form, opset)
    proof = prove(path, model, make_tokenizer(), texts(), form, opset)
    assert not [check for check in proof.checks if check.passed is False]
    values = proof.checks[1]
    assert f"{len(quantizers(model))} quantizers" in values.detail
    nodes = onnx.load(path).graph.node
    for name in quantizers(model):
        if name.endswith(("act_fn.input_quantizer", "activation.input_quantizer")) and "pooler" not in name:
            scale = f"{name.removesuffix('_quantizer')}_scale"
            used = [node.op_type for node in nodes if scale in node.input]
            assert used == ["QuantizeLinear", "DequantizeLinear"] * (2 if "albert" in name else 1)


def test_is_proven_where_outputs_of_linears_are_quantized_too(tmp_path: Path) -> None:
    """Two pairs in a row would lose one of them in onnxruntime."""
    for seed in range(3):
        model = make_sparse_bert(num_hidden_layers=1, seed=seed)
        vary(model)
        quantize(model, custom_quantizable_module_types=KINDS[:2], quantize_linear_activations=True)
        path = tmp_path / f"model{seed}.onnx"
        onnx.save(lower(trace(model, make_tokenizer()), model, "qdq"), path)
        proof = prove(path, model, make_tokenizer(), texts(), "qdq", 18)
        assert not [check for check in proof.checks if check.passed is False]


def test_a_float_file_has_none(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = write(path, KINDS, "float")
    assert not {node.op_type for node in onnx.load(path).graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    batch = encoded(model, ["a good film"])
    found = plain_session(path).run(["logits"], {name: value.numpy() for name, value in batch.items()})[0]
    plain = make_sparse_bert(num_hidden_layers=1).eval()
    vary(plain)
    with torch.no_grad():
        np.testing.assert_allclose(found, plain(**batch).logits, atol=1e-5)


@pytest.mark.parametrize("what", ["scale", "zero_point"])
def test_a_wrong_one_is_seen(what: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = write(path, KINDS[:1], "qdq")
    file = onnx.load(path)
    (tensor,) = (it for it in file.graph.initializer if it.name == f"{GELU}.input_{what}")
    changed = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.array(changed * 2 if what == "scale" else changed - 1), tensor.name))
    onnx.save(file, path)
    values = check_weights(path, model, "qdq")[0]
    assert not values.passed and f"{GELU}.input_{what}" in values.detail


def test_a_missing_one_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    quantizer = quantizers(quantized(*KINDS[:1])[0])[f"{GELU}.input_quantizer"]
    quantizer.enabled = False
    model = write(path, KINDS[:1], "qdq")
    quantizer.enabled = True
    values = check_weights(path, model, "qdq")[0]
    assert not values.passed and f"{GELU}.input_zero_point is missing" in values.detail


@pytest.mark.parametrize("kinds", [KINDS[:1], KINDS], ids=len)
def test_kernels_compute_what_onnxruntime_computes(
    kinds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    path = tmp_path / "model.onnx"
    write(path, kinds, "qdq")
    plain = logits_of(in_session(plain_session(path)), make_tokenizer(), texts())
    proof = prove_kernels(path, plain, make_tokenizer(), texts(), "qdq")
    assert proof.reason == "" and all(check.passed for check in proof.checks)
    assert proof.explanation is not None and proof.explanation.operators["Linear"] >= 3
