"""Names of labels, and how names in the data are matched with those of a model.

The order of names is deterministic: as declared, else by number if all are integers, else by code point.
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
# Scores of documents for queries. Only here: config.json has the problem type of one label that is on or off, whose
# loss transformers computes as it is trained here, and the entry that sentence-transformers' CrossEncoder reads.
RERANKING = "reranking"
CROSS_ENCODER = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}

# Python reads integers of at most 4,300 digits from text.
_WHOLE = re.compile(r"[+-]?\d{1,999}")
_NUMBERED = re.compile(r"(?:LABEL_)?(\d{1,999})", re.IGNORECASE)


def name_order(names: Sequence[str]) -> list[str]:
    """Returns the distinct names in order: by number if all are integers, else by code point."""
    distinct = sorted(set(names))
    if all(_WHOLE.fullmatch(name) for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return distinct


# --- names of the data and names of a model ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The outputs of a fine-tuned model.

    Attributes:
        names: names of the outputs, in order.
        problem_type: as in config.json, or RERANKING; None if it is not set there.
        highest: of a reranker, the score of the data for which its output is 1: 1, or its highest grade; else None.
    """

    names: list[str]
    problem_type: str | None = None
    highest: int | None = None

    @property
    def is_regression(self) -> bool:
        """Whether the output is one score. Without a problem type, transformers uses a single output as a score."""
        scores = (REGRESSION, RERANKING)
        return self.problem_type in scores or (self.problem_type is None and len(self.names) == 1)

    def problem_type_for(self, asked: str | None) -> str:
        """Returns the problem type for its outputs: its own, else the requested one, else the default.

        Args:
            asked: the requested problem type; None: none.

        Raises:
            UsageError: it was trained for another problem type than the requested one.
        """
        if self.problem_type is not None and asked not in (None, self.problem_type):
            raise UsageError(
                f"the model was trained for {self.problem_type}, but the task or --problem_type says {asked}: use a "
                "model that was trained for it, or remove the flag."
            )
        return self.problem_type or asked or (REGRESSION if self.is_regression else SINGLE_LABEL)


def are_default_names(names: Sequence[str]) -> bool:
    """Whether a model's labels are only numbers: LABEL_0, LABEL_1, ... or 0, 1, ... in the order of its outputs."""
    return _numbers(names) == list(range(len(names)))


def _numbers(names: Sequence[str]) -> list[int] | None:
    """Returns the numbers in names such as 1 or LABEL_1; None if a name has no number."""
    found = [_NUMBERED.fullmatch(name) for name in names]
    return [int(each[1]) for each in found if each] if all(found) else None


def match_names(data_names: Sequence[str], model_names: Sequence[str], complete: bool = True) -> dict[str, str] | None:
    """Returns the model's name for each label of the data; None if they do not match.

    Rules, in this order: the same names; the same except for case; the data's names are integers or LABEL_0, LABEL_1,
    ..., and are positions in the model's list, unless its names are other numbers; the model's names are only numbers
    (LABEL_0, LABEL_1, ... or 0, 1, ...), and are positions in the data's list.

    Args:
        data_names: labels of the data in order.
        model_names: labels of the model in the order of its outputs.
        complete: whether data_names are all labels; the last rule needs all of them.
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
    without_numbers = are_default_names(model_names) or _numbers(model_names) is None
    if positions and without_numbers and len(set(positions)) == len(positions) and max(positions) < len(model_names):
        return {name: model_names[position] for name, position in zip(data_names, positions, strict=True)}
    if complete and are_default_names(model_names):
        return dict(zip(data_names, model_names, strict=True))
    return None


def fold_names(data_names: Sequence[str], model_names: Sequence[str]) -> dict[str, str] | None:
    """Returns the model's name for each label if all match except for case, also several (neg, NEG); else None."""
    folded = {name.casefold(): name for name in model_names}
    if len(folded) < len(model_names) or not all(name.casefold() in folded for name in data_names):
        return None
    return {name: folded[name.casefold()] for name in data_names}


def describe_positions(matched: dict[str, str]) -> str:
    """Returns `0 as negative, 1 as positive` if labels were matched by position and this may be wrong; else "".

    It may be wrong if one side has names for them, or if the numbers have no 0 and may count from 1.

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
    """Returns the label names of a configuration, in the order of the outputs, and its problem type.

    `id2label` decides, because it names the outputs. `label2id` may be missing, or an old LABEL_0, LABEL_1, ...

    Args:
        config: configuration of a transformers model.
        place: where it comes from, for messages.

    Raises:
        UsageError: outputs are not numbered from 0, two have the same name, a regression has several, or `label2id`
            contradicts `id2label`.
    """
    id2label, label2id = dict(config.id2label), dict(getattr(config, "label2id", None) or {})
    if sorted(id2label) != list(range(len(id2label))):
        raise UsageError(f"{place}: id2label of config.json must number the outputs from 0; got {listed(id2label)}")
    names = [str(id2label[number]) for number in sorted(id2label)]
    problem_type = getattr(config, "problem_type", None)
    if problem_type == REGRESSION and len(names) != 1:
        raise UsageError(f"{place}: config.json has {len(names)} outputs for a regression: only one is supported")
    if are_default_names(names) and not are_default_names(list(label2id)):  # named in one direction only
        ordered = sorted(label2id, key=lambda name: str(label2id[name]))
        if [str(label2id[name]) for name in ordered] == sorted(str(number) for number in id2label):
            names = [
                next(name for name in ordered if str(label2id[name]) == str(number)) for number in sorted(id2label)
            ]
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{place}: duplicate name {shown(twins[0])} in id2label of config.json: rename one output")
    numbers = {name.casefold(): number for number, name in enumerate(names)}
    for name, number in label2id.items():
        known = numbers.get(str(name).casefold())
        if known is not None and len(numbers) == len(names) and str(number) != str(known):
            raise UsageError(
                f"{place}: config.json contradicts itself: {shown(name)} is output {known} in id2label, but {number} "
                "in label2id. Fix the wrong one, or delete label2id"
            )
    if problem_type == MULTI_LABEL and len(names) == 1 and getattr(config, "sentence_transformers", None):
        return Head(names, RERANKING, getattr(config, "highest_grade", None))
    return Head(names, problem_type)


def set_labels(config: Any, names: list[str]) -> None:
    """Writes the names of the outputs into a configuration: id2label and label2id."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def set_problem_type(config: Any, head: Head) -> None:
    """Writes the problem type of a head into a configuration, and what reads a reranker: see RERANKING."""
    config.problem_type = head.problem_type
    if head.problem_type == RERANKING:
        config.problem_type, config.sentence_transformers = MULTI_LABEL, dict(CROSS_ENCODER)
        config.highest_grade = head.highest
