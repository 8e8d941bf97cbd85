"""Questions from every kind of file: the same questions give the same model and the same answers, bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from question_fixtures import Question, TinyQuestions, nested, questions, run, write_questions
from script_fixtures import assert_same_model, flat, read_json

pytest_plugins = ["question_fixtures"]

TRAIN, VALIDATION = questions(40, seed=1), questions(16, seed=2)
Write = Callable[[Path, str, Sequence[Question]], Path]


@pytest.fixture(scope="module")
def straight(tiny_questions: TinyQuestions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from nested files of version 1.1."""
    folder = tmp_path_factory.mktemp("straight")
    files = {
        "train_file": write_questions(folder / "train.json", TRAIN),
        "validation_file": write_questions(folder / "validation.json", VALIDATION),
    }
    done = run(**tiny_questions.short(**files), output_dir=folder / "out")
    assert done.code == 0, done.all
    return folder / "out"


def as_file(suffix: str, form: str = "flat") -> Write:
    return lambda folder, name, rows: write_questions(folder / f"{name}{suffix}", rows, form)


def as_lists_of_answers(folder: Path, name: str, rows: Sequence[Question]) -> Path:
    """As in the nested form, but flat; with more columns."""
    content = []
    for row in rows:
        answers = [{"text": text, "answer_start": start} for text, start in row.answers]
        content.append(row.flat() | {"answers": answers, "is_impossible": False, "note": 3})
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json"


def as_articles(folder: Path, name: str, rows: Sequence[Question]) -> Path:
    """A nested file without the object around its articles, with a byte order mark."""
    (folder / f"{name}.json").write_text(json.dumps(nested(rows)["data"]), encoding="utf-8-sig")
    return folder / f"{name}.json"


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(as_file(".json", "nested v2.0"), id="nested 2.0"),
        pytest.param(as_file(".json"), id="JSON"),
        pytest.param(as_file(".jsonl"), id="JSONL"),
        pytest.param(as_file(".parquet"), id="Parquet"),
        pytest.param(as_lists_of_answers, id="lists of answers"),
        pytest.param(as_articles, id="articles"),
    ],
)
def test_other_files_train_the_same_model(
    write: Write, tiny_questions: TinyQuestions, straight: Path, tmp_path: Path
) -> None:
    files = {"train_file": write(tmp_path, "train", TRAIN)}
    files["validation_file"] = write(tmp_path, "validation", VALIDATION)
    done = run(**tiny_questions.short(**files), output_dir=tmp_path / "out")
    assert done.code == 0 and "warning" not in done.err, done.all
    assert_same(straight, tmp_path / "out")


def assert_same(one: Path, other: Path) -> None:
    assert_same_model(one, other)
    for name in ("eval_results", "eval_predictions", "eval_nbest_predictions"):
        assert read_json(one / f"{name}.json") == read_json(other / f"{name}.json")


def of_hub(rows: Sequence[Question]) -> datasets.Dataset:
    """With the columns of the Hub's `squad`."""
    answers = {"text": datasets.List(datasets.Value("string")), "answer_start": datasets.List(datasets.Value("int32"))}
    texts = {name: datasets.Value("string") for name in ("id", "title", "context", "question")}
    return datasets.Dataset.from_list(
        [row.flat() for row in rows], features=datasets.Features(texts | {"answers": answers})
    )


@pytest.mark.parametrize("kind", ["saved", "nested", "flat"])
def test_folders_of_a_dataset(kind: str, tiny_questions: TinyQuestions, straight: Path, tmp_path: Path) -> None:
    """One that save_to_disk wrote; and train.json and validation.json in a folder."""
    folder = tmp_path / "rows"
    if kind == "saved":
        datasets.DatasetDict(train=of_hub(TRAIN), validation=of_hub(VALIDATION)).save_to_disk(folder)
    else:
        folder.mkdir()
        write_questions(folder / "train.json", TRAIN, kind)
        write_questions(folder / "validation.json", VALIDATION, kind)
    flags: dict[str, Any] = {"train_file": None, "validation_file": None, "dataset_name": folder}
    done = run(**tiny_questions.short(**flags), output_dir=tmp_path / "out")
    assert done.code == 0 and "warning" not in done.err, done.all
    assert_same(straight, tmp_path / "out")


def test_questions_to_predict_need_no_answers(tiny_questions: TinyQuestions, straight: Path, tmp_path: Path) -> None:
    """What answers they have is not read, right or wrong; a number as id becomes text."""
    expected = read_json(straight / "eval_predictions.json")
    wrong = [row.flat() | {"answers": "nobody knows"} for row in VALIDATION]
    contents: dict[str, Any] = {
        "none.json": [{name: row.flat()[name] for name in ("id", "question", "context")} for row in VALIDATION],
        "wrong.json": wrong,
        "nested.json": nested(VALIDATION),
        "numbers.json": [row.flat() | {"id": number} for number, row in enumerate(VALIDATION)],
    }
    for paragraph in contents["nested.json"]["data"][0]["paragraphs"]:
        for entry in paragraph["qas"]:
            del entry["answers"]
    for name, content in contents.items():
        file = tmp_path / name
        file.write_text(json.dumps(content))
        done = run(**tiny_questions.of(straight, test_file=file), do_predict=True, output_dir=tmp_path / file.stem)
        assert done.code == 0 and "16 predictions" in done.out, done.all
        answers = read_json(tmp_path / file.stem / "test_predictions.json")
        ids = [str(number) for number in range(16)] if name == "numbers.json" else [row.id for row in VALIDATION]
        assert answers == dict(zip(ids, expected.values(), strict=True))


def test_rows_that_are_evaluated_from_other_splits(
    tiny_questions: TinyQuestions, straight: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "rows"
    datasets.DatasetDict(train=of_hub(TRAIN), test=of_hub(VALIDATION)).save_to_disk(folder)
    flags = {"dataset_name": folder, "do_eval": True, "eval_on_test": True}
    done = run(**tiny_questions.of(straight, **flags), output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert read_json(tmp_path / "out" / "eval_results.json") == read_json(straight / "eval_results.json")


def test_texts_are_those_of_the_file(tiny_questions: TinyQuestions, straight: Path, tmp_path: Path) -> None:
    """Answers are parts of the context as it is written: capitals, accents, white space, line breaks, emoji."""
    context = "  The\u00a0FILM was old,\n\n and Änna 🎬 went\tto PARIS .  "
    rows = [Question("ä 1", " Where ?", context, [("PARIS", context.index("PARIS"))])]
    file = write_questions(tmp_path / "rows.json", rows)
    flags = {"validation_file": file, "do_eval": True, "n_best_size": 60, "max_answer_length": 60}
    done = run(**tiny_questions.of(straight, **flags), output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    listed = json.loads((tmp_path / "out" / "eval_nbest_predictions.json").read_text(encoding="utf-8"))["ä 1"]
    assert all(entry["text"] in context and entry["text"] == entry["text"].strip() for entry in listed)
    assert {"PARIS", "Änna 🎬 went\tto PARIS"} <= {entry["text"] for entry in listed}
    assert '"ä 1"' in (tmp_path / "out" / "eval_predictions.json").read_text(encoding="utf-8")


def test_the_start_table_tells_which_answers_are_in_no_window(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    context = " ".join(["the film was old and"] * 12)
    rows = [Question(f"long {number}", "where ?", context, [(context[:150], 0)]) for number in range(2)]
    rows += [Question("short", "where ?", context, [("film", 4)])]
    flags = {"train_file": write_questions(tmp_path / "rows.json", rows), "validation_file": None, "do_eval": None}
    done = run(**tiny_questions.short(**flags), output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert "2 answers whole in no window, trained as none" in flat(done.out)


def test_the_start_table_tells_how_many_windows(tiny_questions: TinyQuestions, tmp_path: Path) -> None:
    done = run(**tiny_questions.short(test_file=tiny_questions.test), do_predict=True, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    said = flat(done.out)
    assert "203 train, 60 validation, 17 test" in said and "long contexts in windows that share 6" in said
    assert "longer rows are split: 203 train in 318 parts, 60 validation in 85 parts, 17 test in 24 parts" in said
    assert "in no window" not in said
    assert "60 predictions" in said and "17 predictions" in said
    assert [*read_json(tmp_path / "out" / "test_predictions.json")] == [f"q3-{number}" for number in range(17)]
