"""Gradient samples: mean gradients of chosen weights that leave the training around them as it was.

layout       how a sample's gradient is computed                      where it is complete
plain, DDP   `autograd.grad` through the plain model: no `.grad` is   summed to the process that owns the weight
             touched and no hook of DDP runs
FSDP2        a backward through the sharded model; the gradients of   gathered, kept by the process that owns the weight
             the step are put aside
DeepSpeed    refused (`distributed.launch.gives_gradients`)

All processes must call the functions here that take a model, in the same order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sparse_accel.distributed.collectives import largest, rank_and_size
from sparse_accel.distributed.signals import stop_now_if_asked, update_of_masks
from sparse_accel.distributed.weights import reshard
from sparse_accel.errors import UsageError

# What one process adds to one sample: functions of the model, each the loss () of a micro-batch. The sum over all
# processes and their functions is the mean loss of the sample's rows. FSDP2 needs equally many on each process.
Losses: TypeAlias = Sequence[Callable[[Any], Tensor]]


def owners(sizes: Mapping[str, int], processes: int) -> dict[str, int]:
    """Returns the process that works on each weight, so that all processes have about equally much to do.

    Args:
        sizes: number of entries of each weight, by name.
        processes: how many there are.
    """
    load = [0] * processes
    found = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        found[name] = load.index(min(load))
        load[found[name]] += sizes[name]
    return {name: found[name] for name in sizes}


def from_owner(value: Tensor, owner: int) -> Tensor:
    """Returns `value` of the process `owner` on all processes; it is overwritten elsewhere."""
    if rank_and_size()[1] > 1:
        dist.broadcast(value, src=owner)
    return value


def draw_gradients(
    model: nn.Module,
    plain: nn.Module,
    weights: Mapping[str, nn.Parameter],
    samples: Iterable[Losses],
    take: Callable[[str, Tensor], None],
    *,
    loss_scale: float = 1.0,
    what: str,
) -> None:
    """Computes the gradients of each sample, and gives them to the owners of the weights (see `owners`).

    The model is in eval mode meanwhile, so that dropout is off and observers do not move. Its flags, its gradients and
    the states of the random generators are afterwards as before.

    Args:
        model: as `prepare` returned it.
        plain: the model inside it.
        weights: the weights to compute gradients for, by name; none is frozen.
        samples: the losses of each sample; iterated with the model in eval mode.
        take: called with the name and the gradient, complete and float32, of each weight that this process owns.
        loss_scale: factor of the loss in fp16; halved, and the sample repeated, when a gradient overflows.
        what: names the sampling in errors.

    Raises:
        UsageError: a gradient contains NaN or inf.
        KeyboardInterrupt, Stopped: a signal asked the run to stop.
    """
    _, processes = rank_and_size()
    owner = owners({name: weight.numel() for name, weight in weights.items()}, processes)
    with undisturbed(plain), torch.enable_grad(), update_of_masks():
        for number, losses in enumerate(samples, 1):
            stop_now_if_asked()
            while True:
                found = _gradients(model, plain, weights, owner, losses, loss_scale)
                if not largest(not _finite(found.values())):
                    break
                if loss_scale <= 1:
                    raise UsageError(
                        f"{what}: gradient sample {number} contains NaN or inf. The masks are not updated, and earlier "
                        "checkpoints are intact. Lower --learning_rate (or the recipe's init_lr), or use --bf16 or "
                        "float32 instead of --fp16"
                    )
                loss_scale /= 2
            for name, gradient in found.items():
                take(name, gradient.float() / loss_scale)


def _gradients(
    model: nn.Module,
    plain: nn.Module,
    weights: Mapping[str, nn.Parameter],
    owner: Mapping[str, int],
    losses: Losses,
    scale: float,
) -> dict[str, Tensor]:
    """Returns the gradients of the scaled loss, summed over all processes, for the weights that this process owns."""
    rank, processes = rank_and_size()
    if isinstance(model, FSDPModule):
        return _sharded_gradients(model, weights, owner, losses, scale)
    total: list[Tensor] = []
    for loss in losses:
        found = torch.autograd.grad(loss(plain) * scale, list(weights.values()), allow_unused=True)
        # A weight that the forward did not use, as in a layer that is passed over, has no gradient.
        full = [torch.zeros_like(w) if g is None else g for w, g in zip(weights.values(), found, strict=True)]
        total = [one + other for one, other in zip(total, full, strict=True)] if total else full
    if processes > 1:
        for name, gradient in zip(weights, total, strict=True):
            dist.reduce(gradient, dst=owner[name])
    return {name: gradient for name, gradient in zip(weights, total, strict=True) if owner[name] == rank}


def _sharded_gradients(
    model: Any, weights: Mapping[str, nn.Parameter], owner: Mapping[str, int], losses: Losses, scale: float
) -> dict[str, Tensor]:
    rank, processes = rank_and_size()
    parameters = list(model.parameters())
    before = [parameter.grad for parameter in parameters]
    found = {}
    try:
        for parameter in parameters:
            parameter.grad = None
        model.set_requires_gradient_sync(True)
        for loss in losses:
            (loss(model) * (scale * processes)).backward()  # FSDP2 averages over the processes
        for name, weight in weights.items():
            gradient: Any = torch.zeros_like(weight) if weight.grad is None else weight.grad
            full = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            if owner[name] == rank:
                found[name] = full
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        reshard(model)
    return found


def _finite(gradients: Iterable[Tensor]) -> bool:
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    return not norms or bool(torch.isfinite(torch.stack(norms)).all())


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode; restores the mode of each module and all random generators at the end."""
    modes = {module: module.training for module in model.modules()}
    python, numpy = random.getstate(), np.random.get_state()
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            model.eval()
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in modes.items():
            module.training = training
