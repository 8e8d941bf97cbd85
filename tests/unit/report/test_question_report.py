"""report.html of question answering: figures are of questions, and a mistake has the answer that was expected."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
from report_folders import files_of_a_run, log_entry, write_export, write_run

from sparse_accel.report import units, write_comparison, write_report
from sparse_accel.wilson_interval import wilson_interval

CONFIG = {"architectures": ["BertForQuestionAnswering"], "model_type": "bert"}
FIGURES = {"exact_match": 0.7, "f1": 0.7625, "loss": 0.5}
MISTAKES = [
    {"row": 17, "text": "who went ?", "label": "anna kern / anna", "predicted": "oslo", "confidence": 0.98},
    {"row": 18, "text": "where ?", "label": "", "predicted": "paris", "confidence": 0.9},
    {"row": 19, "text": "where was it ?", "label": "lima", "predicted": "", "confidence": 0.8},
]


def write(folder: Path, **entries: Any) -> Path:
    """The output folder of a run that was evaluated on 60 questions."""
    entry = {"source": "dev.json", "rows": 60, "digest": "1" * 32, "headline": "f1", "figures": FIGURES}
    entry |= {"teacher": {"name": "teacher", "figures": {"exact_match": 0.8, "f1": 0.9}}, "mistakes": MISTAKES}
    results = {"eval_exact_match": 0.7, "eval_f1": 0.7625, "eval_loss": 0.5}
    history = [log_entry(epoch, eval_exact_match=0.6, eval_f1=0.7) for epoch in (1.0, 2.0)]
    for one in history:
        del one["eval_accuracy"]
    evaluation = {"validation": entry | entries}
    flags = files_of_a_run(folder)["arguments.json"] | {"validation_file": "/data/dev.json"}
    files: dict[str, Any] = {"config": CONFIG, "all_results": results, "trainer_state": {"log_history": history}}
    return write_run(folder, recipe=None, evaluation=evaluation, arguments=flags, **files)


def text_of(page: Path) -> str:
    """What a reader of a page sees, aside from its charts."""
    shown = re.sub(r"<(style|script|svg|title).*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", shown)).split())


def test_figures_are_of_questions(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    texts = {"source": "dev.json", "rows": 60, "labels": True}
    write_export(
        tmp_path / "deployment", folder, texts=texts, fidelity={"onnxruntime": {"exact_match": 0.7, "f1": 0.76}}
    )
    text = text_of(write_report(folder, tmp_path / "page.html"))
    assert "f1, validation 76.25% teacher 90.00% this model: −13.75 points" in text
    assert "exact_match f1 loss exact match, 95% interval questions" in text
    low, high = wilson_interval(0.7, 60)
    assert text.count(f"{units.percent(low)} to {units.percent(high)} 60") == 2  # the model, and its export
    assert "how far the exact match may be off on other questions" in text
    assert "validation exact match 60.0% validation f1 70.0% teacher, exact_match: 80.00%" in text
    for word in ("accuracy", "sentence", "Confusion", "labelled", "By label", "row "):
        assert word not in text, word


def test_mistakes_have_the_expected_answer(tmp_path: Path) -> None:
    text = text_of(write_report(write(tmp_path / "run"), tmp_path / "page.html"))
    assert "who went ? question 17: oslo at 98.0%, expected anna kern / anna" in text
    assert "where ? question 18: paris at 90.0%, expected no answer" in text
    assert "where was it ? question 19: no answer at 80.0%, expected lima" in text
    assert "Questions of dev.json." in text


def test_an_exact_match_of_unknown_questions_has_no_interval(tmp_path: Path) -> None:
    text = text_of(write_report(write(tmp_path / "run", rows=None), tmp_path / "page.html"))
    assert "The number of questions was not recorded, so this exact match has no interval." in text
    assert "95% interval" not in text


def test_f1_is_no_fraction_of_questions(tmp_path: Path) -> None:
    """Also where F1 times the number of questions happens to be a whole number."""
    figures = {"f1": 0.5, "exact_match": 0.123456}
    text = text_of(write_report(write(tmp_path / "run", figures=figures), tmp_path / "page.html"))
    assert "50.00%" in text and "12.35%" in text
    assert "95% interval questions" in text  # that of the teacher's exact match
    assert f"{units.percent(wilson_interval(0.5, 60)[0])} to" not in text


def test_a_comparison(tmp_path: Path) -> None:
    folders = [write(tmp_path / "one"), write(tmp_path / "two", figures={**FIGURES, "exact_match": 0.65})]
    text = text_of(write_comparison(folders, tmp_path / "page.html"))
    assert "exact match, 95% interval questions" in text and "Validation f1" in text
    other = write(tmp_path / "other", digest="2" * 32, rows=7)
    text = text_of(write_comparison([folders[0], other], tmp_path / "page.html"))
    assert "do not compare: one: dev.json, 60 questions, digest 11111111" in text
    mixed = text_of(write_comparison([folders[0], write_run(tmp_path / "texts")], tmp_path / "page.html"))
    assert "exact match or accuracy, 95% interval rows" in mixed


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("exact_match", 0.5, "50.00%"),
        ("has_answer_f1", 0.25, "25.00%"),
        ("best_exact_match", 0.5, "50.00%"),
        ("best_f1_threshold", -1.5, "−1.5"),
        ("best_exact_match_threshold", 0.25, "0.25"),
    ],
)
def test_thresholds_are_no_fractions(name: str, value: float, shown: str) -> None:
    assert units.figure(name, value) == shown
