"""Reading and writing weights under each layout: one process, DDP, FSDP2, or DeepSpeed's ZeRO 1, 2 and 3.

layout       where a weight is                   the complete weight                      writing it
plain, DDP   complete, on every process          the weight itself                        in place
FSDP2        a DTensor: rows are distributed     `full_tensor()`                          this process's rows, in place
ZeRO 1, 2    complete, maybe in 16 bits; the     the float32 parts, gathered              this process's part of the
             optimizer's float32 in parts                                                 float32, and the weight itself
ZeRO 3       both in parts                       the float32 parts, gathered              both

All processes must call every function here that takes a weight, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from sparse_accel.distributed.collectives import world_size


def plain_model(accelerator: Accelerator, model: nn.Module) -> Any:
    """Returns the model as it was before `prepare` wrapped and compiled it, with the same layer objects."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def reshard(model: nn.Module) -> None:
    """Frees the gathered weights that FSDP2 keeps after a forward without a backward. These copies replace the
    parameters until then, so call this before reading or changing weights."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def full_weight(parameter: Tensor) -> Tensor:
    """Returns the complete weight on every process, detached, in the precision that the optimizer updates."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        if parameter.requires_grad and hasattr(parameter, "_z3_optimizer"):
            return from_deepspeed(parameter, None)
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    if hasattr(parameter, "_hp_mapping"):
        return from_deepspeed(parameter, None)
    return parameter.detach()


@torch.no_grad()
def set_full_weight(parameter: nn.Parameter, value: Tensor) -> None:
    """Writes a complete weight to the parameter and all its copies. Every process must pass the same `value`."""
    if isinstance(parameter, DTensor):
        parameter.copy_(distribute(value, parameter))
        return
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        if parameter.requires_grad:
            to_deepspeed(parameter, value, None)
        if hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
            return
    parameter.copy_(value)


def clear_weight(parameter: nn.Parameter, keep: Tensor) -> None:
    """Sets a weight to 0 where `keep` is False, in all its copies.

    Args:
        keep: bool, of the weight's complete shape.
    """
    if isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        set_full_weight(parameter, full_weight(parameter).masked_fill(~keep, 0.0))
    else:
        with torch.no_grad():
            parameter.masked_fill_(~keep, 0.0)


def is_sharded(parameter: Tensor) -> bool:
    """Returns True where each process holds another part of the parameter as a tensor (FSDP2)."""
    return isinstance(parameter, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Returns this process's part of a weight or of its gradient, detached, sharing its memory; nothing is
    communicated. Where tensors are not sharded, and with DeepSpeed, it is the tensor itself."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def local_part_of(full: Tensor, like: Tensor) -> Tensor:
    """Returns the part of `full`, complete on every process, that has the layout of `local_part(like)`, in its own
    dtype; nothing is communicated. It shares memory with `full` where `like` is not sharded."""
    if not isinstance(like, DTensor):
        return full
    found = distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return found.to_local()


def full_from_parts(part: Tensor, like: Tensor) -> Tensor:
    """Returns the complete tensor on every process, from parts that have the layout of `local_part(like)`."""
    if not isinstance(like, DTensor):
        return part
    whole = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return whole.full_tensor()


def full_state_dict(accelerator: Accelerator, model: nn.Module) -> Mapping[str, Tensor]:
    """Returns all weights (complete, float32) and buffers by name, on the CPU of the main process; an empty dict on the
    other processes. All processes must call it."""
    plain = plain_model(accelerator, model)
    reshard(plain)
    whole: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        if id(parameter) not in whole:
            weight = full_weight(parameter)
            whole[id(parameter)] = weight.float().cpu() if accelerator.is_main_process else weight[:0]
        state[name] = whole[id(parameter)]
    for name, tensor in plain.state_dict().items():
        if name not in state:
            state[name] = tensor.detach().cpu()
    if not accelerator.is_main_process:
        return {}
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}


def distribute(value: Tensor, like: DTensor) -> Tensor:
    """Returns `value`, complete on every process, as a DTensor with the layout of `like`; nothing is communicated."""
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def from_deepspeed(parameter: Any, key: str | None) -> Tensor:
    """Returns the complete float32 weight or, with `key`, that entry of its optimizer state."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found = safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)
    return found.detach().view(getattr(parameter, "ds_shape", parameter.shape))


def to_deepspeed(parameter: Any, value: Tensor, key: str | None) -> None:
    """Writes this process's part of the float32 weight or, with `key`, of that entry of its optimizer state."""
    from deepspeed import utils

    if not hasattr(parameter, "ds_id"):
        if key is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, key)
        return
    # DeepSpeed's own setter for complete ZeRO-3 tensors overruns tensors that do not divide evenly.
    if key is None:
        part = utils.safe_get_local_fp32_param(parameter)
    else:
        part = utils.safe_get_local_optimizer_state(parameter, key)
    flat = value.flatten().to(part.device, part.dtype)
    flat = F.pad(flat, (0, part.numel() * world_size() - flat.numel()))
    part.copy_(flat.view(world_size(), -1)[dist.get_rank()].view_as(part))
