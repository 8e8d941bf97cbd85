"""What a run reports while it trains: to trackers, to its history, and on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from sparse_accel.distributed.weights import plain_model
from sparse_accel.models.sparsity import sparsity_report
from sparse_accel.run_folder.results import print_line
from sparse_accel.run_folder.trainer_state import History
from sparse_accel.training.tracking import sparsity_figures, tracker_names

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe_run import RecipeRun


class RunLog:
    """Logs all figures of a run; all processes must call its methods.

    Args:
        model: the prepared model, whose sparsity is logged.

    Attributes:
        history: what was logged, and the best evaluation.
    """

    def __init__(
        self, arguments: TrainingArguments, accelerator: Accelerator, run: RecipeRun, model: nn.Module
    ) -> None:
        self.arguments, self.accelerator, self.run, self.model = arguments, accelerator, run, model
        self.history = History(f"eval_{arguments.metric_for_best_model}", bool(arguments.greater_is_better))

    def add(self, figures: dict[str, float]) -> None:
        """Logs figures by name, together with those of the recipe's modifiers."""
        figures = {**figures, **self.run.metrics()}
        self.history.add(figures, self.run.progress)
        self.accelerator.log(tracker_names(figures), step=self.run.progress.step)

    def add_evaluation(self, figures: dict[str, float], *, is_saved: bool) -> None:
        """Logs an evaluation with the sparsity of the model, and prints it.

        With --load_best_model_at_end, an evaluation is a candidate if its model is saved and the recipe changes the
        structure no more: earlier models are not comparable.

        Args:
            is_saved: whether a checkpoint is written at this step.
        """
        self.add({**figures, **self._sparsity()})
        epoch = self.run.progress.epoch
        late_enough = self.run.structure_final() and epoch >= (self.arguments.best_model_after_epoch or 0)
        if self.arguments.load_best_model_at_end and late_enough and is_saved:
            self.history.consider(figures, self.run.progress.step)
        print_line(self.accelerator, self.run, figures)

    def end(self, *, evaluated: bool) -> None:
        """Logs the final sparsity after the last step, unless an evaluation did."""
        if not evaluated:
            self.add(self._sparsity())

    def _sparsity(self) -> dict[str, float]:
        return sparsity_figures(sparsity_report(plain_model(self.accelerator, self.model)))
