"""Gradient samples of a run: the mean gradient of one batch of training rows each, whatever the layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from sparse_accel.console import progress_bar
from sparse_accel.data.gradient_batches import GradientBatches, rows_of_parts
from sparse_accel.distributed.collectives import rank_and_size
from sparse_accel.distributed.gradients import Losses, draw_gradients
from sparse_accel.nn.layers import quantizers_without_range_off

if TYPE_CHECKING:
    from accelerate import Accelerator

# Called with the model, some rows of a batch, the complete batch, and whether to add the terms of the recipe; returns
# what these rows add to the mean loss of the batch, ().
PartOfLoss: TypeAlias = Callable[[Any, dict[str, Tensor], dict[str, Tensor], bool], Tensor]


class GradientSamples:
    """Draws gradient samples between two steps of training, and leaves the state of the training as it was.

    Every process reads every batch and computes the gradient of its part of the rows, so results do not depend on the
    number of processes.

    Args:
        accelerator: None in a loop without one.
        model: as `prepare` returned it.
        plain: the model inside it.
        loader: of the training rows, as it was before `prepare`.
        loss: of some rows of a batch.
        prepare: makes of a batch of the loader what the model gets.
        rows_per_forward: at most so many rows go through the model at once; None: a process's share of a batch.
        loss_scale: returns the factor of the loss in fp16 to begin with.

    Raises:
        UsageError: the loader cannot be used.
    """

    def __init__(
        self,
        accelerator: Accelerator | None,
        model: nn.Module,
        plain: nn.Module,
        loader: Any,
        loss: PartOfLoss,
        *,
        prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        rows_per_forward: int | None,
        loss_scale: Callable[[], float],
    ) -> None:
        self.accelerator, self.model, self.plain, self.loss = accelerator, model, plain, loss
        self.batches = GradientBatches(loader)
        self.prepare, self.rows_per_forward, self.loss_scale = prepare, rows_per_forward, loss_scale

    def sizes(self, options: Mapping[str, Any]) -> tuple[int | None, int | None]:
        """Returns the number of rows of a sample, and of the data; None if not known.

        Raises:
            UsageError: the loader does not allow these options.
        """
        return self.batches.batch_size(options), self.batches.rows

    def draw(
        self,
        weights: Mapping[str, nn.Parameter],
        count: int,
        take: Callable[[str, Tensor], None],
        *,
        options: Mapping[str, Any],
        seed: tuple[int, ...],
        from_recipe: bool,
        what: str,
    ) -> None:
        """Draws samples, and calls `take` with each weight's name and gradient on the process that owns the weight.

        In the step that begins quantization, quantizers have no range before its first forward: samples pass them by.

        Args:
            weights: by name, none frozen; `distributed.gradients.owners` tells who owns them.
            count: number of samples.
            options: that replace those of the loader.
            seed: of the order of the rows.
            from_recipe: whether the loss is the recipe's, with distillation; False: the task's.
            what: names the sampling in errors.

        Raises:
            UsageError: a gradient contains NaN or inf.
            KeyboardInterrupt, Stopped: a signal asked the run to stop.
        """
        bar = progress_bar(self.accelerator, count, "gradients", "samples", leave=False)

        def samples() -> Iterator[Losses]:
            for batch in islice(batches, count):
                yield self._losses(batch, from_recipe)
                bar.update()

        endless = closing(self.batches.endless(options, *seed))  # type: ignore[type-var]
        with bar, endless as batches, quantizers_without_range_off(self.plain):
            draw_gradients(self.model, self.plain, weights, samples(), take, loss_scale=self.loss_scale(), what=what)

    def _losses(self, batch: dict[str, Tensor], from_recipe: bool) -> Losses:
        device = next(self.plain.parameters()).device
        whole = self.prepare({name: value.to(device) for name, value in batch.items()})
        rank, processes = rank_and_size()
        rows = len(next(iter(whole.values())))
        own = rows_of_parts(rows, processes, self.rows_per_forward)[rank::processes]
        return [partial(self._part, whole=whole, rows=part, from_recipe=from_recipe) for part in own]

    def _part(self, model: Any, whole: dict[str, Tensor], rows: slice, from_recipe: bool) -> Tensor:
        part = {name: value[rows] for name, value in whole.items()}
        if len(next(iter(part.values()))):
            return self.loss(model, part, whole, from_recipe)
        # More processes than rows: FSDP2 needs a forward and a backward of this process all the same.
        return 0.0 * self.loss(model, {name: value[:1] for name, value in whole.items()}, whole, from_recipe)


def labels_in(batch: Mapping[str, Tensor]) -> Tensor | int:
    """Returns the number of labels that the mean loss of a Hugging Face model counts; without labels, of rows."""
    labels = batch.get("labels")
    return len(next(iter(batch.values()))) if labels is None else torch.count_nonzero(labels != -100)
