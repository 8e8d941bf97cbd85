"""Label columns: the problem type, and the labels of each row.

Labels are names, as strings, from the data to config.json: the integer 1 in a file is the label "1", a ClassLabel is
its declared name. Their order is deterministic: as declared, else by number if all names are integers, else by code
point.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import pyarrow
from datasets import Features

from sparse_accel.data.tables import Table
from sparse_accel.errors import UsageError, listed, nearest, shown
from sparse_accel.tasks.label_names import _WHOLE, MULTI_LABEL, REGRESSION, SINGLE_LABEL, name_order

_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?")
_JOINED = re.compile(r"""['"]\s+['"]""")
_ROWS_AT_ONCE = 1_000_000
# Spellings of a missing value. The first never name a class; the others may, unless all other values are numbers.
_MISSING = frozenset({"nan", "-nan", "<na>", "nat", "#n/a", "#null!"})
_MISSING_AMONG_NUMBERS = _MISSING | {"na", "n/a", "none", "null", "?", "-", "--", "."}


class LabelColumn:
    """The labels of a table, as they are in the source: the different ones, numbered from 0 as they first occur. What
    is wrong with a label is wrong with the first row that has it.

    Args:
        table, column: where the labels are.
        as_classes: whether texts in brackets are names of classes, not lists.

    Attributes:
        values: the different labels. A list that the file has as text, such as "[0, 1]" or "['joy']", is converted to a
            list. Lists may occur twice.
        rows: the number of rows.
        declared: names of the classes in order if the source declares them; else None.

    Raises:
        UsageError: some texts in brackets are lists, and others cannot be read as lists.
    """

    def __init__(self, table: Table, column: str, as_classes: bool = False) -> None:
        self.table, self.column = table, column
        self.declared = table.class_names(column)
        self.typed = table.typed
        self.values, self._first, self._numbers = table.distinct(column)
        self.rows = len(self._numbers)
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
        """Whether every label is an integer, and there are no declared names."""
        return self.declared is None and all(self.kind(label) == "whole" for label in range(len(self.values)))

    def row(self, label: int) -> int:
        """Returns the first row that has a label, from 0."""
        return int(self._first[label])

    def place(self, label: int) -> str:
        """Returns the place of the first row that has a label, for messages."""
        return self.table.place(self.row(label), self.column)

    def by_row(self, found: list[Any], feature: Any) -> pyarrow.ChunkedArray:
        """Returns what was made of each label, row by row.

        Args:
            found: (values,).
            feature: its type, of the `datasets` library.
        """
        each = pyarrow.array(found, Features({self.column: feature}).arrow_schema.field(0).type)
        starts = range(0, self.rows, _ROWS_AT_ONCE)  # offsets of 32 bits do not reach over all texts
        parts = [each.take(pyarrow.array(self._numbers[start : start + _ROWS_AT_ONCE])) for start in starts]
        return pyarrow.chunked_array(parts, each.type)

    def kind(self, label: int) -> str:
        """Returns the kind of a label: a key of `_ARTICLE`.

        Raises:
            UsageError: the label is missing, or the value cannot be a label.
        """
        return self._kind_of(self.values[label], label)

    def _kind_of(self, value: Any, label: int) -> str:
        text = value.strip() if isinstance(value, str) else None
        if value is None or text == "":
            raise UsageError(f"{self.place(label)}: the label is missing. Add it, or delete this row.")
        if text is not None and text.casefold() in self._missing:
            raise UsageError(f"{self.place(label)}: the label is missing ({shown(value)}). Add it, or delete this row.")
        if isinstance(value, bool):
            return "truth value"
        if isinstance(value, int):
            return "whole"
        if isinstance(value, float):
            if not math.isfinite(value):
                raise UsageError(f"{self.place(label)}: the label is {value}; expected a finite number.")
            return "decimal"
        if isinstance(value, list):
            return "list"
        if text is not None:
            if not self.typed and _WHOLE.fullmatch(text):
                return "whole"
            return "decimal" if not self.typed and _DECIMAL.fullmatch(text) else "word"
        raise UsageError(f"{self.place(label)}: a label cannot be {shown(value)}.")

    def name(self, value: Any, label: int) -> str:
        """Returns the value of a label, or an entry of its list, as the name of a class.

        Raises:
            UsageError: the value is missing, is not a class, or has no declared name.
        """
        kind = self._kind_of(value, label)
        if self.declared is not None and kind == "whole":
            if not 0 <= value < len(self.declared):
                known = f" (there are {len(self.declared)})."
                unlabelled = ": the row has no label. Delete such rows."
                raise UsageError(
                    f"{self.place(label)}: the label is {value}, which is not a class"
                    + (unlabelled if value == -1 else known)
                )
            return str(self.declared[value])
        if kind == "decimal" and (self.typed or self._all_numbers) and float(value).is_integer():
            return str(int(float(value)))  # some tools write the class 1 as 1.0
        if kind in ("list", "decimal") and (self.typed or kind == "list"):
            raise UsageError(f"{self.place(label)}: the label {shown(value)} is {_ARTICLE[kind]}, not a class.")
        return value.strip() if isinstance(value, str) else str(value)

    def number(self, label: int, what: str = "a regression") -> float:
        """Returns a label as a finite number. `what`: what needs numbers, for messages.

        Raises:
            UsageError: it is missing, or is not a finite number.
        """
        value = self.values[label]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number or (isinstance(value, str) and not self.typed and _DECIMAL.fullmatch(value.strip())):
            result = float(value)
            if math.isfinite(result):
                return result
        self._kind_of(value, label)
        raise UsageError(
            f"{self.place(label)}: the label {shown(value)} is not a number, but this is {what}: labels must be "
            "numbers."
        )

    def _with_lists(self, values: list[Any]) -> list[Any]:
        """Returns texts in brackets as lists if at least one can be read as a list, or all are in brackets."""
        texts = [value.strip() if isinstance(value, str) else "" for value in values]
        in_brackets = [text[:1] + text[-1:] in ("[]", "()") for text in texts]
        if not any(in_brackets):
            return values
        lists = [_list_in(text) if found else None for text, found in zip(texts, in_brackets, strict=True)]
        if all(value is None for value in lists) and not all(in_brackets):  # only some names are in brackets
            return values
        unread = (label for label, value in enumerate(lists) if value is None and texts[label])
        if (label := next(unread, None)) is not None:
            raise UsageError(
                f"{self.place(label)}: the label {shown(values[label])} cannot be read as a list, but others in this "
                f'column look like lists. Write lists as [0, 1] or ["joy", "love"]; if all are names of classes, add '
                f"--problem_type {SINGLE_LABEL}."
            )
        return [value if found is None else found for value, found in zip(values, lists, strict=True)]


def _list_in(text: str) -> list[Any] | None:
    """Returns the list that a text spells in JSON or Python; else None. No code is evaluated."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        # Python joins strings without a comma between them (as NumPy prints them), so this is not a list.
        joined = read is ast.literal_eval and _JOINED.search(text)
        return list(value) if isinstance(value, (list, tuple)) and not joined else None
    return None


_ARTICLE = {
    "list": "a list",
    "decimal": "a decimal number",
    "whole": "an integer",
    "word": "a word",
    "truth value": "true or false",
}


def find_problem_type(labels: LabelColumn, usual: str | None = None) -> str:
    """Returns the problem type of labels: multi-label for lists, regression for decimal numbers, else single-label.

    Args:
        labels: of the rows that decide.
        usual: the problem type if all decimal numbers are whole, such as 1.0; None: this is an error.

    Raises:
        UsageError: a label is missing, has another kind than those before it, or the problem type is ambiguous.
    """
    values = labels.values
    if labels.declared is not None:
        return MULTI_LABEL if any(isinstance(each, list) for each in values) else SINGLE_LABEL
    kinds: dict[str, int] = {}
    for label in range(len(values)):
        kinds.setdefault(labels.kind(label), label)
    # Integers may occur among decimal numbers (3 next to 2.5 is 3.0). In CSV they may also be names of classes.
    if "decimal" in kinds or not labels.typed:
        whole = kinds.pop("whole", None)
        if not kinds and whole is not None:
            return SINGLE_LABEL
    if len(kinds) > 1:
        (first, one), (second, other) = sorted(kinds.items(), key=lambda kind: kind[1])[:2]
        raise UsageError(
            f"{labels.place(other)}: the label {shown(values[other])} is {_ARTICLE[second]}, but "
            f"{shown(values[one])} in row {labels.row(one) + 1} is {_ARTICLE[first]}. All labels must be of one kind: "
            "names or integers (classes), decimal numbers (regression), or lists (multi-label)."
        )
    kind = next(iter(kinds), "word")
    if kind == "decimal":
        return _regression_or_classes(labels, usual)
    return MULTI_LABEL if kind == "list" else SINGLE_LABEL


def _regression_or_classes(labels: LabelColumn, usual: str | None) -> str:
    """Returns the problem type of decimal numbers: 0.0, 1.0, 2.0 may be scores, or classes written as decimals."""
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
    """Returns each of the different labels as a name (single-label), a finite float (regression) or a list of names
    (multi-label).

    Args:
        labels: labels of the source.
        problem_type: how to read them.
        indicators: number of classes if multi-label rows have 0 or 1 for each class (`are_indicators`); 0 if they have
            names of classes.

    Raises:
        UsageError: a label is missing or does not fit the problem type.
    """
    values = labels.values
    if problem_type == REGRESSION:
        return [labels.number(label) for label in range(len(values))]
    if problem_type == SINGLE_LABEL:
        return [labels.name(value, label) for label, value in enumerate(values)]
    for label, value in enumerate(values):
        if not isinstance(value, list):
            found = "is missing" if value is None else f"is {shown(value)}"
            raise UsageError(f"{labels.place(label)}: the label {found}; expected a list (multi-label).")
        if indicators and (len(value) != indicators or not all(each in (0, 1) for each in value)):
            raise UsageError(
                f"{labels.place(label)}: the label {shown(value)} is not a list of {indicators} zeros and ones."
            )
    if indicators:
        return [[str(position) for position, on in enumerate(value) if on] for value in values]
    return [list(dict.fromkeys(labels.name(each, label) for each in value)) for label, value in enumerate(values)]


def are_indicators(labels: LabelColumn, count: int | None = None) -> bool:
    """Whether the lists contain 0 or 1 for each class instead of names of classes.

    They do if all have the same length, two or more, and contain nothing else: as names, [0, 1] and [1, 0] would both
    mean "all classes".

    Args:
        labels: of the rows that decide.
        count: number of classes of the model, if known; lists of another length are then lists of names.

    Raises:
        UsageError: the lists do not have the length `count`, and are not lists of names because one repeats a number.
    """
    lengths = {len(value) if isinstance(value, list) else -1 for value in labels.values}
    if labels.declared is not None or len(lengths) != 1 or -1 in lengths:
        return False
    length = lengths.pop()
    if not all(each in (0, 1) for value in labels.values for each in value):
        return False
    if count in (None, length):
        return length > 1 or count == 1
    for label, value in enumerate(labels.values):
        if len(set(value)) < length:
            raise UsageError(
                f"{labels.place(label)}: the label {shown(value)} is a list of {length} zeros and ones, but the model "
                f"has {count} labels."
            )
    return False


def are_hidden(labels: LabelColumn) -> bool:
    """Whether the rows have no labels: all null or empty, or all -1 as in published test sets."""
    texts = ["" if value is None else str(value).strip() for value in labels.values]
    missing = {"", "-1", "-1.0"} if labels.declared is not None else {""}
    return bool(texts) and (all(text in missing for text in texts) or all(text in ("-1", "-1.0") for text in texts))


def check_known(labels: LabelColumn, found: list[Any], names: Sequence[str], known_from: str) -> None:
    """Checks that all labels are in `names`.

    Args:
        labels: labels of the source, for messages.
        found: the same as names.
        names: the known labels.
        known_from: where these come from, for messages.

    Raises:
        UsageError: for the first row with an unknown label; the message gives both sets of labels.
    """
    known = set(names)
    flat = [label if isinstance(label, list) else [label] for label in found]
    for label, own in enumerate(flat):
        for name in own:
            if name not in known:
                there = name_order([each for some in flat for each in some])
                raise UsageError(
                    f"{labels.place(label)}: the label '{name}' does not occur in {known_from}.{nearest(name, names)} "
                    f"Its labels are: {listed(names)}. Labels of this column: {listed(there)}."
                )
