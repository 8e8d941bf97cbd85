"""Texts from every kind of file: the same texts, whatever the form; and one run that reads them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from language_fixtures import TinyTexts, run, texts, write_texts
from script_fixtures import assert_same_model, flat, read_json

from sparse_accel.cli.masked_language_modeling import MaskedLanguageModelingArguments
from sparse_accel.tasks.masked_language_modeling.data import load_masked_language_modeling

pytest_plugins = ["language_fixtures"]

# Quotes, a comma, a tab, letters of two to four bytes, and what only looks like the end of a line.
TEXTS = ['a "film", so to say', "it\twas", "vóór 北京 🎬", "one\u2028two\x0bthree", " blanks around "]


def loaded(**flags: Any) -> dict[str, list[str]]:
    """The texts of each split."""
    needed = {"model_name_or_path": "model", "output_dir": "out", "do_train": True}
    data = load_masked_language_modeling(MaskedLanguageModelingArguments(**{**needed, **flags}))
    assert all(rows.column_names == ["text"] for rows in data.splits.values())
    return {split: list(rows["text"]) for split, rows in data.splits.items()}


def as_txt(path: Path, lines: Sequence[str]) -> Path:
    return write_texts(path.with_suffix(".txt"), lines)


def as_csv(path: Path, lines: Sequence[str], separator: str = ",") -> Path:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=separator)
        writer.writerows([["id", "body"], *([str(number), line] for number, line in enumerate(lines))])
    return path


def as_jsonl(path: Path, lines: Sequence[str]) -> Path:
    rows = [json.dumps({"body": line, "source": number}) for number, line in enumerate(lines)]
    path = path.with_suffix(".jsonl")
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def as_json(path: Path, lines: Sequence[str]) -> Path:
    path = path.with_suffix(".json")
    path.write_text(json.dumps([{"body": line} for line in lines]))
    return path


def as_parquet(path: Path, lines: Sequence[str]) -> Path:
    path = path.with_suffix(".parquet")
    datasets.Dataset.from_dict({"body": list(lines), "number": list(range(len(lines)))}).to_parquet(path)
    return path


WRITERS = {
    "txt": as_txt,
    "csv": lambda path, lines: as_csv(path.with_suffix(".csv"), lines),
    "tsv": lambda path, lines: as_csv(path.with_suffix(".tsv"), lines, "\t"),
    "jsonl": as_jsonl,
    "json": as_json,
    "parquet": as_parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_texts_are_what_they_are(kind: str, tmp_path: Path) -> None:
    write: Callable[[Path, Sequence[str]], Path] = WRITERS[kind]
    file = write(tmp_path / "train", TEXTS)
    assert loaded(train_file=str(file))["train"] == TEXTS
    if kind != "txt":
        assert loaded(train_file=str(file), text_column_name="body")["train"] == TEXTS


@pytest.mark.parametrize(
    "content",
    [
        b"one\ntwo\n",
        b"one\ntwo",
        b"one\r\ntwo\r\n",
        b"\xef\xbb\xbfone\ntwo\n",
        b"\xef\xbb\xbf\r\n\r\none\r\n \t\r\n\r\ntwo\r\n\r\n",
    ],
    ids=["plain", "no end", "CRLF", "BOM", "BOM, CRLF, blank lines"],
)
def test_lines(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "train.TXT").write_bytes(content)
    assert loaded(train_file=str(tmp_path / "train.TXT"))["train"] == ["one", "two"]


def test_blank_texts_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('text,id\n"",1\none,2\n"  ",3\ntwo,4\n')
    assert loaded(train_file=str(tmp_path / "train.csv"))["train"] == ["one", "two"]
    rows = datasets.Dataset.from_dict({"text": ["one", None, "", "two"]})
    rows.to_parquet(tmp_path / "train.parquet")
    assert loaded(train_file=str(tmp_path / "train.parquet"))["train"] == ["one", "two"]


def test_numbers_in_a_csv_file_are_texts(tmp_path: Path) -> None:
    """As any cell of it: 007 stays 007."""
    (tmp_path / "train.csv").write_text("text\n007\none\n1e5\nNA\n")
    assert loaded(train_file=str(tmp_path / "train.csv"))["train"] == ["007", "one", "1e5", "NA"]


def test_a_usual_name_is_found_among_others(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("url,text,label\nwww.a,one text,x\nwww.b,another text,y\n")
    assert loaded(train_file=str(tmp_path / "train.csv"))["train"] == ["one text", "another text"]
    named = loaded(train_file=str(tmp_path / "train.csv"), text_column_name="url")
    assert named["train"] == ["www.a", "www.b"]


def test_folders(tmp_path: Path) -> None:
    """One of text files, one of files in parts, one that save_to_disk wrote."""
    for name in ("texts", "parts"):
        (tmp_path / name).mkdir()
    as_txt(tmp_path / "texts" / "train", ["one", "two"])
    as_txt(tmp_path / "texts" / "valid", ["three"])
    as_txt(tmp_path / "parts" / "train-00000", ["one"])
    as_txt(tmp_path / "parts" / "train-00001", ["two"])
    as_txt(tmp_path / "parts" / "validation", ["three"])
    columns = {split: datasets.Dataset.from_dict({"body": lines}) for split, lines in (("train", ["one", "two"]),)}
    columns["validation"] = datasets.Dataset.from_dict({"body": ["three"]})
    datasets.DatasetDict(**columns).save_to_disk(tmp_path / "saved")
    for name in ("texts", "parts", "saved"):
        found = loaded(dataset_name=str(tmp_path / name), do_eval=True)
        assert found == {"train": ["one", "two"], "validation": ["three"]}, name


def test_rows_are_drawn_and_held_out(tmp_path: Path) -> None:
    file = str(as_txt(tmp_path / "train", texts(100, seed=1)))
    found = loaded(train_file=file, validation_ratio=0.2, do_eval=True, max_train_samples=30)
    assert (len(found["train"]), len(found["validation"])) == (30, 20)
    assert sorted(loaded(train_file=file, validation_ratio=0.2, do_eval=True)["validation"]) == sorted(
        found["validation"]
    )


def test_the_form_of_the_file_does_not_change_the_run(language: TinyTexts, tmp_path: Path) -> None:
    """Blank lines neither."""
    lines, held = texts(203, seed=1), texts(60, seed=2)
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    forms: dict[str, dict[str, Any]] = {
        "txt": {"train_file": tmp_path / "train.txt", "validation_file": language.validation},
        "parquet": {
            "train_file": as_parquet(tmp_path / "train", lines),
            "validation_file": as_csv(tmp_path / "validation.csv", held),
            "text_column_name": "body",
        },
    }
    for name, flags in forms.items():
        done = run(**language.flags(**flags, output_dir=tmp_path / name))
        assert done.code == 0 and "203 train, 60 validation" in flat(done.out), done.all
    assert_same_model(tmp_path / "txt", tmp_path / "parquet")
    figures = [read_json(tmp_path / name / "eval_results.json") for name in forms]
    assert figures[0] == figures[1]
    assert "columns body" in flat(done.out), done.all
