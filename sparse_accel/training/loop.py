"""The one training loop, and the one evaluation loop.

    for each optimizer step:                      run (a RecipeRun) is called at seven moments;
        run.step_begin()                          1 attach and 2 bind happen before the loop
        run.calibrate(one forward)                3 learning rate, masks, quantization phase and its first ranges
        for each micro-batch:
            outputs = model(inputs)
            loss = run.losses(task loss)          4 distillation
            backward(loss)
        run.grads_ready()                         5 gradients complete, unclipped
        clip, optimizer.step()
        run.step_end()                            6 clock, ranges
        log, evaluate, save, where due
    run.finish()                                  7 final sparsity, ranges frozen

Random numbers (dropout) of a step are drawn from a seed made of run seed, step and process, so a resumed run draws what
the uninterrupted one drew and no random state has to be saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparse_accel.console import progress_bar
from sparse_accel.distributed.collectives import largest, reduce_sum
from sparse_accel.distributed.launch import unused_weights_explained
from sparse_accel.distributed.signals import stop, stop_requests
from sparse_accel.errors import UsageError
from sparse_accel.nn.losses import task_loss
from sparse_accel.training.schedule import Schedule

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from sparse_accel.data.batches import GlobalBatchSampler
    from sparse_accel.recipe_run import RecipeRun


# A step that the fp16 scaler skips is tried again at half the loss scale; from 65536 this reaches 1 in 16 tries.
_MOST_SKIPS_IN_A_ROW = 30
# A model that gives no number for so many batches one after another will not give one for the next.
_MOST_GIVEN_UP_IN_A_ROW = 30
# The progress bar's loss is the mean since the last log, read this often: reading it waits for a GPU.
_STEPS_BETWEEN_SHOWN_LOSSES = 20


@dataclass
class Averages:
    """Means over real rows since the last log, summed on the device: no synchronization until they are read."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: int = 0
    given_up: int = 0  # steps whose loss was not a number, since the start
    in_a_row: int = 0
    since: float = field(default_factory=time.perf_counter)

    def add(self, parts: dict[str, Tensor], real: Tensor) -> None:
        for name, values in parts.items():
            total = (values * real).sum()
            self.sums[name] = self.sums[name] + total if name in self.sums else total

    def loss(self) -> float:
        """Returns this process's mean loss so far; waits for the device."""
        return float(self.sums["loss"]) / max(self.rows, 1) if "loss" in self.sums else float("nan")

    def take(self) -> dict[str, float]:
        """Returns the means over all processes and rows a second, and starts anew."""
        seconds = time.perf_counter() - self.since
        sums = {name: float(reduce_sum(total)) for name, total in self.sums.items()}
        figures = {f"train/{name}": total / max(self.rows, 1) for name, total in sums.items()}
        figures["train/samples_per_second"] = self.rows / max(seconds, 1e-9)
        if self.given_up:
            figures["train/steps_given_up"] = float(self.given_up)
        self.sums, self.rows, self.since = {}, 0, time.perf_counter()
        return figures


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[dict[str, Tensor]],
    sampler: GlobalBatchSampler,
    run: RecipeRun,
    schedule: Schedule,
    *,
    seed: int,
    label_smoothing: float = 0.0,
    max_grad_norm: float = 1.0,
    give_up_steps: bool = False,
    log: Callable[[dict[str, float]], None],
    evaluate: Callable[[], None],
    save: Callable[[], None],
) -> None:
    """Trains from `run.progress` to `schedule.total_steps`, then calls `run.finish()`.

    Args:
        loader: micro-batches of `sampler`, prepared by `accelerator`.
        seed: of the run; with step and process it seeds dropout.
        max_grad_norm: gradients are clipped to this norm; 0 leaves them.
        give_up_steps: a step whose loss or gradient is not a number changes nothing, and training goes on with the
            next; otherwise it ends the run.
        log, evaluate, save: called where the schedule says so, on every process.

    Raises:
        KeyboardInterrupt, Stopped: after Ctrl-C or a scheduler's signal, at the end of the step under way and `save`.
        UsageError: the loss is no longer a number.
    """
    averages = Averages()
    accumulation = accelerator.gradient_accumulation_steps
    bar = progress_bar(accelerator, schedule.total_steps, "train", "steps", done=run.progress.step)
    if run.progress.step >= schedule.total_steps:  # resumed after the last step
        run.finish()
    model.train()
    with bar, stop_requests() as stop_asked, unused_weights_explained():
        while run.progress.step < schedule.total_steps:
            sampler.epoch, sampler.first_step = divmod(run.progress.step, run.progress.steps_per_epoch)
            batches = iter(loader)
            for step_in_epoch in range(sampler.first_step, sampler.steps):
                micro_batches = list(islice(batches, accumulation))
                rows = sampler.rows_in_step(step_in_epoch)
                take_step(
                    accelerator,
                    model,
                    optimizer,
                    micro_batches,
                    run,
                    averages,
                    rows=rows,
                    seed=seed,
                    label_smoothing=label_smoothing,
                    max_grad_norm=max_grad_norm,
                    give_up_steps=give_up_steps,
                )
                step = run.progress.step
                bar.update()
                bar.set_description(f"epoch {run.progress.epoch:.2f} {run.phase()}", refresh=False)
                if step % _STEPS_BETWEEN_SHOWN_LOSSES == 0:
                    bar.set_postfix_str(f"loss {averages.loss() * accelerator.num_processes:.4f}", refresh=False)
                if step == schedule.total_steps:
                    run.finish()
                if (step == 1 or schedule.due(schedule.log_every, step)) and (averages.rows or not averages.given_up):
                    figures = averages.take()
                    _check_finite(figures["train/loss"], step)
                    log({**figures, "train/learning_rate": run.learning_rate(), "train/epoch": run.progress.epoch})
                if schedule.due(schedule.evaluate_every, step):
                    evaluate()
                    model.train()
                    averages.since = time.perf_counter()
                stopping = stop_asked()
                if stopping or schedule.due(schedule.save_every, step):
                    if averages.rows:  # a checkpoint of a model that broke would push out the last good one
                        _check_finite(float(reduce_sum(averages.sums["loss"])), step)
                    save()
                    averages.since = time.perf_counter()
                if stopping:
                    stop(stopping)
                if step == schedule.total_steps:
                    break


def take_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[dict[str, Tensor]],
    run: RecipeRun,
    averages: Averages,
    *,
    rows: int,
    seed: int,
    label_smoothing: float,
    max_grad_norm: float,
    give_up_steps: bool = False,
) -> None:
    """One optimizer step on one global batch of `rows` real rows, tried again while the fp16 scaler skips it."""
    for _ in range(_MOST_SKIPS_IN_A_ROW):
        run.step_begin()
        seed_step(seed, run.progress.step, accelerator.process_index)
        run.calibrate(lambda: show(model, micro_batches))
        seed_step(seed, run.progress.step, accelerator.process_index)
        measured: list[tuple[dict[str, Tensor], Tensor]] = []
        good = True
        for batch in micro_batches:
            with accelerator.accumulate(model):
                outputs = model(**inputs_of(batch))
                losses = task_loss(outputs["logits"], batch["labels"], run.problem_type, label_smoothing)
                terms = run.losses(losses, batch, outputs)
                # Every real row of the global batch weighs the same, on whatever process and in whatever micro-batch.
                # DDP averages over processes and Accelerate over micro-batches, so both are multiplied in here.
                real = batch["row_id"] >= 0
                parts = accelerator.num_processes * len(micro_batches)
                loss = (terms["loss"] * real).sum() * (parts / rows)
                accelerator.backward(loss)
                measured.append(({name: values.detach() for name, values in terms.items()}, real))
                good = good and (not give_up_steps or math.isfinite(loss.detach()))
                if accelerator.sync_gradients:
                    unscaled = unscale(accelerator, optimizer, run)
                    if not unscaled or gradients_are_finite(model):
                        run.grads_ready()
                    if max_grad_norm > 0 or give_up_steps:
                        # Accelerate's own would unscale, which a scaler does once a step.
                        clip = torch.nn.utils.clip_grad_norm_ if unscaled else accelerator.clip_grad_norm_
                        norm = clip(model.parameters(), max_grad_norm or math.inf)
                        if give_up_steps and accelerator.scaler is None:  # a scaler's overflow is its own affair
                            good = good and math.isfinite(norm)
                if give_up_steps and accelerator.sync_gradients and largest(not good):
                    if accelerator.scaler is not None:
                        optimizer.step()  # which it skips, and lowers its scale
                    optimizer.zero_grad()
                    give_up(run, averages)
                    return
                optimizer.step()
                optimizer.zero_grad()
        skipped = accelerator.optimizer_step_was_skipped
        run.step_end(skipped=skipped)
        if not skipped:
            for loss_parts, real in measured:
                averages.add(loss_parts, real)
            averages.rows += rows
            averages.in_a_row = 0
            return
    raise UsageError(
        f"gradients overflow in fp16 at step {run.progress.step}, however small the loss scale: lower --learning_rate, "
        "or train with --bf16"
    )


def unscale(accelerator: Accelerator, optimizer: torch.optim.Optimizer, run: RecipeRun) -> bool:
    """Divides fp16 gradients by the loss scale where a modifier reads them; returns whether it did."""
    if accelerator.scaler is None or not run.needs_gradients:
        return False
    accelerator.unscale_gradients(optimizer)
    return True


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether all gradients are numbers; where they are not, the fp16 scaler skips the step. Waits for the device."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return math.isfinite(torch.nn.utils.get_total_norm(gradients)) if gradients else True


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns what the model takes of a batch."""
    return {name: value for name, value in batch.items() if name not in ("labels", "row_id")}


@torch.no_grad()
def show(model: nn.Module, micro_batches: list[dict[str, Tensor]]) -> None:
    """Runs the rows of a step through the model, for what its quantizers see."""
    for batch in micro_batches:
        model(**inputs_of(batch))


def give_up(run: RecipeRun, averages: Averages) -> None:
    """Goes on to the next step as if this one's rows did not exist."""
    averages.given_up += 1
    averages.in_a_row += 1
    if averages.in_a_row >= _MOST_GIVEN_UP_IN_A_ROW:
        raise UsageError(
            f"the loss was not a number in {averages.in_a_row} steps, one after another, up to step "
            f"{run.progress.step}: the model is broken. The last checkpoint is kept; lower --learning_rate (or the "
            "recipe's init_lr) and start again from one"
        )
    run.pass_over()


def seed_step(seed: int, step: int, process: int) -> None:
    """Seeds torch's generators for one step on one process."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + process) % 2**63)


def _check_finite(loss: float, step: int) -> None:
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise UsageError(
            f"the loss is {loss} at step {step}: the last checkpoint is kept. Lower --learning_rate (or "
            "the recipe's init_lr), or train with --bf16 or float32 instead of --fp16"
        )
