"""The history of a run: what it has measured so far, and which evaluation was best."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_accel.files import write_text
from sparse_accel.nn.dropout import dropout_numbers
from sparse_accel.progress import Progress


@dataclass
class History:
    """The log of a run, in the format of the Trainer's trainer_state.json.

    Attributes:
        metric: the evaluation figure that selects the best model, such as `eval_accuracy`.
        greater_is_better: whether a larger value of it is better.
        log: one dict per logged step, with `step` and `epoch`.
        best_step, best_metric: of the best evaluation among the comparable ones; None before the first.
    """

    metric: str = "eval_loss"
    greater_is_better: bool = False
    log: list[dict[str, float]] = field(default_factory=list)
    best_step: int | None = None
    best_metric: float | None = None

    def add(self, figures: dict[str, float], progress: Progress) -> None:
        """Appends figures to the log, with the current step and epoch."""
        self.log.append({"step": progress.step, "epoch": round(progress.epoch, 4), **figures})

    def consider(self, figures: dict[str, float], step: int) -> bool:
        """Returns whether an evaluation is the best so far, and stores it if so. Of equal ones, the earlier stays.

        Raises:
            KeyError: `figures` does not contain the metric.
        """
        value = figures[self.metric]
        better = self.best_metric is None or (
            value > self.best_metric if self.greater_is_better else value < self.best_metric
        )
        if better:
            self.best_step, self.best_metric = step, value
        return better

    def to_dict(self, progress: Progress) -> dict[str, Any]:
        """Returns the content of trainer_state.json."""
        return {
            "global_step": progress.step,
            "epoch": progress.epoch,
            "best_global_step": self.best_step,
            "best_metric": self.best_metric,
            "metric_for_best_model": self.metric,
            "dropout": dropout_numbers(),
            "log_history": self.log,
        }

    def write(self, path: Path, progress: Progress) -> None:
        """Writes `to_dict` to `path` as JSON."""
        write_text(path, json.dumps(self.to_dict(progress), indent=2) + "\n")

    def load(self, record: dict[str, Any]) -> None:
        """Restores what `to_dict` returned; the best evaluation only if the metric is still the same."""
        self.log = list(record["log_history"])
        if record["metric_for_best_model"] == self.metric:
            self.best_step, self.best_metric = record["best_global_step"], record["best_metric"]
