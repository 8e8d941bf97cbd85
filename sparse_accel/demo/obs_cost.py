"""The cost of an update of the masks by second-order scores: gradients, Fisher blocks, their inverses."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparse_accel.data.batches import Collator, Rows
from sparse_accel.demo.step_contestants import Batch, hand_written_step
from sparse_accel.distributed.launch import before_prepare
from sparse_accel.nn.fisher import FisherBlocks, fisher_bytes
from sparse_accel.nn.layers import masks
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

_RECIPE = """
modifiers:
  - !OBSPruningModifier
      params: ['re:.*encoder.*(query|key|value|dense).weight']
      init_sparsity: 0.5
      final_sparsity: 0.9
      start_epoch: 0
      end_epoch: 2
      update_frequency: 1
      num_grads: {samples}
      fisher_block_size: {size}
      grad_sampler_kwargs: {{batch_size: {batch_size}}}
"""
OBS_SAMPLES, OBS_BLOCK, OBS_ROWS = 24, 50, 16
_BATCH_SIZE = 32


def obs_cost(
    accelerator: Accelerator, tokenizer: Any, start: nn.Module, rows: Any, chosen: Sequence[Batch]
) -> dict[str, dict[str, float]]:
    """Returns the seconds and the memory of one update, by model: the given one, whose figures for 1024 samples are
    extrapolated from a few, and the weights of BERT-base's encoder with made-up gradients.

    Args:
        start: model; it is copied.
        rows: tokenized, with `labels`.
        chosen: batches of them; an epoch is that of a plain loop over `rows`, extrapolated from a step with each.
    """
    recipe = _RECIPE.format(samples=OBS_SAMPLES, size=OBS_BLOCK, batch_size=OBS_ROWS)
    model, run = copy.deepcopy(start), RecipeRun(load_recipe(recipe))
    run.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before_prepare(accelerator, model, _BATCH_SIZE, 1.0)
    model, optimizer = accelerator.prepare(model, optimizer)
    loader = DataLoader(Rows(rows), _BATCH_SIZE, shuffle=True, collate_fn=Collator(tokenizer))  # type: ignore[arg-type]
    run.bind(accelerator, model, optimizer, steps_per_epoch=1_000_000, gradient_loader=loader)
    source: Any = run.state.gradient_samples
    draw, seconds = source.draw, {"samples": 0.0}

    def timed(*arguments: Any, **options: Any) -> None:
        seconds["gradients"] = _seconds_of(
            lambda: draw(arguments[0], OBS_SAMPLES, lambda name, gradient: None, **options)
        )
        seconds["samples"] = _seconds_of(lambda: draw(*arguments, **options))

    source.draw = timed
    began = _memory_in_use(accelerator)
    update = _seconds_of(run.step_begin) - seconds["gradients"] - seconds["samples"]
    peak = _memory_in_use(accelerator, peak=True)
    sample = seconds["samples"] / OBS_SAMPLES
    weights = sum(mask.numel() for mask in masks(run.state.model).values())
    step = hand_written_step(accelerator, start)
    step(chosen[0])  # a warm-up
    seconds_of_step = _seconds_of(lambda: list(map(step, chosen))) / len(chosen)
    epoch = seconds_of_step * math.ceil(len(rows) / _BATCH_SIZE)
    own = {
        "weights": weights,
        "seconds_per_gradient": seconds["gradients"] / OBS_SAMPLES,
        "seconds_per_sample": sample,
        "seconds_after_samples": update,
        "seconds_of_1024_samples": 1024 * sample + update,
        "seconds_of_epoch": epoch,
        "epochs_per_update": (1024 * sample + update) / epoch,
        "peak_bytes": peak - began,
    }
    return {"model": own, "BERT-base, made-up gradients": _made_up_cost(accelerator.device, 12 * 12 * 768**2)}


def _made_up_cost(device: torch.device, weights: int) -> dict[str, float]:
    """Returns the seconds and bytes of an update without its forwards and backwards, from one weight of 768 x 3072."""
    shape = (768, 3072)
    blocks, weight = FisherBlocks(shape[0] * shape[1], OBS_BLOCK, device), torch.randn(shape, device=device)
    gradients = [1e-3 * torch.randn(shape, device=device) for _ in range(OBS_SAMPLES)]
    ratio = weights / weight.numel()
    adding = _seconds_of(lambda: list(map(blocks.add, gradients))) / OBS_SAMPLES
    inverting = _seconds_of(lambda: blocks.invert(1e-7))
    scores: list[Tensor] = []
    rest = _seconds_of(lambda: scores.append(blocks.scores(weight)))
    rest += _seconds_of(lambda: blocks.update(weight, scores[0] < scores[0].median()))
    after = ratio * (inverting + rest)
    return {
        "weights": weights,
        "seconds_per_sample": ratio * adding,
        "seconds_after_samples": after,
        "seconds_of_1024_samples": 1024 * ratio * adding + after,
        "peak_bytes": fisher_bytes(weights, OBS_BLOCK),
    }


def _seconds_of(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _memory_in_use(accelerator: Accelerator, *, peak: bool = False) -> int:
    """Returns the bytes that this process uses (on a GPU, of its tensors), or the most it has used. Linux only."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:" if peak else "VmRSS:")[2].split()[0])
