"""Which columns hold the text, and which the labels."""

from __future__ import annotations

from collections.abc import Sequence

from sparse_accel.errors import UsageError, nearest
from sparse_accel.tasks.tables import Table

USUAL_TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text",),
    ("sentence",),
    ("review",),
    ("content",),
)
USUAL_LABEL_COLUMNS = ("label", "labels")
_NEVER_TEXT = ("id", "idx", "index", "guid", "uid")


def find_text_columns(table: Table, named: Sequence[str] | None, label_column: str | None) -> tuple[str, ...]:
    """The one or two columns of text.

    Args:
        table: rows to look at.
        named: words of --input_column_names: names, or a pair joined by a comma. A column whose own name has a comma in
            it is found first. None: by rule. Usual names, else all columns of text if these are one or two.
        label_column: never taken as text.

    Raises:
        UsageError: a named column is not there, more than two are named, or the rule finds none or too many.
    """
    if named is None:
        return _by_rule(table, label_column)
    names: list[str] = []
    for word in named:
        names += [word] if word in table.column_names else [name.strip() for name in word.split(",") if name.strip()]
    for name in names:
        check_column(table, name, "--input_column_names")
    if label_column in names:
        raise UsageError(f"column '{label_column}' cannot be both text and label: see --input_column_names.")
    if not 1 <= len(names) <= 2 or len(set(names)) != len(names):
        raise UsageError(f"--input_column_names takes one column, or two for pairs, not: {' '.join(named)}.")
    return tuple(names)


def _by_rule(table: Table, label_column: str | None) -> tuple[str, ...]:
    free = [name for name in table.column_names if name != label_column]
    for usual in USUAL_TEXT_COLUMNS:
        if all(name in free for name in usual):
            return usual
    found = [name for name in free if name.lower() not in _NEVER_TEXT and table.is_text(name)]
    if len(found) in (1, 2):
        return tuple(found)
    what = f"{len(found)} columns of text" if found else "no column of text"
    raise UsageError(
        f"{table.name} has {what} beside the labels; its columns are: {', '.join(table.column_names)}. "
        "Name one, or two for pairs, with --input_column_names."
    )


def find_label_column(table: Table, named: str | None) -> str | None:
    """The column of labels: the named one, else `label` or `labels`; None where the table has no such column."""
    if named is not None:
        return named if named in table.column_names else None
    return next((name for name in USUAL_LABEL_COLUMNS if name in table.column_names), None)


def check_column(table: Table, name: str, flag: str) -> None:
    """Raises UsageError when the table lacks a column, with the nearest name and all there are."""
    if name not in table.column_names:
        raise UsageError(
            f"{table.name} has no column '{name}' ({flag}).{nearest(name, table.column_names)} "
            f"Its columns are: {', '.join(table.column_names)}."
        )
