"""The optimizer's parameter groups, and the usual learning-rate schedules as functions of progress."""

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
    """Returns AdamW with the two groups; fused, one kernel for a group, but under fp16.

    A fused optimizer takes the scaler's word that a step overflowed, and returns as if it had stepped: Accelerate would
    say that the step was taken, and the recipe's clock would go on without it.
    """
    groups = parameter_groups(model, arguments.weight_decay)
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return torch.optim.AdamW(
        groups, lr=arguments.learning_rate, betas=betas, eps=arguments.adam_epsilon, fused=accelerator.scaler is None
    )
