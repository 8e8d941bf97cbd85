"""Runs a training program that takes turns with others: each epoch waits until it is its turn, and reports its time.

    python peers_launcher.py trainer IN OUT sparseml.transformers.text_classification --do_train ...
    python peers_launcher.py sparse_accel IN OUT scripts/text_classification.py --do_train ...

IN and OUT are numbers of open pipes. OUT gets lines of JSON: `{"waits": EPOCH}` when an epoch could begin, and after
its last step rows, seconds, threads, and the state of the model's quantizers. A line in IN begins the epoch. Evaluation
and saving come after that, outside of the measured time.

It runs in the Python of SparseML too, so it imports nothing of this package but where it runs this package.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Iterator
from typing import Any


class Turns:
    """The side of a training program: `begin` waits for its turn, `end` reports it.

    Args:
        orders, reports: numbers of open pipes, to read from and to write to.
    """

    def __init__(self, orders: int, reports: int) -> None:
        self._orders, self._reports = os.fdopen(orders), os.fdopen(reports, "w", buffering=1)
        self._epoch, self._began = 0, 0.0

    def begin(self) -> None:
        """Waits for the turn. The process ends if nobody gives turns any more."""
        self.say(waits=self._epoch)
        if not self._orders.readline():
            raise SystemExit("nobody gives turns any more")
        self._began = time.perf_counter()

    def end(self, rows: int, model: Any) -> None:
        """Reports the epoch that ends now, of so many rows."""
        seconds = time.perf_counter() - self._began
        import torch

        self.say(epoch=self._epoch, rows=rows, seconds=seconds, threads=torch.get_num_threads(), **quantizers(model))
        self._epoch += 1

    def say(self, **report: Any) -> None:
        """Writes one line of JSON."""
        self._reports.write(json.dumps(report) + "\n")


def quantizers(model: Any) -> dict[str, int]:
    """Returns how many fake quantizers of a model round, and how many still follow the range of their values.

    They are those of torch.ao, whose switches are buffers, or of this package, where they are attributes.
    """
    found = [module for module in model.modules() if "FakeQuantize" in type(module).__name__]
    of_torch = [module for module in found if hasattr(module, "fake_quant_enabled")]
    ours = [module for module in found if hasattr(module, "enabled")]
    return {
        "rounding": sum(int(each.fake_quant_enabled[0]) for each in of_torch) + sum(each.enabled for each in ours),
        "observing": sum(int(each.observer_enabled[0]) for each in of_torch) + sum(each.observing for each in ours),
    }


def hook_trainer(turns: Turns) -> None:
    """Makes every transformers.Trainer, of which SparseML's is a subclass, take turns."""
    import transformers

    class InTurns(transformers.TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            turns.begin()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            turns.end(len(parts["train_dataloader"].dataset), parts["model"])

    before = transformers.Trainer.__init__

    def with_turns(self: Any, *arguments: Any, **options: Any) -> None:
        before(self, *arguments, **options)
        self.add_callback(InTurns())

    transformers.Trainer.__init__ = with_turns  # type: ignore[method-assign]


def hook_sparse_accel(turns: Turns) -> None:
    """Makes the loop of this package take turns, and report once how long the teacher's logits took."""
    from sparse_accel.training import distillation
    from sparse_accel.training.loop import TrainingSteps

    steps, add, fill = TrainingSteps.__iter__, TrainingSteps.add, distillation.fill_teacher_table
    rows = [0]

    def in_turns(self: Any) -> Iterator[Any]:
        found = steps(self)
        while self.run.progress.step < self.schedule.total_steps:
            if self.run.progress.step % self.run.progress.steps_per_epoch == 0:
                turns.begin()
            yield next(found)

    def add_and_end(self: Any, measured: Any, batch: Any) -> None:
        add(self, measured, batch)
        rows[0] += batch.rows
        if self.run.progress.step % self.run.progress.steps_per_epoch == 0:
            turns.end(rows[0], self.run.state.model)
            rows[0] = 0

    def timed_fill(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        found = fill(*arguments, **options)
        turns.say(teacher_seconds=time.perf_counter() - began)
        return found

    TrainingSteps.__iter__, TrainingSteps.add = in_turns, add_and_end  # type: ignore[method-assign]
    distillation.fill_teacher_table = timed_fill


class Accuracy:
    """Stands in for the metric that SparseML's command fetches from the network."""

    def compute(self, predictions: Any, references: Any, **_: Any) -> dict[str, float]:
        """Returns the fraction of equal entries."""
        pairs = list(zip(predictions, references, strict=True))
        return {"accuracy": sum(bool(one == other) for one, other in pairs) / max(len(pairs), 1)}


def stand_in_for_metrics() -> None:
    """Replaces the functions that fetch a metric from the network, before a module imports them."""
    import datasets

    datasets.load_metric = lambda *_, **__: Accuracy()
    try:
        import evaluate
    except ImportError:  # SparseML alone needs it
        return
    evaluate.load = lambda *_, **__: Accuracy()


def main(kind: str, orders: str, reports: str, program: str, *arguments: str) -> None:
    """Runs a program, the path of a file or the name of a module, as `python PROGRAM ARGUMENT ...` would."""
    turns = Turns(int(orders), int(reports))
    sys.argv = [program, *arguments]
    if kind == "sparse_accel":
        script = runpy.run_path(program)  # its first lines set what torch reads when it is loaded
        hook_sparse_accel(turns)
        script["run_main"](script["main"])
    stand_in_for_metrics()
    hook_trainer(turns)
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose modules are not meant to be found by their bare names
    main(*sys.argv[1:])
