"""Reads the labels of a run: what they are follows from the training rows and the head of a fine-tuned model."""

from __future__ import annotations

from typing import Any

from datasets import List, Value

from sparse_accel.console import warn
from sparse_accel.errors import UsageError, listed
from sparse_accel.tasks.label_names import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    Head,
    are_default_names,
    describe_positions,
    fold_names,
    match_names,
    name_order,
)
from sparse_accel.tasks.text_classification.labels import (
    LabelColumn,
    are_indicators,
    check_known,
    find_problem_type,
    read_labels,
)

# With more different labels than this, and than half the rows, the column probably does not contain classes.
_FEW_LABELS, _MANY_LABELS = 100, 1000


class LabelReader:
    """Reads the labels of every split as one of them defines, the training rows if available.

    If a model keeps its fine-tuned head, the names and the order of its outputs are used, and labels of the data are
    matched with them by name; a new head gets the labels of the data.

    Args:
        teaching: labels of the rows that define the set of labels; None: no rows with labels.
        head: of a fine-tuned model, if the run starts from one.
        problem_type: the one of the task or flag; None: unknown.
        training: whether the model will be trained: then the head may be new, and needs two or more labels.

    Attributes:
        names: names of the labels, in the order of the model's outputs.
        keeps_head: whether these are the outputs of `head`.
        by_position: `0 as neg, 1 as pos` if labels were matched by number although one side has names; else empty.
        highest: the number that the labels are divided by; None if they are not divided.

    Raises:
        UsageError: the labels are unknown, ambiguous, too few or too many, or do not match those of the model.
    """

    highest: int | None = None

    def __init__(
        self, teaching: LabelColumn | None, head: Head | None, problem_type: str | None, training: bool
    ) -> None:
        self.known_from = teaching.table.name if teaching else ""
        self.indicators, self.by_position, self.keeps_head = 0, "", True
        if head is not None and not training:
            self.problem_type, self.names = head.problem_type_for(problem_type), head.names
            if teaching is not None and self.problem_type == MULTI_LABEL and are_indicators(teaching, len(head.names)):
                self.indicators = len(head.names)
            return
        if teaching is None:
            raise UsageError(
                "no rows with labels, so the label names are unknown: predict with a fine-tuned model (the output "
                "folder of a training run as --model_name_or_path)."
            )
        scores = head is not None and head.is_regression
        self.problem_type = problem_type or find_problem_type(teaching, usual=REGRESSION if scores else None)
        if scores and problem_type is None and self.problem_type == SINGLE_LABEL and teaching.are_whole_numbers:
            raise UsageError(
                f"{self.known_from}, column '{teaching.column}': the labels are integers, but the model predicts a "
                f"score: scores or classes? Add --problem_type {REGRESSION} or --problem_type {SINGLE_LABEL}."
            )
        if self.problem_type == MULTI_LABEL and are_indicators(teaching):
            self.indicators = len(teaching.values[0])
        self.names = self._names_in(teaching)
        if training and not self.are_scores:
            self._check_names(teaching, asked=problem_type is not None)
        self.keeps_head = head is not None and self._fits(head, declared=teaching.declared is not None)
        if head is not None and self.keeps_head and not self.are_scores:
            self._take_names(head.names)

    @property
    def are_scores(self) -> bool:
        """Whether the labels are numbers, not names."""
        return self.problem_type == REGRESSION

    def _take_names(self, outputs: list[str]) -> None:
        """Uses the names of a kept head; if they are only numbers, the data's names in the order of its outputs."""
        matched = match_names(self.names, outputs)
        if matched is None or not are_default_names(outputs):
            self.names = outputs
            return
        self.by_position = describe_positions(matched)
        data_name = {model: name for name, model in matched.items()}
        self.names = [data_name[name] for name in outputs]

    @property
    def feature(self) -> Any:
        """Returns the column type of the labels: a float, a name, or a list of names."""
        if self.are_scores:
            return Value("float64")
        return List(Value("string")) if self.problem_type == MULTI_LABEL else Value("string")

    def read(self, labels: LabelColumn) -> list[Any]:
        """Returns each of the different labels, with the type `feature`; all names are in `names`.

        Raises:
            UsageError: a label is missing, of the wrong kind or unknown.
        """
        found = read_labels(labels, self.problem_type, self.indicators)
        if self.are_scores:
            return found
        if not self.keeps_head:
            check_known(labels, found, self.names, self.known_from)
            return found
        names = name_order(_flat(found))
        matched = match_names(labels.declared, self.names) if labels.declared else None
        if self.indicators:
            matched = {name: self.names[int(name)] for name in names}
        matched = matched or match_names(names, self.names, complete=False) or fold_names(names, self.names)
        if matched is None:
            check_known(labels, found, self.names, "the model")
            raise AssertionError("check_known raises for labels that do not match")
        self.by_position = self.by_position or describe_positions(matched)
        return [[matched[name] for name in label] if isinstance(label, list) else matched[label] for label in found]

    def position_of_label_1(self, teaching: LabelColumn | None) -> int:
        """Returns the position in `names` of the data's label 1 (or second declared one); 1 if it is unknown."""
        declared = (teaching.declared if teaching else None) or ["0", "1"]
        matched = match_names(declared, self.names)
        return self.names.index(matched[declared[1]]) if matched and len(declared) > 1 else 1

    def _names_in(self, labels: LabelColumn) -> list[str]:
        if self.are_scores:
            return ["score"]
        if self.indicators:
            return [str(position) for position in range(self.indicators)]
        return labels.declared or name_order(_flat(read_labels(labels, self.problem_type)))

    def _fits(self, head: Head, declared: bool) -> bool:
        """Whether training keeps a fine-tuned head; it does not if the labels clearly belong to another task.

        Args:
            head: of the model.
            declared: whether the source declares `names` as all labels.

        Raises:
            UsageError: unclear: as many labels as the head or some of its labels, but also other names; or numbers that
                may be positions of its outputs.
        """
        if self.are_scores or head.is_regression:
            return self.are_scores and head.is_regression
        if self.indicators:
            return len(self.names) == len(head.names)
        if match_names(self.names, head.names) or fold_names(self.names, head.names):
            return True
        fewer = match_names(self.names, head.names, complete=False)
        if fewer is not None and are_default_names(head.names):
            self.by_position = describe_positions(fewer)
            return True
        folded = {name.casefold() for name in head.names}
        some = any(name.casefold() in folded for name in self.names)
        if some or (fewer is not None and not declared) or len(self.names) == len(head.names):
            raise UsageError(
                f"the labels of {self.known_from} ({listed(self.names)}) do not match those of the model, in output "
                f"order ({listed(head.names)}). Rename them in the data or in the model's config.json (id2label), or "
                "add --new_head to start from a newly initialized head."
            )
        return False

    def _check_names(self, teaching: LabelColumn, asked: bool) -> None:
        place, rows = f"{teaching.table.name}, column '{teaching.column}'", teaching.rows
        if len(self.names) < 2:
            raise UsageError(f"{place}: all labels are {', '.join(self.names) or 'empty'}; training needs two or more.")
        if len(self.names) > max(_MANY_LABELS, rows // 2) and not asked:
            raise UsageError(
                f"{place}: {len(self.names)} different labels in {rows} rows. If these are scores, add "
                f"--problem_type {REGRESSION}; if they are classes, --problem_type {SINGLE_LABEL}; if "
                "they are not labels, name the right column with --label_column_name."
            )
        if len(self.names) > max(_FEW_LABELS, rows // 2):
            warn(
                f"{place}: {len(self.names)} different labels in {rows} rows. If these are scores, add "
                f"--problem_type {REGRESSION}; if they are not labels, name the right column with --label_column_name."
            )


def _flat(labels: list[Any]) -> list[str]:
    """Returns all names, whether a label is one or a list of them."""
    return [name for label in labels for name in (label if isinstance(label, list) else [label])]
