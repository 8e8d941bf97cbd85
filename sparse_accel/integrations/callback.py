"""RecipeCallback: the moments of a recipe at the events of a Trainer.

event of the Trainer     moment of the recipe
on_init_end              attach: before the Trainer creates the optimizer and wraps the model
on_train_begin           bind, and the state of the checkpoint that training resumes from
on_step_begin            step_begin: learning rate, masks, quantization phase
(compute_loss)           losses              RecipeMixin only: callbacks get neither loss
(training_step)          grads_ready         nor gradients before they are clipped
on_optimizer_step        step_end: before the Trainer's scheduler replaces the learning rate
on_step_end              finish, after the last step: before it is evaluated and saved
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from sparse_accel.console import warn
from sparse_accel.distributed.collectives import reduce_sum, world_size
from sparse_accel.errors import UsageError, with_article
from sparse_accel.integrations.embedding_models import encoder_of
from sparse_accel.integrations.limits import (
    check_alone,
    check_arguments,
    check_embeddings,
    check_losses,
    check_model,
    overridden,
)
from sparse_accel.integrations.saving import read_state, save_with_recipe, write_state
from sparse_accel.integrations.text_teacher import TextRecorder, TextTeacher
from sparse_accel.models.files import load
from sparse_accel.models.loading import head_of
from sparse_accel.models.teacher import Teacher, label_order
from sparse_accel.nn.layers import masked_fraction
from sparse_accel.recipe import Recipe, load_recipe
from sparse_accel.recipe_run import RecipeRun


class RecipeCallback(TrainerCallback):
    """Runs a recipe in a Trainer. Pass it when the Trainer is made: `Trainer(..., callbacks=[RecipeCallback(...)])`.

    Alone, it refuses modifiers that need the loss or gradients, and cannot resume: RecipeMixin can both.

    Args:
        recipe: path, `zoo:` stub or text of a recipe, or what `load_recipe` returned.
        teacher: for distillation: a Teacher, or a TextTeacher for sentence transformers; a trained model, or its folder
            or Hub id; "disable" leaves out modifiers that need one.

    Attributes:
        recipe: as given, read.
        trainer: the Trainer, set by RecipeMixin; None: this callback is alone.
        checkpoint: the folder that training resumes from, set by RecipeMixin; None: it starts from the beginning.
        texts: what the losses of a SentenceTransformer embed; None for other models, and without a teacher.

    Raises:
        RecipeError: the recipe is not valid.
    """

    def __init__(self, recipe: Recipe | str | Path, *, teacher: Teacher | nn.Module | str | None = None) -> None:
        self.recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        self.trainer: Trainer | None = None
        self.checkpoint: Path | None = None
        self.texts: TextRecorder | None = None
        self._teacher = teacher
        self._run: RecipeRun | None = None
        self._bound = self._finished = False
        self._sums: dict[str, Tensor] = {}  # of the loss and its terms, since the last log
        self._steps = 0  # those that are in these sums

    @property
    def run(self) -> RecipeRun:
        """The engine of the recipe.

        Raises:
            UsageError: the callback was added to a Trainer that was already made.
        """
        if self._run is None:
            raise UsageError(
                "RecipeCallback was added after the Trainer was made, but masks and quantizers must be in the model "
                "before: pass callbacks=[RecipeCallback(...)] to the Trainer"
            )
        return self._run

    # --- the moments --------------------------------------------------------------------------------------------------

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Any = None, **others: Any
    ) -> None:
        """Adds masks and quantizers to the model, and sets `args.num_train_epochs` to the epochs of the recipe.

        Raises:
            UsageError: the recipe does not fit the model, or the Trainer cannot give what it needs.
        """
        check_arguments(args, self.trainer)
        encoder = encoder_of(model)
        check_model(model, encoder)
        save_with_recipe(encoder)
        teacher = self._teacher_for(model, encoder)
        run = RecipeRun(self.recipe, teacher=teacher, task=teacher.task if isinstance(teacher, TextTeacher) else None)
        if self.trainer is None:
            check_alone(list(run.modifiers))
        if encoder is not model:
            check_embeddings(run.modifiers, model)
        run.attach(encoder)
        if self.trainer is not None:
            check_losses(run, self.trainer)
        for line in [*run.notices, *run.training_notices, *overridden(args, run)]:
            warn(line)
        if run.max_epochs:
            args.num_train_epochs = float(run.max_epochs)
        if isinstance(teacher, TextTeacher):
            self.texts = TextRecorder(model)
        self._run = run

    def _teacher_for(self, whole: Any, student: Any) -> Teacher | str | None:
        teacher = self._teacher
        if teacher is not None and teacher != "disable" and not any(m.needs_teacher for m in self.recipe.modifiers):
            raise UsageError(
                "teacher has no effect: the recipe has no DistillationModifier or other distillation. Add one, or "
                "leave teacher out"
            )
        if teacher is None or teacher == "disable":
            return teacher
        if whole is not student:
            found = teacher if isinstance(teacher, TextTeacher) else TextTeacher(teacher)
            found.check(whole)
            return found
        if isinstance(teacher, TextTeacher):
            raise UsageError(
                "teacher is a TextTeacher, whose embeddings a SentenceTransformer follows: pass a model of this task, "
                "or its folder or Hub id"
            )
        if isinstance(teacher, Teacher):
            return teacher
        model: Any = load(teacher) if isinstance(teacher, str) else teacher
        if model is student:
            raise UsageError("teacher is the model itself, which a teacher freezes: pass copy.deepcopy(model)")
        own, other = (getattr(each.config, "id2label", None) for each in (student, model))
        order = label_order(head_of(student).names, head_of(model).names) if own and other else None
        return Teacher(model, order)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Any = None,
        optimizer: Any = None,
        train_dataloader: Any = None,
        **others: Any,
    ) -> None:
        """Connects the recipe to optimizer and clock, and restores the state of a checkpoint.

        Raises:
            UsageError: the Trainer cannot give what the recipe needs, or the checkpoint belongs to another run.
        """
        run = self.run
        if encoder_of(model) is not run.state.model:
            raise UsageError(
                "the model is another one than when the Trainer was made, without masks and quantizers: pass model "
                "instead of model_init (hyperparameter_search needs that, so make a Trainer for each trial)"
            )
        if self._bound:
            raise UsageError("train() was called twice, but a recipe is applied once: make another Trainer")
        if not has_length(train_dataloader):
            raise UsageError(
                "the training rows have no length, so the epochs of the recipe have none: use a dataset with a length, "
                "or scripts/masked_language_modeling.py, which reads streams"
            )
        steps = max(math.ceil(len(train_dataloader) / args.gradient_accumulation_steps), 1)
        if run.max_epochs and state.max_steps != run.max_epochs * steps:
            raise UsageError(
                f"the Trainer runs {state.max_steps} steps, but the recipe {run.max_epochs} epochs of {steps}: leave "
                "max_steps out, and do not change num_train_epochs after the Trainer is made"
            )
        if run.teacher is not None:
            run.teacher.model.to(next(run.state.model.parameters()).device)
        trainer: Any = self.trainer
        draws = trainer is not None and any(
            modifier.samples_gradients or modifier.calibration_batches for modifier in run.modifiers
        )
        run.bind(
            None if trainer is None else trainer.accelerator,
            model,
            optimizer,
            steps_per_epoch=steps,
            gradient_loader=trainer.gradient_loader() if draws else None,
            rows_per_forward=args.per_device_train_batch_size,
        )
        self._bound = True
        if state.global_step:
            self._resume(state)

    def _resume(self, state: TrainerState) -> None:
        if self.checkpoint is None:
            raise UsageError(
                "a Trainer does not tell a callback which checkpoint it resumes from, so masks and ranges cannot be "
                "restored: use RecipeMixin: class MyTrainer(RecipeMixin, Trainer)"
            )
        read_state(self.checkpoint, self.run, with_weights=True)
        if self.run.progress.step != state.global_step:
            raise UsageError(
                f"{self.checkpoint}: the Trainer is at step {state.global_step}, the recipe at step "
                f"{self.run.progress.step}: resume from another checkpoint"
            )
        self._finish_after_last(state)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **others: Any,
    ) -> None:
        """Sets learning rate, masks and phase of the step."""
        self.run.step_begin()
        if any(modifier.setting == "lr" for modifier in self.run.modifiers):
            # What the Trainer logs is the last rate of its scheduler, which did not set this one.
            lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]

    def losses(self, loss: Tensor, batch: dict[str, Any], outputs: Any, share: Tensor | float) -> Tensor:
        """Returns the loss of a micro-batch with the terms of the recipe, (), as part of its step.

        Args:
            loss: mean loss of the micro-batch, ().
            batch: the inputs of the model, with labels.
            outputs: what the model returned.
            share: weight of the micro-batch in its step.

        Raises:
            UsageError: a modifier compares outputs, and the model returned none by name.
        """
        if any(m.needs_teacher for m in self.run.modifiers) and not isinstance(outputs, Mapping):
            raise UsageError(
                f"the model returned {with_article(type(outputs).__name__)}, but distillation needs outputs by name: "
                "let the model return a ModelOutput (return_dict), and compute_loss return it"
            )
        parts = {name: value * share for name, value in self.run.losses(loss, batch, outputs).items()}
        total = parts.pop("loss")
        if len(parts) > 1:  # otherwise the task's loss is all of it, and the Trainer logs that
            for name, value in parts.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
        return total

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Any = None,
        **others: Any,
    ) -> None:
        """Moves clock and ranges. The Trainer counts a step that the fp16 scaler skipped, so the clock does too."""
        self._steps += 1
        if getattr(optimizer, "step_was_skipped", False):
            self.run.skip_step()
        else:
            self.run.step_end()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Finishes the recipe after the last step, so that the model that is evaluated and saved is the final one."""
        self._finish_after_last(state)

    def _finish_after_last(self, state: TrainerState) -> None:
        if state.global_step >= state.max_steps:
            self._finish()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Finishes the recipe of a training that stopped early, if masks and ranges are final; otherwise warns."""
        if self._finished:
            return
        if self.run.structure_final():
            self._finish()
        else:
            warn(
                f"training ended at epoch {self.run.progress.epoch:.2f}, before the recipe did: masks and quantizers "
                "are those of that step, not the final ones"
            )

    def _finish(self) -> None:
        if not self._finished:
            self.run.finish()
            self._finished = True

    # --- for RecipeMixin ----------------------------------------------------------------------------------------------

    def save_state(self, folder: Path, *, writes: bool) -> None:
        """Writes the state of the recipe into a checkpoint of the Trainer. All processes must call it."""
        write_state(folder, self.run, writes=writes)

    def restore_best(self, folder: Path) -> None:
        """Restores masks and ranges of the best checkpoint, whose weights the Trainer has loaded.

        It is one of those from when the structure was final, and its weights are 0 where its masks prune.
        """
        read_state(folder, self.run, with_weights=False)

    def before_best(self) -> None:
        """Finishes the recipe before the Trainer loads weights, so that dropped layers are not in the model either."""
        if self.run.structure_final():
            self._finish()

    def figures(self) -> dict[str, float]:
        """Returns what to log: the task's loss and the recipe's terms (means over the steps since the last call),
        `sparsity` (the fraction of the encoder's Linear weights that masks remove) and what modifiers log.

        All processes must call it.
        """
        names = sorted(self._sums)
        found: dict[str, float] = {}
        if names:
            means = reduce_sum(torch.stack([self._sums[name].float() for name in names])) / world_size()
            found = dict(zip(names, (means / max(self._steps, 1)).tolist(), strict=True))
        self._sums, self._steps = {}, 0
        if zeros := masked_fraction(self.run.state.model):
            found["sparsity"] = zeros
        return found | self.run.metrics()
