"""Parquet files: columns of every type, declared classes, row names, and columns that nobody asks for."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from data_files import any_texts, load, refusal
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_accel.data.tables import DatasetTable, read_table
from sparse_accel.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def parquet(columns: dict[str, Any], file: Path) -> str:
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return str(file)


TEXT_TYPES = {
    "string": pyarrow.string(),
    "large_string": pyarrow.large_string(),
    "string_view": pyarrow.string_view(),
    "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    "json": pyarrow.json_(),
}


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(any_texts, min_size=1, max_size=6), kind=st.sampled_from(["pandas", "category", *TEXT_TYPES]))
def test_text_of_every_type_is_read_back(texts: list[str], kind: str, folder: Path) -> None:
    file = folder / "text.parquet"
    if kind in TEXT_TYPES:
        parquet({"text": pyarrow.array(texts, TEXT_TYPES[kind])}, file)
    else:
        pandas.DataFrame({"text": texts}, dtype="category" if kind == "category" else None).to_parquet(file)
    table = read_table(str(file))
    assert table.is_text("text") and table.unusable_text(("text",)) is None
    assert table.values("text") == table.texts(("text",))["text"][:] == texts


LABELS: list[tuple[list[Any], pyarrow.DataType, list[Any]]] = [
    *(([1, None, 0], getattr(pyarrow, f"{sign}int{width}")(), [1, None, 0]) for sign in ("", "u") for width in (8, 64)),
    ([2**63, 0], pyarrow.uint64(), [2**63, 0]),
    ([True, False, None], pyarrow.bool_(), [True, False, None]),
    ([True, False], pyarrow.bool8(), [True, False]),
    *(([1.5, None], kind, [1.5, None]) for kind in (pyarrow.float16(), pyarrow.float32(), pyarrow.float64())),
    *(([Decimal(7), None], kind, [7, None]) for kind in (pyarrow.decimal32(5), pyarrow.decimal128(5))),
    ([Decimal("1.50"), None], pyarrow.decimal256(50, 2), [1.5, None]),
    *((["x", None], kind, ["x", None]) for name, kind in TEXT_TYPES.items() if name != "json"),
    *(
        ([["x", "y"], None], kind, [["x", "y"], None])
        for make in (pyarrow.list_, pyarrow.large_list, pyarrow.list_view, pyarrow.large_list_view)
        for kind in (make(pyarrow.string()), make(pyarrow.large_string()))
    ),
    ([["x", "y"], []], pyarrow.list_(TEXT_TYPES["dictionary"]), [["x", "y"], []]),
    ([[Decimal(1), Decimal(0)]], pyarrow.list_(pyarrow.decimal128(3)), [[1, 0]]),
    ([[1, 0], [0, 1]], pyarrow.list_(pyarrow.int8(), 2), [[1, 0], [0, 1]]),
    ([None, None], pyarrow.null(), [None, None]),
]


@pytest.mark.parametrize(("values", "kind", "expected"), LABELS, ids=lambda value: str(value)[:40])
def test_label_of_every_type(values: list[Any], kind: pyarrow.DataType, expected: list[Any], folder: Path) -> None:
    column = pyarrow.array([int(each) for each in values], pyarrow.int8()) if kind == pyarrow.bool8() else values
    array = kind.wrap_array(column) if kind == pyarrow.bool8() else pyarrow.array(column, kind)
    found = read_table(parquet({"label": array}, folder / "label.parquet")).values("label")
    assert found == expected
    assert [type(each) for each in found] == [type(each) for each in expected]


@pytest.mark.parametrize(
    "value", [datetime.date(2020, 1, 2), datetime.time(3), datetime.datetime(2020, 1, 2), b"x", {"x": 1}], ids=repr
)
def test_value_that_is_not_a_label(value: Any, tmp_path: Path) -> None:
    file = parquet({"text": ["a", "b"], "label": [value, value]}, tmp_path / "train.parquet")
    assert "row 1, column 'label': a label cannot be" in refusal(train_file=file, do_train=True)


MAP = pyarrow.array([[("k", "v")], []], pyarrow.map_(pyarrow.string(), pyarrow.string()))


def test_columns_that_are_not_asked_for_do_not_matter(tmp_path: Path) -> None:
    features = Features(text=Value("string"), label=ClassLabel(names=["pos", "neg", "unused"]))
    stored = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    stored.to_parquet(tmp_path / "stored.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "stored.parquet")
    views = pyarrow.array([["a"], []], pyarrow.list_view(pyarrow.string()))
    for name, column in {"headers": MAP, "views": views, "text.b": pyarrow.array([1, 2])}.items():
        table = table.append_column(name, column)
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")

    data = load(train_file=tmp_path / "train.parquet", do_train=True)
    assert data.label_names == ["pos", "neg", "unused"] and data.splits["train"]["label"][:] == ["neg", "pos"]
    found = read_table(str(tmp_path / "train.parquet"))
    assert found.column_names == ["text", "label", "headers", "views", "text.b"] and len(found) == 2
    assert found.texts(("text",))[:] == {"text": ["a", "b"]}

    for flags in ({"label_column_name": "headers"}, {"input_column_names": ("headers",)}):
        message = refusal(train_file=tmp_path / "train.parquet", do_train=True, **flags)
        assert "column 'headers' has the type map<string, string" in message


def test_declared_classes_in_lists_are_kept(folder: Path) -> None:
    classes = ClassLabel(names=["joy", "anger"])
    for kind in (List(classes), LargeList(classes), List(classes, length=2)):
        stored = Dataset.from_dict({"labels": [[1, 0]]}, features=Features(labels=kind))
        stored.to_parquet(folder / "classes.parquet")
        assert read_table(str(folder / "classes.parquet")).class_names("labels") == ["joy", "anger"]
    plain = parquet({"labels": pyarrow.array([1])}, folder / "plain.parquet")
    assert read_table(plain).class_names("labels") is None
    for stored_features in ("[]", '{"info": []}', '{"info": {"features": {"labels": [1]}}}', "{"):
        table = pyarrow.table({"labels": [1]}).replace_schema_metadata({"huggingface": stored_features})
        pyarrow.parquet.write_table(table, folder / "plain.parquet")
        assert read_table(plain).class_names("labels") is None


def test_row_names_are_marked(folder: Path) -> None:
    frame = pandas.DataFrame({"text": ["a", "b"], "Unnamed: 0": [0, 1]})
    indexes: list[tuple[Any, set[str]]] = [
        (frame.index, set()),
        (pandas.Index(["x", "y"]), {"__index_level_0__"}),
        (pandas.Index(["x", "y"], name="user"), {"user"}),
    ]
    for index, marked in indexes:
        frame.set_axis(index, axis=0).to_parquet(folder / "index.parquet")
        assert read_table(str(folder / "index.parquet")).index_columns == {"Unnamed: 0", *marked}
    frame.to_csv(folder / "index.csv", index=False)
    assert read_table(str(folder / "index.csv")).index_columns == {"Unnamed: 0"}
    (folder / "none.csv").write_text("text,Unnamed,Unnamed: a\na,b,c\n")
    assert read_table(str(folder / "none.csv")).index_columns == frozenset()


def test_tables_without_names_rows_or_columns(tmp_path: Path) -> None:
    twins = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    for table, message in [(twins, "duplicate column 'text'."), (pyarrow.table({}), "has no columns.")]:
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(UsageError, match=message):
            read_table(str(tmp_path / "a.parquet"))
    empty = parquet({"text": pyarrow.array([], "string"), "label": pyarrow.array([], "int8")}, tmp_path / "b.parquet")
    assert "b.parquet has no rows." in refusal(train_file=empty, do_train=True)


def test_parquet_text_that_is_not_utf8(folder: Path) -> None:
    _, offsets, content = pyarrow.array([b"a", b"caf\xe9"]).buffers()
    file = parquet({"text": pyarrow.StringArray.from_buffers(2, offsets, content)}, folder / "latin.parquet")
    assert read_table(file).unusable_text(("text",)) == (1, "text", "has text that is not UTF-8")
    with pytest.raises(UsageError, match="column 'text' cannot be read"):
        read_table(file).values("text")


def test_datasets_columns_are_read_as_those_of_files() -> None:
    columns = {"text": pyarrow.array(["a", "b"], "string_view"), "label": pyarrow.array([Decimal(1), Decimal(0)])}
    table = DatasetTable("rows", Dataset(pyarrow.table(columns | {"Unnamed: 0.1": ["x", "y"]})).select([1, 0]))
    assert table.is_text("text") and table.unusable_text(("text",)) is None
    assert table.values("text") == table.texts(("text",))["text"][:] == ["b", "a"]
    assert table.values("label") == [0, 1] and table.index_columns == {"Unnamed: 0.1"}
    with pytest.raises(UsageError, match=r"rows, column 'label' has the type decimal128.*, which is not text"):
        table.unusable_text(("label",))


def test_columns_of_two_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As damaged pages give them; tests/fuzz/corpus has such a file."""
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [0, 1]}), file)
    read = pyarrow.parquet.ParquetFile.read
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read", lambda self, **asked: read(self, **asked).slice(0, 1))
    with pytest.raises(UsageError, match=r"rows\.parquet is damaged: column 'text' has 1 rows, and the file 2"):
        read_table(str(file)).texts(("text",))
