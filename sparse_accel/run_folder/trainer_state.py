"""The history of a run: what it has measured so far, and which evaluation was best."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_accel.files import write_text
from sparse_accel.nn.dropout import dropout_numbers
from sparse_accel.progress import Progress


class Log:
    """Entries with figures by name, as lines of JSON, compressed.

    A run of days has thousands of them, with the same names in each, and every checkpoint has them all. Compressed they
    take a tenth of the memory; as lines they are written without being encoded again.
    """

    def __init__(self) -> None:
        self._compressor = zlib.compressobj(1)
        self._compressed = bytearray()

    def append(self, entry: dict[str, float]) -> None:
        """Adds an entry. NaN and infinity are allowed."""
        line = json.dumps(entry).encode() + b"\n"
        self._compressed += self._compressor.compress(line) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def lines(self) -> list[str]:
        """Returns each entry as JSON."""
        return zlib.decompressobj().decompress(self._compressed).decode().splitlines()

    def __iter__(self) -> Iterator[dict[str, float]]:
        return map(json.loads, self.lines())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Log) and self._compressed == other._compressed


@dataclass
class History:
    """The log of a run, in the format of the Trainer's trainer_state.json.

    Attributes:
        metric: the evaluation figure that selects the best model, such as `eval_accuracy`.
        greater_is_better: whether a larger value of it is better.
        log: one entry per logged step, with `step` and `epoch`.
        evaluations: those entries that have figures of an evaluation, `eval_NAME`.
        best_step, best_metric: of the best evaluation among the comparable ones; None before the first.
    """

    metric: str = "eval_loss"
    greater_is_better: bool = False
    log: Log = field(default_factory=Log)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int | None = None
    best_metric: float | None = None

    def add(self, figures: dict[str, float], progress: Progress) -> None:
        """Appends figures to the log, with the current step and epoch."""
        self._append({"step": progress.step, "epoch": round(progress.epoch, 4), **figures})

    def _append(self, entry: dict[str, float]) -> None:
        self.log.append(entry)
        if any(name.startswith("eval_") for name in entry):
            self.evaluations.append(entry)

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

    def text(self, progress: Progress) -> str:
        """Returns the content of trainer_state.json: JSON, with one line for each entry of the log."""
        record = {
            "global_step": progress.step,
            "epoch": progress.epoch,
            "best_global_step": self.best_step,
            "best_metric": self.best_metric,
            "metric_for_best_model": self.metric,
            "dropout": dropout_numbers(),
        }
        lines = "[\n    " + ",\n    ".join(found) + "\n  ]" if (found := self.log.lines()) else "[]"
        return json.dumps(record, indent=2).removesuffix("\n}") + f',\n  "log_history": {lines}\n}}\n'

    def write(self, path: Path, progress: Progress) -> None:
        """Writes `text` to `path`."""
        write_text(path, self.text(progress))

    def load(self, record: dict[str, Any]) -> None:
        """Restores what `text` returned, read as JSON; the best evaluation only if the metric is still the same."""
        self.log, self.evaluations = Log(), []
        for entry in record["log_history"]:
            self._append(entry)
        if record["metric_for_best_model"] == self.metric:
            self.best_step, self.best_metric = record["best_global_step"], record["best_metric"]
