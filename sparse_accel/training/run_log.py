"""What a run reports while it trains: to trackers, to its history, and on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sparse_accel.cli.training import greater_is_better
from sparse_accel.console import print_above_bar
from sparse_accel.distributed.weights import plain_model, reshard
from sparse_accel.models.sparsity import sparsity_report
from sparse_accel.nn.layers import mask_versions
from sparse_accel.nn.quantizer_values import watch_quantizers
from sparse_accel.recipe.recipe import timeline_of
from sparse_accel.run_folder.results import write_teacher_results
from sparse_accel.run_folder.trainer_state import History
from sparse_accel.training.averages import GlobalBatch
from sparse_accel.training.evaluation import Evaluation, agreement, details_record
from sparse_accel.training.figures import memory_figures, sparsity_figures, tracker_names
from sparse_accel.training.loop import calibration_forward
from sparse_accel.training.sending import log_charts, log_details, log_figures, log_histograms, log_timeline

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe_run import RecipeRun
    from sparse_accel.training.loaders import TokenizedRows


class RunLog:
    """Logs all figures of a run; all processes must call its methods.

    Args:
        model: the prepared model, whose sparsity is logged.

    Attributes:
        history: what was logged, and the best evaluation.
        teacher: the teacher's evaluation on the validation rows, if there is one.
    """

    def __init__(
        self, arguments: TrainingArguments, accelerator: Accelerator, run: RecipeRun, model: nn.Module
    ) -> None:
        self.arguments, self.accelerator, self.run, self.model = arguments, accelerator, run, model
        self.history = History(f"eval_{arguments.metric_for_best_model}", bool(arguments.greater_is_better))
        self.teacher: Evaluation | None = None
        self._masks: list[tuple[Tensor, int]] | None = None  # each mask and its version, which counts changes in place

    def begin(self, teacher: Evaluation | None, rows: TokenizedRows) -> None:
        """Logs what is known before the first step: the recipe's events, and the teacher's figures, with which later
        evaluations are compared; they are also written to teacher_results.json.

        Args:
            teacher: from `evaluate_teacher`; None: there is none.
            rows: those of the run.
        """
        step = self.run.progress.step
        log_timeline(self.accelerator, timeline_of(self.run.modifiers, self.run.max_epochs), step)
        self.teacher = teacher
        if teacher is None:
            return
        splits = {
            split: {"digest": entry["digest"], "figures": entry["figures"]}
            for split, entry in details_record(self.run.task, rows, teacher).items()
        }
        folder = Path(str(self.arguments.output_dir))
        write_teacher_results(self.accelerator, folder, str(self.arguments.distill_teacher), splits)
        log_figures(self.accelerator, tracker_names(teacher.figures, "teacher"), step)

    def add(self, figures: dict[str, float]) -> None:
        """Logs figures by name, together with those of the recipe's modifiers, memory and, if masks have changed since
        the last time, sparsity: measuring it gathers sharded weights."""
        self._log(figures, measure_sparsity=self._masks_changed())

    def _log(self, figures: dict[str, float], *, measure_sparsity: bool) -> None:
        figures = {**figures, "train/epoch": self.run.progress.epoch, **self.run.metrics(), **memory_figures()}
        if measure_sparsity:
            figures |= sparsity_figures(sparsity_report(plain_model(self.accelerator, self.model)))
        self.history.add(figures, self.run.progress)
        log_figures(self.accelerator, tracker_names(figures), self.run.progress.step)

    def _masks_changed(self) -> bool:
        """Returns whether any mask has changed since the last call; True at the first."""
        before, self._masks = self._masks, mask_versions(self.run.state.model)
        if before is None or len(before) != len(self._masks):
            return True
        pairs = zip(before, self._masks, strict=True)
        return any(mask is not old or version != known for (old, known), (mask, version) in pairs)

    def add_quantizers(self, step: int, batch: GlobalBatch) -> None:
        """Logs, if an epoch ends with `step`, the range, scale and clipped fraction of each quantizer that is on, and
        histograms of what it sees.

        Args:
            batch: rows to run through the model, in eval mode; nothing else changes.
        """
        epoch_ends = step % self.run.progress.steps_per_epoch == 0
        if not (epoch_ends and self.run.metrics().get("quantization/phase")):
            return
        training = self.model.training
        reshard(self.model)
        self.model.eval()
        with watch_quantizers(plain_model(self.accelerator, self.model)) as values:
            calibration_forward(self.model, batch.micro_batches)
        self.model.train(training)
        figures = {
            f"quantization/{kind}/{name}": float(getattr(found, kind))
            for name, found in values.items()
            for kind in ("min", "max", "scale", "clipped")
        }
        self.history.add(figures, self.run.progress)
        log_figures(self.accelerator, {**figures, "train/epoch": self.run.progress.epoch}, step)
        histograms = {f"histograms/{name}": (found.counts, found.edges) for name, found in values.items()}
        log_histograms(self.accelerator, histograms, step)

    def add_evaluation(self, evaluation: Evaluation, *, is_saved: bool) -> None:
        """Logs an evaluation with the sparsity of the model, and prints it.

        With --load_best_model_at_end, an evaluation is a candidate if its model is saved and the recipe changes the
        structure no more: earlier models are not comparable.

        Args:
            is_saved: whether a checkpoint is written at this step.
        """
        figures = {**evaluation.figures, **(agreement(evaluation, self.teacher) if self.teacher else {})}
        before = self._best()
        self._log(figures, measure_sparsity=True)
        log_details(self.accelerator, evaluation.details, "eval", self.run.progress.step)
        epoch = self.run.progress.epoch
        late_enough = self.run.structure_final() and epoch >= (self.arguments.best_model_after_epoch or 0)
        if self.arguments.load_best_model_at_end and late_enough and is_saved:
            self.history.consider(figures, self.run.progress.step)
        print_above_bar(self.accelerator, self._line(evaluation.figures, before))

    def end(self, *, evaluated: bool) -> None:
        """Logs the final sparsity, unless an evaluation did, and charts with the recipe's events."""
        if not evaluated:
            self._log({}, measure_sparsity=True)
        events = timeline_of(self.run.modifiers, self.run.max_epochs)
        names = ("train/loss", f"eval_{self.run.task.headline()}", "sparsity/encoder")
        log_charts(self.accelerator, self.history.log, events, names)

    def _line(self, figures: dict[str, float], before: tuple[float, float] | None) -> str:
        """Returns an evaluation as a line: its figures, the best before, the teacher's, and what the recipe does.

        Args:
            before: from `_best`, before this evaluation.
        """
        name = self.run.task.headline()
        words = ", ".join(f"{key.removeprefix('eval_')} {value:.4f}" for key, value in sorted(figures.items()))
        moment = f"epoch {self.run.progress.epoch:6.2f}  step {self.run.progress.step:6d}"
        others = [f"best {name} before {before[0]:.4f} in epoch {before[1]:.2f}"] if before else []
        if self.teacher and f"eval_{name}" in self.teacher.figures:
            others.append(f"teacher {self.teacher.figures[f'eval_{name}']:.4f}")
        compared = f"  ({', '.join(others)})" if others else ""
        return f"{moment}  {words}{compared}  [{self.run.phase() or 'dense'}]"

    def _best(self) -> tuple[float, float] | None:
        """Returns the best value of the task's headline so far, and its epoch; None before the first evaluation."""
        name = f"eval_{self.run.task.headline()}"
        found = [(entry[name], -entry["epoch"]) for entry in self.history.evaluations if name in entry]
        if not found:
            return None
        value, epoch = max(found) if greater_is_better(name) else min(found)
        return value, -epoch
