"""Exported files of every architecture are rewritten: which operators they become, and that these compute the same."""

from __future__ import annotations

import functools
import math
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_fixtures import ARCHITECTURES, ONE_BLOCK, encoded, make_sparse_bert, quantize, quantize_outputs, vary
from kernel_reference import run_plain, run_rewritten
from onnx import helper
from tiny import make_texts, make_tokenizer
from torch import nn
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

from sparse_accel.export.deployment import reduce_ranges
from sparse_accel.export.lower import lower
from sparse_accel.export.opset import lower_opset
from sparse_accel.export.trace import trace
from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme
from sparse_accel.nn.layers import sparse_layers
from sparse_accel.runtime.rewrite import Rewrite, rewrite


def make_bert() -> nn.Module:
    return make_sparse_bert(num_hidden_layers=1)


def make_xlm_roberta() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = XLMRobertaForSequenceClassification(XLMRobertaConfig(**ONE_BLOCK))
    return model


# One block's q, k and v as one Linear, attention, its output, and the feed-forward block.
BLOCK = Counter(Linear=1, Attention=1, LinearAddNorm=1, FeedForward=1)
# Two layers of the head, or one and a pooler; ALBERT also has one behind its embeddings, and two blocks.
HEAD = Counter(Linear=2)
# Embeddings of words, positions and token types.
WORDS = Counter(Lookup=1)
EMBEDDINGS = Counter(Lookup=3)
EXPECTED = {
    "bert": EMBEDDINGS + BLOCK + HEAD,
    "distilbert": Counter(Lookup=2) + BLOCK + HEAD,
    "roberta": EMBEDDINGS + BLOCK + HEAD,
    "electra": EMBEDDINGS + BLOCK + HEAD + Counter(Linear=1),
    "xlm-roberta": EMBEDDINGS + BLOCK + HEAD,
    "albert": EMBEDDINGS + BLOCK + BLOCK + HEAD + Counter(Linear=1),
    # Its attention adds products with relative positions; query and key are also multiplied with these.
    "deberta": WORDS + Counter(Linear=5, LinearAddNorm=1, FeedForward=1) + HEAD,
    # Rotary positions; gated units; norms before the layers, except for the last one.
    "modernbert": WORDS + Counter(Linear=7, LinearAddNorm=1) + HEAD,
}


@functools.cache
def exported(name: str) -> tuple[nn.Module, onnx.ModelProto]:
    """A quantized model and its traced graph; neither is changed by a test."""
    makers = {**ARCHITECTURES, "bert": make_bert, "xlm-roberta": make_xlm_roberta}
    model = makers[name]()
    vary(model)
    quantize(model)
    return model, trace(model, make_tokenizer())


def rewritten(model: nn.Module, graph: onnx.ModelProto, expected: Counter[str]) -> Rewrite:
    """Rewrites an exported graph; checks its operators, and its outputs for rows of many lengths."""
    found = rewrite(graph)
    assert Counter(each.operator for each in found.operators) == expected
    onnx.checker.check_model(found.model)
    rows = make_texts(12, seed=3)[0]
    batch = encoded(model, rows)
    if length := graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value:
        batch = dict(make_tokenizer()(rows, padding="max_length", max_length=length, return_tensors="pt"))
    inputs = {name: values.numpy() for name, values in batch.items()}
    logits, plain = run_rewritten(found.model, inputs)["logits"], run_plain(graph, inputs)[0]
    # Where a number is on the edge of two integers, an addition in another order can make it the other one.
    np.testing.assert_allclose(logits, plain, atol=0.05 * float(plain.std()))
    assert np.abs(logits - plain).mean() < 0.005 * float(plain.std())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_every_architecture(name: str) -> None:
    model, traced = exported(name)
    graph = lower(traced, model, "qdq")
    found = rewritten(model, graph, EXPECTED[name])
    assert found.kept == ()
    linears = {layer for layer, module in sparse_layers(model) if isinstance(module, nn.Linear)}
    assert {layer for each in found.operators for layer in each.layers} == linears
    # All weights are there once: as they were, or side by side.
    stored, weights = (
        [each for each in onnx_model.graph.initializer if each.data_type == onnx.TensorProto.INT8 and each.dims]
        for onnx_model in (found.model, graph)
    )
    assert sum(math.prod(each.dims) for each in stored) == sum(math.prod(each.dims) for each in weights)
    merged = {name for each in found.operators if len(each.layers) == 3 for name in each.weights}
    assert not merged & {tensor.name for tensor in stored}


def test_older_and_newer_opsets() -> None:
    """LayerNormalization is there since 17; the exporter has its own way for each opset."""
    model, traced = exported("bert")
    older = lower_opset(lower(traced, model, "qdq"), 13)
    rewritten(model, older, EMBEDDINGS + Counter(Linear=4, Attention=1) + HEAD)
    newer = lower(trace(model, make_tokenizer(), opset=20), model, "qdq")
    rewritten(model, newer, EXPECTED["bert"])


def test_a_fixed_sequence_length() -> None:
    model, _ = exported("bert")
    graph = lower(trace(model, make_tokenizer(), sequence_length=16), model, "qdq")
    rewritten(model, graph, EXPECTED["bert"] - Counter(Lookup=1))  # the positions are constants


def test_reduced_ranges_and_a_scale_for_each_row() -> None:
    model = make_bert()
    vary(model)
    quantize(model)
    for _, layer in sparse_layers(model):
        if isinstance(layer, nn.Linear):
            scheme = QuantizationScheme(8, signed=True, symmetric=True, channel_axis=0)
            quantizer: Any = FakeQuantize(scheme, channels=layer.weight.shape[0])
            quantizer.set_range(layer.weight.amin(1), layer.weight.amax(1))
            quantizer.enabled = True
            layer.weight_quantizer = quantizer.eval()
    reduce_ranges(model)
    found = rewritten(model, lower(exported("bert")[1], model, "qdq"), EXPECTED["bert"])
    nodes = [node for node in found.model.graph.node if node.op_type == "FeedForward"]
    values = {each.name: helper.get_attribute_value(each) for each in nodes[0].attribute}
    assert [values[f"{name}_{end}"] for name in ("x", "hidden") for end in ("lowest", "highest")] == [0, 127] * 2


def test_output_quantizers_stay() -> None:
    model = make_bert()
    vary(model)
    graph = lower(exported("bert")[1], quantize_outputs(model, make_texts(32, seed=5)[0]), "qdq")
    found = rewritten(model, graph, EMBEDDINGS + Counter(Linear=6, Attention=1))
    # The head has few zeros, and its results are quantized.
    assert [each.layer for each in found.kept] == ["bert.pooler.dense", "classifier"]
    assert "QuantizeLinear" in [node.op_type for node in found.model.graph.node]


def test_other_formats_are_kept_with_a_reason() -> None:
    model, traced = exported("bert")
    integer = rewrite(lower_opset(lower(traced, model, "integer"), 14))
    in_float = rewrite(lower(traced, model, "float"))
    for found, reason in ((integer, "is written as MatMulInteger"), (in_float, "has a weight that is not quantized")):
        assert {each.operator for each in found.operators} - {"Lookup"} == {"Attention"}
        assert len(found.kept) == 8 and all(each.reason.startswith(reason) for each in found.kept)
