"""Labels: what kind they are, what they are called, and how names of the data meet those of a model.

Labels are names, as strings, from the data to config.json: the integer 1 of a file is the label "1", a ClassLabel is
its declared name. Their order is deterministic: as declared, else by number where all names are whole numbers, else by
code point.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from sparse_accel.data.tables import Table
from sparse_accel.errors import UsageError, listed, nearest, shown
from sparse_accel.tasks.label_names import _WHOLE, MULTI_LABEL, REGRESSION, SINGLE_LABEL, name_order

_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?")
_JOINED = re.compile(r"""['"]\s+['"]""")
# What programs write for a missing value. The first never name a class; the others may, unless all else is a number.
_MISSING = frozenset({"nan", "-nan", "<na>", "nat", "#n/a", "#null!"})
_MISSING_AMONG_NUMBERS = _MISSING | {"na", "n/a", "none", "null", "?", "-", "--", "."}


class LabelColumn:
    """The labels of a table as they were found.

    Args:
        table, column: where they are.
        as_classes: texts in brackets are names of classes, not lists.

    Attributes:
        values: row by row. Lists that a file has as text, such as "[0, 1]" or "['joy']", are lists here.
        declared: names of the classes, in their order, where the source declares them.
    """

    def __init__(self, table: Table, column: str, as_classes: bool = False) -> None:
        self.table, self.column = table, column
        self.declared = table.class_names(column)
        self.typed = table.typed
        self.values = table.values(column)
        if not as_classes:
            self.values = self._with_lists(self.values)
        numeric = [value for value in self.values if isinstance(value, str) and _DECIMAL.fullmatch(value.strip())]
        words = {value.strip().casefold() for value in self.values if isinstance(value, str)} - {""}
        among_numbers = bool(numeric) and not self.typed
        among_numbers &= all(_DECIMAL.fullmatch(word) or word in _MISSING_AMONG_NUMBERS for word in words)
        self._missing = _MISSING_AMONG_NUMBERS if among_numbers else _MISSING
        self._all_numbers = among_numbers

    @property
    def are_whole_numbers(self) -> bool:
        """Whether every label is a whole number, and none stands for a declared name."""
        return self.declared is None and all(self.kind(row) == "whole" for row in range(len(self.values)))

    def place(self, row: int) -> str:
        """Where a row's label is, for messages."""
        return self.table.place(row, self.column)

    def kind(self, row: int) -> str:
        """What a row holds: a key of `_ARTICLE`.

        Raises:
            UsageError: nothing, or what cannot be a label.
        """
        return self._kind_of(self.values[row], row)

    def _kind_of(self, value: Any, row: int) -> str:
        text = value.strip() if isinstance(value, str) else None
        if value is None or text == "":
            raise UsageError(f"{self.place(row)}: the label is missing. Fill it in, or delete this row.")
        if text is not None and text.casefold() in self._missing:
            raise UsageError(
                f"{self.place(row)}: the label is missing ({shown(value)}). Fill it in, or delete this row."
            )
        if isinstance(value, bool):
            return "truth value"
        if isinstance(value, int):
            return "whole"
        if isinstance(value, float):
            if not math.isfinite(value):
                raise UsageError(f"{self.place(row)}: the label {value} is not a number.")
            return "decimal"
        if isinstance(value, list):
            return "list"
        if text is not None:
            if not self.typed and _WHOLE.fullmatch(text):
                return "whole"
            return "decimal" if not self.typed and _DECIMAL.fullmatch(text) else "word"
        raise UsageError(f"{self.place(row)}: a label cannot be {shown(value)}.")

    def name(self, value: Any, row: int) -> str:
        """A row's value, or an entry of its list, as the name of a class."""
        kind = self._kind_of(value, row)
        if self.declared is not None and kind == "whole":
            if not 0 <= value < len(self.declared):
                known = f" (there are {len(self.declared)})."
                unlabelled = ": the row is not labelled; leave such rows out."
                raise UsageError(
                    f"{self.place(row)}: the label is {value}, which stands for no class"
                    + (unlabelled if value == -1 else known)
                )
            return str(self.declared[value])
        if kind == "decimal" and (self.typed or self._all_numbers) and float(value).is_integer():
            return str(int(float(value)))  # 1.0, as many a tool writes the class 1
        if kind in ("list", "decimal") and (self.typed or kind == "list"):
            raise UsageError(f"{self.place(row)}: the label {shown(value)} is {_ARTICLE[kind]}, and not a class.")
        return value.strip() if isinstance(value, str) else str(value)

    def number(self, row: int) -> float:
        """A row's label as a finite number."""
        value = self.values[row]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number or (isinstance(value, str) and not self.typed and _DECIMAL.fullmatch(value.strip())):
            result = float(value)
            if math.isfinite(result):
                return result
        self._kind_of(value, row)
        raise UsageError(
            f"{self.place(row)}: the label {shown(value)} is not a number; this is a regression, and its labels are "
            "numbers."
        )

    def _with_lists(self, values: list[Any]) -> list[Any]:
        """Texts of lists as lists, where one can be read as a list, or all are in brackets."""
        texts = [value.strip() if isinstance(value, str) else "" for value in values]
        in_brackets = [text[:1] + text[-1:] in ("[]", "()") for text in texts]
        if not any(in_brackets):
            return values
        lists = [_list_in(text) if found else None for text, found in zip(texts, in_brackets, strict=True)]
        if all(value is None for value in lists) and not all(in_brackets):  # one name of several is in brackets
            return values
        unread = (row for row, value in enumerate(lists) if value is None and texts[row])
        if (row := next(unread, None)) is not None:
            raise UsageError(
                f"{self.place(row)}: the label {shown(values[row])} cannot be read as a list, and others in this "
                f'column look like lists. Write lists as [0, 1] or ["joy", "love"]; if all are names of classes, add '
                f"--problem_type {SINGLE_LABEL}."
            )
        return [value if found is None else found for value, found in zip(values, lists, strict=True)]


def _list_in(text: str) -> list[Any] | None:
    """A list of names and numbers that a text spells in JSON or Python, else None. Nothing is evaluated."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        # Python joins texts without a comma between them, as NumPy prints them.
        joined = read is ast.literal_eval and _JOINED.search(text)
        return list(value) if isinstance(value, (list, tuple)) and not joined else None
    return None


_ARTICLE = {
    "list": "a list",
    "decimal": "a decimal number",
    "whole": "a whole number",
    "word": "a word",
    "truth value": "true or false",
}


def find_problem_type(labels: LabelColumn, usual: str | None = None) -> str:
    """What the labels ask for: lists are multi-label, decimal numbers regression, all else single-label.

    Args:
        labels: of the rows that decide.
        usual: what is meant where decimal numbers have no fraction, such as 1.0; None: an error asks.

    Raises:
        UsageError: a row whose label is missing or of another kind than the rows before it; or it cannot be told.
    """
    values = labels.values
    if labels.declared is not None:
        return MULTI_LABEL if any(isinstance(each, list) for each in values) else SINGLE_LABEL
    kinds: dict[str, int] = {}
    for row in range(len(values)):
        kinds.setdefault(labels.kind(row), row)
    # Whole numbers may stand among decimal ones: 3 among 2.5 is 3.0. In CSV they may also be words among words.
    if "decimal" in kinds or not labels.typed:
        whole = kinds.pop("whole", None)
        if not kinds and whole is not None:
            return SINGLE_LABEL
    if len(kinds) > 1:
        (first, first_row), (second, second_row) = sorted(kinds.items(), key=lambda kind: kind[1])[:2]
        raise UsageError(
            f"{labels.place(second_row)}: the label {shown(values[second_row])} is {_ARTICLE[second]}, and "
            f"{shown(values[first_row])} in row {first_row + 1} is {_ARTICLE[first]}. Labels must all be of one kind: "
            "names or whole numbers (classes), decimal numbers (regression), or lists (multi-label)."
        )
    kind = next(iter(kinds), "word")
    if kind == "decimal":
        return _regression_or_classes(labels, usual)
    return MULTI_LABEL if kind == "list" else SINGLE_LABEL


def _regression_or_classes(labels: LabelColumn, usual: str | None) -> str:
    """0.0, 1.0, 2.0 may be scores, or classes that some tool wrote as decimals: nothing in the file tells."""
    found = {float(value) for value in labels.values}
    if not all(value.is_integer() for value in found):
        return REGRESSION
    if usual is not None:
        return usual
    some = ", ".join(str(value) for value in sorted(found)[:5])
    raise UsageError(
        f"{labels.table.name}, column '{labels.column}': the labels are decimal numbers without a fraction ({some}): "
        f"scores or classes? Add --problem_type {REGRESSION} or --problem_type {SINGLE_LABEL}."
    )


def read_labels(labels: LabelColumn, problem_type: str, indicators: int = 0) -> list[Any]:
    """The labels, row by row: names (single-label), finite floats (regression), or lists of names (multi-label).

    Args:
        labels: as they were found.
        problem_type: what they are read as.
        indicators: number of classes where multi-label rows hold 0 or 1 for each of them (`are_indicators`); 0 where
            they hold the classes' names.

    Raises:
        UsageError: a row whose label is missing or does not fit the problem type.
    """
    values = labels.values
    if problem_type == REGRESSION:
        return [labels.number(row) for row in range(len(values))]
    if problem_type == SINGLE_LABEL:
        return [labels.name(value, row) for row, value in enumerate(values)]
    for row, value in enumerate(values):
        if not isinstance(value, list):
            found = "is missing" if value is None else f"is {shown(value)}"
            raise UsageError(f"{labels.place(row)}: the label {found}; multi-label rows hold lists.")
        if indicators and (len(value) != indicators or not all(each in (0, 1) for each in value)):
            raise UsageError(
                f"{labels.place(row)}: the label {shown(value)} is not a list of {indicators} zeros and ones."
            )
    if indicators:
        return [[str(position) for position, on in enumerate(value) if on] for value in values]
    return [list(dict.fromkeys(labels.name(each, row) for each in value)) for row, value in enumerate(values)]


def are_indicators(labels: LabelColumn, count: int | None = None) -> bool:
    """Whether lists hold 0 or 1 for each class instead of names of classes.

    They do where all have one length, two or more, and nothing else in them: as names, [0, 1] and [1, 0] would both
    be "all classes".

    Args:
        labels: of the rows that decide.
        count: how many classes there are, where a model tells; other lengths are then lists of names.

    Raises:
        UsageError: lists of another length than `count` that cannot be names either, since one repeats a number.
    """
    lengths = {len(value) if isinstance(value, list) else -1 for value in labels.values}
    if labels.declared is not None or len(lengths) != 1 or -1 in lengths:
        return False
    length = lengths.pop()
    if not all(each in (0, 1) for value in labels.values for each in value):
        return False
    if count in (None, length):
        return length > 1 or count == 1
    for row, value in enumerate(labels.values):
        if len(set(value)) < length:
            raise UsageError(
                f"{labels.place(row)}: the label {shown(value)} is a list of {length} zeros and ones, and the model "
                f"has {count} labels."
            )
    return False


def are_unpublished(labels: LabelColumn) -> bool:
    """Whether the rows are without labels: all null or empty, or all the -1 of a published test set."""
    texts = ["" if value is None else str(value).strip() for value in labels.values]
    missing = {"", "-1", "-1.0"} if labels.declared is not None else {""}
    return bool(texts) and (all(text in missing for text in texts) or all(text in ("-1", "-1.0") for text in texts))


def check_known(labels: LabelColumn, found: list[Any], names: Sequence[str], known_from: str) -> None:
    """Raises UsageError for the first row with a label that is not among `names`, with both sets of labels."""
    known = set(names)
    flat = [label if isinstance(label, list) else [label] for label in found]
    for row, own in enumerate(flat):
        for name in own:
            if name not in known:
                there = name_order([each for some in flat for each in some])
                raise UsageError(
                    f"{labels.place(row)}: the label '{name}' does not occur in {known_from}.{nearest(name, names)} "
                    f"Its labels are: {listed(names)}. Those of this column: {listed(there)}."
                )
