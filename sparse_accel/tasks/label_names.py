"""What labels are called, and how names of the data meet those of a model.

The order of names is deterministic: as declared, else by number where all are whole numbers, else by code point.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparse_accel.errors import UsageError, listed, shown

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

_WHOLE = re.compile(r"[+-]?\d+")
_NUMBERED = re.compile(r"(?:LABEL_)?(\d+)", re.IGNORECASE)


def name_order(names: Sequence[str]) -> list[str]:
    """The distinct names in their order: by number where all are whole numbers, else by code point."""
    distinct = sorted(set(names))
    if all(_WHOLE.fullmatch(name) for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return distinct


# --- names of the data and names of a model ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The outputs of a fine-tuned model.

    Attributes:
        names: of its labels, in the order of its outputs.
        problem_type: as its config.json says; None where it says nothing.
    """

    names: list[str]
    problem_type: str | None = None

    @property
    def is_regression(self) -> bool:
        """Whether it gives one score. transformers takes a single output for one unless told otherwise."""
        return self.problem_type == REGRESSION or (self.problem_type is None and len(self.names) == 1)

    def judged_as(self, asked: str | None) -> str:
        """The problem type that its outputs are judged by: its own, else the one that is asked for, else the usual.

        Raises:
            UsageError: another one is asked for than it was trained for.
        """
        if self.problem_type is not None and asked not in (None, self.problem_type):
            raise UsageError(
                f"the model was trained for {self.problem_type}, and the task or --problem_type says {asked}: take a "
                "model that was trained for it, or leave the flag out."
            )
        return self.problem_type or asked or (REGRESSION if self.is_regression else SINGLE_LABEL)


def are_unnamed(names: Sequence[str]) -> bool:
    """Whether a model's labels are only numbered: LABEL_0, LABEL_1, ... or 0, 1, ... in the order of its outputs."""
    return _numbers(names) == list(range(len(names)))


def _numbers(names: Sequence[str]) -> list[int] | None:
    """The numbers of names such as 1 or LABEL_1; None where one has no number."""
    found = [_NUMBERED.fullmatch(name) for name in names]
    return [int(each[1]) for each in found if each] if all(found) else None


def match_names(data_names: Sequence[str], model_names: Sequence[str], complete: bool = True) -> dict[str, str] | None:
    """The model's name for each label of the data, or None where they do not fit.

    In this order: the same names; the same but for capitals; the data's are whole numbers or LABEL_0, LABEL_1, ... and
    so are positions in the model's list, unless its names are other numbers; the model's are LABEL_0, LABEL_1, ... or
    0, 1, ..., no names at all, and so are positions in the data's.

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
    positions = _numbers(data_names)
    without_numbers = are_unnamed(model_names) or _numbers(model_names) is None
    if positions and without_numbers and len(set(positions)) == len(positions) and max(positions) < len(model_names):
        return {name: model_names[position] for name, position in zip(data_names, positions, strict=True)}
    if complete and are_unnamed(model_names):
        return dict(zip(data_names, model_names, strict=True))
    return None


def fold_names(data_names: Sequence[str], model_names: Sequence[str]) -> dict[str, str] | None:
    """The model's name for each label of data that spells one name in several ways, such as neg and NEG; else None."""
    folded = {name.casefold(): name for name in model_names}
    if len(folded) < len(model_names) or not all(name.casefold() in folded for name in data_names):
        return None
    return {name: folded[name.casefold()] for name in data_names}


def taken_by_position(matched: dict[str, str]) -> str:
    """Returns `0 as negative, 1 as positive` where labels were matched by number though one side has names for them, or
    though numbers without a 0 may be counted from 1.

    Args:
        matched: name in the data -> name in the model.
    """
    unnamed = all(_NUMBERED.fullmatch(name) for pair in matched.items() for name in pair)
    by_name = all(name.casefold() == other.casefold() for name, other in matched.items())
    if by_name or (unnamed and 0 in (_numbers(list(matched)) or [])):
        return ""
    return ", ".join(f"{name} as {other}" for name, other in matched.items())


# --- labels -----------------------------------------------------------------------------------------------------------


def head_in(config: Any, place: str) -> Head:
    """Returns the labels that a configuration names, in the order of the outputs, and its problem type.

    `id2label` decides: it is what outputs are called by. `label2id` may lack, or be a stale LABEL_0, LABEL_1, ...

    Args:
        config: of a transformers model.
        place: where it comes from, for messages.

    Raises:
        UsageError: outputs are not numbered from 0, two have one name, or `label2id` says something else.
    """
    id2label, label2id = dict(config.id2label), dict(getattr(config, "label2id", None) or {})
    if sorted(id2label) != list(range(len(id2label))):
        raise UsageError(f"{place}: id2label of config.json must number the outputs from 0; it has {listed(id2label)}")
    names = [str(id2label[number]) for number in sorted(id2label)]
    problem_type = getattr(config, "problem_type", None)
    if problem_type == REGRESSION and len(names) != 1:
        raise UsageError(
            f"{place}: a regression gives one score, and config.json has {len(names)} outputs: not supported"
        )
    if are_unnamed(names) and not are_unnamed(list(label2id)):  # named in one direction only
        ordered = sorted(label2id, key=lambda name: str(label2id[name]))
        if [str(label2id[name]) for name in ordered] == sorted(str(number) for number in id2label):
            names = [
                next(name for name in ordered if str(label2id[name]) == str(number)) for number in sorted(id2label)
            ]
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{place}: id2label of config.json calls two outputs {shown(twins[0])}: give them two names")
    numbers = {name.casefold(): number for number, name in enumerate(names)}
    for name, number in label2id.items():
        known = numbers.get(str(name).casefold())
        if known is not None and len(numbers) == len(names) and str(number) != str(known):
            raise UsageError(
                f"{place}: config.json contradicts itself: id2label calls output {known} {shown(name)}, and label2id "
                f"says that {shown(name)} is output {number}. Correct the wrong one, or delete label2id"
            )
    return Head(names, problem_type)


def set_labels(config: Any, names: list[str]) -> None:
    """Names the outputs of a configuration, both ways."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
