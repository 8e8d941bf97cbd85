"""Rows from local files and folders: every format, and every fault with its file, row, line and column."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_files import load, refusal, write
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from sparse_accel.data.tokenizing import digest_of_rows

TEXTS = ["a fine film", 'says "no", twice', "two\nlines", "NA", "1984", "naïve 🙂"]
LABELS = ["pos", "neg", "pos", "neg", "None", "pos"]
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., str]:
    """Writes a training file and returns the refusal that loading it meets."""

    def refused(rows: list[dict[str, Any]] | str, name: str = "train.jsonl", **flags: Any) -> str:
        file = tmp_path / name
        if isinstance(rows, str):
            file.write_text(rows)
        else:
            write(file, rows)
        return refusal(train_file=file, do_train=True, **flags).replace(str(tmp_path) + "/", "")

    return refused


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows_in_order(suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"train{suffix}", ROWS)
    data = load(train_file=file, validation_file=file, do_train=True, do_eval=True)
    assert list(data.splits) == ["train", "validation"]
    for split in data.splits.values():
        assert split.column_names == ["text", "label"]
        assert split["text"][:] == TEXTS
        assert split["label"][:] == LABELS
    assert data.text_columns == ("text",) and data.label_column == "label"
    assert data.problem_type == "single_label_classification" and data.metrics == "default"
    assert data.label_names == ["None", "neg", "pos"]
    assert data.label2id == {"None": 0, "neg": 1, "pos": 2}
    assert data.sources == {"train": str(file), "validation": str(file)}


def test_formats_may_differ_between_splits(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    files = {split: write(tmp_path / f"{split}{end}", rows) for split, end in [("train", ".csv"), ("test", ".parquet")]}
    validation = write(tmp_path / "dev.json", rows)
    data = load(
        train_file=files["train"], validation_file=validation, test_file=files["test"],
        do_train=True, do_eval=True, do_predict=True,
    )  # fmt: skip
    assert [data.splits[split]["label"][:] for split in ("train", "validation")] == [["1", "0"]] * 2
    assert data.splits["test"].column_names == ["text"], "rows to predict need no labels, and theirs are not read"
    assert data.label_names == ["0", "1"]
    assert digest_of_rows(data.splits["train"]) == digest_of_rows(data.splits["validation"])


def test_json_lines_under_the_name_json_and_rows_under_data(tmp_path: Path) -> None:
    lines, under_data = tmp_path / "lines.json", tmp_path / "data.json"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    under_data.write_text(json.dumps({"data": ROWS}))
    data = load(train_file=lines, validation_file=under_data, do_train=True, do_eval=True)
    assert data.splits["train"]["text"][:] == data.splits["validation"]["text"][:] == TEXTS


def test_csv_with_byte_order_mark_index_column_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_bytes("\ufeff,text,label\r\n0,a,x\r\n\r\n1,b,y\r\n".encode())
    data = load(train_file=file, do_train=True)
    assert data.splits["train"][:] == {"text": ["a", "b"], "label": ["x", "y"]}


def test_long_fields_are_read(tmp_path: Path) -> None:
    file = write(tmp_path / "train.csv", [{"text": "word " * 50_000, "label": "a"}, {"text": "b", "label": "b"}])
    assert len(load(train_file=file, do_train=True).splits["train"][0]["text"]) == 250_000


def test_parquet_keeps_declared_classes(tmp_path: Path) -> None:
    features = Features(text=Value("string"), label=ClassLabel(names=["pos", "neg", "unused"]))
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(tmp_path / "train.parquet")
    data = load(train_file=tmp_path / "train.parquet", do_train=True)
    assert data.label_names == ["pos", "neg", "unused"]
    assert data.splits["train"]["label"][:] == ["neg", "pos"]


# --- folders ----------------------------------------------------------------------------------------------------------


def test_folder_of_data_files(tmp_path: Path) -> None:
    write(tmp_path / "rotten_tomatoes-train.csv", ROWS)
    write(tmp_path / "rotten_tomatoes-dev.jsonl", ROWS)
    data = load(dataset_name=tmp_path, do_train=True, do_eval=True)
    assert data.splits["validation"]["text"][:] == TEXTS


def test_folder_of_save_to_disk(tmp_path: Path) -> None:
    features = Features(text=Value("string"), label=ClassLabel(names=["neg", "pos"]))
    split = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    DatasetDict(train=split, validation=split).save_to_disk(tmp_path / "all")
    split.save_to_disk(tmp_path / "one")
    data = load(dataset_name=tmp_path / "all", do_train=True, do_eval=True)
    assert data.label_names == ["neg", "pos"] and list(data.splits) == ["train", "validation"]
    assert list(load(dataset_name=tmp_path / "one", do_train=True).splits) == ["train"]
    assert "has no validation rows; --do_eval needs them: add --validation_ratio 0.1" in refusal(
        dataset_name=tmp_path / "one", do_train=True, do_eval=True
    )


def test_folder_of_shards_is_left_to_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    for shard in range(2):
        write(tmp_path / "data" / f"train-0000{shard}-of-00002.parquet", ROWS[3 * shard : 3 * shard + 3])
    data = load(dataset_name=tmp_path / "data", do_train=True, cache_dir=tmp_path / "cache")
    assert data.splits["train"]["text"][:] == TEXTS


def test_csv_and_tsv_files_of_a_folder_are_always_read_here(tmp_path: Path) -> None:
    """Several of them too: another reader would guess types, and take quotes for what they are not."""
    rows = [["1", 'a "quote', "x"], ["2", "NA", "y"], ["3", '"1984', "x"]]
    for part in range(2):
        lines = [f"{number}\t{text}\t{label}\n" for number, text, label in rows[part : part + 2]]
        (tmp_path / f"train_{part}.tsv").write_text("number\ttext\tlabel\n" + "".join(lines))
    for name in ("dev_matched.tsv", "dev_mismatched.tsv"):
        (tmp_path / name).write_text(f"number\ttext\tlabel\n1\tof {name}\tx\n")
    data = load(dataset_name=tmp_path, do_train=True, do_eval=True)
    assert data.splits["train"]["text"][:] == ['a "quote', "NA", "NA", '"1984']
    assert {split: rows["text"][:] for split, rows in data.splits.items() if split != "train"} == {
        "validation": ["of dev_matched.tsv"],
        "validation_mismatched": ["of dev_mismatched.tsv"],
    }
    (tmp_path / "train_1.tsv").write_text("number\ttext\tlabel\n9\t\tx\n")
    message = refusal(dataset_name=tmp_path, do_train=True)
    assert "train_1.tsv, row 1 (line 2), column 'text' has no text" in message
    (tmp_path / "train_1.tsv").write_text("number\tlabel\n9\tx\n")
    assert "train_1.tsv: expected the columns of" in refusal(dataset_name=tmp_path, do_train=True)


def test_a_folder_that_does_not_say_which_file_is_meant(tmp_path: Path) -> None:
    for name in ("train.csv", "train_old.csv"):
        write(tmp_path / name, ROWS)
    message = refusal(dataset_name=tmp_path, do_train=True)
    assert "several files for train" in message and "train.csv, train_old.csv" in message
    (tmp_path / "deep" / "train").mkdir(parents=True)
    write(tmp_path / "deep" / "train" / "data.csv", ROWS)
    message = refusal(dataset_name=tmp_path / "deep", do_train=True)
    assert "train/data.csv. Pass them with --train_file" in message


def test_folder_without_rows(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path, tmp_path / "empty"):
        assert f"no rows found in {folder}" in refusal(dataset_name=folder, do_train=True)
    assert (
        refusal(dataset_name="./no/such/folder", do_train=True)
        == "--dataset_name: there is no folder ./no/such/folder."
    )


# --- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "named", "found"),
    [
        (["id", "text", "label"], None, ("text",)),
        (["hypothesis", "premise", "label"], None, ("premise", "hypothesis")),
        (["title", "body", "label"], None, ("title", "body")),
        (["comment", "stars", "label"], None, ("comment",)),
        (["a", "b", "c", "label"], ("b",), ("b",)),
        (["a", "b", "c", "label"], ("c,a",), ("c", "a")),
        (["a", "b", "c", "label"], ("c", "a"), ("c", "a")),
        (["a,b", "c", "label"], ("a,b",), ("a,b",)),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_text_columns(columns: list[str], named: Any, found: tuple[str, ...], suffix: str, tmp_path: Path) -> None:
    numbers = {"id", "stars"}
    rows = [{name: row if name in numbers else f"{name} {row}" for name in columns} for row in range(2)]
    data = load(train_file=write(tmp_path / f"train{suffix}", rows), do_train=True, input_column_names=named)
    assert data.text_columns == found
    assert data.splits["train"].column_names == [*found, "label"]


def test_column_faults(train: Callable[..., str], tmp_path: Path) -> None:
    rows = [
        {"text": "a", "title": "b", "third": "c", "label": "x"},
        {"text": "d", "title": "e", "third": "f", "label": "y"},
    ]
    assert train(rows, input_column_names=("txt",)) == (
        "train.jsonl has no column 'txt' (--input_column_names). Did you mean 'text'? "
        "Its columns are: text, title, third, label."
    )
    assert "has no column 'lable' (--label_column_name). Did you mean 'label'?" in train(
        rows, label_column_name="lable"
    )
    assert "expected one column, or two for pairs" in train(rows, input_column_names=("text", "title", "third"))
    assert "cannot be both text and label" in train(rows, input_column_names=("label",))
    no_usual = [{"a": "x", "b": "y", "c": "z", "label": "k"}]
    assert "has 3 columns that may be the text: a, b, c. Name one, or two for pairs" in train(no_usual)
    assert "no text column found; the columns are: n, label" in train([{"n": 1, "label": "x"}])
    assert "has no column 'label' or 'labels'; its columns are: text, target." in train([{"text": "a", "target": 1}])
    other = write(tmp_path / "validation.csv", [{"sentence": "a", "label": "x"}])
    message = train(rows, validation_file=other, do_eval=True, input_column_names=("text",))
    assert "validation.csv has no column 'text'" in message and "Its columns are: sentence, label." in message
    unlabelled = write(tmp_path / "dev.csv", [{"text": "a"}])
    assert "dev.csv has no column 'label'" in train(rows, validation_file=unlabelled, do_eval=True)


# --- faults of files and rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", "", "train.csv has no header line"),
        ("train.csv", "text,label\n", "train.csv has no rows."),
        ("train.csv", "text,text,label\na,b,1\n", "train.csv, line 1: duplicate column 'text'."),
        ("train.csv", 'text,label\n"a\nb",1\nc,d,0\n', "train.csv, row 2 (line 4): 3 fields, but the header has 2."),
        ("train.csv", "text,label\na,1\nb\n", "train.csv, row 2 (line 3): 1 fields, but the header has 2."),
        (
            "train.csv",
            'text,label\n"a,1\n',
            "train.csv, line 2: the double quote that opens a field here is never closed",
        ),
        ("train.csv", 'text,label\nb,0\n"a,1\nc,0\n', "train.csv, line 3: the double quote that opens a field here"),
        ("train.csv", "text;label\na;1\n", "'text;label' is one column. The separator seems to be ';'"),
        ("train.csv", "text,label\na,1\n\n,0\n", "train.csv, row 2 (line 4), column 'text' has no text"),
        ("train.csv", "text,label\na,1\nb,\n", "train.csv, row 2 (line 3), column 'label': the label is missing."),
        ("train.jsonl", '{"text": "a", "label": 1}\n{"text"\n', "train.jsonl, line 2, column 8: not valid JSON"),
        ("train.jsonl", '{"text": "a", "label": 1}\n\n[1]\n', "train.jsonl, row 2 (line 3): expected an object"),
        ("train.jsonl", '{"text": "a", "label": 1}\n{"label": 0}\n', "row 2 (line 2), column 'text' has no text"),
        (
            "train.jsonl",
            '{"text": "a", "label": 1}\n{"text": 5, "label": 0}\n',
            "column 'text' is 5, which is not text",
        ),
        ("train.json", "[1, 2", "train.json, line 1, column 6: not valid JSON"),
        ("train.json", '"text"', "train.json: expected a list of objects"),
        ("train.json", "[]", "train.json has no rows."),
        ("train.parquet", "text,label\n", "train.parquet cannot be read"),
    ],
)
def test_fault_of_a_file(name: str, content: str, message: str, train: Callable[..., str]) -> None:
    assert message in train(content, name)


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    assert "is not UTF-8 text" in refusal(train_file=tmp_path / "train.csv", do_train=True)


def test_null_text_of_a_dataset_has_its_row(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["a", None, ""], "label": ["x", "y", "x"]}).to_parquet(tmp_path / "train.parquet")
    assert "row 2, column 'text' has no text" in refusal(train_file=tmp_path / "train.parquet", do_train=True)


def test_one_half_of_a_pair_may_be_empty(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("question1,question2,label\na,,1\n,b,0\n")
    assert load(train_file=file, do_train=True).splits["train"]["question2"][:] == ["", "b"]
    file.write_text("question1,question2,label\na,b,1\n,,0\n")
    assert "row 2 (line 3), column 'question1' has no text" in refusal(train_file=file, do_train=True)
