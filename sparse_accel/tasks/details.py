"""What a task says of an evaluation beside its figures, and what the proof of an export calls things."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Mistakes that `Details` lists, and characters of their texts.
MOST_MISTAKES, MOST_CHARACTERS = 20, 300


@dataclass(frozen=True)
class Details:
    """What lies behind the figures of an evaluation; for trackers and the report.

    Attributes:
        labels: names of the classes.
        confusion: (labels, labels) counts; rows are true, columns are decided; None if there is no single class.
        per_label: one dict per label or entity type: label, precision, recall, f1, support.
        mistakes: the most confident wrong answers: row (from 0), text, label, predicted, confidence.
    """

    labels: list[str] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    per_label: list[dict[str, Any]] = field(default_factory=list)
    mistakes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ProofWords:
    """Names in the proof of an export, which compares two runs of a model.

    Attributes:
        decisions: what `Task.decisions` returns.
        figures: the check of what `Task.figures` returns.
        truth: what the rows need to have for figures.
        are_means: whether all figures are means over the decisions, as an accuracy is; else only those with its name.
    """

    decisions: str = "decisions"
    figures: str = "accuracy"
    truth: str = "labels"
    are_means: bool = False
