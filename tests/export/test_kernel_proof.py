"""The kernels of the runtime in the export: their proof, what is reported where they are not used, and --kernels."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from export_fixtures import ARCHITECTURES, copy_of, export, make_sparse_bert, quantize, texts, vary, write_folder
from script_fixtures import flat
from tiny import make_tokenizer

from sparse_accel.errors import UsageError
from sparse_accel.export import deployment, kernels
from sparse_accel.export.checks import Check
from sparse_accel.export.classify import classify
from sparse_accel.export.fidelity import Fidelity, compare, in_session, logits_of
from sparse_accel.export.kernels import KernelProof, prove_kernels, write_kernel_model
from sparse_accel.export.lower import lower
from sparse_accel.export.proof import ProofFailed
from sparse_accel.export.report import gains_of_kernels
from sparse_accel.export.trace import trace
from sparse_accel.native import VARIABLE as LIBRARY_VARIABLE
from sparse_accel.runtime import explain, session
from sparse_accel.runtime.attention import find_attentions
from sparse_accel.runtime.library import Library, load_library
from sparse_accel.runtime.loading import VARIABLE, session_with_kernels
from sparse_accel.runtime.timing import plain_session

pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.usefixtures("quick")

DENSE = "bert.encoder.layer.0.output.dense"


@pytest.fixture(autouse=True)
def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that every CPU has, whatever it would choose."""
    monkeypatch.setenv(VARIABLE, "portable")
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)


@functools.cache
def exported() -> bytes:
    """A BERT of one block as model.onnx."""
    model = make_sparse_bert(num_hidden_layers=1)
    vary(model)
    content: bytes = lower(trace(quantize(model), make_tokenizer()), model, "qdq").SerializeToString()
    return content


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(exported())
    return tmp_path / "model.onnx"


def plain_logits(path: Path) -> np.ndarray:
    return logits_of(in_session(plain_session(path)), make_tokenizer(), texts())


def proven(path: Path, format: str = "qdq") -> KernelProof:
    return prove_kernels(path, plain_logits(path), make_tokenizer(), texts(), format)


# --- the proof --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", load_library().instruction_sets)
def test_kernels_are_proven_matrix_by_matrix_and_on_texts(
    isa: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, isa)
    found = proven(path)
    assert found.reason == "", found
    names = ["sums of each matrix", "agreement", "logits", "accuracy", "padding"]
    assert [check.name for check in found.checks] == names
    assert all(check.passed for check in found.checks)
    written: dict[str, Any] = json.loads(json.dumps(found.to_dict()))
    assert written["instruction_set"] == isa and written["agreement"] == 1.0
    assert written["onnxruntime"]["accuracy"] == written["kernels"]["accuracy"]
    assert written["matrices"][DENSE]["shape"] == [64, 32] and written["matrices"][DENSE]["zeros"] > 0.89
    assert written["matrices"][DENSE]["kernel"] == ("dense" if isa == "portable" else "sparse")
    count = len(written["matrices"])
    assert f"{count} packed matrices" in found.checks[0].detail and count + len(written["kept"]) >= 6


def test_a_wrong_sum_is_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one, of one matrix, in a row that the session's own short check does not have."""
    sums = Library.sums

    def wrong(self: Library, isa: str, packed: Any, x: np.ndarray, columns: int, zero_point: int = 0) -> np.ndarray:
        out = sums(self, isa, packed, x, columns, zero_point)
        if x.shape[0] > 20 and columns == 32 and zero_point == 255:
            out[20, 3] += 1
        return out

    monkeypatch.setattr(Library, "sums", wrong)
    found = proven(path)
    assert found.reason.startswith("they differ from onnxruntime (sums of each matrix: ") and DENSE in found.reason
    assert [check.passed for check in found.checks] == [False, True, True, True, True]


def test_other_decisions_are_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, explanation = session_with_kernels(path)
    assert made is not None

    def opposite(outputs: Any, inputs: Any) -> list[np.ndarray]:
        return [-made.run(outputs, inputs)[0]]

    other = SimpleNamespace(run=opposite, get_inputs=made.get_inputs)
    monkeypatch.setattr(kernels, "session_with_kernels", lambda path: (other, explanation))
    found = proven(path)
    assert [check.passed for check in found.checks] == [True, False, False, False, False]
    assert "agreement: 0.00% of decisions are the same" in found.reason


@pytest.mark.parametrize("rows, flipped, passes", [(600, 2, True), (600, 3, False), (2000, 4, True), (2000, 5, False)])
def test_how_far_accuracies_may_be_apart(rows: int, flipped: int, passes: bool) -> None:
    """By 0.2 points, or by two decisions."""
    accuracies = ({"accuracy": 0.5}, {"accuracy": 0.5 + flipped / rows})
    found = replace(proven_on_paper(), rows=rows, metrics=accuracies)
    (accuracy,) = (each for each in kernels._check_answers(found, texts()) if each.name == "accuracy")
    assert accuracy.passed is passes


def proven_on_paper() -> Fidelity:
    logits = np.zeros((len(texts().rows), 2), dtype=np.float32)
    return compare(("onnxruntime", "kernels"), logits, logits, texts())


def test_kernels_that_cannot_run_a_model_are_not_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, explanation = session_with_kernels(path)
    assert made is not None

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("mask must be ...\nmore")

    other = SimpleNamespace(run=fails, get_inputs=made.get_inputs)
    monkeypatch.setattr(kernels, "session_with_kernels", lambda path: (other, explanation))
    assert proven(path).reason == "they cannot run this model (mask must be ...)"


def test_other_formats_and_machines_are_one_line(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for format, reason in (("float", "the model is float"), ("integer", "the format is integer")):
        assert proven(path, format) == KernelProof(f"{reason}: the kernels replace quantized Linears of the format qdq")
    assert proven(path, "float").to_dict() == {"reason": proven(path, "float").reason}
    monkeypatch.setenv(VARIABLE, "no_such_set")
    with pytest.raises(UsageError, match="SPARSE_ACCEL_ISA=no_such_set"):
        proven(path)
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "nowhere.so"))
    assert "nowhere.so" in proven(path).reason and "\n" not in proven(path).reason


def test_gains_are_factors_over_the_same_run() -> None:
    times = {"float": 60.0, "quantized": 30.0, "quantized, no zeros": 30.5, "sparse kernels": 10.0}
    found = gains_of_kernels({"1": times | {"sparse kernels, no zeros": 20.0}, "32": times})
    assert found["1"] == {"over_int8": 3.0, "over_float": 6.0, "zeros": 2.0}
    assert found["32"]["zeros"] == 3.05  # no kernels for the model without zeros: it runs in onnxruntime alone


# --- model.kernels.onnx -----------------------------------------------------------------------------------------------


def test_the_model_for_other_languages_is_checked_as_they_load_it(path: Path, tmp_path: Path) -> None:
    found, plain = proven(path), plain_logits(path)
    write_kernel_model(path, tmp_path / "made.onnx", found, plain, make_tokenizer(), texts())
    model = onnx.load(tmp_path / "made.onnx")
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2 and tensor.dims[0] > 1]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
    assert "FeedForward" in {node.op_type for node in model.graph.node if node.domain == "sparse_accel"}
    made = plain_session(tmp_path / "made.onnx", library=load_library().path)
    ours = logits_of(in_session(made), make_tokenizer(), texts())
    np.testing.assert_allclose(ours, plain, atol=0.05 * float(plain.std()))
    with pytest.raises(ProofFailed, match=r"model\.kernels\.onnx differs from model\.onnx \(agreement: "):
        write_kernel_model(path, tmp_path / "made.onnx", found, -plain, make_tokenizer(), texts())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"format": "integer"}, "--kernels needs the format qdq: leave out --format integer, or --kernels"),
        ({}, "--kernels: there are none for this machine: "),
    ],
)
def test_kernels_that_cannot_be_had_are_refused(
    flags: dict[str, Any], words: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "nowhere.so"))
    monkeypatch.setattr(deployment, "trace", None)  # before anything that takes long
    refused = export(model_path=copy_of(trained, tmp_path), kernels=True, **flags)
    assert refused.code == 2 and words in refused.err and len(refused.err.splitlines()) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_a_float_model_has_no_kernels(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "plain", ARCHITECTURES["distilbert"]().eval())
    refused = export(model_path=folder, kernels=True)
    assert refused.code == 2 and "--kernels: the kernels multiply quantized weights" in refused.err, refused.all


# --- the script -------------------------------------------------------------------------------------------------------


def test_the_report_has_the_kernels(trained: Path, tmp_path: Path) -> None:
    done = export(model_path=copy_of(trained, tmp_path), kernels=True)
    assert done.code == 0, done.all
    folder = tmp_path / "deployment"
    report = json.loads((folder / "export_report.json").read_text())
    assert {"model.onnx", "model.kernels.onnx"} <= set(report["written"]) & set(report["files"])
    assert 0.3 < report["files"]["model.kernels.onnx"]["bytes"] / report["files"]["model.onnx"]["bytes"] < 1.1
    assert {check["result"] for check in report["sparse_kernels"]["checks"]} == {"pass"}
    for times in report["latency"]["onnxruntime"].values():
        names = {"float", "quantized", "sparse kernels"}
        assert set(times) == names | {f"{name}, no zeros" for name in names}
    assert set(report["gains"]["sparse_accel.runtime"]["1"]) == {"over_int8", "over_float", "zeros"}
    (line,) = (line for line in report["advice"] if line.startswith("sparse_accel.runtime"))
    assert "(measured, one thread): batch 1: " in line and "x from zeros" in line
    readable = (folder / "export_report.md").read_text()
    assert "Kernels of `sparse_accel.runtime` for portable: " in readable
    assert f"| {DENSE} | 64 x 32 | " in readable
    assert "sums of each matrix: pass: " in flat(done.out) and "portable: " in flat(done.out)

    # What applications see: the same decisions, with kernels or without.
    assert explain(session(folder)).instruction_set == explain(session(folder / "model.kernels.onnx")).instruction_set
    sentences = ["a lovely film", "an awful plot , very bad"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LIBRARY_VARIABLE, str(tmp_path / "nowhere.so"))
        expected = classify(folder, sentences)
    for (label, probability), (other, near) in zip(classify(folder, sentences), expected, strict=True):
        assert label == other and probability == pytest.approx(near, abs=0.02)


def test_kernels_that_fail_are_not_used_and_the_file_is_exported(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Check("sums of each matrix", False, "one differs")
    monkeypatch.setattr(kernels, "check_sums", lambda *arguments: failed)
    model = copy_of(trained, tmp_path)
    done = export(model_path=model)
    assert done.code == 0, done.all
    folder = tmp_path / "deployment"
    report = json.loads((folder / "export_report.json").read_text())
    reason = "they differ from onnxruntime (sums of each matrix: one differs)"
    assert report["sparse_kernels"]["reason"] == reason and {check["result"] for check in report["checks"]} == {"pass"}
    assert not [name for name in report["latency"]["onnxruntime"]["1"] if "kernels" in name]
    assert "sparse_accel.runtime" not in report["gains"]
    assert f"sparse_accel.runtime (not measured here: {reason})" in str(report["advice"])
    assert f"not used: {reason}" in (folder / "export_report.md").read_text() and f"not used: {reason}" in flat(
        done.out
    )

    assert explain(session(folder)).reason == f"the export's proof of these kernels failed: {reason}"

    before = (folder / "export_report.json").read_text()
    refused = export(model_path=model, kernels=True)
    assert refused.code == 2 and reason in refused.err, refused.all
    assert (folder / "export_report.json").read_text() == before and not (folder / "model.kernels.onnx").exists()


@pytest.mark.parametrize("change", [{"mask": ""}, {"scale": 0.0}], ids=["no mask", "no scale"])
def test_wrong_attention_does_not_pass(change: dict[str, Any], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sparse_accel.runtime.rewrite.find_attentions",
        lambda graph: [replace(each, **change) for each in find_attentions(graph)],
    )
    failed = {check.name for check in proven(path).checks if check.passed is False}
    assert "padding" in failed


def test_without_the_library_the_report_says_so(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "nowhere.so"))
    done = export(model_path=copy_of(trained, tmp_path))
    assert done.code == 0, done.all
    report = json.loads((tmp_path / "deployment" / "export_report.json").read_text())
    assert list(report["sparse_kernels"]) == ["reason"] and "nowhere.so" in report["sparse_kernels"]["reason"]
    assert "The kernels of `sparse_accel.runtime` are not used: " in (
        (tmp_path / "deployment" / "export_report.md").read_text()
    )
    assert "nowhere.so" in done.out
