"""RecipeRun applies a recipe: it owns the modifiers and the clock, and any loop calls it at seven moments."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparse_accel.data.batches import inputs_of
from sparse_accel.data.calibration import calibration_forwards
from sparse_accel.data.gradient_samples import GradientSamples, labels_in
from sparse_accel.distributed.collectives import wait_at_exit
from sparse_accel.distributed.launch import gives_gradients
from sparse_accel.distributed.weights import reshard
from sparse_accel.errors import UsageError, listed
from sparse_accel.modifiers.base import Modifier, check_gradients, no_teacher
from sparse_accel.modifiers.state import State
from sparse_accel.nn.blocks import remove_skipped
from sparse_accel.nn.layers import sparse_without_mask
from sparse_accel.progress import Progress

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from sparse_accel.models.teacher import Teacher
    from sparse_accel.recipe import Recipe
    from sparse_accel.tasks import Task


class RecipeRun:
    """Applies a recipe's modifiers to a training loop, which may be your own:

        run = RecipeRun(load_recipe("recipe.yaml"))
        run.attach(model)                                    # 1  add masks and quantizers, off
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        run.bind(accelerator, model, optimizer, steps_per_epoch=len(loader))                          # 2
        for epoch in range(run.max_epochs):
            for batch in loader:
                run.step_begin()                             # 3  learning rate, masks, quantization phase
                outputs = model(**batch)
                loss = run.loss(outputs.loss, batch, outputs)  # 4  distillation
                accelerator.backward(loss)
                run.grads_ready()                            # 5
                optimizer.step()
                optimizer.zero_grad()
                run.step_end(skipped=accelerator.optimizer_step_was_skipped)  # 6
        run.finish()                                         # 7

    Args:
        recipe: what `load_recipe` returns; None: train without a recipe.
        task: the task that the model is trained for; None: the task of the model's class.
        teacher: the teacher for distillation; "disable" leaves out all modifiers that need one.
        lr_schedule: learning rate by progress, until a learning-rate modifier starts; None: the optimizer's rate.

    Attributes:
        recipe: as it is applied: with the teacher "disable", without the modifiers that need one; None: nothing is.
        modifiers: the modifiers of this run.
        left_out: names of the modifiers of the recipe that are not.
        state: the part of the run that they can use; from `attach` on.
        notices: lines for the user about parts of the recipe that have no effect on this model.
        task: the task that the model is trained for; from `attach` on.
    """

    def __init__(
        self,
        recipe: Recipe | None = None,
        *,
        task: Task | None = None,
        teacher: Teacher | str | None = None,
        lr_schedule: Callable[[Progress], float] | None = None,
    ) -> None:
        self._max_epochs = recipe.max_epochs if recipe else 0
        self.left_out: list[str] = []
        if recipe is not None and teacher == "disable":
            self.left_out = [modifier.name for modifier in recipe.modifiers if modifier.needs_teacher]
            recipe = recipe.without_teacher()
        self.recipe, self._task = recipe if recipe and recipe.modifiers else None, task
        # Copies, because modifiers store what they learn about model and training, and the recipe may be used again.
        copies = [_copy(modifier) for modifier in recipe.modifiers] if recipe else []
        self.modifiers: Sequence[Modifier] = sorted(copies, key=lambda modifier: not modifier.applied_first)
        self.teacher = None if isinstance(teacher, str) else teacher
        self.lr_schedule = lr_schedule
        self.notices: list[str] = [*recipe.warnings, *recipe.notes] if recipe else []
        self.training_notices: list[str] = []

    @property
    def max_epochs(self) -> int:
        """Number of epochs of the recipe as given; 0 if it sets none."""
        return self._max_epochs

    @property
    def needs_gradients(self) -> bool:
        """True if a modifier reads gradients; it needs them unscaled, and not in skipped steps."""
        return any(modifier.needs_gradients for modifier in self.modifiers)

    @property
    def progress(self) -> Progress:
        """The clock; from `bind` on."""
        return self.state.progress

    # --- the seven moments --------------------------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> None:
        """Adds masks and quantizers to the model, whose results stay the same. Call it before `prepare`.

        Raises:
            UsageError: the recipe does not fit this model, or needs a teacher and there is none.
        """
        from sparse_accel.tasks import task_of  # slow: it imports datasets and the libraries of the metrics

        self.task = task_of(model) if self._task is None else self._task
        self.state = State(
            model,
            self.modifiers,
            task=self.task,
            teacher=self.teacher,
            max_epochs=self.max_epochs,
            notices=self.notices,
        )
        removed: list[str] = []
        for modifier in self.modifiers:
            with _naming(modifier):
                if words := modifier.prepare_structure(self.state):
                    removed.append(words)
        for modifier in self.modifiers:
            if modifier.needs_teacher and self.teacher is None:
                raise no_teacher(modifier)
            with _naming(modifier, *removed):
                modifier.attach(self.state)
        if lost := sparse_without_mask(model):
            zeros, elements = (sum(column) for column in zip(*lost.values(), strict=True))
            self.training_notices.append(
                f"{zeros / elements:.1%} of the weights of {len(lost)} layers are zero ({listed(list(lost), 2)}), and "
                "no modifier keeps them zero: training changes them. A ConstantPruningModifier keeps zeros"
            )

    def bind(
        self,
        accelerator: Accelerator | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        steps_per_epoch: int,
        gradient_loader: DataLoader | None = None,
        rows_per_forward: int | None = None,
    ) -> None:
        """Connects the run to the prepared model and optimizer. Call it after `prepare`.

        Args:
            accelerator: None in a loop without one.
            model, optimizer: as returned by `prepare`.
            steps_per_epoch: optimizer steps per epoch.
            gradient_loader: of the training rows, for modifiers that draw gradient samples (OBSPruningModifier), or
                run rows where they start (`num_calibration_steps`): the loader as it was before `prepare`. One batch is
                one sample, of the batch size that the modifier may set.
            rows_per_forward: how many rows of a gradient sample go through the model at once; None: all of a process.

        Raises:
            UsageError: a modifier needs what this layout or optimizer does not have.
        """
        wait_at_exit()
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.state.optimizer = optimizer
        self.state.gives_gradients = accelerator is None or gives_gradients(accelerator)
        check_gradients(self.modifiers, self.state.gives_gradients)
        if accelerator is not None:
            self.state.autocast = accelerator.autocast
            self.state.loss_scale = lambda: float(accelerator.scaler.get_scale()) if accelerator.scaler else 1.0
        self.state.progress = Progress(step=0, steps_per_epoch=max(steps_per_epoch, 1))
        drawing = [modifier.name for modifier in self.modifiers if modifier.samples_gradients]
        running = [modifier.name for modifier in self.modifiers if modifier.calibration_batches]
        if (drawing or running) and gradient_loader is None:
            what = (
                f"{drawing[0]} needs gradient samples"
                if drawing
                else f"{running[0]}: num_calibration_steps: needs batches"
            )
            raise UsageError(
                f"{what} of the training rows: pass gradient_loader=... to RecipeRun."
                "bind, the loader of the rows as it was before accelerator.prepare"
            )
        if running:
            self.state.forwards = lambda count: calibration_forwards(
                model,
                self.state.model,
                gradient_loader,
                count,
                prepare=self._prepared,
                rows_per_forward=rows_per_forward,
                seed=self.progress.step,
            )
        if drawing:
            self.state.gradient_samples = GradientSamples(
                accelerator,
                model,
                self.state.model,
                gradient_loader,
                self._part_of_loss,
                prepare=self._prepared,
                rows_per_forward=rows_per_forward,
                loss_scale=self.state.loss_scale,
            )
        for modifier in self.modifiers:
            with _naming(modifier):
                modifier.bind(self.state)

    def step_begin(self) -> None:
        """Call it before the first forward of an optimizer step."""
        reshard(self.model)
        if self.lr_schedule is not None:
            rate = self.lr_schedule(self.progress)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        # Gradients are sampled last, with the masks, quantizers and loss terms of this step.
        for modifier in sorted(self.modifiers, key=lambda modifier: modifier.samples_gradients):
            modifier.step_begin(self.progress)

    def calibrate(self, forward: Callable[[], None]) -> None:
        """Call it after `step_begin`, in a loop that can run the rows of a step twice.

        Quantization ranges then start from all rows of the step, however they are split over processes and
        micro-batches.

        Args:
            forward: runs all rows of the current step through the model, without gradients.
        """
        for modifier in self.modifiers:
            modifier.calibrate(forward)

    def step_batches(self, batches: Sequence[dict[str, Any]]) -> None:
        """Call it after `step_begin`, in a loop that has all micro-batches of a step at once.

        What is relative to the size of the teacher's outputs is then relative to that over all rows of the step,
        however they are split over processes and micro-batches; else, over those of each micro-batch.

        Args:
            batches: the micro-batches of this process.
        """
        for modifier in self.modifiers:
            modifier.step_batches(batches)

    def loss(self, loss: Tensor, batch: dict[str, Any], outputs: Any) -> Tensor:
        """Returns the loss to train on, of the shape of `loss`: a micro-batch's task loss, (rows,) or its mean ()."""
        return self.losses(loss, batch, outputs)["loss"]

    def losses(self, loss: Tensor, batch: dict[str, Any], outputs: Any) -> dict[str, Tensor]:
        """Returns the loss to train on, as `loss` does, together with its terms.

        Returns:
            `loss`, to train on; `task_loss`, as given; and each term of a modifier under its name. All have the shape
            of `loss`; only `loss` has a gradient.

        Raises:
            ValueError: a term of a modifier has a wrong shape or a reserved name.
        """
        return self._losses(self.modifiers, loss, batch, outputs)

    def _losses(
        self, modifiers: Sequence[Modifier], loss: Tensor, batch: dict[str, Any], outputs: Any
    ) -> dict[str, Tensor]:
        found = [term for modifier in modifiers for term in _checked_terms(modifier, batch, outputs)]
        if self.teacher is not None and any(modifier.teacher_outputs - {"logits"} for modifier in self.modifiers):
            self.teacher.release()  # outputs of layers are large: their memory is free in the backward
        terms = [(math.prod(modifier.task_weight() for modifier in self.modifiers), loss)]
        parts = {"task_loss": loss.detach()}
        for name, (weight, value) in sorted(
            found, key=lambda term: term[0]
        ):  # sorted, so that the sum does not depend on the modifiers' epochs
            value = value.expand_as(loss) if loss.ndim else self.task.mean(value, batch) if value.ndim else value
            terms.append((weight, value))
            parts[name] = parts[name] + value.detach() if name in parts else value.detach()
        weighted = [value if weight == 1 else weight * value for weight, value in terms if weight]
        parts["loss"] = functools.reduce(torch.add, weighted) if weighted else 0.0 * loss
        return parts

    def grads_ready(self) -> None:
        """Call it when the gradients of all micro-batches are complete, before clipping.

        With fp16 and `needs_gradients`, call `accelerator.unscale_gradients()` first, and leave this call out if a
        gradient is NaN or inf: the scaler will skip that step.
        """
        for modifier in self.modifiers:
            modifier.grads_ready()

    def step_end(self, *, skipped: bool = False) -> None:
        """Call it after optimizer.step(). A step that the fp16 scaler skipped does not move the clock."""
        if skipped:
            for modifier in self.modifiers:
                modifier.step_skipped()
            return
        self.state.progress = self.progress.next()
        for modifier in self.modifiers:
            modifier.step_end(self.progress)

    def skip_step(self) -> None:
        """Call it instead of step_end to discard a step with a NaN or inf loss: only the clock moves."""
        self.step_end(skipped=True)
        self.state.progress = self.progress.next()

    def finish(self) -> None:
        """Call it after the last step: sets the final sparsity, freezes ranges, and removes dropped layers."""
        reshard(self.model)
        for modifier in self.modifiers:
            modifier.finish()
        remove_skipped(self.state.model)  # last, because modifiers know weights by the names they had until now

    def apply_at_once(self, forwards: Callable[[], Iterator[None]]) -> None:
        """Applies the recipe without training: final sparsity, and quantization with ranges from `forwards`.

        Args:
            forwards: returns an iterator; each of its steps is one forward over a batch of training rows.

        Raises:
            UsageError: a modifier works only in training.
        """
        for modifier in self.modifiers:
            modifier.check_acts_at_once()
        for modifier in sorted(self.modifiers, key=lambda each: each.needs_rows):  # ranges last: of the final structure
            modifier.apply_at_once(forwards)
        remove_skipped(self.state.model)

    def _prepared(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a batch as the task gives it to the model in this epoch; a batch of the user's own as it is."""
        return self.task.prepare(batch, int(self.progress.epoch)) if "row_id" in batch else batch

    def _part_of_loss(self, model: Any, rows: dict[str, Tensor], batch: dict[str, Tensor], from_recipe: bool) -> Tensor:
        """Returns what some rows of a batch add to its mean loss, (): of the task or, with its terms, of the recipe."""
        of_this_package = "row_id" in batch  # otherwise the loader is the user's own, and the model computes the loss
        outputs = model(**(inputs_of(rows) if of_this_package else rows))
        loss = self.task.loss(outputs, rows, self.task.label_smoothing) if of_this_package else outputs["loss"]
        if from_recipe:
            in_eval = [modifier for modifier in self.modifiers if modifier.terms_in_eval]
            loss = self._losses(in_eval, loss, rows, outputs)["loss"]
        if not of_this_package:
            return loss * (labels_in(rows) / labels_in(batch))
        return (loss * self.task.weights(rows)).sum() / self.task.weights(batch).sum().clamp(min=1)

    # --- state and report ---------------------------------------------------------------------------------------------

    def structure_final(self) -> bool:
        """Returns True once the recipe no longer changes the structure: evaluations can be compared from then on."""
        return all(modifier.structure_final(self.progress) for modifier in self.modifiers)

    def learning_rate(self) -> float:
        """Returns the learning rate of the first parameter group in the current step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def rates(self) -> dict[str, float]:
        """Returns learning rate and weight decay as applied in the last step, by name.

        Those of the first parameter group (weights with decay) are `train/learning_rate` and `train/weight_decay`; a
        group N (from 1) with another learning rate adds `train/learning_rate/group_N`.
        """
        first, *others = self.optimizer.param_groups
        figures = {"train/learning_rate": float(first["lr"])}
        if "weight_decay" in first:
            figures["train/weight_decay"] = float(first["weight_decay"])
        for number, group in enumerate(others, start=1):
            if group["lr"] != first["lr"]:
                figures[f"train/learning_rate/group_{number}"] = float(group["lr"])
        return figures

    def phase(self) -> str:
        """Returns what the recipe is doing, as a short text."""
        return ", ".join(words for modifier in self.modifiers if (words := modifier.phase()))

    def metrics(self) -> dict[str, float]:
        """Returns the values that modifiers log now, by name."""
        figures: dict[str, float] = {}
        for modifier in self.modifiers:
            figures.update(modifier.metrics())
        return figures

    def state_dict(self) -> dict[str, Tensor]:
        """Returns what a resumed run needs in addition to model and optimizer: the step, masks, ranges.

        All processes must call it, because the state of a modifier may be spread over them.
        """
        state = {"step": torch.tensor(self.progress.step)}
        for number, modifier in enumerate(self.modifiers):
            state.update({f"{number}:{modifier.name}:{key}": value for key, value in modifier.state_dict().items()})
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` returned for the same recipe. Call it after `bind`.

        Raises:
            ValueError: the state belongs to other modifiers or another model.
        """
        known = {"step", *(f"{number}:{modifier.name}" for number, modifier in enumerate(self.modifiers))}
        if unknown := sorted({":".join(key.split(":")[:2]) for key in state} - known):
            raise ValueError(f"the recipe has no modifier {unknown[0]}")
        self.state.progress = Progress(step=int(state["step"]), steps_per_epoch=self.progress.steps_per_epoch)
        for number, modifier in enumerate(self.modifiers):
            prefix = f"{number}:{modifier.name}:"
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            modifier.load_state_dict(own)


def _copy(modifier: Modifier) -> Modifier:
    copied = replace(modifier)
    copied.place = modifier.place
    return copied


@contextmanager
def _naming(modifier: Modifier, *more: str) -> Iterator[None]:
    """Adds to a UsageError the place of the modifier in the recipe, its name, and more sentences."""
    try:
        yield
    except UsageError as error:
        text = str(error) if modifier.name in str(error) else f"{modifier.name}: {error}"
        raise UsageError(". ".join([f"{modifier.place}: {text}" if modifier.place else text, *more])) from error


def _checked_terms(modifier: Modifier, batch: dict[str, Any], outputs: Any) -> list[tuple[str, tuple[float, Tensor]]]:
    """Returns the loss terms of one modifier; raises ValueError for a wrong shape or a reserved name."""
    terms = list(modifier.loss_terms(batch, outputs).items())
    for name, (_, value) in terms:
        if name in ("loss", "task_loss"):
            raise ValueError(f"{modifier.name}: a term cannot be called '{name}': this name is reserved")
        if value.ndim > 1:
            raise ValueError(
                f"{modifier.name}: the term '{name}' has the shape {tuple(value.shape)}; expected one value per row, "
                "(rows,), or a single value, ()"
            )
    return terms
