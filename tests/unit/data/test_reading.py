"""The readers of data files: what other programs write is read back, in every form that these files have."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from data_files import any_texts, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_accel.data.columns import USUAL_LABEL_COLUMNS, USUAL_TEXT_COLUMNS
from sparse_accel.data.json_rows import USUAL_COLUMNS
from sparse_accel.data.tables import read_table
from sparse_accel.errors import UsageError
from sparse_accel.files import lfs_pointer_error

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 132735\n"

one_line_texts = any_texts.map(lambda text: "".join(sign for sign in text if sign not in "\t\n\r"))
frames = st.lists(any_texts, min_size=1, max_size=6).map(
    lambda texts: pandas.DataFrame({"text": texts, "label": [len(text) % 3 for text in texts]})
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def rows_of(folder: Path) -> Callable[..., dict[str, list[Any]]]:
    """Reads a file of this content: the values of each column."""

    def read(content: str | bytes, name: str) -> dict[str, list[Any]]:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        table = read_table(str(folder / name))
        return {column: table.values(column) for column in table.column_names}

    return read


@pytest.fixture
def fault_of(folder: Path) -> Callable[..., str]:
    """Reads a file of this content: the message that it is refused with."""

    def refused(content: str | bytes, name: str) -> str:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(UsageError) as caught:
            read_table(str(folder / name))
        return str(caught.value).replace(str(folder) + "/", "")

    return refused


# --- CSV and TSV ------------------------------------------------------------------------------------------------------


def written_by_csv(frame: pandas.DataFrame, separator: str, quoting: Any) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=separator, quoting=quoting)
    writer.writerows([list(frame.columns), *frame.itertuples(index=False)])
    return stream.getvalue()


def written_by_pandas(frame: pandas.DataFrame, separator: str, quoting: Any) -> str:
    return str(frame.to_csv(None, sep=separator, quoting=quoting, index=False))


@pytest.mark.parametrize("write", [written_by_csv, written_by_pandas])
@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@settings(max_examples=60, deadline=None)
@given(frame=frames)
def test_what_csv_writers_write_is_read_back(
    write: Callable[..., str], quoting: int, suffix: str, frame: pandas.DataFrame, rows_of: Callable[..., Any]
) -> None:
    texts = frame["text"].tolist()
    if suffix == ".tsv" and quoting == csv.QUOTE_MINIMAL:  # with both, a text may look like rows without quoting
        texts = [text.replace("\t", " ") if "\n" in text else text for text in texts]
    frame = frame.assign(text=texts)
    rows = rows_of(write(frame, "\t" if suffix == ".tsv" else ",", quoting), f"written{suffix}")
    assert rows == {"text": texts, "label": frame["label"].astype(str).tolist()}


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(any_texts, min_size=1, max_size=6), suffix=st.sampled_from([".csv", ".tsv"]))
def test_one_column_in_quotes_is_read_back(texts: list[str], suffix: str, rows_of: Callable[..., Any]) -> None:
    content = written_by_csv(pandas.DataFrame({"text": texts}), "\t" if suffix == ".tsv" else ",", csv.QUOTE_ALL)
    assert rows_of(content, f"one{suffix}") == {"text": texts}


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(one_line_texts, max_size=6),
    stray=st.sampled_from(['"so" he says', '"', '"a ""b" c', '" "" ']),
    place=st.integers(0, 6),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_tsv_without_quoting_is_read_character_by_character(
    texts: list[str], stray: str, place: int, end: str, rows_of: Callable[..., Any]
) -> None:
    texts = [*texts[:place], stray, *texts[place:]]
    content = end.join(["text\tlabel", *(f"{text}\t{row}" for row, text in enumerate(texts))]) + end
    assert rows_of(content, "glue.tsv") == {"text": texts, "label": [str(row) for row in range(len(texts))]}


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        # Only one way gives every row two fields.
        ('text\tlabel\n"a\tb"\t1\n', ["a\tb"]),
        ('text\tlabel\n"a\nb"\t1\n', ["a\nb"]),
        ('text\tlabel\n"a" b\t1\nc\t0\n', ['"a" b', "c"]),
        ('text\tlabel\n"a\t1\nb\t0\n', ['"a', "b"]),
        # Two rows, of which one begins with a quote and the other one ends with it.
        ('text\tlabel\n"a\t1\nb"\t0\n', ['"a', 'b"']),
        # Quotes where a writer of CSV puts them, and where it does not.
        ('text\tlabel\n"say ""a"""\t1\nb\t0\n', ['say "a"', "b"]),
        ('text\tlabel\n""\t1\n', [""]),
        ('text\tlabel\n"a"\t1\nb\t0\n', ['"a"', "b"]),
        ('text\tlabel\n"say ""a"""\t1\n"b"\t0\n', ['"say ""a"""', '"b"']),
        ('text\tlabel\n"say ""a"""\t1\n5" b\t0\n', ['"say ""a"""', '5" b']),
        # Excel puts fields with a comma in quotes.
        ('text\tlabel\n"a, b"\t1\n"say ""c"""\t0\n', ["a, b", 'say "c"']),
        ('text\tlabel\n"a, b"\t1\nc, d\t0\n', ['"a, b"', "c, d"]),
        ('text\tlabel\n"a, b"\t1\nc\t0\n', ['"a, b"', "c"]),
        # One column: another quote tells whether lines are rows.
        ('text\n"a\nb"\n5" c\n', ['"a', 'b"', '5" c']),
        # A header in quotes: all is CSV.
        ('"text"\t"label"\n"a"\t"1"\n"b\t1\nc"\t"0"\n', ["a", "b\t1\nc"]),
        # Lines and their ends.
        ("\ufefftext\tlabel\r\na\t1\r\n\r\nb\t0", ["a", "b"]),
        ("text\tlabel\r\r\na\t1\r\r\nb\t0\r\r\n", ["a", "b"]),
        ("text\tlabel\ra\t1\rb\t0\r", ["a", "b"]),
        ("text\tlabel\na\rb\t1\nc\u2028d\x85\t0\n", ["a\rb", "c\u2028d\x85"]),
        ("text\tlabel\na\t1\n\t\n \tb\n", ["a", "", " "]),
    ],
)
def test_the_two_ways_of_tsv(content: str, texts: list[str], rows_of: Callable[..., Any]) -> None:
    assert rows_of(content, "two.tsv")["text"] == texts


def test_csv_with_other_line_ends(rows_of: Callable[..., Any]) -> None:
    assert rows_of('text,label\r"a\rb",1\rc,0\r', "mac.csv")["text"] == ["a\nb", "c"]
    assert rows_of("text,label\r\r\na,1\r\r\nb,0\r\r\n", "twice.csv")["text"] == ["a", "b"]
    assert rows_of("text,label\na\rb,1\n", "inside.csv")["text"] == ["a\rb"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", 'text\tlabel\na\t1\n"b"\n5" c\n', "a.tsv, row 2 (line 3): 1 fields, but the header has 2."),
        ("a.tsv", "text\tlabel\na\t1\t\n", "a.tsv, row 1 (line 2): 3 fields, but the header has 2."),
        ("a.tsv", "text\tlabel\t\na\t1\n", "2 fields, but the header has 3, the last one without a name."),
        ("a.tsv", '"text"\t"label"\n"a" b\t"1"\n', "a.tsv, line 2: a double quote opens a field here, but after the"),
        ("a.tsv", 'text\nb\n"c\nd"\n', "a.tsv, line 4: this double quote may close the one in line 3"),
        ("a.tsv", "text,label\na,1\n", "'text,label' is one column. The separator seems to be ','"),
        ("a.tsv", "\t\na\t1\n", "a.tsv has no header line"),
        ("a.tsv", "text\ttext\n", "a.tsv, line 1: duplicate column 'text'."),
        ("a.csv", 'text,label\nx,0\n\n"a\nb""c,1\nd,0\n', "a.csv, line 4: the double quote that opens a field here is"),
        ("a.csv", 'text,label\n"a\n,0\n"b",1\n', "a.csv, line 2: a double quote opens a field here, but after the"),
        ("a.csv", 'text,label\n"a\n,0\n"b",1\n', "closing one, in line 4, comes 'b\",1'."),
        ("a.csv", 'text,label\n"a,1\nb",1,0\n', "a.csv, row 1 (line 3): 3 fields, but the header has 2."),
        ("a.csv", 'text,label\n"a,1\nb",1,0\n', "The row begins in line 2, with a quote."),
        ("a.csv", "text,label\n\n\na\n", "a.csv, row 1 (line 4): 1 fields, but the header has 2. A field"),
    ],
)
def test_fault_of_csv_and_tsv(name: str, content: str, message: str, fault_of: Callable[..., str]) -> None:
    assert message in fault_of(content, name)


def test_a_row_keeps_its_line(folder: Path) -> None:
    (folder / "lines.csv").write_text('text,label\n"a\nb",1\n\nc,0\n')
    table = read_table(str(folder / "lines.csv"))
    assert [table.place(row).partition(", ")[2] for row in range(2)] == ["row 1 (line 3)", "row 2 (line 5)"]


# --- JSON -------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    frame=frames,
    orient=st.sampled_from(["records", "columns", "index", "split", "table"]),
    names=st.sampled_from(["numbers", "reversed", "words", "named"]),
    suffix=st.sampled_from([".json", ".jsonl"]),
    as_lines=st.booleans(),
)
def test_what_pandas_writes_as_json_is_read_back(
    frame: pandas.DataFrame, orient: Any, names: str, suffix: str, as_lines: bool, rows_of: Callable[..., Any]
) -> None:
    expected = {"text": frame["text"].tolist(), "label": frame["label"].tolist()}
    if names == "reversed":
        frame.index = frame.index[::-1]
    elif names != "numbers":
        frame.index = pandas.Index([f"user {row}" for row in frame.index], name="user" if names == "named" else None)
    content = frame.to_json(orient=orient, lines=as_lines and orient == "records")
    rows = rows_of(str(content), f"frame{suffix}")
    assert rows.pop("user", list(frame.index)) == list(frame.index)
    assert rows == expected


def test_forms_of_json(rows_of: Callable[..., Any]) -> None:
    rows = {"text": ["a", "b"], "label": [1, 0]}
    for content in (
        '{"text": ["a", "b"], "label": [1, 0]}',
        '{"text": {"0": "a", "1": "b"}, "label": {"1": 0, "0": 1}}',
        '{"columns": ["text", "label"], "data": [["a", 1], ["b", 0]]}',
        '{"version": "1", "data": [{"text": "a", "label": 1}, {"text": "b", "label": 0}]}',
        '\n{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}',
    ):
        assert rows_of(content, "a.json") == rows_of(content, "a.jsonl") == rows, content
    assert rows_of('{"text": "a", "labels": ["x", "y"]}', "a.jsonl") == {"text": ["a"], "labels": [["x", "y"]]}
    assert rows_of('{"data": ["a"], "label": [1]}', "a.json") == {"data": ["a"], "label": [1]}
    assert rows_of('{"text": {}, "label": {}}', "a.json") == {"text": [], "label": []}
    assert rows_of("{}", "a.json") == rows_of("[]", "a.json") == {}


def test_an_index_in_json_is_left_out_or_marked(folder: Path) -> None:
    frame = pandas.DataFrame({"text": ["a", "b"], "label": [1, 0]})
    indexes: list[tuple[Any, list[str], set[str]]] = [
        (frame.index, [], set()),
        (pandas.MultiIndex.from_tuples([("x", 1), ("y", 2)]), [], set()),
        (pandas.Index(["x", "y"], name="user"), ["user"], {"user"}),
        (pandas.Index(["x", "x"]), ["index"], {"index"}),  # duplicates: pandas names no primary key
    ]
    for index, kept, marked in indexes:
        frame.set_axis(index, axis=0).to_json(folder / "index.json", orient="table")
        table = read_table(str(folder / "index.json"))
        assert table.column_names == [*kept, "text", "label"]
        assert table.index_columns == marked


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[["a", 1], ["b", 0]]', 'the rows have no column names (orient="values" in pandas). Write'),
        ('{"text": ["a", "b"], "label": [1]}', "column 'label' has 1 rows, but 'text' has 2."),
        (
            '{"text": {"0": "a", "1": "b"}, "label": {"0": 1}}',
            "columns 'text' and 'label' have different rows (2 and 1).",
        ),
        ('{"a": {"x": "b"}, "c": {"x": "d"}}', "unclear which keys are the columns: a, c, or x."),
        ('{"0": {"1": "b"}}', 'in pandas, to_json(orient="records")'),
        ('{"0": "a", "1": "b"}', "one value per row, but no column name"),
        ('{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "'train' is a list of objects."),
        ('{"columns": ["text", "label"], "data": [["a", 1], ["b"]]}', "row 2: 1 values for 2 columns."),
        ('{"columns": ["text", "text"], "data": [["a", 1]]}', "duplicate column 'text'."),
        ('{"columns": [["a", "x"]], "data": [["a"]]}', "the column name ['a', 'x'] is not a string"),
        ('[{"text": "a"}, "b"]', "row 2: expected an object with columns as keys, got 'b'."),
        ('[\n {"text": "a"},\n {"text" "b"}\n]', "line 3, column 10: not valid JSON: Expecting ':' delimiter."),
        ('{\n"text": "a"\n}\n{\n"text": "b"\n}', "line 4, column 1: not valid JSON: Extra data."),
        ('{"text": "a"}\n{"text": "b"} {', "line 2, column 15: not valid JSON: Extra data."),
        ("[" * 100_000, "cannot be read as JSON"),
        ('[{"label": ' + "1" * 5000 + "}]", "cannot be read as JSON"),
    ],
)
def test_fault_of_json(content: str, message: str, fault_of: Callable[..., str]) -> None:
    found = fault_of(content, "a.json")
    assert message in found and len(found) < 400


def test_values_are_shown_in_part(fault_of: Callable[..., str], folder: Path) -> None:
    assert len(fault_of(json.dumps([{"text": "a"}, "long " * 10_000]), "a.json")) < 200
    assert len(fault_of("long header " * 10_000 + ";\n", "a.csv")) < 250
    (folder / "a.json").write_text(json.dumps([{"text": list(range(10_000)), "label": 1}]))
    row, column, wrong = read_table(str(folder / "a.json")).unusable_text(("text",)) or (0, "", "")
    assert (row, column) == (0, "text") and wrong.endswith("..., which is not text") and len(wrong) < 100


def test_json_values_that_are_not_text_or_number(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    for content, message in [
        ('[{"text": "a", "label": "x"}, {"text": NaN, "label": "y"}]', "row 2, column 'text' has no text"),
        ('[{"text": "a", "label": 1.5}, {"text": "b", "label": NaN}]', "the label is nan; expected a finite"),
        ('[{"text": "a", "label": 1.5}, {"text": "b", "label": -Infinity}]', "the label is -inf; expected a finite"),
        ('[{"text": "a", "label": "x"}, {"text": "b \\ud83d", "label": "y"}]', "column 'text' has a lone surrogate"),
    ]:
        file.write_text(content)
        assert message in refusal(train_file=file, do_train=True)


def test_names_that_tell_columns_from_rows() -> None:
    assert {*USUAL_LABEL_COLUMNS}.union(*USUAL_TEXT_COLUMNS) <= USUAL_COLUMNS


# --- files that are something else ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_that_are_something_else(suffix: str, fault_of: Callable[..., str]) -> None:
    name = f"train{suffix}"
    for content, message in [
        (POINTER.encode(), f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull`"),
        (gzip.compress(b"text,label\n", mtime=0), f"{name} is compressed with gzip: decompress it first."),
        (b"PK\x03\x04rest", f"{name} is a zip archive or an Excel workbook"),
        (b"\n<!DOCTYPE html>\n<html>", f"{name} is a web page: download the data file itself."),
    ]:
        assert message in fault_of(content, name)


@pytest.mark.parametrize("suffix", SUFFIXES[2:])
def test_file_without_content(suffix: str, fault_of: Callable[..., str]) -> None:
    assert fault_of("", f"none{suffix}") == f"none{suffix} is empty."


@pytest.mark.parametrize("suffix", SUFFIXES[:-1])
def test_text_that_is_not_utf8(suffix: str, fault_of: Callable[..., str], tmp_path: Path) -> None:
    name, text = f"train{suffix}", '{"text": "é", "label": 1}\n' * 2
    assert f"{name} is not UTF-8 text but UTF-16" in fault_of(text.encode("utf-16"), name)
    assert f"{name}, line 1: contains a NUL character." in fault_of(text.encode("utf-16-le"), name)
    assert f"{name} is not UTF-8 text (line 2: " in fault_of(b'{"text": 1}\n' + text.encode("latin-1"), name)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
    assert f"{name} is a Parquet file" in fault_of((tmp_path / "a.parquet").read_bytes(), name)


def test_lfs_pointer_error(tmp_path: Path) -> None:
    (tmp_path / "pointer").write_text(POINTER)
    (tmp_path / "text").write_text("version https://git-lfs.github.com\n")
    assert "`git lfs pull`" in (lfs_pointer_error(tmp_path / "pointer") or "")
    for path in (tmp_path / "text", tmp_path / "nothing", tmp_path):
        assert lfs_pointer_error(path) is None
