"""What is wrong with data, flags and models of question answering: one screen, exit 2, file and place, remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from question_fixtures import VOCABULARY, TinyQuestions, make_answerer, nested, questions, run, write_questions
from script_fixtures import make_model, read_json
from token_fixtures import make_tagger
from transformers import CanineTokenizer

from sparse_accel.cli.question_answering import QuestionAnsweringArguments
from sparse_accel.errors import UsageError
from sparse_accel.tasks import QuestionAnswering
from sparse_accel.tasks.label_names import Head
from sparse_accel.tasks.question_answering.data import NAMES

pytest_plugins = ["question_fixtures"]

Change = dict[str, Any]


def refused(said: tuple[str, ...], flags: dict[str, Any], output: Path, lines: int = 1) -> None:
    """Runs the script, which says all of this in so many lines or fewer, and makes no folder."""
    done = run(**{**flags, "output_dir": output})
    assert done.code == 2 and "Traceback" not in done.all, done.all
    assert all(each in done.err for each in said), done.all
    error = done.err[done.err.index("error: ") :]
    assert len(error.strip().splitlines()) <= lines and len(error) < 1200, done.all
    assert not output.exists()


# --- rows -------------------------------------------------------------------------------------------------------------

CONTEXT = "Äänä went to paris ."
ROW: dict[str, Any] = {
    "id": "one",
    "question": "where ?",
    "context": CONTEXT,
    "answers": {"text": ["paris"], "answer_start": [13]},
}


def answer(text: Any, start: Any) -> Change:
    return {"answers": {"text": [text], "answer_start": [start]}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (answer("paris", 16), ("16 counts UTF-8 bytes; in characters it is 13", "To fix this: convert offsets")),
        (answer("paris", 14), ("so the offset is off by one",)),
        (answer("paris", 2), ("it is at 13", "correct the offsets")),
        (answer("Paris", 13), ("with another letter case", "character by character")),
        (answer("london", 13), ("'london' at 13, but the context has 'paris ' there, and nowhere else",)),
        (answer("", 13), ("the text of answer 1 is ''",)),
        (answer("paris", -1), ("the answer_start of answer 1 ('paris') is -1",)),
        (answer("paris", "13"), ("is '13'", "write each answer_start as an integer")),
        ({"answers": {"text": ["paris"], "answer_start": []}}, ("1 texts and 0 offsets",)),
        ({"answers": {"text": [], "answer_start": []}}, ("it has no answer", "add --version_2_with_negative")),
        ({"answers": None}, ("the answers are missing (null)",)),
        ({"answers": "paris"}, ("the answers are 'paris'", 'write answers as {"text"')),
        ({"question": " "}, ("the question is empty",)),
        ({"context": None}, ("the context is missing",)),
        ({"context": ["a"]}, ("the context is ['a'], which is not text",)),
        ({"id": "zero"}, ("the id is a duplicate: row 1 has it too",)),
        ({"is_impossible": True}, ("is_impossible is true, but it has 1 answer",)),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else None,
)
def test_rows(change: Change, said: tuple[str, ...], tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """The second of two is wrong: it is named by its place and its id."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{**ROW, "id": "zero"}, {**ROW, **change}], ensure_ascii=False))
    said = (f"{file}: 1 of 2 questions cannot be used", "row 2, id ", "\nTo fix this: ", *said)
    refused(said, tiny_questions.short(train_file=file), tmp_path / "out", lines=4)


def test_many_wrong_rows_are_counted(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    rows = [row.flat() for row in questions(40, seed=1)]
    for row in rows[::2]:
        row["answers"]["answer_start"][0] += 1
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = ("20 of 40 questions cannot be used. The first 3 of them:", "row 1 (line 1), id 'q1-0'", "off by one")
    refused(said, tiny_questions.short(validation_file=tmp_path / "rows.jsonl"), tmp_path / "out", lines=6)


def test_a_place_in_a_nested_file(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    content = nested(questions(5, seed=1))
    content["data"][0]["paragraphs"][3]["qas"][0]["answers"][0]["text"] = "nobody"
    (tmp_path / "rows.json").write_text(json.dumps(content))
    said = ("1 of 5 questions", "data[0].paragraphs[3].qas[0], id 'q1-3': answer 1 is 'nobody'")
    refused(said, tiny_questions.short(train_file=tmp_path / "rows.json"), tmp_path / "out", lines=3)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.json", "", ("rows.json", "empty")),
        ("rows.json", "[]", ("rows.json",)),
        ("rows.json", '{"data": []}', ("rows.json",)),
        ("rows.json", '{"data": [{"paragraphs": []}]}', ("rows.json",)),
        (
            "rows.json",
            '{"data": [{"paragraphs": 3}]}',
            ("data[0]: expected an object with a list 'paragraphs', got 3",),
        ),
        ("rows.json", '{"data": [{"paragraphs": [{"context": "a"}]}]}', ("data[0].paragraphs[0]", "a list 'qas'")),
        ("rows.json", '{"data": [', ("rows.json",)),
        ("rows.jsonl", '{"id": "a"\n', ("rows.jsonl", "line 1")),
        ("rows.json", '[{"id": "a", "questoin": "b", "context": "c"}]', ("no column 'question'", "'questoin'")),
        ("rows.json", '[{"id": "a", "question": "b", "context": "c"}]', ("no column 'answers'", "--do_predict")),
        ("rows.jsonl", '{"data": [{"paragraphs": []}]}\n', ("Its rows are nested", "--train_file")),
        ("rows.csv", "id,question\n", ("rows.csv must end in one of .json, .jsonl, .parquet",)),
    ],
)
def test_files(name: str, content: str, said: tuple[str, ...], tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    refused(said, tiny_questions.short(train_file=tmp_path / name), tmp_path / "out", lines=3)


def test_a_parquet_file_with_other_columns(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    Dataset.from_dict({"id": ["a"], "question": ["b"], "text": ["c"]}).to_parquet(tmp_path / "rows.parquet")
    said = ("rows.parquet has no column 'context'; its columns are: id, question, text",)
    refused(said, tiny_questions.short(train_file=tmp_path / "rows.parquet"), tmp_path / "out")


# --- questions and contexts that do not fit ---------------------------------------------------------------------------


def test_windows_without_room(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    said = ("question 'q1-", "a row of 12 has room for", "--max_seq_length", "reduce --doc_stride")
    refused(said, tiny_questions.short(max_seq_length=12), tmp_path / "out")
    done = run(
        **tiny_questions.short(max_seq_length=12, doc_stride=2, max_train_samples=20), output_dir=tmp_path / "out"
    )
    assert done.code == 0, done.all


def test_a_question_that_is_longer_than_a_row(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    rows = [{**ROW, "question": "where " * 40}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    said = ("question 'one' and the special tokens have 43 tokens, so a row of 24 has room for 0 of its context",)
    refused(said, tiny_questions.short(train_file=tmp_path / "rows.json"), tmp_path / "out")
    alone = tiny_questions.of(tiny_questions.teacher, test_file=tmp_path / "rows.json", do_predict=True)
    refused(said, alone, tmp_path / "out")


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"null_score_diff_threshold": 1.0}, ("--null_score_diff_threshold", "add --version_2_with_negative")),
        ({"label_smoothing_factor": 0.1}, ("--label_smoothing_factor: an answer has one start and one end",)),
        ({"question_column_name": "q"}, ("--question_column_name is not supported", "id, question, context and")),
        ({"answer_column_name": "a"}, ("--answer_column_name is not supported",)),
        ({"text_column_name": "a"}, ("--text_column_name is not supported",)),
        ({"task_name": "squad"}, ("--task_name is not supported", "--dataset_name")),
        ({"task": "qa"}, ("--task is not supported",)),
        ({"do_regression": True}, ("--do_regression is not supported: an answer is a part of its context",)),
        ({"problem_type": "regression"}, ("--problem_type is not supported",)),
        ({"max_answer_lenght": 5}, ("Did you mean '--max_answer_length'?",)),
        ({"max_answer_length": 0}, ("--max_answer_length",)),
        ({"n_best_size": 0}, ("--n_best_size",)),
        ({"doc_stride": -1}, ("--doc_stride",)),
        ({"max_seq_length": 4}, ("--max_seq_length",)),
        ({"null_score_diff_threshold": "nan", "version_2_with_negative": True}, ("--null_score_diff_threshold",)),
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "em", "save_strategy": "epoch"},
            ("--metric_for_best_model: this task has no 'em'", "loss, exact_match, f1."),
        ),
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "best_f1", "save_strategy": "epoch"},
            ("--metric_for_best_model: this task has no 'best_f1'",),
        ),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else None,
)
def test_flags(flags: dict[str, Any], said: tuple[str, ...], tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    refused(said, {**tiny_questions.short(eval_strategy="epoch"), **flags}, tmp_path / "out")


def test_questions_without_an_answer_are_refused_unless_they_are_meant(
    tiny_questions: TinyQuestions, tmp_path: Path
) -> None:
    file = write_questions(tmp_path / "rows.json", questions(20, seed=1, impossible=0.5), "nested v2.0")
    said = ("it has no answer", "add --version_2_with_negative if questions without an answer are meant")
    refused(said, tiny_questions.short(train_file=file), tmp_path / "out", lines=6)
    refused(said, tiny_questions.short(validation_file=file), tmp_path / "out", lines=6)


def test_training_rows_without_a_use(tiny_questions: TinyQuestions) -> None:
    """Questions have no label names that training rows could define."""
    flags: dict[str, Any] = {"model_name_or_path": "x", "output_dir": "y", "do_predict": True}
    files: dict[str, Any] = {"train_file": str(tiny_questions.train), "test_file": str(tiny_questions.test)}
    arguments = QuestionAnsweringArguments(**flags, **files)
    assert arguments.warnings() == ["--train_file is not used without --do_train or --one_shot."]


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_model_with_other_outputs(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """Three outputs per token, in config.json and in the weights."""
    model = make_answerer(tmp_path / "model", num_labels=3)
    said = ("the model has 3 outputs per token in its config.json (LABEL_0, LABEL_1, LABEL_2)", "two, start and end")
    refused(said, tiny_questions.short(model_name_or_path=model), tmp_path / "out")
    alone = tiny_questions.of(model, validation_file=tiny_questions.validation, do_eval=True)
    refused(said, alone, tmp_path / "out")


def test_a_slow_tokenizer(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """It cannot say which characters a token is."""
    model = Path(shutil.copytree(tiny_questions.teacher, tmp_path / "model"))
    config = read_json(model / "config.json")
    (model / "config.json").write_text(json.dumps({**config, "model_type": "canine"}))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CanineTokenizer"}))
    (model / "tokenizer.json").unlink()
    done = run(**tiny_questions.short(model_name_or_path=model), output_dir=tmp_path / "out")
    assert done.code == 2 and "Traceback" not in done.all, done.all
    with pytest.raises(UsageError, match=r"cannot map tokens to characters: .* a fast tokenizer \(tokenizer.json\)"):
        QuestionAnswering.of_sentences(Head(NAMES), ["a", "b"]).tokenize(CanineTokenizer(), 16)


def test_no_head_to_measure(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    flags = tiny_questions.of(tiny_questions.model, validation_file=tiny_questions.validation, do_eval=True)
    refused(("--model_name_or_path", "pruned90"), flags, tmp_path / "out")


@pytest.mark.parametrize("kind", ["tagger", "classifier"])
def test_models_of_other_tasks(kind: str, tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    """They are trained with a new head, and not measured."""
    model = tmp_path / "model"
    if kind == "tagger":
        make_tagger(model)
    else:
        make_model(model, sparse=False, head=True, vocabulary=VOCABULARY)
    flags = tiny_questions.of(model, validation_file=tiny_questions.validation, do_eval=True)
    refused(("question_answering",), flags, tmp_path / "out")
    done = run(**tiny_questions.short(model_name_or_path=model, max_train_samples=20), output_dir=tmp_path / "new")
    assert done.code == 0 and "newly initialized (2 weights)" in done.out, done.all
