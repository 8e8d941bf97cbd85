"""The optimizer and its parameter groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Returns the Trainer's two groups: weights with decay (group 0), biases and norms without (group 1)."""
    norms = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
    }
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    with_decay = [p for name, p in named if name not in norms and not name.endswith("bias")]
    without = [p for name, p in named if name in norms or name.endswith("bias")]
    return [
        {"params": with_decay, "weight_decay": weight_decay},
        {"params": without, "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, arguments: TrainingArguments, accelerator: Accelerator) -> torch.optim.AdamW:
    """Returns AdamW (Loshchilov and Hutter, 2019) with the two groups; fused (one kernel per group), except in fp16.

    A fused optimizer gets the overflow flag from the fp16 scaler, skips the step and returns normally: Accelerate would
    report a completed step, and the recipe's progress would advance without it.
    """
    groups = parameter_groups(model, arguments.weight_decay)
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return torch.optim.AdamW(
        groups, lr=arguments.learning_rate, betas=betas, eps=arguments.adam_epsilon, fused=accelerator.scaler is None
    )
