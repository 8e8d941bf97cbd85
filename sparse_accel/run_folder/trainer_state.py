"""What a run has measured so far, and which evaluation was best."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_accel.files import write_text
from sparse_accel.progress import Progress


@dataclass
class History:
    """The log of a run, as the Trainer's trainer_state.json has it.

    Attributes:
        metric: the evaluation figure that decides, such as `eval_accuracy`.
        greater_is_better: which way it decides.
        log: one dict a logged moment, with `step` and `epoch`.
        best_step, best_metric: of the best evaluation among those that may be compared; None before the first.
    """

    metric: str = "eval_loss"
    greater_is_better: bool = False
    log: list[dict[str, float]] = field(default_factory=list)
    best_step: int | None = None
    best_metric: float | None = None

    def add(self, figures: dict[str, float], progress: Progress) -> None:
        self.log.append({"step": progress.step, "epoch": round(progress.epoch, 4), **figures})

    def consider(self, figures: dict[str, float], step: int) -> bool:
        """Takes an evaluation as the best if it is; returns whether it is. The earlier of equals stays."""
        value = figures[self.metric]
        better = self.best_metric is None or (
            value > self.best_metric if self.greater_is_better else value < self.best_metric
        )
        if better:
            self.best_step, self.best_metric = step, value
        return better

    def to_dict(self, progress: Progress) -> dict[str, Any]:
        return {
            "global_step": progress.step,
            "epoch": progress.epoch,
            "best_global_step": self.best_step,
            "best_metric": self.best_metric,
            "metric_for_best_model": self.metric,
            "log_history": self.log,
        }

    def write(self, path: Path, progress: Progress) -> None:
        write_text(path, json.dumps(self.to_dict(progress), indent=2) + "\n")

    def load(self, record: dict[str, Any]) -> None:
        """Takes what `to_dict` gave; the metric is this run's own."""
        self.log = list(record["log_history"])
        if record["metric_for_best_model"] == self.metric:
            self.best_step, self.best_metric = record["best_global_step"], record["best_metric"]
