"""Where the weights of a model lie under each layout: one process, DDP, FSDP2, or DeepSpeed's ZeRO 1, 2 and 3.

Where a weight lies                              the whole of it                          writing it
plain, DDP   whole, on every process             itself                                   in place
FSDP2        a DTensor: rows shared out          `full_tensor()`                          this process's rows, in place
ZeRO 1, 2    whole, maybe in 16 bits; the        the float32 parts, gathered              this process's part of the
             optimizer's float32 in parts                                                 float32, and the weight itself
ZeRO 3       both in parts                       the float32 parts, gathered              both

Everything here that takes a weight must be called by all processes, in the same order.
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
    """Returns the model as it was before `prepare` wrapped and compiled it; its layers are the same objects."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def reshard(model: nn.Module) -> None:
    """Frees the whole weights that FSDP2 still holds after a forward without a backward: copies, that it would make
    anew, and that stand in the place of the parameters. What reads or changes weights calls this first."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def full_weight(parameter: nn.Parameter) -> Tensor:
    """Returns the whole weight, detached, as the optimizer holds it, on every process."""
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
    """Writes a whole weight, of which every process has the same `value`, to wherever it and its copies lie."""
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
    """Sets a weight to 0 where `keep` is False, in every copy of it."""
    if isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        set_full_weight(parameter, full_weight(parameter).masked_fill(~keep, 0.0))
    else:
        with torch.no_grad():
            parameter.masked_fill_(~keep, 0.0)


def full_state_dict(accelerator: Accelerator, model: nn.Module) -> Mapping[str, Tensor]:
    """Returns all weights and buffers under their plain names, whole, float32, on the main process's CPU; elsewhere
    nothing."""
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
    """Returns a tensor that every process holds whole as a DTensor laid out as `like`; nothing is sent."""
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def from_deepspeed(parameter: Any, key: str | None) -> Tensor:
    """Returns the whole float32 weight, or with `key` that entry of its optimizer state."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found = safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)
    return found.detach().view(getattr(parameter, "ds_shape", parameter.shape))


def to_deepspeed(parameter: Any, value: Tensor, key: str | None) -> None:
    """Writes this process's part of the float32 weight, or with `key` of that entry of its optimizer state."""
    from deepspeed import utils

    if not hasattr(parameter, "ds_id"):
        if key is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, key)
        return
    # Its own setter for whole ZeRO-3 tensors runs over the end of those that do not divide evenly.
    if key is None:
        part = utils.safe_get_local_fp32_param(parameter)
    else:
        part = utils.safe_get_local_optimizer_state(parameter, key)
    flat = value.flatten().to(part.device, part.dtype)
    flat = F.pad(flat, (0, part.numel() * world_size() - flat.numel()))
    part.copy_(flat.view(world_size(), -1)[dist.get_rank()].view_as(part))
