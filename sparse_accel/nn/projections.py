"""Learned projections from the widths of a student's layers to those of its teacher, with their own small optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_accel.distributed.collectives import reduce_sum, world_size

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Projections:
    """Matrices without bias, (teacher width, student width), by name; trained by AdamW without weight decay. Their
    gradients are not clipped.

    They begin uniform between +-1/sqrt(student width), as torch.nn.Linear does, from a generator of their own: equal on
    all processes, and the global generator is not moved.

    Args:
        widths: (teacher width, student width), by name.
    """

    def __init__(self, widths: Mapping[str, tuple[int, int]]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights: dict[str, nn.Parameter] = {}
        for name, (teacher, student) in widths.items():
            bound = student**-0.5
            weight = torch.rand(teacher, student, generator=generator) * (2 * bound) - bound
            self.weights[name] = nn.Parameter(weight)

    def to(self, device: torch.device) -> None:
        """Moves them to a device, and makes the optimizer; call it before the first step and `load_state_dict`."""
        self.weights = {name: nn.Parameter(weight.detach().to(device)) for name, weight in self.weights.items()}
        if not self.weights:
            return
        self._optimizer = torch.optim.AdamW(self.weights.values(), weight_decay=0.0)
        for weight in self.weights.values():  # as AdamW makes them in its first step
            moments = {key: torch.zeros_like(weight.detach()) for key in _MOMENTS}
            self._optimizer.state[weight] = {"step": torch.tensor(0.0), **moments}

    def __call__(self, name: str, values: Tensor) -> Tensor:
        """Returns values (..., student width) as (..., teacher width); in bf16 where autocast asks for fp16.

        With the scaled loss of fp16, a weight's gradient, a sum over all tokens, may exceed the range of fp16, and the
        scaler would not see it: it checks the gradients of the model only.
        """
        kind = values.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        with torch.autocast(kind, torch.bfloat16) if half else nullcontext():
            return F.linear(values.to(self.weights[name].dtype), self.weights[name])

    def average_gradients(self, loss_scale: float) -> None:
        """Averages the gradients over the processes, and takes out the scale of the loss."""
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        if not gradients:
            return
        flat = reduce_sum(torch.cat([gradient.flatten() for gradient in gradients])) / (world_size() * loss_scale)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def step(self, rate: float) -> None:
        """Takes an optimizer step at a learning rate, and drops the gradients."""
        if not self.weights:
            return
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        for weight in self.weights.values():
            weight.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Returns weights and moments by name."""
        state = {}
        for name, weight in self.weights.items():
            state[f"{name}:weight"] = weight.detach()
            state |= {f"{name}:{key}": value for key, value in self._optimizer.state[weight].items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            ValueError: it is the state of other projections.
        """
        own = self.state_dict()
        if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
            raise ValueError("the projections belong to other layers or widths")
        for name, value in own.items():
            value.copy_(state[name])
