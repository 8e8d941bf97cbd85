"""The only file that knows how a model lies over processes: DDP, FSDP2 or DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def launch_options() -> list[Any]:
    """Returns what `Accelerator(kwargs_handlers=...)` needs for masks and quantizers to be right under DDP.

    Their buffers are kept equal by this project: DDP's broadcast would put rank 0's over the others' in every forward.
    """
    return [DistributedDataParallelKwargs(broadcast_buffers=False)]


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def reduce_extrema(minimum: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the smallest minimum and the largest maximum over all processes, by one all-reduce.

    Args:
        minimum, maximum: of one shape, float32, on the process's device.
    """
    if world_size() == 1:
        return minimum, maximum
    both = torch.stack([-minimum, maximum])
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return -both[0], both[1]


def reduce_sum(values: Tensor) -> Tensor:
    """Returns the sum over all processes."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


@torch.no_grad()
def full_weight(parameter: nn.Parameter) -> Tensor:
    """Returns the whole weight, detached, on every process, wherever its parts lie. Call it on every process."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach()
    if hasattr(parameter, "ds_id"):  # ZeRO-3 keeps a part on each process, and an empty tensor here
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach()


def lies_with_deepspeed(parameter: nn.Parameter) -> bool:
    """True for a parameter whose optimizer, DeepSpeed's, works on copies of its own."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


@torch.no_grad()
def clear_weight(parameter: nn.Parameter, keep: Tensor) -> None:
    """Sets a weight to 0 where `keep` is False, in the copy that the optimizer updates.

    Raises:
        RuntimeError: under DeepSpeed, whose optimizer holds copies that this would miss.
    """
    if lies_with_deepspeed(parameter):
        raise RuntimeError("pruned weights cannot grow again under DeepSpeed: leave_enabled must be true")
    if isinstance(parameter, DTensor):
        from torch.distributed.tensor import distribute_tensor

        keep = distribute_tensor(keep, parameter.device_mesh, parameter.placements)
    parameter.masked_fill_(~keep, 0.0)


def full_state_dict(accelerator: Accelerator, model: nn.Module) -> Mapping[str, Tensor]:
    """Returns all weights under their plain names, whole, on the main process (elsewhere it may be empty)."""
    state: Mapping[str, Tensor] = accelerator.get_state_dict(model)
    return {name.removeprefix("module.").replace("_orig_mod.", ""): tensor for name, tensor in state.items()}


def plain_model(accelerator: Accelerator, model: nn.Module) -> Any:
    """Returns the model as it was before `prepare` wrapped and compiled it; its layers are the same objects."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def describe(accelerator: Accelerator) -> str:
    """Returns the layout in words, for the start-up table."""
    kind = {DistributedType.NO: "one process", DistributedType.FSDP: "FSDP2", DistributedType.DEEPSPEED: "DeepSpeed"}
    name = kind.get(accelerator.distributed_type, "DDP")
    return name if accelerator.num_processes == 1 else f"{name}, {accelerator.num_processes} processes"
