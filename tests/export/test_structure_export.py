"""Heads and neurons that are zero are not in the exported file, which is proven against the model with its zeros."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_fixtures import encoded, export, quantize, write_folder
from structure_models import GONE, KINDS, make, set_to_zero
from tiny import make_albert, make_encoder_sparse, make_texts, make_tokenizer
from torch import nn
from transformers import AutoModelForSequenceClassification

import sparse_accel
from sparse_accel.export import deployment, measure
from sparse_accel.export.fidelity import session_logits
from sparse_accel.export.lower import lower
from sparse_accel.export.report import gains, gains_of_kernels
from sparse_accel.export.structure import check_structure, remove_structure
from sparse_accel.export.trace import trace
from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme
from sparse_accel.nn.layers import sparse_layers
from sparse_accel.nn.pooling import Pooling, add_pooling
from sparse_accel.nn.structure import HEADS, NEURONS, encoder_units
from sparse_accel.nn.structure_removal import structure_of
from sparse_accel.runtime import explain, session
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.runtime.timing import plain_session
from sparse_accel.tasks.sentence_embedding.folder import EmbeddingSettings

pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.usefixtures("quick")
LEFT = {"layers": 2, "attention_heads": [3, 1], "ffn_neurons": [42, 32]}


def pruned(kind: str = "Bert", gone: Any = GONE, **how: Any) -> nn.Module:
    """A float model with units that are zero, and single weights among the others."""
    model = make(kind, **how)
    make_encoder_sparse(model, 0.5)
    set_to_zero(model, gone)
    return model


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "export_report.json").read_text())
    return found


def shapes(file: Path) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in onnx.load(file).graph.initializer}


def torch_logits(model: Any, rows: list[str]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(**encoded(model, rows)).logits.numpy()
    return found


def onnx_logits(made: Any, model: nn.Module, rows: list[str]) -> np.ndarray:
    return session_logits(made, {name: values.numpy() for name, values in encoded(model, rows).items()})


# --- the script -------------------------------------------------------------------------------------------------------


def test_the_file_is_smaller_and_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    folder = write_folder(tmp_path / "model", quantize(pruned()))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = export(model_path=folder)
    assert done.code == 0, done.all
    assert (
        "structure" in done.out and "4 of 8 attention heads in 2 layers" in done.out and "x from structure" in done.out
    )
    target = tmp_path / "deployment"
    report = report_of(target)
    checks = {check["name"]: check["result"] for check in report["checks"]}
    assert checks["structure"] == "pass" and "FAIL" not in checks.values()
    after = report["structure"]["after"]
    full, small = sparse_accel.load(folder), sparse_accel.load(folder, remove_structure=True)
    assert LEFT.items() <= after.items()
    assert after["parameters"] == sum(parameter.numel() for parameter in small.parameters())
    assert report["structure"]["before"] == json.loads(json.dumps(structure_of(full).to_dict()))
    stored = shapes(target / "model.onnx")
    assert stored["bert.encoder.layer.0.attention.self.query.weight_quantized"] == [32, 24]
    assert stored["bert.encoder.layer.1.attention.output.dense.weight_quantized"] == [8, 32]
    assert stored["bert.encoder.layer.0.output.dense.weight_quantized"] == [42, 32]
    # 50% of the single weights were zero before whole units were.
    assert 0.3 < report["layers"]["bert.encoder.layer.1.intermediate.dense.weight"]["sparsity"] < 0.7

    rows = make_texts(20, seed=11)[0]
    ours, theirs = torch_logits(full, rows), onnx_logits(plain_session(target / "model.onnx"), full, rows)
    assert np.abs(ours - theirs).mean() < 0.02 * ours.std()
    with_kernels = session(target)
    assert explain(with_kernels).operators["Attention"] == explain(with_kernels).operators["FeedForward"] == 2
    np.testing.assert_allclose(onnx_logits(with_kernels, full, rows), theirs, atol=0.05 * float(theirs.std()))

    times = report["latency"]["onnxruntime"]["1"]
    assert {"float, full size", "quantized, full size", "sparse kernels, full size"} < times.keys()
    assert report["gains"]["onnxruntime"]["1"]["structure"] > 0
    assert report["files"]["model.onnx"]["ratio"] < 1 and report["files"]["float32"]["ratio"] == 1
    text, card = ((target / name).read_text() for name in ("export_report.md", "README.md"))
    assert "## Structure" in text and "| 1 | 1 | 4 | 32 | 64 |" in text
    assert "| attention heads | 8 | 4 |" in card and "INT8, full size" in card
    assert "Structure that was removed" in (target / "report.html").read_text()
    # What training left is as it was: full size, for plain from_pretrained.
    assert {name: (folder / name).read_bytes() for name in before} == before
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    assert structure_of(plain) == structure_of(full)


def test_a_flag_keeps_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", pruned())
    done = export("--keep_structure", model_path=folder)
    assert done.code == 0, done.all
    report = report_of(tmp_path / "deployment")
    assert report["structure"]["before"] == report["structure"]["after"]
    assert "4 heads and 54 neurons are zero and stay in the file, as --keep_structure asks" in report["notes"]
    assert "structure" not in {check["name"] for check in report["checks"]}
    assert "full size" not in str(report["latency"])
    assert "## Structure" not in (tmp_path / "deployment" / "export_report.md").read_text()
    assert shapes(tmp_path / "deployment" / "model.onnx")["bert.encoder.layer.0.output.dense.weight"] == [64, 32]
    # Sizes are compared with the dense model in full size, whatever was removed.
    assert export(model_path=folder, output_dir=tmp_path / "smaller").code == 0
    kept, smaller = report["files"], report_of(tmp_path / "smaller")["files"]
    assert smaller["float32"] == kept["float32"] and smaller["model.onnx"]["ratio"] < kept["model.onnx"]["ratio"] == 1


def test_config_of_the_deployment_says_what_it_can(tmp_path: Path) -> None:
    gone = {NEURONS: (range(24), range(40, 64))}
    folder = write_folder(tmp_path / "model", pruned(gone=gone))
    assert export(model_path=folder).code == 0
    config = json.loads((tmp_path / "deployment" / "config.json").read_text())
    assert config["intermediate_size"] == 40
    assert json.loads((folder / "config.json").read_text())["intermediate_size"] == 64


def test_nothing_that_is_not_zero_may_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof compares with the trained model: it finds what a fault of the removal would lose."""
    model = pruned()
    units = encoder_units(model)[0]
    monkeypatch.setattr("sparse_accel.nn.structure_removal.zero_units", lambda model: {units: (0, 1)})
    failed = export(model_path=write_folder(tmp_path / "model", model))
    assert failed.code == 1 and not (tmp_path / "deployment").exists()
    assert "structure: attention_heads 0 of block 0 is not zero" in failed.err
    assert "logits: logits differ by" in failed.err and "Traceback" not in failed.all


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "head", "flags"),
    [
        ("Bert", "ForQuestionAnswering", {}),
        ("DistilBert", "ForQuestionAnswering", {"format": "integer"}),
        ("Roberta", "ForTokenClassification", {}),
        ("Camembert", "ForTokenClassification", {"sequence_length": 32}),
        ("XLMRoberta", "ForSequenceClassification", {"kernels": True}),
        ("Electra", "ForSequenceClassification", {"reduce_range": True}),
        ("Bert", "Model", {"task": "sentence_embedding"}),
        ("Bert", "ForMaskedLM", {}),
    ],
)
def test_heads_and_forms(
    kind: str, head: str, flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    blocks: dict[str, Any] = {"n_layers" if kind == "DistilBert" else "num_hidden_layers": 1}
    model: Any = pruned(kind, {HEADS: ([1, 2, 3],), NEURONS: (range(0, 64, 3),)}, head=head, **blocks)
    if head == "Model":
        add_pooling(model, pooling := Pooling("mean", normalize=True))
        model.config.sentence_embedding = EmbeddingSettings(pooling).to_dict()
    done = export(model_path=write_folder(tmp_path / "model", quantize(model)), **flags)
    assert done.code == 0, done.all
    report = report_of(tmp_path / "deployment")
    assert report["structure"]["after"]["attention_heads"] == [1]
    assert report["structure"]["after"]["ffn_neurons"] == [42]
    assert report["sparse_kernels"]["operators"]["Attention"] == 1 if flags.get("format") != "integer" else True


# --- what the runtime makes of it -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_in_the_runtime(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file without the units decides like the file with them, bit by bit in the integer products."""
    monkeypatch.setenv(VARIABLE, "portable")
    model = quantize(pruned(kind))
    small = remove_structure(model, keep=False).model
    logits, rows = {}, make_texts(12, seed=3)[0]
    for name, each in {"full": model, "small": small}.items():
        path = tmp_path / f"{name}.onnx"
        onnx.save(lower(trace(each, make_tokenizer()), each, "qdq"), path)
        logits[name] = onnx_logits(plain_session(path), model, rows)
        made = session(path)
        assert explain(made).operators["Attention"] == explain(made).operators["FeedForward"] == 2
        assert explain(made).kept == ()
        np.testing.assert_allclose(onnx_logits(made, model, rows), logits[name], atol=0.05 * float(logits[name].std()))
    np.testing.assert_allclose(logits["small"], logits["full"], atol=1e-5)
    assert logits["full"].std() > 0.05


# --- the check, and what is said --------------------------------------------------------------------------------------


def test_the_check_compares_every_tensor() -> None:
    deployed = remove_structure(quantize(pruned()), keep=False)
    assert check_structure(deployed).passed
    assert "4 heads and 54 neurons were removed" in check_structure(deployed).detail
    for change in ("weight", "bias", "norm", "scale"):
        model: Any = copy.deepcopy(deployed.model)
        block = model.bert.encoder.layer[1]
        tensors = {
            "weight": block.output.dense.weight,
            "bias": block.attention.self.key.bias,
            "norm": block.output.LayerNorm.weight,
            "scale": block.intermediate.dense.input_quantizer.scale,
        }
        with torch.no_grad():
            tensors[change].view(-1)[0] += 0.5
        check = check_structure(replace(deployed, model=model))
        assert check.passed is False and check.detail.startswith("bert.encoder.layer.1") and "differs" in check.detail


def test_the_check_of_scales_by_row() -> None:
    model = pruned()
    set_to_zero(model)
    quantize(model)
    for name, layer in sparse_layers(model):
        if ".layer." in name:
            quantizer = FakeQuantize(QuantizationScheme(8, True, True, channel_axis=0), len(layer.weight))
            quantizer.set_range(layer.weight.amin(1).detach(), layer.weight.amax(1).detach())
            quantizer.enabled = True
            layer.weight_quantizer = quantizer
    deployed = remove_structure(model, keep=False)
    assert check_structure(deployed).passed
    small: Any = deployed.model
    small.bert.encoder.layer[0].attention.self.value.weight_quantizer.scale[5] *= 2
    detail = check_structure(deployed).detail
    assert detail == "bert.encoder.layer.0.attention.self.value.weight_quantizer.scale differs"


def test_what_is_kept_has_a_reason() -> None:
    assert remove_structure(make("Bert"), keep=False).notes == ()
    assert remove_structure(make("Bert"), keep=True).notes == (
        "--keep_structure changes nothing: no head or neuron has only zeros",
    )
    other = remove_structure(make_albert(), keep=False)
    assert (other.notes, other.to_dict(), other.is_smaller) == ((), None, False)
    assert (
        remove_structure(make_albert(), keep=True)
        .notes[0]
        .startswith("--keep_structure changes nothing: heads and neurons of an albert model cannot be removed")
    )


def test_gains_from_structure() -> None:
    times = {"float": 40.0, "float, no zeros": 40.0, "float, full size": 80.0}
    assert gains({"1": times}, quantized=False) == {"1": {"zeros": 1.0, "structure": 2.0}}
    times |= {"quantized": 20.0, "quantized, no zeros": 20.0, "quantized, full size": 30.0}
    assert gains({"1": times}, quantized=True)["1"] == {"zeros": 1.0, "integers": 2.0, "structure": 1.5}
    times |= {"sparse kernels": 5.0, "sparse kernels, full size": 8.0}
    expected = {"over_int8": 4.0, "over_float": 16.0, "zeros": 4.0, "structure": 1.6}
    assert gains_of_kernels({"1": times})["1"] == expected
    del times["sparse kernels, full size"]  # too dense for the kernels: it runs in onnxruntime alone
    assert gains_of_kernels({"1": times})["1"]["structure"] == 6.0


def test_the_full_size_is_timed_in_the_form_of_the_file(tmp_path: Path) -> None:
    model = pruned("DistilBert", {NEURONS: (range(32),)}, n_layers=1)
    found = deployment.write_full_size(trace(model, make_tokenizer()), model, tmp_path, "float", 18)
    assert set(found) == {f"float, {measure.FULL_SIZE}"}
    assert shapes(found["float, full size"])["distilbert.transformer.layer.0.ffn.lin1.weight"] == [32, 64]
