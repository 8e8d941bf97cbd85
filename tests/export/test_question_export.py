"""scripts/export_onnx.py for question answering: agreement, exact match and F1 are of questions."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from export_fixtures import export
from question_fixtures import (
    LENGTH,
    STRIDE,
    VOCABULARY,
    TinyQuestions,
    make_answerer,
    questions,
    without_answers,
    write_questions,
)
from script_fixtures import Outcome, flat, make_model, read_json
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
)

from sparse_accel.cli.export import ExportArguments
from sparse_accel.errors import UsageError
from sparse_accel.export.answer import answer
from sparse_accel.export.fidelity import Fidelity, check_fidelity
from sparse_accel.export.texts import find_texts
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.tasks import QuestionAnswering
from sparse_accel.tasks.question_answering.answers import Answer, Prediction
from sparse_accel.tasks.question_answering.task import _gap

pytest_plugins = ["question_fixtures", "export_fixtures"]
pytestmark = pytest.mark.usefixtures("quick")

# Windows of the tiny run, and the longest answers of its evaluation.
AS_THE_RUN: dict[str, Any] = {"max_seq_len": LENGTH, "doc_stride": STRIDE, "max_answer_len": 30}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime's own sessions, on every CPU."""
    monkeypatch.setenv(VARIABLE, "none")


def exported(model: Path, output: Path, **flags: Any) -> tuple[Outcome, dict[str, Any]]:
    """Exports a model, and returns the report as well."""
    done = export(model_path=model, output_dir=output, **flags)
    assert done.code == 0, done.all
    return done, read_json(output / "export_report.json")


def checks(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["result"], check["detail"]) for check in report["checks"]}


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Runs the blocks of code in a card, and returns what each prints."""
    blocks = [text.partition("```")[0] for text in (folder / "README.md").read_text().split("```python\n")[1:]]
    monkeypatch.chdir(folder)
    printed = []
    for block in blocks:
        capsys.readouterr()
        exec(block, {})
        printed.append(capsys.readouterr().out.strip())
    return printed


# --- the proof --------------------------------------------------------------------------------------------------------


def test_an_export_is_proven_on_the_runs_questions(
    tiny_questions: TinyQuestions,
    answerer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without --task: the head says what it is. The figures are those of the run's own evaluation. Its cards run."""
    done, report = exported(answerer, tmp_path / "out")
    found = checks(report)
    assert {result for result, _ in found.values()} == {"pass"}, found
    assert report["texts"] == {"source": str(tiny_questions.validation), "rows": 60, "labels": True}
    assert f"answers are the same on 60 questions of {tiny_questions.validation}" in found["agreement"][1]
    assert "exact_match" in found["exact match and F1"][1] and "accuracy" not in found
    assert report["task"] == "question_answering" and report["fidelity"]["rows"] == 60
    results = read_json(answerer / "eval_results.json")
    for run in ("pytorch", "onnxruntime"):
        expected = {name: results[f"eval_{name}"] for name in ("exact_match", "f1")}
        assert report["fidelity"][run] == pytest.approx(expected, abs=1 / 60 + 1e-6 if run == "onnxruntime" else 1e-9)
    said = flat(done.out)
    assert "question_answering: the model is a BertForQuestionAnswering" in said and "60 questions" in said
    readable = (tmp_path / "out" / "export_report.md").read_text()
    assert "a bert for question answering" in readable and "60 questions" in readable
    for word in ("sentence", "decisions", "accuracy"):
        assert word not in readable + done.out, word
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_outputs()] == ["start_logits", "end_logits"]
    (found_answer, text), of_model = (run_card(folder, monkeypatch, capsys) for folder in (tmp_path / "out", answerer))
    assert ast.literal_eval(found_answer)["answer"] and text and len(of_model) == 2 and all(of_model)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["integer", "kernels", "padded"])
def test_other_forms(
    form: str,
    answerer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    flags: dict[str, dict[str, Any]] = {
        "integer": {"format": "integer", "task": "qa"},
        "kernels": {"kernels": True, "compress": True},
        "padded": {"sequence_length": 40, "task": "question-answering"},
    }
    _, report = exported(answerer, tmp_path / "out", **flags[form])
    assert {result for result, _ in checks(report).values()} == {"pass"}
    kernels = report["sparse_kernels"]
    assert ("the format is integer" in kernels["reason"]) if form == "integer" else not kernels["reason"]
    if form != "integer":
        assert {check["name"] for check in kernels["checks"]} >= {"agreement", "exact match and F1", "padding"}
    if form == "padded":
        row = questions(1, seed=4)[0]
        found = answer(tmp_path / "out", row.question, row.context, **AS_THE_RUN)
        assert row.context[found["start"] : found["end"]] == found["answer"]
        assert all(run_card(tmp_path / "out", monkeypatch, capsys))


@pytest.mark.slow
def test_windows_of_fewer_tokens(answerer: Path, tmp_path: Path) -> None:
    """Shorter than those of the run, whose shared tokens would not fit."""
    _, report = exported(answerer, tmp_path / "out", sequence_length=12)
    assert checks(report)["agreement"][0] == "pass" and report["texts"]["rows"] == 60 and not report["notes"]


# --- which questions --------------------------------------------------------------------------------------------------


@pytest.fixture
def find(tiny_questions: TinyQuestions, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, str]]:
    """The questions that an export of a model is proven on, and the note about them."""

    def found(model: Path, length: int = 64, **flags: Any) -> tuple[Any, str]:
        arguments = ExportArguments(model_path=str(model), task="qa", **flags)
        network = AutoModelForQuestionAnswering.from_pretrained(model)
        return find_texts(arguments, QuestionAnswering, network, AutoTokenizer.from_pretrained(model), length)

    return found


@pytest.mark.parametrize("named", [False, True])
def test_the_flags_of_the_run_hold(named: bool, find: Any, tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """Also for questions that are named with --data, and 0 is a number of tokens like any other."""
    model = make_answerer(tmp_path / "model")
    settings = {"version_2_with_negative": True, "null_score_diff_threshold": -1.5, "n_best_size": 5}
    recorded = {"validation_file": str(tiny_questions.validation), "max_seq_length": LENGTH, "doc_stride": 0}
    (model / "arguments.json").write_text(json.dumps({**recorded, **settings, "max_answer_length": 7}))
    other = write_questions(tmp_path / "other.json", questions(9, seed=7, impossible=0.5), "nested v2.0")
    texts, note = find(model, data=str(other)) if named else find(model)
    task = texts.task
    assert note == "" and texts.count == (9 if named else 60) and texts.has_labels
    assert (task.doc_stride, task.version_2, task.threshold, task.n_best_size, task.longest) == (0, True, -1.5, 5, 7)
    lengths = [len(ids) for ids in texts.rows["input_ids"]]
    assert max(lengths) == LENGTH and len(lengths) > texts.count
    mask = [sum(row) for row in texts.rows["context_mask"]]
    tokens = [len(AutoTokenizer.from_pretrained(model)(text)["input_ids"]) - 2 for text in contexts_of(texts)]
    assert sum(mask) == sum(tokens)  # no token is in two windows


def contexts_of(texts: Any) -> list[str]:
    found: list[str] = texts.task.data.splits[texts.split]["context"][:]
    return found


def test_defaults_without_a_run(find: Any, tmp_path: Path) -> None:
    model = make_answerer(tmp_path / "model")
    rows = questions(9, seed=7)
    texts, note = find(model, data=str(write_questions(tmp_path / "rows.parquet", rows)))
    assert note == "" and (texts.task.doc_stride, texts.task.version_2) == (21, False)  # of 64 tokens
    assert texts.has_labels
    (tmp_path / "rows.json").write_text(json.dumps(without_answers(rows)))
    unlabelled, note = find(model, data=str(tmp_path / "rows.json"), max_eval_samples=4)
    assert note == "" and unlabelled.count == 4 and not unlabelled.has_labels
    shipped, note = find(model, version_2_with_negative=True)
    assert shipped.source == "this package" and "no validation data is recorded" in note and shipped.task.version_2
    with pytest.raises(UsageError, match=r"rows of 20 tokens are too short .* --data FILE"):
        find(model, length=20)


def test_questions_without_an_answer_need_the_flag(find: Any, tmp_path: Path) -> None:
    model = make_answerer(tmp_path / "model")
    file = write_questions(tmp_path / "rows.json", questions(20, seed=5, impossible=0.4), "nested v2.0")
    with pytest.raises(UsageError, match="it has no answer\nTo fix this: add --version_2_with_negative"):
        find(model, data=str(file))
    texts, _ = find(model, data=str(file), version_2_with_negative=True)
    assert texts.count == 20 and "has_answer_f1" in texts.task.figure_names()


def test_messages_name_the_flags_of_the_export(find: Any, tmp_path: Path) -> None:
    model, rows = make_answerer(tmp_path / "model"), questions(3, seed=7, long=1.0)
    file = write_questions(tmp_path / "rows.json", rows)
    with pytest.raises(UsageError, match="Set --max_seq_length to ") as caught:
        find(model, length=6, data=str(file), max_seq_length=6)
    assert "--doc_stride" not in str(caught.value)
    (tmp_path / "nested.jsonl").write_text(json.dumps({"data": [{"paragraphs": []}]}) + "\n")
    with pytest.raises(UsageError, match=r"has no column 'id'.*with --data") as caught:
        find(model, data=str(tmp_path / "nested.jsonl"))
    assert "_file" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"task": "qa", "input_column_names": "text"}, "--input_column_names is not for question_answering"),
        ({"label_column_name": "label", "data": "x.json"}, "--label_column_name is not for question_answering"),
        ({"task": "ner"}, "BertForQuestionAnswering, which does not classify words: --task token_classification"),
        ({"task": "glue"}, "BertForQuestionAnswering, which does not classify texts: --task text_classification"),
        ({"task": "ner", "version_2_with_negative": True}, "--version_2_with_negative is for question_answering"),
        ({"data": "rows.csv"}, "--data"),
    ],
)
def test_wrong_flags_are_one_clear_line(flags: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id\n")
    flags = {name: tmp_path / value if name == "data" else value for name, value in flags.items()}
    done = export(model_path=make_answerer(tmp_path / "model"), output_dir=tmp_path / "out", **flags)
    assert done.code == 2 and said in done.err and "Traceback" not in done.all, done.all
    assert len(done.err.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_head_that_is_not_for_questions(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", sparse=False, vocabulary=VOCABULARY, head=True)
    for flags in ({"task": "qa"}, {"version_2_with_negative": True}):
        done = export(model_path=model, output_dir=tmp_path / "out", **flags)
        assert done.code == 2 and len(done.err.strip().splitlines()) == 1, done.all
        assert "which does not answer questions" in done.err or "not for text_classification" in done.err


def test_other_answers_of_equal_scores_are_not_the_same() -> None:
    """An exact tie in one run: the answers still differ."""
    one, other = (Answer(text, start, start + 3, 1.0, 1.0, 0.5) for text, start in (("was", 4), ("old", 8)))
    first, second = (Prediction(best, (one, other), None) for best in (one, other))
    assert _gap(first, first) == 0 and 0 < _gap(first, second) < 1e-300


@pytest.mark.parametrize(("gap", "result"), [(1 / 400, True), (3 / 400, False)])
def test_how_much_figures_of_answers_may_differ(gap: float, result: bool) -> None:
    """0.5 points or one question; F1 is a mean over questions too, and a threshold of logits is not compared."""
    kept = {name: getattr(QuestionAnswering, name) for name in ("proof_words", "logits_of_a_score")}
    task = SimpleNamespace(decision_unit=lambda: "questions", support=lambda *_: 400, **kept)
    texts: Any = SimpleNamespace(task=task, source="rows.json", rows=None, split="validation")
    ours = {"exact_match": 0.5, "f1": 0.6, "best_f1_threshold": 1.0}
    for name in ("exact_match", "f1"):
        theirs = {**ours, name: ours[name] + gap, "best_f1_threshold": 9.0}
        found = Fidelity(("PyTorch", "onnxruntime"), 400, 1.0, 0.0, 0.0, 1.0, (ours, theirs))
        check = check_fidelity(found, texts, quantized=True)[-1]
        assert (check.name, check.passed) == ("exact match and F1", result), check
