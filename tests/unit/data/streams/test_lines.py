"""Lines of text files and their places."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from data_files import any_texts
from hypothesis import given
from hypothesis import strategies as st

from sparse_accel.data.lines import json_texts_from, lines_from
from sparse_accel.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


def refused(file: Path, offset: int = 0, column: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        list(json_texts_from(str(file), column, offset) if column else lines_from(str(file), offset))
    message = str(caught.value)
    assert str(file) in message
    return message


@given(st.lists(any_texts, min_size=1, max_size=6).map("\n".join).filter(str.strip), st.booleans())
def test_lines_are_those_between_line_feeds(folder: Path, content: str, marked: bool) -> None:
    """With numbers from the beginning, and the same lines without numbers from the offset of any of them."""
    file = folder / "lines.txt"
    file.write_bytes(content.encode("utf-8-sig" if marked and content[0] != "\ufeff" else "utf-8"))
    ends_with_line_feed = content.endswith("\n")
    expected = [line.removesuffix("\r") for line in content.removeprefix("\ufeff").split("\n")]
    found = list(lines_from(str(file)))
    assert [text for *_, text in found] == expected[:-1] if ends_with_line_feed else expected
    assert [number for _, number, _ in found] == list(range(1, len(found) + 1))
    for place, (offset, _, _) in enumerate(found[1:], start=1):
        assert list(lines_from(str(file), offset)) == [(start, None, text) for start, _, text in found[place:]]


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (b"", ["empty"]),
        (b"\n \r\n\t\n", ["no text"]),
        (b"\xef\xbb\xbf\n", ["no text"]),
        (gzip.compress(b"text", mtime=0), ["gzip"]),
        ("text".encode("utf-16"), ["UTF-16"]),
        ("text\n".encode("utf-16-be"), ["line 1", "NUL"]),
        (b"one\ntwo\0\n", ["line 2", "NUL"]),
        (b"one\n\xc3\xa9t\xe9\n", ["line 2", "byte 4 of the line"]),
        (b"one\ntwo \xed\xa0\x80\n", ["line 2", "byte 5 of the line"]),
        (b"one\nthe end \xc3", ["line 2", "byte 9 of the line"]),
    ],
)
def test_files_that_are_not_text(tmp_path: Path, content: bytes, places: list[str]) -> None:
    file = tmp_path / "corpus.txt"
    file.write_bytes(content)
    message = refused(file)
    assert all(place in message for place in places), message


def test_places_from_an_offset_are_bytes(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_bytes(b"one\ntwo\n\xff\n")
    assert "line at byte 8" in refused(file, 4)


def test_an_offset_is_the_beginning_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_bytes(b"one\ntwo\n")
    assert "byte 5" in refused(file, 5)
    assert "byte 90" in refused(file, 90)


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "none.txt")
    assert "cannot be read" in refused(tmp_path / "none.txt", 4)


def test_a_page_of_blank_lines_before_the_text(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_bytes(b"\n" * 200_000 + b"text")
    assert list(lines_from(str(file)))[-1] == (200_000, 200_001, "text")


def test_a_column_of_json_lines(tmp_path: Path) -> None:
    """Numbers and offsets count blank lines and nulls, which are left out; an empty text is a text."""
    file = tmp_path / "corpus.jsonl"
    file.write_bytes('{"text": "é\\n\\u2028"}\r\n\n{"text": null}\n{"id": 1, "text": ""}'.encode())
    assert list(json_texts_from(str(file), "text")) == [(0, 1, "é\n\u2028"), (40, 4, "")]


@pytest.mark.parametrize(
    ("line", "places"),
    [
        ('{"text": 1', ["line 2, column 11", "not valid JSON"]),
        ('["text"]', ["line 2", "object"]),
        ('{"body": "b", "id": 2}', ["line 2", "'text'", "body, id"]),
        ('{"text": 5}', ["line 2, column 'text'", "5"]),
        ('{"text": "\\ud83d"}', ["line 2, column 'text'", "surrogate"]),
        ("[" * 100_000, ["line 2", "JSON"]),
    ],
)
def test_lines_without_the_column(tmp_path: Path, line: str, places: list[str]) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text(json.dumps({"text": "one"}) + "\n" + line + "\n")
    message = refused(file, column="text")
    assert all(place in message for place in places), message
