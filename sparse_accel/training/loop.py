"""The pieces of a training loop; the loop itself is in the script that trains.

    run.attach(model)                             1  run (a RecipeRun) is called at seven moments
    model, optimizer, loader = accelerator.prepare(...)
    run.bind(accelerator, model, optimizer, ...)  2
    for step, batch in loop:                         `training_steps`: resumes, stops on signals, shows a progress bar
        train_step(...):
            run.step_begin()                      3  learning rate, masks, quantization phase ...
            run.calibrate(one forward)               ... and its first ranges
            run.step_batches(micro-batches)          ... and the size of the teacher's hidden states
            for each micro-batch:
                outputs = model(inputs)
                terms = run.losses(task loss)     4  distillation
                backward(terms["loss"])
            run.grads_ready()                     5  gradients complete, unclipped
            clip, optimizer.step()
            run.step_end()                        6  clock, ranges
        log, evaluate, save, where due
    run.finish()                                  7  final sparsity, ranges frozen

The random numbers of a step (dropout) depend only on the run's seed, the step and the process; in a stream, on the
number of the micro-batch among those of all processes. So a resumed run draws the same numbers as an uninterrupted one,
and no random state has to be saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sparse_accel.console import progress_bar
from sparse_accel.data.batches import inputs_of
from sparse_accel.distributed.collectives import largest, world_size
from sparse_accel.distributed.launch import explain_unused_weights
from sparse_accel.distributed.signals import stop, stop_requests
from sparse_accel.errors import UsageError
from sparse_accel.nn.layers import masked_fraction
from sparse_accel.training.averages import Averages, GlobalBatch, Measured, StepFigures
from sparse_accel.training.streaming import StreamSampler, stream_batches

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.recipe_run import RecipeRun
    from sparse_accel.training.loaders import Batches
    from sparse_accel.training.schedule import Schedule

# A step that the fp16 scaler skips is repeated at half the loss scale; from 65536, the scale is 1 after 16 repeats.
_MAX_SKIPS_IN_A_ROW = 30
# After so many batches in a row with NaN or inf, the model will not recover.
_MAX_NAN_STEPS_IN_A_ROW = 30
# What the recipe does comes last: a narrow terminal cuts it off, not the figures.
_TRAINING_BAR = "{desc} {percentage:3.0f}% |{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
# The progress bar shows the mean loss since the last log, updated only this often: reading it waits for a GPU.
_STEPS_BETWEEN_SHOWN_LOSSES = 20


@dataclass(frozen=True)
class StepOptions:
    """Options of `train_step`.

    Attributes:
        seed: of the run; together with step and process, or micro-batch, it seeds dropout.
        max_grad_norm: clip gradients to this norm; 0 turns clipping off.
        skip_nan_steps: skip a step whose loss or gradients contain NaN or inf, and continue with the next; otherwise
            such a loss ends the run.
    """

    seed: int
    max_grad_norm: float = 1.0
    skip_nan_steps: bool = False


class TrainingSteps:
    """The steps of a run from `run.progress` on, and what is due after each. `training_steps` makes it.

    Args:
        batches: an endless iterator from `run.progress` on.
        stop_asked: returns the signal that asked to stop, the same on all processes; 0 if none did.
    """

    def __init__(
        self,
        run: RecipeRun,
        schedule: Schedule,
        batches: Iterator[GlobalBatch],
        bar: tqdm,
        stop_asked: Callable[[], int],
    ) -> None:
        self.run, self.schedule, self.bar = run, schedule, bar
        self.averages = Averages()
        self._batches, self._stop_asked, self._stopping = batches, stop_asked, 0
        self._shown: list[str] = []  # loss and zeros, as they were last read

    def __iter__(self) -> Iterator[tuple[int, GlobalBatch]]:
        """Yields the number of each step (the value of `run.progress.step` after it), and its batch."""
        while self.run.progress.step < self.schedule.total_steps:
            self.averages.begin_step()
            yield self.run.progress.step + 1, next(self._batches)
            if self._stopping:
                stop(self._stopping)

    def add(self, measured: StepFigures | None, batch: GlobalBatch) -> None:
        """Adds what `train_step` returned for a batch to the averages, and updates the progress bar.

        Raises:
            UsageError: too many steps in a row were skipped for NaN or inf.
        """
        self.averages.add(measured, batch)
        if self.averages.in_a_row >= _MAX_NAN_STEPS_IN_A_ROW:
            raise UsageError(
                f"the loss is NaN or inf in {self.averages.in_a_row} steps in a row, up to step "
                f"{self.run.progress.step}: the model is broken. Earlier checkpoints are intact. Lower --learning_rate "
                "(or the recipe's init_lr) and start again from a checkpoint"
            )
        self.bar.set_description_str(f"epoch {self.run.progress.epoch:.2f}", refresh=False)
        if self.run.progress.step % _STEPS_BETWEEN_SHOWN_LOSSES == 0:
            self._shown = [f"loss {self.averages.loss() * world_size():.4f}"]
            if zeros := masked_fraction(self.run.state.model):
                self._shown.append(f"zeros {zeros:.0%}")
        parts = [*self._shown, f"lr {self.run.learning_rate():.1e}", self.run.phase()]
        self.bar.set_postfix_str(", ".join(filter(None, parts)), refresh=False)
        self.bar.update()

    def figures(self) -> dict[str, float]:
        """Returns the figures to log for the steps since the last log; see `Averages.take`."""
        found = self.averages.take(self.run.progress.step)
        return {**found, **self.run.rates(), "train/epoch": self.run.progress.epoch}

    def log_due(self, step: int) -> bool:
        """Returns whether to log after `step`. The first step is logged too, but nothing if all steps were skipped."""
        due = step == 1 or self.schedule.due(self.schedule.log_every, step)
        return due and bool(self.averages.rows or not self.averages.skipped_steps)

    def evaluate_due(self, step: int) -> bool:
        """Returns whether to evaluate after `step`."""
        return self.schedule.due(self.schedule.evaluate_every, step)

    def save_due(self, step: int) -> bool:
        """Returns whether to save after `step`: also if a signal asked to stop; the run then ends after this step.

        All processes must call it.

        Raises:
            UsageError: the loss is NaN or inf; a checkpoint of that model would replace the last good one.
        """
        self._stopping = self._stop_asked()
        due = bool(self._stopping) or self.schedule.due(self.schedule.save_every, step)
        if due:
            self.averages.check_finite(step)
        return due


@contextmanager
def training_steps(
    accelerator: Accelerator,
    run: RecipeRun,
    loader: Any,
    sampler: Batches,
    schedule: Schedule,
) -> Iterator[TrainingSteps]:
    """Yields the steps from `run.progress` to `schedule.total_steps`, with a progress bar, and stops on signals.

    Args:
        loader: micro-batches of `sampler`, prepared by `accelerator`; or of a stream, as it is.

    Raises:
        KeyboardInterrupt, Stopped: after Ctrl-C or a scheduler's signal, once the current step is saved.
        UsageError: DDP, and some weight has no gradient in a step.
    """
    bar = progress_bar(
        accelerator, schedule.total_steps, "train", "steps", done=run.progress.step, bar_format=_TRAINING_BAR
    )
    if run.progress.step >= schedule.total_steps:  # resumed after the last step
        run.finish()
    with bar, stop_requests() as stop_asked, explain_unused_weights():
        yield TrainingSteps(run, schedule, _global_batches(accelerator, run, loader, sampler), bar, stop_asked)


def _global_batches(accelerator: Accelerator, run: RecipeRun, loader: Any, sampler: Batches) -> Iterator[GlobalBatch]:
    """Yields the batches from `run.progress` on, epoch after epoch, without end."""
    if isinstance(sampler, StreamSampler):
        yield from stream_batches(accelerator, run.task, loader, sampler)
        return
    while True:
        sampler.epoch, sampler.first_step = divmod(run.progress.step, run.progress.steps_per_epoch)
        first, weights, batches = sampler.first_step, sampler.weights_of_steps(), iter(loader)
        for step in range(first, sampler.steps):
            read = list(islice(batches, accelerator.gradient_accumulation_steps))
            micro_batches = [run.task.prepare(batch, sampler.epoch) for batch in read]
            yield GlobalBatch(micro_batches, sampler.rows_in_step(step), weights[step])


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: RecipeRun,
    batch: GlobalBatch,
    options: StepOptions,
) -> StepFigures | None:
    """Runs one optimizer step (moments 3 to 6), and repeats it while the fp16 scaler skips it.

    Returns:
        what was measured; None for a step that was skipped for NaN or inf.

    Raises:
        UsageError: gradients overflow in fp16 even at the smallest loss scale.
    """
    for _ in range(_MAX_SKIPS_IN_A_ROW):
        run.step_begin()
        seed_step(options.seed, run.progress.step, accelerator.process_index)
        run.calibrate(lambda: calibration_forward(model, batch.micro_batches))
        run.step_batches(batch.micro_batches)
        measured: list[Measured] = []
        norm: Tensor | None = None
        good = True
        for number, micro_batch in enumerate(batch.micro_batches):
            if number == 0 or batch.seeded_apart:
                of_all = number * accelerator.num_processes + accelerator.process_index
                seed_step(options.seed, run.progress.step, of_all)
            with accelerator.accumulate(model):
                outputs = model(**inputs_of(micro_batch))
                task_loss = run.task.loss(outputs, micro_batch, run.task.label_smoothing)
                terms = run.losses(task_loss, micro_batch, outputs)
                # Every row (or labelled token) of the global batch has the same weight, on any process and in any
                # micro-batch. DDP averages over processes and Accelerate over micro-batches, so multiply by both.
                weights = run.task.weights(micro_batch)
                parts = accelerator.num_processes * len(batch.micro_batches)
                loss = (terms["loss"] * weights).sum() * (parts / batch.weight)
                accelerator.backward(loss)
                measured.append(({name: values.detach() for name, values in terms.items()}, weights))
                good = good and (not options.skip_nan_steps or math.isfinite(loss.detach()))
                if accelerator.sync_gradients:
                    good, norm = _gradients_done(accelerator, model, optimizer, run, options, good)
                    if options.skip_nan_steps and largest(not good):
                        if accelerator.scaler is not None:
                            optimizer.step()  # the scaler skips it and lowers its scale
                        optimizer.zero_grad()
                        run.skip_step()
                        return None
                optimizer.step()
                optimizer.zero_grad()
        skipped = accelerator.optimizer_step_was_skipped
        run.step_end(skipped=skipped)
        if not skipped:
            return StepFigures(measured, norm)
    raise UsageError(
        f"gradients overflow in fp16 at step {run.progress.step}, even at the smallest loss scale: lower "
        "--learning_rate, or train with --bf16"
    )


def _gradients_done(
    accelerator: Accelerator, model: nn.Module, optimizer: Any, run: RecipeRun, options: StepOptions, good: bool
) -> tuple[bool, Tensor | None]:
    """Passes the gradients of a step to the modifiers, then clips them.

    Returns:
        Whether the step is still `good` (False if `skip_nan_steps` is set and their norm is NaN or inf; overflows in
        fp16 are left to the scaler), and the norm before clipping, as `StepFigures` has it.
    """
    # A modifier that reads gradients gets them without the loss scale, and never those of a step that will be skipped.
    unscaled = accelerator.scaler is not None and run.needs_gradients
    if unscaled:
        accelerator.unscale_gradients(optimizer)
    finite = True
    if run.needs_gradients and (unscaled or options.skip_nan_steps):
        finite = _are_finite(model)
        if options.skip_nan_steps:  # agreed on, because modifiers may communicate
            good = not largest(not (good and (finite or unscaled)))
    if finite and (good or not run.needs_gradients):
        run.grads_ready()
    # Accelerate's own clipping would unscale again, but a scaler allows that only once per step.
    clip = torch.nn.utils.clip_grad_norm_ if unscaled else accelerator.clip_grad_norm_
    norm = clip(model.parameters(), options.max_grad_norm or math.inf)
    if options.skip_nan_steps and accelerator.scaler is None:
        good = good and math.isfinite(norm)
    return good, None if norm is None else torch.as_tensor(norm)


def _are_finite(model: nn.Module) -> bool:
    """Whether all gradients are finite; if not, the fp16 scaler skips the step. Waits for the device."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return math.isfinite(torch.nn.utils.get_total_norm(gradients)) if gradients else True


@torch.no_grad()
def calibration_forward(model: nn.Module, micro_batches: list[dict[str, Tensor]]) -> None:
    """Runs the rows of a step through the model, so that its observers see the activations."""
    for batch in micro_batches:
        model(**inputs_of(batch))


def seed_step(seed: int, step: int, number: int) -> None:
    """Seeds torch's generators for one micro-batch: `number` counts those of a step over all processes. Without
    accumulation, it is the process."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + number) % 2**63)
