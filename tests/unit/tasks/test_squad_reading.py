"""Questions of SQuAD files: every format gives the same rows, and an answer that is not in its place is explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from data_files import write
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from sparse_accel.data.reading import Rows
from sparse_accel.data.tables import DatasetTable, FileTable
from sparse_accel.errors import NoLabels, UsageError
from sparse_accel.tasks.question_answering import answer_offsets
from sparse_accel.tasks.question_answering.answer_offsets import find_fault
from sparse_accel.tasks.question_answering.reading import SquadTable, has_answers, read_questions, read_squad

CONTEXT = "Zoë met Paul in Paris."
PARIS = {"text": "Paris", "answer_start": 16}
FLAT: list[dict[str, Any]] = [
    {"id": "a", "question": " Where?", "context": CONTEXT, "answers": [PARIS]},
    {"id": "b", "question": "Who?", "context": CONTEXT, "answers": [{"text": "Paul", "answer_start": 8}] * 2},
    {"id": "c", "question": "When?", "context": "In May.", "answers": []},
]
EXPECTED = {
    "id": ["a", "b", "c"],
    "question": [" Where?", "Who?", "When?"],
    "context": [CONTEXT, CONTEXT, "In May."],
    "answer_texts": [["Paris"], ["Paul", "Paul"], []],
    "answer_starts": [[16], [8, 8], []],
}


def nested(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows as a SQuAD file: an article for each context."""
    articles: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        articles.setdefault(row["context"], []).append({key: row[key] for key in row if key != "context"})
    return {
        "version": "v2.0",
        "data": [{"title": "t", "paragraphs": [{"context": text, "qas": qas}]} for text, qas in articles.items()],
    }


def in_lists(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with answers as the Hub has them."""
    names = ("text", "answer_start")
    return [row | {"answers": {name: [each[name] for each in row["answers"]] for name in names}} for row in rows]


def read(rows: list[dict[str, Any]], **options: Any) -> dict[str, list[Any]]:
    """The checked rows of a table."""
    names = dict.fromkeys(name for row in rows for name in row)
    table = FileTable("rows.jsonl", Rows({name: [row.get(name) for row in rows] for name in names}, []), typed=True)
    return read_questions(table, **{"answers": True, "with_negatives": False, **options}).to_dict()


def refused(*rows: dict[str, Any], **options: Any) -> str:
    """The message for rows that replace values of a good one."""
    with pytest.raises(UsageError) as caught:
        read([{**FLAT[0], "id": f"q{number}", **row} for number, row in enumerate(rows, 1)], **options)
    return str(caught.value)


def answered(text: Any, start: Any, context: str = CONTEXT) -> dict[str, Any]:
    return {"context": context, "answers": {"text": [text], "answer_start": [start]}}


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["nested", "articles", "json", "data", "jsonl", "lists.jsonl", "parquet", "hub"])
def test_every_format_gives_the_same_rows(form: str, tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    if form in ("nested", "articles", "data"):
        content = {"nested": nested(FLAT), "articles": nested(FLAT)["data"], "data": {"version": 1, "data": FLAT}}
        file.write_text(json.dumps(content[form]))
    else:
        rows = FLAT if form in ("json", "jsonl") else in_lists(FLAT)
        file = write(tmp_path / f"train.{form}", rows)
    table = DatasetTable("squad", Dataset.from_parquet(str(file))) if form == "hub" else read_squad(str(file))
    assert has_answers(table) and len(table) == 3
    found = read_questions(table, answers=True, with_negatives=True)
    assert found.to_dict() == EXPECTED
    unlabelled = read_questions(table, answers=False, with_negatives=False)
    assert unlabelled.to_dict() == {name: EXPECTED[name] for name in ("id", "question", "context")}


def test_types_do_not_depend_on_the_rows() -> None:
    nothing = FileTable("rows", Rows({"id": [1], "question": ["q"], "context": ["c"], "answers": [[]]}, []), typed=True)
    some = FileTable("rows", Rows({name: [FLAT[0][name]] for name in FLAT[0]}, []), typed=True)
    found = [read_questions(table, answers=True, with_negatives=True) for table in (nothing, some)]
    assert found[0].features == found[1].features
    assert found[0]["id"][:] == ["1"]


def test_nested_files_give_paths_as_places(tmp_path: Path) -> None:
    file = tmp_path / "dev.json"
    file.write_text(json.dumps(nested(FLAT)))
    table = read_squad(str(file))
    assert isinstance(table, SquadTable) and "is_impossible" not in table.column_names
    assert table.place(1) == f"{file}, data[0].paragraphs[0].qas[1]"
    assert table.place(2, "answers") == f"{file}, data[1].paragraphs[0].qas[0], 'answers'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": [{"paragraphs": 3}]}, "data[0]: expected an object with a list 'paragraphs', got 3."),
        ({"data": [{"paragraphs": []}, 7]}, "data[1]: expected an object with a list 'paragraphs', got 7."),
        (
            {"data": [{"paragraphs": [{"context": "c"}]}]},
            "data[0].paragraphs[0]: expected an object with a list 'qas', got {'context': 'c'}.",
        ),
        (
            [{"paragraphs": [{"context": "c", "qas": ["q"]}]}],
            "[0].paragraphs[0].qas[0]: expected an object with 'question', got 'q'.",
        ),
    ],
)
def test_nested_files_of_wrong_form(content: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError) as caught:
        read_squad(str(file))
    assert str(caught.value) == f"{file}, {message}"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    with pytest.raises(UsageError, match=r"cannot be read: .*No such file"):
        read_squad(str(file))
    file.write_text("")
    with pytest.raises(UsageError, match="is empty"):
        read_squad(str(file))
    file.write_text('{"data": [{"paragraphs": [')
    with pytest.raises(UsageError, match="line 1, column 27: not valid JSON"):
        read_squad(str(file))
    file.write_bytes('{"paragraphs": "é"}'.encode("latin-1"))
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_squad(str(file))


# --- columns and values -----------------------------------------------------------------------------------------------


def test_missing_columns(tmp_path: Path) -> None:
    row = {key: FLAT[0][key] for key in ("id", "question", "context")}
    assert read([row], answers=False)["id"] == ["a"]
    with pytest.raises(NoLabels, match=r"rows\.jsonl has no column 'answers'; its columns are: id, question, context"):
        read([row])
    with pytest.raises(UsageError, match=r"has no column 'context'; .* Did you mean 'contexts'"):
        read([{"id": "a", "question": "q", "contexts": "c", "answers": []}])
    for row in ({"title": "t", "paragraphs": []}, {"version": "1.1", "data": []}):
        with pytest.raises(UsageError, match=r"no column 'id'; .* Its rows are nested: give one nested .json file per"):
            read([row])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": None}, "row 1: the id is missing\nTo fix this: fill or delete these rows."),
        ({"id": " "}, "row 1, id ' ': the id is empty\nTo fix"),
        ({"id": 1.5}, "row 1, id 1.5: the id is 1.5, which is not text\nTo fix this: write each id as text."),
        ({"question": ""}, "row 1, id 'q1': the question is empty\n"),
        ({"question": None}, "the question is missing\n"),
        ({"question": ["Who?"]}, "the question is ['Who?'], which is not text\n"),
        ({"context": "\n"}, "the context is empty\n"),
        ({"context": None}, "the context is missing\n"),
        ({"context": "\ud800Paris"}, "the context has a lone surrogate (half of a \\u pair)\n"),
        ({"answers": None}, "the answers are missing (null)\n"),
        ({"answers": "Paris"}, "the answers are 'Paris'\nTo fix this: write answers as {"),
        ({"answers": ["Paris"]}, "the answers are ['Paris']\n"),
        ({"answers": {"text": "Paris", "answer_start": 16}}, "the answers are {'text': 'Paris', 'answer_start': 16}\n"),
        ({"answers": {"text": ["Paris"], "answer_start": []}}, "the answers have 1 texts and 0 offsets\n"),
        ({"answers": [{"text": "Paris"}]}, "the answer_start of answer 1 ('Paris') is None\n"),
        (answered(None, 16), "the text of answer 1 is None\n"),
        (answered(" ", 3), "the text of answer 1 is ' '\n"),
        (answered("Paris", 16.0), "the answer_start of answer 1 ('Paris') is 16.0\n"),
        (answered("Paris", True), "is True\nTo fix this: write each answer_start as an integer"),
        (answered("Paris", -1), "is -1\n"),
        ({"is_impossible": True}, "is_impossible is true, but it has 1 answer\n"),
        ({"is_impossible": False, "answers": []}, "is_impossible is false, but it has no answer\n"),
        ({"is_impossible": "no"}, "is_impossible is 'no'\n"),
        ({"answers": []}, "it has no answer\nTo fix this: add --version_2_with_negative if"),
        ({"is_impossible": True, "answers": []}, "it has no answer\n"),
    ],
)
def test_wrong_values(row: dict[str, Any], message: str) -> None:
    found = refused(row)
    assert found.startswith("rows.jsonl: 1 of 1 question cannot be used:\n  row 1")
    assert message in found


def test_questions_without_answers() -> None:
    rows = [{**FLAT[2], "is_impossible": True}, {**FLAT[0], "is_impossible": False}]
    assert read(rows, with_negatives=True)["answer_texts"] == [[], ["Paris"]]
    assert read(rows, answers=False)["id"] == ["c", "a"]
    assert "it has 1 answer" in refused({"is_impossible": True}, with_negatives=True)
    assert "it has no answer" in refused({"is_impossible": False, "answers": []}, with_negatives=True)


def test_duplicate_ids(tmp_path: Path) -> None:
    assert "row 3, id 'x': the id is a duplicate: row 2 has it too" in refused({}, {"id": "x"}, {"id": "x"})
    assert "row 2, id 1: the id is a duplicate: row 1 has it too" in refused({"id": "1"}, {"id": 1})
    file = tmp_path / "train.json"
    file.write_text(json.dumps(nested([FLAT[0], FLAT[0] | {"context": f"{CONTEXT} "}])))
    with pytest.raises(UsageError, match=r"data\[1\].*duplicate: data\[0\].paragraphs\[0\].qas\[0\] has it too"):
        read_questions(read_squad(str(file)), answers=False, with_negatives=False)


def test_many_wrong_rows_are_counted() -> None:
    found = refused(*[answered("Paris", 17)] * 4, {"question": ""}, answered("Rome", 3), {}, answered("Paul", 9))
    assert found.splitlines() == [
        "rows.jsonl: 7 of 8 questions cannot be used. The first 3 of them:",
        *(
            f"  row {row}, id 'q{row}': answer 1 is 'Paris' at 17, but the context has 'aris.' there: 17 counts UTF-8 "
            "bytes; in characters it is 16"
            for row in (1, 2, 3)
        ),
        f"To fix this: {answer_offsets.BYTES} (5 of 7); fill or delete these rows (1 of 7); "
        f"{answer_offsets.NOT_THERE} (1 of 7).",
    ]
    long = "x" * 400
    worst = [{"id": long, **answered(f"{long}y", 1, long)}, {"id": f"{long}z", "question": {"q": long}}]
    assert len(refused(*worst, answered(long, 1, f" {long}"), answered("Paris", 17), {"answers": None})) < 2000


# --- answers in their place -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "text", "start", "what", "remedy"),
    [
        (CONTEXT, "Paris", 17, "has 'aris.' there: 17 counts UTF-8 bytes; in characters it is 16", "BYTES"),
        ("🎉 in Paris", "Paris", 6, "has 'aris' there: 6 counts UTF-16 units; in characters it is 5", "UTF16"),
        ("in Paris", "Paris", 4, "has 'aris' there: it is at 3, so the offset is off by one", "OFF_BY_ONE"),
        ("in Paris", "Paris", 2, "has ' Pari' there: it is at 3, and white space is between", "WHITE_SPACE"),
        ("\n  Paris", "Paris", 0, "has '\\n  Pa' there: it is at 3, and white space is between", "WHITE_SPACE"),
        ("in Paris", " Paris ", 3, "without the white space at its ends it is at 3", "WHITE_SPACE"),
        ("in Paris.", "Paris", 90, "but the context ends at 9: it is at 3", "ELSEWHERE"),
        ("a b a b a c", "a", 6, "has 'b' there: it is at 4; 3 places in all", "ELSEWHERE"),
        ("in Paris", "paris", 3, "the context has it with another letter case", "ALTERED"),
        ("New\n York", "New York", 0, "the context has it with another white space", "ALTERED"),
        ("Zoe\u0308", "Zoë", 0, "the context has it with another Unicode normalization", "ALTERED"),
        ("in Paris", "Rome", 3, "'Rome' at 3, but the context has 'Pari' there, and nowhere else", "NOT_THERE"),
    ],
)
def test_causes(context: str, text: str, start: int, what: str, remedy: str) -> None:
    fault = find_fault(context, text, start)
    assert fault is not None and what in fault.what
    assert fault.remedy == getattr(answer_offsets, remedy)
    assert f"answer 1 is {fault.what}\nTo fix this: {fault.remedy}." in refused(answered(text, start, context))


texts = st.text("ab é😀\n", min_size=1, max_size=12)


@given(texts, texts.filter(str.strip), st.integers(0, 14))
def test_a_fault_is_found_exactly_if_there_is_one(context: str, text: str, start: int) -> None:
    fault = find_fault(context, text, start)
    assert (fault is None) == (context[start : start + len(text)] == text)
    if fault is not None and "nowhere" in fault.what:
        assert text not in context


@given(texts, texts.filter(str.strip), texts, st.sampled_from([("utf-8", 1, "BYTES"), ("utf-16-le", 2, "UTF16")]))
def test_offsets_in_other_units_are_recognized(before: str, text: str, after: str, unit: tuple[str, int, str]) -> None:
    encoding, size, remedy = unit
    context = before + text + after
    offset = len(before.encode(encoding)) // size
    fault = find_fault(context, text, offset)
    if fault is not None:
        # An offset in bytes may be one of another place in UTF-16 units, but not the other way around.
        assert fault.remedy == getattr(answer_offsets, remedy) or (remedy == "UTF16" and "in characters" in fault.what)
        if fault.remedy == answer_offsets.BYTES and remedy == "BYTES":
            assert fault.what.endswith(f"in characters it is {len(before)}")


def test_rows_of_parquet_name_the_row(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    rows = in_lists([FLAT[0], FLAT[1] | {"answers": [{"text": "Paul", "answer_start": 9}]}])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    with pytest.raises(UsageError) as caught:
        read_questions(read_squad(str(file)), answers=True, with_negatives=False)
    assert "\n  row 2, id 'b': answer 1 is 'Paul' at 9, but the context has 'aul ' there" in str(caught.value)
