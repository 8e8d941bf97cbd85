"""Finds the text columns and the label column of a table."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import numpy as np

from sparse_accel.data.distinct import distinct_of
from sparse_accel.data.tables import Table
from sparse_accel.errors import UsageError, listed, nearest

USUAL_TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("title", "body"),
    ("text",),
    ("sentence",),
    ("review",),
    ("content",),
)
USUAL_LABEL_COLUMNS = ("label", "labels")
# Documents with a score for a query.
QUERY, DOCUMENT, SCORE = RANKED_COLUMNS = ("query", "document", "score")
_NEVER_TEXT = re.compile(r"_?(id|idx|index|guid|uid)|.*[_ -]id", re.IGNORECASE)
# The end of a name that marks one half of a pair: text_a, question 2, sentenceB. Not the last letter of a word: job.
_HALF = re.compile(r"(.+?)(?:[_ -](1|2|a|b|A|B|pair)|(1|2|A|B))")


def find_text_columns(table: Table, named: Sequence[str] | None, label_column: str | None) -> tuple[str, ...]:
    """Returns the names of the one or two text columns.

    Args:
        table: rows to search.
        named: words of --input_column_names: names, or a pair joined by a comma; a column whose name contains a comma
            takes precedence. None: by rule. Usual names; else two columns whose names form a pair; else the only text
            column. If several are possible, this is an error.
        label_column: never used as text.

    Raises:
        UsageError: a named column does not exist or is the label column, more than two are named, or the rule finds
            none or several.
    """
    if named is None:
        return _by_rule(table, label_column)
    names: list[str] = []
    for word in named:
        names += [word] if word in table.column_names else [name.strip() for name in word.split(",") if name.strip()]
    for name in names:
        check_column(table, name, "--input_column_names")
    if label_column in names:
        raise UsageError(f"column '{label_column}' cannot be both text and label: fix --input_column_names.")
    if not 1 <= len(names) <= 2 or len(set(names)) != len(names):
        raise UsageError(f"--input_column_names: expected one column, or two for pairs; got: {' '.join(named)}.")
    return tuple(names)


def _by_rule(table: Table, label_column: str | None) -> tuple[str, ...]:
    for name in table.index_columns:
        if any(name in usual for usual in USUAL_TEXT_COLUMNS):
            raise UsageError(
                f"{table.name}: column '{name}' is stored as row names (an index). If it is the text, add "
                f"--input_column_names {name}."
            )
    found = [
        name
        for name in table.column_names
        if name not in (label_column, *table.index_columns) and not _NEVER_TEXT.fullmatch(name) and table.is_text(name)
    ]
    for usual in USUAL_TEXT_COLUMNS:
        if len(usual) == 2 and all(name in found for name in usual):
            return usual  # these names are clear enough, whatever the columns contain
    if label_column in table.column_names:
        usual_alone = len(found) == 1 and (found[0],) in USUAL_TEXT_COLUMNS
        found = [name for name in found if usual_alone or not _repeats(table, name, str(label_column))]
    for usual in USUAL_TEXT_COLUMNS:
        if len(usual) == 1 and usual[0] in found:
            halves = [name for name in found if _stem(name) == usual[0]]
            if not halves:
                return usual
            found = [usual[0], *halves]
            break
    pairs = [(one, other) for one in found for other in found if _is_pair(one, other)]
    if len(found) == 1:
        return tuple(found)
    if len(pairs) == 1 and len(found) == 2:
        return pairs[0]
    if not found:
        raise UsageError(
            f"{table.name}: no text column found; the columns are: {listed(table.column_names)}. Name one, or two for "
            "pairs, with --input_column_names."
        )
    quoted = [shlex.quote(name) for name in found[:2]]
    ranked = " If documents are ranked for queries, add --problem_type reranking." if QUERY in found else ""
    raise UsageError(
        f"{table.name} has {len(found)} columns that may be the text: {listed(found)}. Name one, or two for "
        f"pairs, for example --input_column_names {quoted[0]}"
        + (f" or --input_column_names {quoted[0]} {quoted[1]}." if len(found) == 2 else ".")
        + ranked
    )


def _stem(name: str) -> str:
    """Returns a name without the mark of one half of a pair; empty if it has no such mark."""
    half = _HALF.fullmatch(name)
    return half[1] if half else ""


def _is_pair(one: str, other: str) -> bool:
    """Whether two names are the first and second half of a pair: text and text_pair, text_a and text_b, q1 and q2."""
    first, second = _HALF.fullmatch(one), _HALF.fullmatch(other)
    if second is None or (second[2] or second[3]) not in ("2", "b", "B", "pair"):
        return False
    if first is not None and first[1] == second[1]:
        return (first[2] or first[3], second[2] or second[3]) in (("1", "2"), ("a", "b"), ("A", "B"))
    return one == second[1]


def _repeats(table: Table, column: str, label_column: str) -> bool:
    """Whether a column repeats the labels in another spelling: exactly one value per label, each in several rows."""
    labels = table.distinct(label_column)
    texts = distinct_of([str(label) for label in labels.values]).numbers[labels.numbers]
    count = len(np.unique(texts))
    if count > len(table) // 2 or table.has_more_than(count, column):
        return False
    values = table.distinct(column)
    pairs = np.unique(values.numbers.astype(np.int64) * count + texts)
    return len(pairs) == len(values.values) == count


def find_label_column(table: Table, named: str | None, usual: Sequence[str] = USUAL_LABEL_COLUMNS) -> str | None:
    """Returns the label column: the named one, else the first usual one; None if the table has no such column."""
    if named is not None:
        return named if named in table.column_names else None
    return next((name for name in usual if name in table.column_names), None)


def ranks_documents(table: Table) -> bool:
    """Whether the columns are those of documents with a score for a query, and there is no label column."""
    return (
        set(RANKED_COLUMNS) <= set(table.column_names)
        and find_label_column(table, None) is None
        and table.is_text(QUERY)
        and table.is_text(DOCUMENT)
    )


def check_column(table: Table, name: str, flag: str) -> None:
    """Checks that a table has a column.

    Raises:
        UsageError: it does not have it; the message gives the flag, the nearest name and all columns.
    """
    if name not in table.column_names:
        raise UsageError(
            f"{table.name} has no column '{name}' ({flag}).{nearest(name, table.column_names)} "
            f"Its columns are: {listed(table.column_names, 30)}."
        )
