"""Signed activations, one scale per row, and what TensorRT demands, in exported files, and the kernels there."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_fixtures import encoded, make_sparse_bert, quantize, texts, vary
from onnx import numpy_helper
from tensorrt_demands import tensorrt_faults
from tiny import make_tokenizer
from torch import nn

from sparse_accel.export.checks import check_weights
from sparse_accel.export.deployment import reduce_ranges
from sparse_accel.export.fidelity import in_session, logits_of
from sparse_accel.export.kernels import prove_kernels
from sparse_accel.export.lower import OFFSET, lower
from sparse_accel.export.opset import lower_opset
from sparse_accel.export.proof import may_overflow, prove
from sparse_accel.export.trace import trace
from sparse_accel.nn.layers import quantizers
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.runtime.timing import plain_session

IGNORE = ["LayerNorm", "Tanh", "GELUActivation"]
CHANNEL: dict[str, Any] = {"weights": {"symmetric": True, "strategy": "channel"}}
FORMS: dict[str, dict[str, Any]] = {
    "default": {"scheme": "default"},
    "without others": {"scheme": "default", "ignore": IGNORE},
    "tensorrt": {"scheme": "tensorrt", "ignore": IGNORE},
    "tensorrt without a scheme": {"tensorrt": True, "custom_quantizable_module_types": ["LayerNorm"]},
    "per channel": {"scheme": CHANNEL, "ignore": IGNORE},
    "per channel, tensorrt": {"tensorrt": True, "weight_qconfig_kwargs": {"qscheme": "per_channel_symmetric"}},
    "per channel, few bits": {
        "scheme": {
            "input_activations": {"num_bits": 6},
            "weights": {"symmetric": True, "strategy": "channel", "num_bits": 5},
        }
    },
    "outputs": {
        "scheme": {"output_activations": {}, **CHANNEL},
        "scheme_overrides": {kind: {"output_activations": None} for kind in IGNORE},
    },
    "per channel, without a scheme": {"weight_qconfig_kwargs": {"qscheme": "per_channel_symmetric"}},
}
# Axes of scales are as old as opset 13, so one form is written in it.
PROVEN = [(form, *each) for form in FORMS for each in (("qdq", 18), ("integer", 14))] + [("per channel", "qdq", 13)]
# Those of the fast tests: a scale per row, and activations with a sign, in both formats.
FAST = [("per channel", "qdq", 18), ("tensorrt", "qdq", 18), ("per channel, tensorrt", "integer", 14)]


def parameters(values: Sequence[Any], fast: Sequence[Any]) -> list[Any]:
    return [pytest.param(*each, marks=() if each in fast else pytest.mark.slow) for each in values]


@functools.cache
def quantized(form: str) -> tuple[nn.Module, onnx.ModelProto]:
    model = make_sparse_bert(num_hidden_layers=1)
    vary(model)
    quantize(model, **FORMS[form])
    return model, trace(model, make_tokenizer())


def write(path: Path, form: str, format: str, opset: int = 18) -> nn.Module:
    model, traced = quantized(form)
    graph = lower(traced, model, format)
    onnx.save(lower_opset(graph, opset) if opset < 18 else graph, path)
    return model


@pytest.mark.parametrize(("form", "format", "opset"), parameters(PROVEN, FAST))
def test_are_proven(form: str, format: str, opset: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = write(path, form, format, opset)
    proof = prove(path, model, make_tokenizer(), texts(), format, opset)
    assert not [check for check in proof.checks if check.passed is False]
    assert f"{len(quantizers(model))} quantizers" in proof.checks[1].detail
    assert "8 of 8 quantized Linears" in proof.checks[3].detail


@pytest.mark.parametrize("form", parameters([(form,) for form in FORMS], [("tensorrt",), ("per channel",)]))
def test_kernels_compute_what_onnxruntime_computes(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    path = tmp_path / "model.onnx"
    write(path, form, "qdq")
    plain = logits_of(in_session(plain_session(path)), make_tokenizer(), texts())
    proof = prove_kernels(path, plain, make_tokenizer(), texts(), "qdq")
    assert proof.reason == "" and all(check.passed for check in proof.checks)
    assert proof.explanation is not None
    assert not [each for each in proof.explanation.kept if "not quantized to" in each.reason]
    assert proof.explanation.operators["Lookup"] == 3
    if form in ("tensorrt", "per channel", "without others"):
        assert not proof.explanation.kept and proof.explanation.operators["FeedForward"] == 1


@pytest.mark.parametrize("format", OFFSET)
def test_types_and_zero_points(format: str, tmp_path: Path) -> None:
    """TensorRT reads int8 with zero point 0; DeepSparse, and onnxruntime's MatMulInteger, uint8."""
    write(tmp_path / "model.onnx", "per channel, tensorrt", format)
    tensors = {each.name: numpy_helper.to_array(each) for each in onnx.load(tmp_path / "model.onnx").graph.initializer}
    zeros = {name: each for name, each in tensors.items() if name.endswith("_zero_point")}
    assert len(zeros) == 8 * 2 + 3
    expected, zero = (np.int8, 0) if format == "qdq" else (np.uint8, 128)
    assert all(each.dtype == expected and (each == zero).all() for each in zeros.values())
    assert tensors["bert.embeddings.word_embeddings.weight_scale"].shape == (30, 1)
    dense = "bert.encoder.layer.0.intermediate.dense"
    assert zeros[f"{dense}.weight_zero_point"].shape == (64,)


@pytest.mark.parametrize(
    "name",
    [
        "classifier.input_zero_point",
        "classifier.weight_scale",
        "bert.embeddings.word_embeddings.weight_scale",
        "bert.embeddings.word_embeddings.weight_zero_point",
        "bert.encoder.layer.0.attention.self.query.weight_zero_point",
        "bert.encoder.layer.0.attention.self.query.weight_quantized",
    ],
)
def test_a_wrong_number_is_seen(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = write(path, "per channel", "qdq")
    file = onnx.load(path)
    (tensor,) = (each for each in file.graph.initializer if each.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[-1:] += values.dtype.type(1)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(file, path)
    check = check_weights(path, model, "qdq")[0]
    assert not check.passed and name.removesuffix("_quantized") in check.detail


# --- 7 bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["without others", "tensorrt"])
def test_seven_bits_are_unsigned_on_the_same_grid(form: str) -> None:
    """onnxruntime adds 128 to signed integers: those would be up to 191, and sums could overflow all the same."""
    model = quantize(make_sparse_bert(num_hidden_layers=1), **FORMS[form])
    batch = encoded(model, ["a good film"])
    narrow = {name: each for name, each in quantizers(model).items() if name.endswith("input_quantizer")}
    for quantizer in narrow.values():
        quantizer.scheme = replace(quantizer.scheme, reduce_range=True)
        quantizer.set_range(quantizer.minimum.clone(), quantizer.maximum.clone())
    with torch.no_grad():
        expected = model(**batch).logits
        assert may_overflow(model, "qdq") and not may_overflow(model, "integer")
        reduce_ranges(model)
        assert torch.equal(model(**batch).logits, expected)
    assert not may_overflow(model, "qdq")
    assert {each.scheme.integers for each in narrow.values()} == {(0, 127)}


# --- TensorRT ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tensorrt", "tensorrt without a scheme", "per channel, tensorrt"])
def test_files_for_tensorrt_are_what_it_demands(form: str) -> None:
    model, traced = quantized(form)
    graph = lower(traced, model, "qdq")
    assert tensorrt_faults(graph) == []
    assert sum(node.op_type == "QuantizeLinear" for node in graph.graph.node) >= 8


@pytest.mark.parametrize(
    ("form", "format", "fault"),
    [
        ("without others", "qdq", "the zero point is not 0"),
        ("per channel, without a scheme", "qdq", "integers are uint8, not int8"),
        ("tensorrt", "integer", "MatMulInteger is no operator that TensorRT imports"),
    ],
)
def test_other_files_are_not(form: str, format: str, fault: str) -> None:
    model, traced = quantized(form)
    assert any(fault in line for line in tensorrt_faults(lower(traced, model, format)))
