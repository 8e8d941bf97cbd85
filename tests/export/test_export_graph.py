"""Exported graphs of every architecture hold what the checkpoint holds, and the checks see when they do not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_fixtures import ARCHITECTURES, encoded, make_sparse_bert, quantize, quantize_outputs, texts, vary
from onnx import numpy_helper
from tiny import make_bert, make_tokenizer
from torch import nn

from sparse_accel.errors import UsageError
from sparse_accel.export.checks import Check, check_kernels, check_weights
from sparse_accel.export.deployment import reduce_ranges
from sparse_accel.export.lower import lower
from sparse_accel.export.opset import check_opset, lower_opset
from sparse_accel.export.proof import prove
from sparse_accel.export.trace import trace
from sparse_accel.nn.layers import quantizers, sparse_layers
from sparse_accel.runtime.timing import plain_session

FORMS = [("qdq", 18), ("qdq", 13), ("integer", 14)]


@functools.cache
def quantized(name: str) -> tuple[nn.Module, onnx.ModelProto]:
    """A quantized model and its traced graph; neither is changed by a test.

    The graph has placeholders for layers: models that differ only in the weights and quantizers of layers share it.
    """
    model = ARCHITECTURES[name]()
    vary(model)
    quantize(model)
    return model, trace(model, make_tokenizer())


def write(path: Path, traced: onnx.ModelProto, model: nn.Module, form: str, opset: int) -> Path:
    graph = lower(traced, model, form)
    graph = lower_opset(graph, opset) if opset < 18 else graph
    check_opset(graph, opset)
    onnx.save(graph, path)
    return path


def failures(checks: list[Check]) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in checks if check.passed is False]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_proven_in_every_form(name: str, tmp_path: Path) -> None:
    model, traced = quantized(name)
    linears = sum(isinstance(module, nn.Linear) for _, module in sparse_layers(model))
    for form, opset in FORMS:
        path = write(tmp_path / f"{form}{opset}.onnx", traced, model, form, opset)
        proof = prove(path, model, make_tokenizer(), texts(), form, opset)
        assert not failures(proof.checks)
        assert f"{linears} of {linears} quantized Linears run in integer kernels" in str(proof.checks)
        stored = onnx.load(path)
        assert stored.opset_import[0].version == opset
        assert stored.ir_version <= 10 if opset == 18 else stored.ir_version <= 9
        # Nothing that is quantized has a float copy; the float tensors left are biases, norms and constants.
        floats = [tensor for tensor in stored.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
        matrices = {tuple(module.weight.shape) for _, module in sparse_layers(model)}
        assert not [t.name for t in floats if tuple(t.dims) in matrices and len(t.dims) > 1 and "rel_emb" not in t.name]
        expected = "int8" if form == "qdq" else "uint8"
        assert {entry["dtype"] for key, entry in proof.layers.items() if "rel_emb" not in key} == {expected}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float_models_are_exported_too(name: str, tmp_path: Path) -> None:
    _, traced = quantized(name)
    model = ARCHITECTURES[name]()
    vary(model)
    path = write(tmp_path / "float.onnx", traced, model.eval(), "float", 18)
    checks = prove(path, model, make_tokenizer(), texts(), "qdq", 18).checks
    assert not failures(checks)
    by_name = {check.name: check for check in checks}
    assert by_name["integer kernels"].passed is None
    assert "100.00% of decisions" in by_name["agreement"].detail


@pytest.mark.parametrize("form", ["qdq", "integer"])
def test_rows_and_tokens_are_open(form: str, tmp_path: Path) -> None:
    model, traced = quantized("bert")
    session = plain_session(write(tmp_path / "model.onnx", traced, model, form, 18 if form == "qdq" else 14))
    for rows in (["good"], ["a film", "it is bad"], ["the plot was " * 15] * 5):
        batch = encoded(model, rows)
        found = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0]
        with torch.no_grad():
            expected = model(**batch).logits.numpy()
        np.testing.assert_allclose(found, expected, atol=0.05 * float(expected.std() + 1))


def one_block() -> nn.Module:
    """A quantized BERT of one block, to be traced in another way."""
    model = make_sparse_bert(num_hidden_layers=1)
    vary(model)
    return quantize(model)


@pytest.mark.parametrize("form, opset", [("float", 18), *FORMS])
def test_onnxruntime_makes_no_slow_operators_of_the_graph(form: str, opset: int, tmp_path: Path) -> None:
    """With the shapes of values in the file, it makes SkipLayerNormalization of sums and norms, which is slower."""
    model, traced = quantized("bert")
    path = write(tmp_path / "model.onnx", traced, model, form, opset)
    assert not onnx.load(path).graph.value_info
    plain_session(path, optimized=tmp_path / "optimized.onnx")
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    products = {"float": {"FusedGemm"}, "qdq": {"MatMulIntegerToFloat"}, "integer": set()}
    # Attention's scale is in the product of query and key.
    assert {node.op_type for node in nodes if node.domain == "com.microsoft"} == products[form] | {"FusedMatMul"}
    assert [node.op_type for node in nodes].count("LayerNormalization") == 5


def test_a_fixed_sequence_length(tmp_path: Path) -> None:
    model = one_block()
    traced = trace(model, make_tokenizer(), sequence_length=16)
    path = write(tmp_path / "model.onnx", traced, model, "qdq", 18)
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_param == "batch" and shape.dim[1].dim_value == 16
    short = texts()
    assert not failures(prove(path, model, make_tokenizer(), short, "qdq", 18).checks)


def test_newer_opsets_are_written_as_asked(tmp_path: Path) -> None:
    model = one_block()
    traced = trace(model, make_tokenizer(), opset=20)
    path = write(tmp_path / "model.onnx", traced, model, "qdq", 20)
    assert not failures(prove(path, model, make_tokenizer(), texts(), "qdq", 20).checks)


def test_an_opset_that_was_not_reached_is_an_error() -> None:
    model, traced = quantized("bert")
    graph = lower(traced, model, "qdq")
    graph.opset_import[0].version = 14  # what an exporter claims that left LayerNormalization in
    with pytest.raises(UsageError, match="opset 14 was not reached: it has no LayerNormalization"):
        check_opset(graph, 14)
    with pytest.raises(UsageError, match="opset 17 was requested, but the graph imports"):
        check_opset(lower_opset(lower(traced, model, "qdq"), 14), 17)


def test_seven_bits_and_fewer_stop_at_their_highest_integer(tmp_path: Path) -> None:
    model = ARCHITECTURES["bert"]()
    vary(model)
    quantize(model, activation_bits=6, weight_bits=5)
    _, traced = quantized("bert")
    for form, opset in FORMS:
        path = write(tmp_path / "model.onnx", traced, model, form, opset)
        assert not failures(prove(path, model, make_tokenizer(), texts(), form, opset).checks)
        by_name = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        weight = by_name["bert.pooler.dense.weight_quantized"].astype(int) - (128 if form == "integer" else 0)
        assert weight.min() >= -16 and weight.max() <= 15
    # Values beyond the range seen in training are clipped as PyTorch clips them.
    session = plain_session(path)
    batch = encoded(model, ["very very very bad awful"])
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    found = session.run(None, {name: value.numpy() for name, value in batch.items()})[0]
    np.testing.assert_allclose(found, expected, atol=0.2)


def test_reduce_range_gives_activations_seven_bits(tmp_path: Path) -> None:
    model = ARCHITECTURES["bert"]()
    vary(model)
    quantize(model)
    before = quantizers(model)["classifier.input_quantizer"].scale.clone()
    reduce_ranges(model)
    assert torch.allclose(quantizers(model)["classifier.input_quantizer"].scale, before * 255 / 127)
    path = write(tmp_path / "model.onnx", quantized("bert")[1], model, "qdq", 18)
    assert not failures(prove(path, model, make_tokenizer(), texts(), "qdq", 18).checks)


def test_weights_with_a_scale_for_each_row(tmp_path: Path) -> None:
    from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme

    model = ARCHITECTURES["bert"]()
    vary(model)
    quantize(model)
    for _, layer in sparse_layers(model):
        if isinstance(layer, nn.Linear):
            form = QuantizationScheme(8, signed=True, symmetric=True, channel_axis=0)
            quantizer = FakeQuantize(form, channels=layer.weight.shape[0])
            quantizer.set_range(layer.weight.amin(1), layer.weight.amax(1))
            quantizer.enabled = True
            layer.weight_quantizer = quantizer.eval()
    reduce_ranges(model)  # every row now has weights up to 127: sums of two products overflow on CPUs without VNNI
    _, traced = quantized("bert")
    for form_name, opset in FORMS:
        path = write(tmp_path / "model.onnx", traced, model, form_name, opset)
        assert not failures(prove(path, model, make_tokenizer(), texts(), form_name, opset).checks)


def test_output_quantizers_of_linears(tmp_path: Path) -> None:
    model = make_sparse_bert(num_hidden_layers=1)
    vary(model)
    quantize_outputs(model, ["a good film", "it was bad"])
    traced = trace(model, make_tokenizer())
    for form, opset in FORMS:
        path = write(tmp_path / "model.onnx", traced, model, form, opset)
        assert not failures(prove(path, model, make_tokenizer(), texts(), form, opset).checks)


# --- what the checks see ----------------------------------------------------------------------------------------------

Change = Callable[[dict[str, np.ndarray]], str]


def one_integer(name: str, stored_zero: bool) -> Change:
    """Changes one integer of a weight by 1: one that is stored as zero, or another."""

    def change(tensors: dict[str, np.ndarray]) -> str:
        array = tensors[name]
        zero = 128 if array.dtype == np.uint8 else 0
        position = tuple(np.argwhere((array == zero) == stored_zero)[0])
        array[position] = int(array[position]) + (1 if array[position] <= zero else -1)
        return name

    return change


def next_float(ending: str) -> Change:
    """Moves the first scale whose name ends so by the smallest step that float32 has."""

    def change(tensors: dict[str, np.ndarray]) -> str:
        name = next(name for name in tensors if name.endswith(ending))
        tensors[name] = np.nextafter(tensors[name], np.float32(10))
        return name

    return change


def next_zero_point(ending: str) -> Change:
    def change(tensors: dict[str, np.ndarray]) -> str:
        name = next(name for name in tensors if name.endswith(ending))
        tensors[name] = tensors[name] + np.asarray(1, dtype=tensors[name].dtype)
        return name

    return change


DENSE, WORDS = "bert.encoder.layer.0.output.dense", "bert.embeddings.word_embeddings"
CHANGES: dict[str, Change] = {
    "a pruned weight": one_integer(f"{DENSE}.weight_quantized", stored_zero=True),
    "a kept weight": one_integer(f"{DENSE}.weight_quantized", stored_zero=False),
    "a weight of an embedding": one_integer(f"{WORDS}.weight_quantized", stored_zero=False),
    "a weight of the classifier": one_integer("classifier.weight_quantized", stored_zero=False),
    "the scale of an activation": next_float("query.input_scale"),
    "the scale of an embedding": next_float("word_embeddings.weight_scale"),
    "the scale of an embedding's output": next_float("word_embeddings.output_scale"),
    "the scale of a weight": next_float("key.weight_scale"),
    "the zero point of an activation": next_zero_point("query.input_zero_point"),
    "the zero point of a weight": next_zero_point(f"{WORDS}.weight_zero_point"),
    "the zero point of a Linear's weight": next_zero_point("value.weight_zero_point"),
    "a bias": next_float("pooler.dense.bias"),
    "a norm": next_float("layer.1.output.LayerNorm.weight"),
}


@pytest.mark.parametrize("form", ["qdq", "integer"])
@pytest.mark.parametrize("what", CHANGES)
def test_the_smallest_change_of_the_file_is_seen(what: str, form: str, tmp_path: Path) -> None:
    model, traced = quantized("bert")
    path = write(tmp_path / "model.onnx", traced, model, form, 18 if form == "qdq" else 14)
    assert not failures(list(check_weights(path, model, form)[:2]))
    graph = onnx.load(path)
    tensors = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in graph.graph.initializer}
    if form == "integer" and what == "the scale of a weight":
        changed = next_float("key.input_scale_times_weight_scale")(tensors)
    else:
        changed = CHANGES[what](tensors)
    for tensor in graph.graph.initializer:
        if tensor.name == changed:
            tensor.CopyFrom(numpy_helper.from_array(tensors[changed], changed))
    onnx.save(graph, path)

    checks = prove(path, model, make_tokenizer(), texts(), form, 18 if form == "qdq" else 14).checks
    found = failures(checks)
    assert found and changed in found[0], found
    assert what != "a pruned weight" or any(line.startswith("zeros:") for line in found)


def test_a_change_of_a_weight_that_no_module_is_called_for_is_seen(tmp_path: Path) -> None:
    """DeBERTa reads its relative positions from an embedding without calling it."""
    model, traced = quantized("deberta")
    path = write(tmp_path / "model.onnx", traced, model, "qdq", 18)
    assert check_weights(path, model, "qdq")[0].passed
    graph = onnx.load(path)
    tensor = next(t for t in graph.graph.initializer if t.name == "deberta.encoder.rel_embeddings.weight")
    tensor.CopyFrom(numpy_helper.from_array(np.nextafter(numpy_helper.to_array(tensor), np.float32(9)), tensor.name))
    onnx.save(graph, path)
    assert "rel_embeddings.weight: 1024 of 1024 numbers differ" in check_weights(path, model, "qdq")[0].detail


def test_a_float_copy_of_a_weight_is_seen(tmp_path: Path) -> None:
    model, traced = quantized("bert")
    graph = lower(traced, model, "qdq")
    copy = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    graph.graph.initializer.append(numpy_helper.from_array(copy, "left_over"))
    onnx.save(graph, tmp_path / "model.onnx")
    assert "left_over: 4096 float numbers" in check_weights(tmp_path / "model.onnx", model, "qdq")[0].detail


def test_a_linear_that_runs_in_float_is_seen(tmp_path: Path) -> None:
    """A quantized weight that is scaled back and multiplied as a float has no integer kernel, and is named."""
    model, traced = quantized("bert")
    path = write(tmp_path / "model.onnx", traced, model, "qdq", 18)
    graph = onnx.load(path)
    broken = "bert.pooler.dense"
    for node in graph.graph.node:  # its input skips the integers
        if node.op_type == "MatMul" and node.name.startswith(f"{broken}/"):
            node.input[0] = next(
                n.output[0] for n in graph.graph.node if n.name.startswith(f"{broken}/") and "Unsq" in n.name
            )
    onnx.save(graph, path)
    optimized = tmp_path / "optimized.onnx"
    plain_session(path, optimized=optimized)
    check, _ = check_kernels(optimized, path, model)
    assert check.passed is False and f"in float: {broken}" in check.detail and "13 of 14" in check.detail


def test_another_models_weights_are_seen(tmp_path: Path) -> None:
    """What the old tool's export did: success, with random weights."""
    model, other = (make_bert(seed=seed, num_hidden_layers=1) for seed in (0, 7))
    path = write(tmp_path / "model.onnx", trace(other, make_tokenizer()), other, "float", 18)
    assert check_weights(path, model, "qdq")[0].passed is False
    assert check_weights(path, other, "qdq")[0].passed is True


def test_what_cannot_be_exported_is_named() -> None:
    from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme

    model = ARCHITECTURES["bert"]()
    quantize(model)
    layer: Any = model.get_submodule("classifier")
    layer.weight_quantizer = FakeQuantize(QuantizationScheme(8, signed=False, symmetric=False))
    layer.weight_quantizer.enabled = True
    with pytest.raises(UsageError, match=r"classifier\.weight_quantizer: only signed symmetric weights"):
        lower(quantized("bert")[1], model, "qdq")
