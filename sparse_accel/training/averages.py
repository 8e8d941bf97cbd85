"""What is measured in the steps of a run: losses, gradient norm, speed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from sparse_accel.distributed.collectives import reduce_sum
from sparse_accel.distributed.weights import full_weight
from sparse_accel.errors import UsageError

# The terms of a micro-batch's loss by name, each (rows,), and the weights of its rows, (rows,).
Measured: TypeAlias = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class GlobalBatch:
    """The part of one optimizer step's batch on this process.

    Attributes:
        micro_batches: one for each accumulation step.
        rows: number of rows in the global batch over all processes, without fillers.
        weight: their total weight in the loss: the number of rows, or of their labelled tokens.
        seeded_apart: whether dropout is seeded for each micro-batch, as in streams, whose micro-batches are the same in
            other processes; otherwise once for all of a process.
    """

    micro_batches: list[dict[str, Tensor]]
    rows: int
    weight: int
    seeded_apart: bool = False


@dataclass(frozen=True)
class StepFigures:
    """What `train_step` measured.

    Attributes:
        micro_batches: for each, the terms of the loss and the weights of the rows.
        gradient_norm: the norm of all gradients before clipping, (); in fp16, without the loss scale; None under
            DeepSpeed before its first step.
    """

    micro_batches: list[Measured]
    gradient_norm: Tensor | None


@dataclass
class Averages:
    """Means since the last log, summed on the device: no synchronization until they are read."""

    sums: dict[str, Tensor] = field(default_factory=dict)  # of the terms of the loss, weighted as in the loss
    norms: list[Tensor] = field(default_factory=list)  # of the gradients, one per step
    tokens: list[Tensor] = field(default_factory=list)  # of this process, without padding, one per micro-batch
    padded_tokens: int = 0  # of this process, with padding
    rows: int = 0
    weight: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0  # steps skipped for NaN or inf since the start
    in_a_row: int = 0
    _began: float = 0.0

    def begin_step(self) -> None:
        """Starts the timer of a step; call it before its batch is made."""
        self._began = time.perf_counter()

    def add(self, measured: StepFigures | None, batch: GlobalBatch) -> None:
        """Adds what `train_step` returned for a batch; None means that the step was skipped."""
        self.seconds += time.perf_counter() - self._began
        if measured is None:
            self.skipped_steps += 1
            self.in_a_row += 1
            return
        if measured.gradient_norm is not None:
            self.norms.append(measured.gradient_norm)
        for micro_batch in batch.micro_batches:
            if (mask := micro_batch.get("attention_mask")) is not None:
                real = micro_batch["row_id"] >= 0 if "row_id" in micro_batch else mask.new_ones(len(mask))
                self.tokens.append((mask.flatten(1) * real[:, None]).sum())  # a filler is padding as a whole
                self.padded_tokens += mask.numel()
        for terms, weights in measured.micro_batches:
            for name, values in terms.items():
                total = (values * weights).sum()
                self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.rows += batch.rows
        self.weight += batch.weight
        self.in_a_row = 0

    def loss(self) -> float:
        """Returns this process's mean loss since the last log, NaN if there is none; waits for the device."""
        return float(self.sums["loss"]) / max(self.weight, 1) if "loss" in self.sums else float("nan")

    def check_finite(self, step: int) -> None:
        """Raises UsageError, on all processes, if the loss since the last log is NaN or inf."""
        if self.rows:
            _check_finite(float(reduce_sum(self.sums["loss"])), step)

    def take(self, step: int) -> dict[str, float]:
        """Returns the means over all processes, rows and tokens per second and the share of padding, and resets them.

        Raises:
            UsageError: the loss is NaN or inf; the message names `step`.
        """
        began = time.perf_counter()
        sums = {name: float(reduce_sum(total)) for name, total in self.sums.items()}
        tokens, padded_tokens = self._tokens_of_all()
        norms = [full_weight(norm) for norm in self.norms]
        self.seconds += time.perf_counter() - began  # the time in which a GPU finishes its steps
        figures = {f"train/{name}": total / max(self.weight, 1) for name, total in sums.items()}
        figures["train/samples_per_second"] = self.rows / max(self.seconds, 1e-9)
        if padded_tokens:
            figures["train/tokens_per_second"] = tokens / max(self.seconds, 1e-9)
            figures["train/padding"] = 1 - tokens / padded_tokens
        if norms:
            figures["train/gradient_norm"] = torch.stack(norms).mean().item()
        if self.skipped_steps:
            figures["train/steps_skipped"] = float(self.skipped_steps)
        self.sums, self.norms, self.tokens, self.padded_tokens = {}, [], [], 0
        self.rows, self.weight, self.seconds = 0, 0, 0.0
        _check_finite(figures["train/loss"], step)
        return figures

    def _tokens_of_all(self) -> tuple[int, int]:
        """Returns the tokens of all processes, without and with padding."""
        if not self.tokens:
            return 0, 0
        own = torch.stack([torch.stack(self.tokens).sum(), torch.full_like(self.tokens[0], self.padded_tokens)])
        tokens, padded_tokens = reduce_sum(own).tolist()
        return int(tokens), int(padded_tokens)


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise UsageError(
            f"the loss is {loss} at step {step}; earlier checkpoints are intact. Lower --learning_rate (or the "
            "recipe's init_lr), or use --bf16 or float32 instead of --fp16"
        )
