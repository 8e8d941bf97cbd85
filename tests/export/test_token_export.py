"""scripts/export_onnx.py --task token_classification: agreement and F1 are of words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import script_fixtures
import torch
from places import ROOT
from script_fixtures import Outcome, make_model, read_json
from token_fixtures import VOCABULARY, TinyTokens, make_tagger, tagged, with_script, write_conll
from transformers import AutoTokenizer

import sparse_accel
from sparse_accel.export import measure

pytest_plugins = ["token_fixtures"]

export = with_script(ROOT / "scripts" / "export_onnx.py", script_fixtures.run)


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SECONDS", 0.0)


def export_tokens(model: Path, output: Path, **flags: Any) -> tuple[Outcome, dict[str, Any]]:
    """Exports a model, and returns the report as well."""
    done = export(model_path=model, task="token_classification", output_dir=output, **flags)
    assert done.code == 0, done.all
    return done, read_json(output / "export_report.json")


def checks(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["result"], check["detail"]) for check in report["checks"]}


def test_an_export_is_proven_on_the_runs_data(tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    _, report = export_tokens(tagger, tmp_path / "out")
    found = checks(report)
    assert {result for result, _ in found.values()} == {"pass"}, found
    assert report["texts"] == {"source": str(tokens.validation), "rows": 60, "labels": True}
    words = sum(len(row.words) for row in tagged(60, seed=2))
    assert f"{words}" in found["agreement"][1] and "words" in found["agreement"][1], found
    assert "f1" in json.dumps(report["fidelity"])
    assert report["task"] == "token_classification" and report["quantized_linears"] == 13
    assert "words" in (tmp_path / "out" / "export_report.md").read_text()

    # Plain onnxruntime says what the model says.
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path / "out"), sparse_accel.load(tagger)
    encoded = tokenizer(["dmitri", "kern", "went"], is_split_into_words=True, return_tensors="np")
    logits = session.run(["logits"], {entry.name: encoded[entry.name] for entry in session.get_inputs()})[0]
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(value) for name, value in encoded.items()}).logits
    np.testing.assert_allclose(logits, expected.numpy(), atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["qdq", "integer"])
def test_data_that_is_named(form: str, tagger: Path, tmp_path: Path) -> None:
    file = write_conll(tmp_path / "rows.conll", tagged(20, seed=8))
    _, report = export_tokens(tagger, tmp_path / "out", data=file, format=form)
    assert report["texts"] == {"source": str(file), "rows": 20, "labels": True}
    assert checks(report)["agreement"][0] == "pass"


@pytest.mark.slow
def test_sentences_without_tags(tagger: Path, tmp_path: Path) -> None:
    """Split where they are longer than the model, and nothing is judged by F1."""
    file = write_conll(tmp_path / "rows.conll", tagged(14, seed=8, entities=(1, 20)), columns=1)
    _, report = export_tokens(tagger, tmp_path / "out", data=file, sequence_length=32)
    found = checks(report)
    assert found["agreement"][0] == "pass" and report["texts"]["labels"] is False
    unjudged = [detail for result, detail in found.values() if result == "not checked"]
    assert len(unjudged) == 1 and "no labels" in unjudged[0], found


@pytest.mark.slow
def test_without_recorded_data(tagger: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tagger, tmp_path / "model", ignore=shutil.ignore_patterns("arguments.json", "check*")))
    _, report = export_tokens(model, tmp_path / "out")
    assert report["texts"]["source"] == "this package" and "no validation data is recorded" in report["notes"][0]
    assert checks(report)["agreement"][0] == "pass"


@pytest.mark.slow
def test_a_float_model(tokens: TinyTokens, tmp_path: Path) -> None:
    _, report = export_tokens(make_tagger(tmp_path / "model"), tmp_path / "out", data=tokens.validation)
    assert report["format"] == "float" and report["quantized_linears"] == 0
    assert checks(report)["agreement"][0] == "pass"


@pytest.mark.parametrize("head", [False, True])
def test_the_wrong_task(head: bool, tokens: TinyTokens, tagger: Path, tmp_path: Path) -> None:
    texts = make_model(tmp_path / "texts", sparse=False, head=head, vocabulary=VOCABULARY)
    for model, task in ((tagger, "text_classification"), (texts, "token_classification")):
        done = export(model_path=model, task=task, output_dir=tmp_path / "out")
        assert done.code == 2 and "Traceback" not in done.all, done.all
        assert len(done.err.strip().splitlines()) == 1 and f"--task {task}" in done.err, done.all
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a O\nb O x\n", "line 2: 'b O x' has 3 columns"),
        ("a O\nacme B-ORG\n", "line 2: the model does not have the tag 'B-ORG'"),
    ],
)
def test_data_that_is_wrong(content: str, said: str, tagger: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.conll").write_text(content)
    flags = {"data": tmp_path / "rows.conll", "output_dir": tmp_path / "out"}
    done = export(model_path=tagger, task="ner", **flags)
    assert done.code == 2 and said in done.err and len(done.err.strip().splitlines()) == 1, done.all
