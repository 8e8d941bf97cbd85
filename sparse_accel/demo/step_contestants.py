"""Training steps that a benchmark compares: a hand-written Accelerate loop, and this project's step with a recipe; and
their comparison in turn."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from sparse_accel.console import rank
from sparse_accel.data.batches import GlobalBatchSampler, inputs_of
from sparse_accel.distributed.collectives import largest
from sparse_accel.distributed.launch import before_prepare, launch_options
from sparse_accel.models.teacher import Teacher
from sparse_accel.nn.dropout import use_compiled_dropout
from sparse_accel.nn.layers import is_encoder_linear
from sparse_accel.nn.masks import magnitude_mask
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.training.averages import Averages, GlobalBatch
from sparse_accel.training.compilation import compile_blocks
from sparse_accel.training.loop import StepOptions, train_step
from sparse_accel.training.optimizer import parameter_groups
from sparse_accel.zoo import RECIPES

RECIPE = RECIPES / "sst2_pruned90_quant.yaml"
# In each phase every step is in the first epoch.
FLOAT: dict[str, Any] = {"init_lr": 1e-5}
QUANTIZED = FLOAT | {"qat_start_epoch": 0.0}
# Ranges freeze with the second step: the first one finds them.
_STEPS_PER_EPOCH = 1_000_000
FROZEN = QUANTIZED | {"observer_epoch": 1 / _STEPS_PER_EPOCH}
MAX_GRAD_NORM = 1.0

Batch: TypeAlias = dict[str, Tensor]
Step: TypeAlias = Callable[[Batch], None]


def hand_written_step(
    accelerator: Accelerator, start: nn.Module, *, batch_size: int = 32, compiled_by: str | None = None
) -> Step:
    """Returns the step of a plain Accelerate loop, with the same optimizer and clipping as `recipe_step`.

    Args:
        start: is copied.
        batch_size: rows per process.
        compiled_by: backend of torch.compile; None: nothing is compiled.
    """
    accelerator = one_more(accelerator)
    model = copy.deepcopy(start)
    if compiled_by is not None:
        compile_blocks(model, compiled_by)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=accelerator.scaler is None)
    before_prepare(accelerator, model, batch_size, MAX_GRAD_NORM)
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()

    def step(batch: Batch) -> None:
        use_compiled_dropout(False)  # as any other program
        loss = model(**inputs_of(batch), labels=batch["labels"]).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return step


class RecipeStep:
    """This project's training step with a recipe. `recipe_step` makes it.

    Attributes:
        run: of the recipe, bound.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Any, run: RecipeRun, *, compiled: bool
    ) -> None:
        self.run, self._compiled = run, compiled
        self._accelerator, self._model, self._optimizer = accelerator, model, optimizer
        self._averages, self._options = Averages(), StepOptions(seed=0, max_grad_norm=MAX_GRAD_NORM)

    def __call__(self, batch: Batch) -> None:
        use_compiled_dropout(self._accelerator.device.type == "cpu" and not self._compiled)  # as training/setup.py
        rows = len(batch["labels"]) * self._accelerator.num_processes
        whole = GlobalBatch([batch], rows, rows)
        measured = train_step(self._accelerator, self._model, self._optimizer, self.run, whole, self._options)
        self._averages.add(measured, whole)
        largest(0)  # as the loop does, to find out whether a process must stop


def recipe_step(
    accelerator: Accelerator,
    start: nn.Module,
    teacher: Teacher | None,
    recipe: Path | str = RECIPE,
    variables: dict[str, Any] = FLOAT,
    *,
    batch_size: int = 32,
    compiled_by: str | None = None,
) -> RecipeStep:
    """Returns this project's training step with a recipe and its variables; every step is in the first epoch.

    Args:
        start: is copied.
        teacher: None leaves out the modifiers that need one.
        recipe: file or text.
        batch_size: rows per process.
        compiled_by: backend of torch.compile; None: nothing is compiled.
    """
    accelerator = one_more(accelerator)
    run = RecipeRun(load_recipe(recipe, variables), teacher=teacher or "disable")
    model = copy.deepcopy(start)
    run.attach(model)
    if compiled_by is not None:
        compile_blocks(model, compiled_by)
    # A fused optimizer hides skipped steps from Accelerate: see training/optimizer.py.
    optimizer: Any = torch.optim.AdamW(parameter_groups(model, 0.0), lr=1e-5, fused=accelerator.scaler is None)
    before_prepare(accelerator, model, batch_size, MAX_GRAD_NORM)
    model, optimizer = accelerator.prepare(model, optimizer)
    run.bind(accelerator, model, optimizer, steps_per_epoch=_STEPS_PER_EPOCH)
    model.train()
    return RecipeStep(accelerator, model, optimizer, run, compiled=compiled_by is not None)


def one_more(accelerator: Accelerator) -> Accelerator:
    """Returns an accelerator for another model, with the layout and precision of the given one.

    DeepSpeed and FSDP2 need a separate one per model; so does fp16, whose scaler would skip a step of one model for an
    overflow of another.
    """
    alone = accelerator.num_processes == 1 and accelerator.scaler is None
    return accelerator if alone else Accelerator(kwargs_handlers=launch_options())


@torch.no_grad()
def make_encoder_sparse(model: nn.Module, sparsity: float) -> None:
    """Sets the smallest weights of each Linear layer of the encoder to zero.

    Args:
        sparsity: fraction of each weight that becomes zero.
    """
    for name, module in model.named_modules():
        if is_encoder_linear(name, module):
            module.weight.mul_(magnitude_mask(module.weight, sparsity))


def spaced_batches(lengths: Sequence[int], batch_size: int, count: int) -> list[list[int]]:
    """Returns the row numbers of `count` batches of rows of similar lengths, evenly spaced over those of an epoch.

    A mean over them is about that of all steps of the epoch.

    Args:
        lengths: number of tokens of each row.

    Raises:
        ValueError: there are fewer complete batches.
    """
    sampler = GlobalBatchSampler(lengths, batch_size, 1, seed=0)
    found = [batch for batch in sampler if len(batch) == batch_size]
    if len(found) < count:
        raise ValueError(f"{len(lengths)} rows give {len(found)} batches of {batch_size}, not {count}")
    found.sort(key=lambda batch: max(lengths[row] for row in batch))
    return [found[int((number + 0.5) * len(found) / count)] for number in range(count)]


def compare(contestants: Mapping[str, tuple[Step, Sequence[Batch]]], rounds: int) -> dict[str, dict[str, float]]:
    """Times all contestants in turn: in a round, each takes one step with each of its batches.

    The order rotates, so that other load on the machine affects all of them equally. A step ends when its device has
    finished it. One round before the first is a warm-up, and is not timed.

    Args:
        contestants: step and batches by name; all have the same number of batches, in the same order of sizes.
        rounds: 15 or more for figures that are published.

    Returns:
        by name: `seconds` per step (median over rounds, mean over batches); `ratio` of a round's time to the first
        contestant's in the same round, median over rounds, with its quartiles `ratio_low` and `ratio_high`.

    Raises:
        ValueError: the contestants have different numbers of batches, or none.
    """
    names = list(contestants)
    counts = {len(batches) for _, batches in contestants.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"contestants with different numbers of batches, or none: {sorted(counts)}")
    (count,) = counts
    seconds = {name: np.zeros((rounds, count)) for name in names}
    for turn in tqdm(range((rounds + 1) * count), desc="turns", disable=rank() > 0):
        again, number = divmod(turn, count)
        first = (again + number) % len(names)  # every batch meets every order
        for name in names[first:] + names[:first]:
            step, batches = contestants[name]
            began = time.perf_counter()
            step(batches[number])
            synchronize(batches[number])
            if again > 0:
                seconds[name][again - 1, number] = time.perf_counter() - began
    of_rounds = {name: times.sum(axis=1) for name, times in seconds.items()}
    found = {}
    for name in names:
        low, ratio, high = np.percentile(of_rounds[name] / of_rounds[names[0]], [25, 50, 75]).tolist()
        mean = float(np.median(seconds[name], axis=0).mean())
        found[name] = {"seconds": mean, "ratio": ratio, "ratio_low": low, "ratio_high": high}
    return found


def synchronize(batch: Batch) -> None:
    """Waits until the device of a batch has finished its work; a CPU always has."""
    if batch["input_ids"].is_cuda:
        torch.cuda.synchronize()


def shown_ratio(row: Mapping[str, float]) -> str:
    """Returns a contestant's ratio with its quartiles, such as `1.03 (1.02 to 1.05)`."""
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
