"""Which columns are read: by name, by usual names, or because there is only one that can be the text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_accel.data.columns import find_text_columns
from sparse_accel.data.reading import Rows
from sparse_accel.data.tables import FileTable
from sparse_accel.errors import UsageError

LABELS = [0, 1, 1, 0, 1, 0, 0, 1]


def table(*names: str, index: tuple[str, ...] = (), **columns: list[Any]) -> FileTable:
    """Eight rows; each of `names` is a column of eight different texts."""
    texts = {name: [f"{name} says {row}" for row in range(8)] for name in names}
    rows = Rows({**texts, **columns, "label": list(LABELS)}, [], frozenset(index))
    return FileTable("rows.csv", rows, typed=True)


def repeated(*words: str) -> list[str]:
    """The label of each row in other words."""
    return [words[label] for label in LABELS]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("headline",), ("headline",)),
        (("text", "text_pair"), ("text", "text_pair")),
        (("text_b", "text_a"), ("text_a", "text_b")),
        (("q2", "q1"), ("q1", "q2")),
        (("sentenceA", "sentenceB"), ("sentenceA", "sentenceB")),
        (("text", "text2"), ("text", "text2")),
        (("title", "body"), ("title", "body")),
        (("text", "title", "url"), ("text",)),
        (("text", "textb"), ("text",)),
        (("comment", "tweet_id", "uid"), ("comment",)),
    ],
)
def test_columns_by_their_names(names: tuple[str, ...], found: tuple[str, ...]) -> None:
    assert find_text_columns(table(*names), None, "label") == found


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("headline", "author"), "2 columns that may be the text: headline, author"),
        (("a", "b", "c"), "3 columns that may be the text: a, b, c"),
        (("question", "context"), "--input_column_names question or --input_column_names question context"),
        (("#1 String", "#2 Text"), "--input_column_names '#1 String' or --input_column_names '#1 String' '#2 Text'"),
        (("comment", "annotator_1", "annotator_2"), "3 columns that may be the text"),
        (("text", "text_1", "text_2"), "3 columns that may be the text"),
        (("text", "text2", "text_2"), "3 columns that may be the text"),
        (("sentence", "sentence_1"), "2 columns that may be the text"),
        (("job", "jo"), "2 columns that may be the text"),
    ],
)
def test_a_guess_between_several_is_an_error(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        find_text_columns(table(*names), None, "label")


def test_a_column_that_repeats_the_label_is_never_text() -> None:
    assert find_text_columns(table("headline", category=repeated("bad", "good")), None, "label") == ("headline",)
    assert find_text_columns(table("headline", stars=repeated("*", "**")), None, "label") == ("headline",)
    with pytest.raises(UsageError, match="no text column found; the columns are: category, label"):
        find_text_columns(table(category=repeated("bad", "good")), None, "label")
    assert find_text_columns(table(category=repeated("bad", "good")), ["category"], "label") == ("category",)
    assert find_text_columns(table("tweet", text=repeated("bad", "good")), None, "label") == ("tweet",)
    assert find_text_columns(table("text", text2=repeated("bad", "good")), None, "label") == ("text",)
    pair = table("text", text_pair=repeated("bad film", "good film"))
    assert find_text_columns(pair, None, "label") == ("text", "text_pair"), "their names say that they are a pair"
    alone = table(text=repeated("a bad film", "a good film"))  # as people write to try things out
    assert find_text_columns(alone, None, "label") == ("text",)


def test_usual_names_are_text_only_where_they_hold_text() -> None:
    numbers: dict[str, Any] = {"sentence1": list(range(8)), "sentence2": list(range(8))}
    assert find_text_columns(table("text", **numbers), None, "label") == ("text",)


def test_the_text_as_row_names_is_not_passed_over() -> None:
    with pytest.raises(UsageError, match=r"column 'text' is stored as row names .* --input_column_names text"):
        find_text_columns(table("text", "comment", index=("text",)), None, "label")


def test_row_names_are_never_text() -> None:
    rows = table("headline", "user", "Unnamed: 0", index=("user",))
    assert find_text_columns(rows, None, "label") == ("headline",)
    assert find_text_columns(rows, ["user"], "label") == ("user",)


@given(st.lists(st.sampled_from(["text", "one", "two", "id", "Unnamed: 0", "category"]), min_size=1, unique=True))
def test_whatever_is_found_is_text(names: list[str]) -> None:
    texts = [name for name in names if name != "category"]
    labelled: dict[str, Any] = {"category": repeated("no", "yes")} if "category" in names else {}
    try:
        found = find_text_columns(table(*texts, **labelled), None, "label")
    except UsageError as error:
        candidates = {name for name in texts if name not in ("id", "Unnamed: 0")}
        assert len(candidates) != 1 and "text" not in names, error
        assert all(name in str(error) for name in candidates)
    else:
        assert found == (("text",) if "text" in names else tuple(set(found) & {"one", "two"}))
