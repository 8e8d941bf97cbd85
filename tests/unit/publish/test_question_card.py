"""Model cards of question answering. That their code runs is tested where there is a model, in tests/export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from places import GOLDEN
from stand_in_hub import card_problems

from sparse_accel.publish.card import card_text

CONFIG = {
    "architectures": ["BertForQuestionAnswering"],
    "model_type": "bert",
    "num_hidden_layers": 2,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
}
FIGURES = {"exact_match": 0.81, "f1": 0.885, "has_answer_f1": 0.9, "best_f1_threshold": -1.5}


def make(folder: Path, rows: int = 60, **files: Any) -> Path:
    """A folder with a model that was evaluated on questions of the Hub."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    origin = {"dataset": "rajpurkar/squad", "config": None, "split": "validation", "name": "rajpurkar/squad"}
    teacher = {"figures": {"exact_match": 0.82, "f1": 0.89}}
    entry = {"rows": rows, "origin": {**origin, "rows": 60}, "figures": FIGURES, "teacher": teacher}
    contents = {
        "config": CONFIG,
        "arguments": {"dataset_name": "squad"},
        "eval_results": {f"eval_{name}": value for name, value in FIGURES.items()},
        "evaluation": {"validation": entry},
    }
    for name, content in {**contents, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_what_it_is_and_its_figures(tmp_path: Path) -> None:
    text = card_text(make(tmp_path / "run"))
    assert card_problems(text) == []
    found = ModelCard(text).data.to_dict()
    assert (found["pipeline_tag"], found["metrics"]) == ("question-answering", ["exact_match", "f1"])
    (result,) = found["model-index"][0]["results"]
    assert result["task"] == {"type": "question-answering", "name": "Question answering"}
    measured = [(each["type"], each["name"], each["value"]) for each in result["metrics"]]
    assert measured == [
        ("exact_match", "Exact match", 0.81),
        ("f1", "F1", 0.885),
        ("f1", "F1 (questions with an answer)", 0.9),
    ]
    assert "with 2 layers for question answering." in text and "LABEL_0" not in text
    assert "On rajpurkar/squad (validation, 60 questions):" in text
    assert "| Exact match | 0.8100 | 0.8200 |" in text and "| F1 | 0.8850 | 0.8900 |" in text
    assert "| best f1 threshold | -1.5000 |" in text
    assert "(7 of 60 questions of validation)" in card_text(make(tmp_path / "part", rows=7))


@pytest.mark.parametrize("quantized", [False, True])
def test_code_without_a_pipeline(quantized: bool, tmp_path: Path) -> None:
    """transformers has none for questions since version 5."""
    quantizers: dict[str, Any] = {"quantization": {}, "sparsity": {"encoder_linear": {"sparsity": 0.9}}}
    files = quantizers if quantized else {}
    text = card_text(make(tmp_path / "run", **files))
    assert "pipeline(" not in text and 'AutoModelForQuestionAnswering.from_pretrained(".")' in text
    assert ('sparse_accel.load(".")' in text) == quantized
    assert ("as a float model with zeros, without its quantizers:" in text) == quantized


@pytest.mark.parametrize("form", ["qdq", "integer", "float"])
def test_a_deployment(form: str, tmp_path: Path) -> None:
    folder, deployment = make(tmp_path / "run"), tmp_path / "deployment"
    shutil.copytree(GOLDEN / "old_run" / "deployment", deployment)
    report = json.loads((deployment / "export_report.json").read_text())
    report |= {"task": "question_answering", "format": form, "sequence_length": 64}
    report["source"]["folder"] = str(folder.resolve())
    (deployment / "export_report.json").write_text(json.dumps(report))
    of_file, of_model = card_text(deployment), card_text(folder)
    for text in (of_file, of_model):
        assert "print(sparse_accel.answer(folder, " in text and '["start_logits", "end_logits"]' in text
        assert 'padding="max_length", max_length=64, truncation="only_second")' in text
        assert ("with INT8 kernels" in text) == (form == "qdq") and "id2label" not in text
    assert 'folder = "."' in of_file and 'folder = "../deployment"' in of_model
    on_hub = card_text(folder, repository="someone/reader", deployment=deployment)
    assert 'folder = snapshot_download("someone/reader", allow_patterns="onnx/*") + "/onnx"' in on_hub
