"""Labels: what kind they are, what they are called, and how names of the data meet those of a model.

Labels are names, as strings, from the data to config.json: the integer 1 of a file is the label "1", a ClassLabel is
its declared name. Their order is deterministic: as declared, else by number where all names are whole numbers, else by
code point.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparse_accel.errors import UsageError, nearest
from sparse_accel.tasks.tables import Table

if TYPE_CHECKING:
    from sparse_accel.tasks.text_classification import TextClassificationData

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

_WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?")
_UNNAMED = re.compile(r"(?:LABEL_)?(\d+)")


def find_problem_type(table: Table, column: str) -> str:
    """What the labels ask for: lists are multi-label, decimal numbers regression, all else single-label.

    Raises:
        UsageError: a row whose label is missing or of another kind than the rows before it.
    """
    if table.class_names(column) is not None:
        return MULTI_LABEL if any(isinstance(each, list) for each in table.values(column)) else SINGLE_LABEL
    kinds: dict[str, int] = {}
    for row, value in enumerate(table.values(column)):
        kinds.setdefault(_kind(table, value, row, column), row)
    # Whole numbers may stand among decimal ones: 3 among 2.5 is 3.0. In CSV they may also be words among words.
    if "decimal" in kinds or not table.typed:
        whole = kinds.pop("whole", None)
        if not kinds and whole is not None:
            return SINGLE_LABEL
    if len(kinds) > 1:
        (first, first_row), (second, second_row) = sorted(kinds.items(), key=lambda kind: kind[1])[:2]
        values = table.values(column)
        raise UsageError(
            f"{table.place(second_row, column)}: the label {values[second_row]!r} is {_ARTICLE[second]}, and "
            f"{values[first_row]!r} in row {first_row + 1} is {_ARTICLE[first]}. Labels must all be of one kind: names "
            "or whole numbers (classes), decimal numbers (regression), or lists (multi-label)."
        )
    kind = next(iter(kinds), "word")
    if kind == "decimal":
        _refuse_classes_with_a_point(table, column)
    return {"list": MULTI_LABEL, "decimal": REGRESSION}.get(kind, SINGLE_LABEL)


_ARTICLE = {
    "list": "a list",
    "decimal": "a decimal number",
    "whole": "a whole number",
    "word": "a word",
    "truth value": "true or false",
}


def _kind(table: Table, value: Any, row: int, column: str) -> str:
    if value is None or value == "":
        raise UsageError(f"{table.place(row, column)}: the label is missing.")
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, int):
        return "whole"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"{table.place(row, column)}: the label {value} is not a number.")
        return "decimal"
    if isinstance(value, list):
        return "list"
    if isinstance(value, str):
        if not table.typed and _WHOLE.fullmatch(value.strip()):
            return "whole"
        return "decimal" if not table.typed and _DECIMAL.fullmatch(value.strip()) else "word"
    raise UsageError(f"{table.place(row, column)}: a label cannot be {value!r}.")


def _refuse_classes_with_a_point(table: Table, column: str) -> None:
    """Two values, 0.0 and 1.0, are classes that some tool wrote as decimals: squared error is not what is wanted."""
    values = {float(value) for value in table.values(column)}
    if len(values) == 2 and all(value.is_integer() for value in values):
        raise UsageError(
            f"{table.name}, column '{column}': the labels are {min(values)} and {max(values)}. Decimal numbers ask for "
            "regression, and two of them are classes: write them as whole numbers or words."
        )


def read_labels(table: Table, column: str, problem_type: str, indicators: bool = False) -> list[Any]:
    """The labels, row by row: names (single-label), finite floats (regression), or lists of names (multi-label).

    Args:
        table, column: where the labels stand.
        problem_type: what they are read as.
        indicators: multi-label rows hold 0 or 1 for each class (`are_indicators`) instead of the classes' names.

    Raises:
        UsageError: a row whose label is missing or does not fit the problem type.
    """
    values, names = table.values(column), table.class_names(column)
    if problem_type == REGRESSION:
        return [_number(table, value, row, column) for row, value in enumerate(values)]
    if problem_type == SINGLE_LABEL:
        return [_name(table, value, row, column, names) for row, value in enumerate(values)]
    for row, value in enumerate(values):
        if not isinstance(value, list):
            found = "is missing" if value is None else f"is {value!r}"
            raise UsageError(f"{table.place(row, column)}: the label {found}; multi-label rows hold lists.")
        if indicators and (len(value) != len(values[0]) or not all(each in (0, 1) for each in value)):
            raise UsageError(
                f"{table.place(row, column)}: the label {value!r} is not a list of {len(values[0])} zeros and ones."
            )
    if indicators:
        return [[str(position) for position, on in enumerate(value) if on] for value in values]
    return [
        list(dict.fromkeys(_name(table, each, row, column, names) for each in value))
        for row, value in enumerate(values)
    ]


def are_indicators(table: Table, column: str) -> bool:
    """Whether lists hold 0 or 1 for each class: all of one length, nothing else in them, and one repeats a number."""
    values = table.values(column)
    lengths = {len(value) if isinstance(value, list) else -1 for value in values}
    if table.class_names(column) is not None or len(lengths) != 1 or -1 in lengths:
        return False
    flat = [each in (0, 1) for value in values for each in value]
    return all(flat) and any(value.count(0) > 1 or value.count(1) > 1 for value in values)


def _number(table: Table, value: Any, row: int, column: str) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number or (isinstance(value, str) and not table.typed and _DECIMAL.fullmatch(value.strip())):
        result = float(value)
        if math.isfinite(result):
            return result
    found = "is missing" if value is None or value == "" else f"{value!r} is not a number"
    raise UsageError(f"{table.place(row, column)}: the label {found}; this is a regression, its labels are numbers.")


def _name(table: Table, value: Any, row: int, column: str, names: list[str] | None) -> str:
    kind = _kind(table, value, row, column)
    if names is not None and kind == "whole":
        if not 0 <= value < len(names):
            raise UsageError(
                f"{table.place(row, column)}: the label is {value}, which stands for no class"
                + (": the row is not labelled; leave such rows out." if value == -1 else f" (there are {len(names)}).")
            )
        return str(names[value])
    if kind in ("list", "decimal") and table.typed:
        raise UsageError(f"{table.place(row, column)}: the label {value!r} is {_ARTICLE[kind]}, and not a class.")
    return value.strip() if isinstance(value, str) else str(value)


def are_unpublished(table: Table, column: str) -> bool:
    """Whether the rows are without labels: all null, or all the -1 of a published test set."""
    values = table.values(column)
    unknown = (None, "", -1) if table.class_names(column) is not None else (None, "")
    return bool(values) and (all(value in unknown for value in values) or all(value == -1.0 for value in values))


def name_order(names: Sequence[str]) -> list[str]:
    """The distinct names in their order: by number where all are whole numbers, else by code point."""
    distinct = sorted(set(names))
    if all(_WHOLE.fullmatch(name) for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return distinct


# --- names of the data and names of a model ---------------------------------------------------------------------------


def match_names(data_names: Sequence[str], model_names: Sequence[str], complete: bool = True) -> dict[str, str] | None:
    """The model's name for each label of the data, or None where they do not fit.

    In this order: the same names; the same but for capitals; the data's are whole numbers and so are positions in the
    model's list; the model's are numbers or LABEL_0, LABEL_1, ..., no names at all, and so are positions in the data's.

    Args:
        data_names: labels of the data in their order.
        model_names: labels of the model in the order of its outputs.
        complete: whether data_names are all labels there are; the last rule needs them all.
    """
    if complete and len(data_names) != len(model_names):
        return None
    if set(data_names) <= set(model_names):
        return {name: name for name in data_names}
    folded = {name.casefold(): name for name in model_names}
    if len(folded) == len(model_names) and {name.casefold() for name in data_names} <= set(folded):
        matched = {name: folded[name.casefold()] for name in data_names}
        if len(set(matched.values())) == len(data_names):
            return matched
    numbered = {str(position): name for position, name in enumerate(model_names)}
    if set(data_names) <= set(numbered):
        return {name: numbered[name] for name in data_names}
    positions = [_UNNAMED.fullmatch(name) for name in model_names]
    if complete and [position and int(position[1]) for position in positions] == list(range(len(model_names))):
        return dict(zip(data_names, model_names, strict=True))
    return None


def align_labels(data: TextClassificationData, model_label2id: Mapping[str, int]) -> TextClassificationData:
    """The data with its labels in the order of a model's outputs, so that its classifier means what it says.

    A model that was already fine-tuned has names, or at least an order, of its own; `match_names` says how they meet.
    The data keeps its own names, in the model's order: they are what config.json says from then on.

    Raises:
        UsageError: the two sets of labels do not fit. Where the classifier is replaced anyway, ask `match_names`.
    """
    if data.problem_type == REGRESSION and len(model_label2id) == 1:
        return data
    model_names = sorted(model_label2id, key=lambda name: model_label2id[name])
    matched = match_names(data.label_names, model_names)
    if matched is None:
        raise UsageError(
            f"the labels of the data ({', '.join(data.label_names)}) and those of the model ({', '.join(model_names)}) "
            "do not fit: rename them in the data, or in the model's config.json (id2label and label2id)."
        )
    data_name = {model: name for name, model in matched.items()}
    return dataclasses.replace(data, label_names=[data_name[name] for name in model_names])


def check_known(table: Table, column: str, labels: list[Any], names: Sequence[str], known_from: str) -> None:
    """Raises UsageError for the first row with a label that is not among `names`."""
    known = set(names)
    for row, label in enumerate(labels):
        for name in label if isinstance(label, list) else [label]:
            if name not in known:
                raise UsageError(
                    f"{table.place(row, column)}: the label '{name}' does not occur in {known_from}."
                    f"{nearest(name, names)} Its labels are: {', '.join(names)}."
                )
