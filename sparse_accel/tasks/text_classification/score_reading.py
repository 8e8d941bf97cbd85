"""Reads the scores of a reranker: from 0 to 1, or grades that are divided by the highest one."""

from __future__ import annotations

from typing import Any

from sparse_accel.errors import UsageError, listed
from sparse_accel.tasks.label_names import REGRESSION, Head
from sparse_accel.tasks.text_classification.label_reading import LabelReader
from sparse_accel.tasks.text_classification.labels import LabelColumn, read_labels
from sparse_accel.tasks.text_classification.reranking import highest_score, read_scores


class ScoreReader(LabelReader):
    """Reads scores as the training rows or the model define their scale; arguments as for LabelReader.

    Attributes:
        highest: what is 1 for the model: 1, or the highest grade; None if neither rows nor model say it.

    Raises:
        UsageError: a score is not on this scale, all are the same, or the model has several outputs.
    """

    def __init__(
        self, teaching: LabelColumn | None, head: Head | None, problem_type: str | None, training: bool
    ) -> None:
        super().__init__(teaching, head, problem_type, training)
        if head is not None and not training:
            if len(head.names) != 1:
                raise UsageError(
                    f"the model has {len(head.names)} outputs ({listed(head.names)}), but a reranker has one score: "
                    "use a model that was trained for it, or name another --problem_type."
                )
            self.highest = head.highest
        if self.highest is not None:
            self.known_from = "the model"
        elif teaching is not None:
            self.highest = highest_score(teaching)
        if training and teaching is not None and len(set(read_labels(teaching, REGRESSION))) < 2:
            raise UsageError(
                f"{self.known_from}, column '{teaching.column}': all scores are the same, so there is no order to "
                "learn."
            )

    @property
    def are_scores(self) -> bool:
        return True

    def read(self, labels: LabelColumn) -> list[Any]:
        return read_scores(labels, self.highest or 1, self.known_from)
