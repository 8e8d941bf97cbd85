"""RecipeMixin: gives RecipeCallback what a Trainer gives no callback: losses, gradients, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from sparse_accel.data.gradient_samples import labels_in
from sparse_accel.errors import UsageError
from sparse_accel.integrations.callback import RecipeCallback
from sparse_accel.models.teacher import Teacher
from sparse_accel.recipe import Recipe

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class RecipeMixin(_Base):
    """Makes a Trainer run a recipe. It comes first among the bases:

        class RecipeTrainer(RecipeMixin, Trainer): ...

        trainer = RecipeTrainer(model, args, train_dataset=rows, recipe="recipe.yaml", teacher="teacher_folder")

    Args:
        recipe, teacher: as for RecipeCallback; all other arguments are the Trainer's.

    Attributes:
        recipe_callback: the callback that runs the recipe; its `run` is the RecipeRun.

    Raises:
        UsageError: the Trainer cannot give what the recipe needs.
    """

    # compute_loss below weighs micro-batches itself: the Trainer's own weights take for granted that a model divides
    # its loss by num_items_in_batch if it accepts any keyword, and most encoders accept it and do not.
    loss_is_scaled_for_ga: bool | None = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(RecipeMixin):
            raise TypeError(f"{cls.__name__}: RecipeMixin must come before the Trainer: (RecipeMixin, Trainer)")

    def __init__(
        self,
        *args: Any,
        recipe: Recipe | str | Path,
        teacher: Teacher | nn.Module | str | None = None,
        **options: Any,
    ) -> None:
        if not hasattr(Trainer, "loss_is_scaled_for_ga"):
            raise UsageError("RecipeMixin needs a newer transformers (tested with 5.23): pip install -U transformers")
        callback = RecipeCallback(recipe, teacher=teacher)  # first, because its errors are instant
        super().__init__(*args, **options)
        callback.trainer = self
        # DDP would overwrite what the quantizers of each process observe with that of the first.
        self.accelerator.ddp_handler.broadcast_buffers = False
        callback.on_init_end(self.args, self.state, self.control, model=self.model)
        self.add_callback(callback)
        self.recipe_callback = callback

    # --- losses and gradients -----------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Returns the loss of a micro-batch, in training with the terms of the recipe, and as part of its step."""
        batch, texts = dict(inputs), self.recipe_callback.texts  # the Trainer takes the labels out for some losses
        if texts is not None:
            texts.start()
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training:
            share = self._share_of_step(batch, num_items_in_batch)
            if texts is not None:
                trainer: Any = self  # a SentenceTransformerTrainer
                batch, outputs = texts.take(trainer.collect_features(batch)[0])
            loss = self.recipe_callback.losses(loss, batch, outputs, share)
        return (loss, outputs) if return_outputs else loss

    def _share_of_step(self, batch: dict[str, Any], counted: Tensor | int | None) -> Tensor | float:
        """Returns the weight of a micro-batch in its step, in which each label counts the same on any process.

        Args:
            counted: labels in the step, over all processes unless average_tokens_across_devices is False; None: they
                are not counted, and each micro-batch counts the same.
        """
        if counted is None or getattr(self, "_loss_shifts_labels", False):
            return 1.0 / self.current_gradient_accumulation_steps
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return labels_in(batch) * processes / counted  # DDP averages over processes

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        """Runs a micro-batch; after the last of a step, modifiers get its gradients, before they are clipped."""
        loss = super().training_step(*args, **options)
        if self.accelerator.sync_gradients:
            self.recipe_callback.run.grads_ready()
        return loss

    def gradient_loader(self) -> DataLoader[Any]:
        """Returns a loader of training rows for gradient samples: one batch has as many rows as a step has over all
        processes, so that results do not depend on the layout."""
        train: Any = self.callback_handler.train_dataloader
        rows = self._train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes
        return DataLoader(
            train.dataset, rows, shuffle=True, collate_fn=train.collate_fn, num_workers=self.args.dataloader_num_workers
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the figures of the recipe to those of training; trackers such as W&B get them too."""
        if "loss" in logs:
            logs.update(self.recipe_callback.figures())
        super().log(logs, start_time)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.recipe_callback.save_state(Path(output_dir), writes=self.args.should_save)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.recipe_callback.checkpoint = Path(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """A model that is not yet as sparse or quantized as the last one cannot be the best."""
        if not self.recipe_callback.run.structure_final():
            return False
        return super()._determine_best_metric(metrics, trial)

    def _load_best_model(self) -> None:
        self.recipe_callback.before_best()
        super()._load_best_model()
        assert self.state.best_model_checkpoint is not None
        self.recipe_callback.restore_best(Path(self.state.best_model_checkpoint))
