"""RecipeRun: a recipe at work. It owns the modifiers and the clock, and is called at seven moments of any loop."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparse_accel.distributed.launch import gives_gradients
from sparse_accel.distributed.weights import reshard
from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import Modifier, no_teacher
from sparse_accel.modifiers.state import State
from sparse_accel.progress import Progress

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.models.teacher import Teacher
    from sparse_accel.recipe import Recipe
    from sparse_accel.tasks import Task


class RecipeRun:
    """Applies a recipe's modifiers to a training loop, which may be your own:

        run = RecipeRun(load_recipe("recipe.yaml"))
        run.attach(model)                                    # 1  masks and quantizers in place, off
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
        recipe: what `load_recipe` returns; None trains plainly.
        task: what the model's outputs mean; None: what the model itself says.
        teacher: whom modifiers that need a teacher follow; "disable" leaves these out of the recipe.
        lr_schedule: learning rate by progress where no learning-rate modifier has begun; None: the optimizer's own.

    Attributes:
        modifiers: those that take part.
        state: what they see of the run; from `attach` on.
        notices: lines for the user on what the recipe asks for and this model has no use for.
        task: what the model's outputs mean; from `attach` on.
    """

    def __init__(
        self,
        recipe: Recipe | None = None,
        *,
        task: Task | None = None,
        teacher: Teacher | str | None = None,
        lr_schedule: Callable[[Progress], float] | None = None,
    ) -> None:
        self.recipe, self._task = recipe, task
        # Copies: what a modifier learns of model and training is this run's, and the recipe may be run again.
        self.modifiers: Sequence[Modifier] = [replace(modifier) for modifier in recipe.modifiers] if recipe else []
        if teacher == "disable":
            self.modifiers = [modifier for modifier in self.modifiers if not modifier.needs_teacher]
        self.teacher = None if isinstance(teacher, str) else teacher
        self.lr_schedule = lr_schedule
        self.notices: list[str] = [*recipe.warnings, *recipe.notes] if recipe else []

    @property
    def max_epochs(self) -> int:
        """Epochs that the recipe asks for; 0 when it asks for none."""
        return self.recipe.max_epochs if self.recipe else 0

    @property
    def needs_gradients(self) -> bool:
        """Whether a modifier reads gradients, and must get them unscaled, in steps that count alone."""
        return any(modifier.needs_gradients for modifier in self.modifiers)

    @property
    def progress(self) -> Progress:
        """The clock; known from `bind` on."""
        return self.state.progress

    # --- the seven moments --------------------------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> None:
        """Puts masks and quantizers into the model, which goes on computing as before. Call it before `prepare`.

        Raises:
            UsageError: the recipe names parts that this model does not have, or needs a teacher that is missing.
        """
        from sparse_accel.tasks import task_of  # datasets and the metrics' libraries come with it

        self.task = task_of(model) if self._task is None else self._task
        self.state = State(
            model,
            self.modifiers,
            task=self.task,
            teacher=self.teacher,
            max_epochs=self.max_epochs,
            notices=self.notices,
        )
        for modifier in self.modifiers:
            if modifier.needs_teacher and self.teacher is None:
                raise no_teacher(modifier)
            modifier.attach(self.state)

    def bind(
        self,
        accelerator: Accelerator | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        steps_per_epoch: int,
    ) -> None:
        """Takes the prepared model and optimizer. `steps_per_epoch` counts optimizer steps.

        Raises:
            UsageError: a modifier needs what this layout cannot give.
        """
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.state.optimizer = optimizer
        self.state.gives_gradients = accelerator is None or gives_gradients(accelerator)
        self.state.progress = Progress(step=0, steps_per_epoch=max(steps_per_epoch, 1))
        check_gradients(self.modifiers, self.state.gives_gradients)
        for modifier in self.modifiers:
            modifier.bind(self.state)

    def step_begin(self) -> None:
        """Before the first forward of an optimizer step."""
        reshard(self.model)
        if self.lr_schedule is not None:
            rate = self.lr_schedule(self.progress)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        for modifier in self.modifiers:
            modifier.step_begin(self.progress)

    def calibrate(self, forward: Callable[[], None]) -> None:
        """After `step_begin`, in a loop that can show a step's rows twice: ranges then begin from all of them, however
        they are split over processes and micro-batches.

        Args:
            forward: runs all rows of the step under way through the model, without gradients.
        """
        for modifier in self.modifiers:
            modifier.calibrate(forward)

    def loss(self, loss: Tensor, batch: dict[str, Any], outputs: Any) -> Tensor:
        """Takes a micro-batch's task loss, (rows,) or its mean (), and returns the loss to train on, of that shape."""
        return self.losses(loss, batch, outputs)["loss"]

    def losses(self, loss: Tensor, batch: dict[str, Any], outputs: Any) -> dict[str, Tensor]:
        """As `loss`, with the terms that it is the sum of.

        Returns:
            `loss`, the one to train on; `task_loss`, as it was given; and each term of a modifier under its name. All
            are of the shape of `loss`; only `loss` carries a gradient.
        """
        found = [term for modifier in self.modifiers for term in _checked_terms(modifier, batch, outputs)]
        terms = [(math.prod(modifier.task_weight() for modifier in self.modifiers), loss)]
        parts = {"task_loss": loss.detach()}
        for name, (weight, value) in sorted(found, key=lambda term: term[0]):  # sums must not depend on epochs
            value = value.expand_as(loss) if loss.ndim else self.task.mean(value, batch) if value.ndim else value
            terms.append((weight, value))
            parts[name] = parts[name] + value.detach() if name in parts else value.detach()
        weighted = [value if weight == 1 else weight * value for weight, value in terms if weight]
        parts["loss"] = functools.reduce(torch.add, weighted) if weighted else 0.0 * loss
        return parts

    def grads_ready(self) -> None:
        """Gradients of all micro-batches are there, unclipped.

        Under fp16, a loop of one's own calls `accelerator.unscale_gradients()` before where `needs_gradients` is true,
        and leaves this call out where they are not all finite: that step will not count.
        """
        for modifier in self.modifiers:
            modifier.grads_ready()

    def step_end(self, *, skipped: bool = False) -> None:
        """After optimizer.step(). A step that the fp16 scaler skipped moves no clock."""
        if skipped:
            for modifier in self.modifiers:
                modifier.step_skipped()
            return
        self.state.progress = self.progress.next()
        for modifier in self.modifiers:
            modifier.step_end(self.progress)

    def skip_step(self) -> None:
        """Instead of step_end, where a step's rows are given up: the clock moves, and nothing else does."""
        self.step_end(skipped=True)
        self.state.progress = self.progress.next()

    def finish(self) -> None:
        """After the last step: final sparsity reached, ranges frozen."""
        reshard(self.model)
        for modifier in self.modifiers:
            modifier.finish()

    def apply_at_once(self, forwards: Callable[[], Iterator[None]]) -> None:
        """Instead of training: final sparsity, and quantization with ranges from the batches that `forwards` shows.

        Raises:
            UsageError: a modifier acts in training only.
        """
        for modifier in self.modifiers:
            modifier.check_acts_at_once()
        for modifier in self.modifiers:
            modifier.apply_at_once(forwards)

    # --- state and report ---------------------------------------------------------------------------------------------

    def structure_final(self) -> bool:
        """True once the recipe will change the model's structure no more: models from then on may be compared."""
        return all(modifier.structure_final(self.progress) for modifier in self.modifiers)

    def learning_rate(self) -> float:
        """The rate of the first parameter group, as it is applied in the step under way."""
        return float(self.optimizer.param_groups[0]["lr"])

    def phase(self) -> str:
        """What the recipe is doing, in a few words."""
        return ", ".join(words for modifier in self.modifiers if (words := modifier.phase()))

    def metrics(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for modifier in self.modifiers:
            figures.update(modifier.metrics())
        return figures

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs beside model and optimizer: the step, masks, ranges.

        All processes call it: what a modifier keeps may lie on several.
        """
        state = {"step": torch.tensor(self.progress.step)}
        for number, modifier in enumerate(self.modifiers):
            state.update({f"{number}:{modifier.name}:{key}": value for key, value in modifier.state_dict().items()})
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Puts back what `state_dict` returned, for the same recipe. Call it after `bind`.

        Raises:
            ValueError: it is the state of other modifiers, or of another model.
        """
        known = {"step", *(f"{number}:{modifier.name}" for number, modifier in enumerate(self.modifiers))}
        if unknown := sorted({":".join(key.split(":")[:2]) for key in state} - known):
            raise ValueError(f"the recipe has no modifier {unknown[0]}")
        self.state.progress = Progress(step=int(state["step"]), steps_per_epoch=self.progress.steps_per_epoch)
        for number, modifier in enumerate(self.modifiers):
            prefix = f"{number}:{modifier.name}:"
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            modifier.load_state_dict(own)


def _checked_terms(modifier: Modifier, batch: dict[str, Any], outputs: Any) -> list[tuple[str, tuple[float, Tensor]]]:
    """The terms of one modifier by name; raises ValueError for one that cannot be summed or told apart."""
    terms = list(modifier.loss_terms(batch, outputs).items())
    for name, (_, value) in terms:
        if name in ("loss", "task_loss"):
            raise ValueError(f"{modifier.name}: a term cannot be called '{name}', which the engine uses itself")
        if value.ndim > 1:
            raise ValueError(
                f"{modifier.name}: the term '{name}' has the shape {tuple(value.shape)}; expected one value a row, "
                "(rows,), or a single one, ()"
            )
    return terms


def check_gradients(modifiers: Sequence[Modifier], given: bool) -> None:
    """Raises UsageError where a modifier needs gradients and the layout does not give them.

    Args:
        given: as `distributed.launch.gives_gradients` says of the layout.
    """
    needing = [modifier.name for modifier in modifiers if modifier.needs_gradients]
    if needing and not given:
        raise UsageError(
            f"{needing[0]} needs gradients, and DeepSpeed, which steps inside of the backward pass, does not show "
            "them: train with accelerate_configs/ddp.yaml or fsdp2.yaml"
        )
