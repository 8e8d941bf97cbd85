"""The only file that knows how a model lies over processes: one, DDP, FSDP2, or DeepSpeed's ZeRO 1, 2 and 3.

Where a weight lies                              the whole of it                          writing it
plain, DDP   whole, on every process             itself                                   in place
FSDP2        a DTensor: rows shared out          `full_tensor()`                          this process's rows, in place
ZeRO 1, 2    whole, maybe in 16 bits; the        the float32 parts, gathered              this process's part of the
             optimizer's float32 in parts                                                 float32, and the weight itself
ZeRO 3       both in parts                       the float32 parts, gathered              both

Everything here that takes a weight must be called by all processes, in the same order.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from sparse_accel.environment import check_environment, is_asked_for
from sparse_accel.errors import UsageError
from sparse_accel.processes import LONGEST_WAIT, largest, world_size

# --- launching --------------------------------------------------------------------------------------------------------


def launch_options(*, find_unused_parameters: bool = False) -> list[Any]:
    """Returns what `Accelerator(kwargs_handlers=...)` needs for masks and quantizers to be right under DDP.

    Their buffers are kept equal by this project: DDP's broadcast would put rank 0's over the others' in every forward.

    Raises:
        UsageError: the environment has variables of a launcher that did not start this process.
    """
    check_environment()
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # Accelerate knows no newer name yet
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed guesses, and warns, wherever it is installed
    # DeepSpeed would ask for a backend of its own on a CPU. With one process a backend stands for nothing.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    gloo = "gloo" if several and not torch.cuda.is_available() else None
    return [
        DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=find_unused_parameters),
        InitProcessGroupKwargs(backend=gloo, timeout=LONGEST_WAIT),
    ]


def check_launch(accelerator: Accelerator) -> None:
    """Refuses launches that did not become what they ask for, and settings under which masks would be wrong.

    Raises:
        UsageError: says which setting, and what to set instead.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    alone = accelerator.distributed_type == DistributedType.NO
    if asked != accelerator.num_processes or (asked > 1 and alone):
        raise UsageError(
            f"the launcher started {asked} processes and they do not train together: each would train alone. "
            "On a CPU set distributed_type: MULTI_GPU in the launcher's file and ACCELERATE_USE_CPU=true in the "
            "environment; FSDP needs GPUs"
        )
    if is_asked_for("FSDP") and accelerator.distributed_type != DistributedType.FSDP:
        raise UsageError(
            f"the launcher asked for FSDP and Accelerate made {accelerator.distributed_type.value} of it: FSDP needs "
            "GPUs, and use_cpu: false"
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise UsageError("FSDP 1 is not supported: set fsdp_version: 2 in the launcher's file (fsdp_config)")
        if plugin.cpu_ram_efficient_loading:
            raise UsageError(
                "fsdp_cpu_ram_efficient_loading gives all processes but one an empty model, and masks are made from "
                "what a process holds: set it to false in the launcher's file (fsdp_config)"
            )
        if plugin.activation_checkpointing:
            raise UsageError(
                "fsdp_activation_checkpointing renames weights: set it to false in the launcher's file (fsdp_config) "
                "and pass --gradient_checkpointing"
            )
        if accelerator.mixed_precision == "fp16":
            raise UsageError("fp16 under FSDP is not supported: take bf16, or ddp.yaml for fp16")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        if accelerator.state.deepspeed_plugin.zero3_init_flag:
            raise UsageError(
                "zero3_init_flag splits the model while it loads, before its masks are made: set it to false in the "
                "launcher's file (deepspeed_config)"
            )
        from transformers.integrations import unset_hf_deepspeed_config  # type: ignore[attr-defined]

        unset_hf_deepspeed_config()  # else transformers splits what it loads, the teacher too, whatever that flag says
    largest(0)  # the processes' CPUs find each other now, or not at all


def before_prepare(accelerator: Accelerator, model: nn.Module, micro_batch_size: int, max_grad_norm: float) -> None:
    """Tells the wrappers what they would guess otherwise. Call it before `accelerator.prepare`.

    Args:
        micro_batch_size: rows of a process's micro-batch.
        max_grad_norm: DeepSpeed clips gradients itself, at 1.0 unless told; 0 leaves them.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        # Its own guess takes the embeddings for a block as well, and then cannot shard the one inside it.
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = _block_classes(model)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=micro_batch_size,
            gradient_accumulation_steps=accelerator.gradient_accumulation_steps,
            gradient_clipping=max_grad_norm,
        )


def _block_classes(model: nn.Module) -> list[str]:
    """Returns the classes of the model's blocks: what stands in its outermost lists of modules."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = [m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    return sorted({type(block).__name__ for blocks in outermost for block in blocks})


def gives_gradients(accelerator: Accelerator) -> bool:
    """Whether gradients can be read and changed between backward and step: DeepSpeed steps inside of the backward."""
    return accelerator.distributed_type != DistributedType.DEEPSPEED


def describe(accelerator: Accelerator) -> str:
    """Returns the layout in words, for the start-up table."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        name = f"DeepSpeed ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    else:
        kind = {DistributedType.NO: "one process", DistributedType.FSDP: "FSDP2"}
        name = kind.get(accelerator.distributed_type, "DDP")
    return name if accelerator.num_processes == 1 else f"{name}, {accelerator.num_processes} processes"


@contextmanager
def unused_weights_explained() -> Iterator[None]:
    """Turns DDP's complaint about weights without a gradient into an error that names the flag."""
    try:
        yield
    except RuntimeError as error:
        if "Expected to have finished reduction" not in str(error):
            raise
        raise UsageError(
            "the model does not use all of its weights in every step, and DDP waits for a gradient of each: pass "
            "--ddp_find_unused_parameters, or freeze those weights with a TrainableParamsModifier"
        ) from error


def plain_model(accelerator: Accelerator, model: nn.Module) -> Any:
    """Returns the model as it was before `prepare` wrapped and compiled it; its layers are the same objects."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


# --- whole weights ----------------------------------------------------------------------------------------------------


def hand_back(model: nn.Module) -> None:
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
            return _from_deepspeed(parameter, None)
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    if hasattr(parameter, "_hp_mapping"):
        return _from_deepspeed(parameter, None)
    return parameter.detach()


@torch.no_grad()
def set_full_weight(parameter: nn.Parameter, value: Tensor) -> None:
    """Writes a whole weight, of which every process has the same `value`, to wherever it and its copies lie."""
    if isinstance(parameter, DTensor):
        parameter.copy_(_shared_out(value, parameter))
        return
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        if parameter.requires_grad:
            _to_deepspeed(parameter, value, None)
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
    hand_back(plain)
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


def _shared_out(value: Tensor, like: DTensor) -> Tensor:
    """Returns a tensor that every process holds whole as a DTensor laid out as `like`; nothing is sent."""
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _from_deepspeed(parameter: Any, key: str | None) -> Tensor:
    """Returns the whole float32 weight, or with `key` that entry of its optimizer state."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found = safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)
    return found.detach().view(getattr(parameter, "ds_shape", parameter.shape))


def _to_deepspeed(parameter: Any, value: Tensor, key: str | None) -> None:
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


# --- the state of an optimizer, for checkpoints that any layout can read ----------------------------------------------


@torch.no_grad()
def training_state(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Returns weights as the optimizer holds them and its state, by name, whole: `weight:NAME`, `exp_avg:NAME`, ...

    The main process gets them, on its CPU; the others an empty dict.
    """
    state: dict[str, Tensor] = {}
    hand_back(model)
    if is_deepspeed(optimizer):
        _link_deepspeed_state(optimizer.optimizer)
    for name, parameter in plain_model(accelerator, model).named_parameters():
        whole = {"weight": full_weight(parameter), **_optimizer_entries(optimizer, parameter)}
        if accelerator.is_main_process:  # a copy on its CPU, one weight at a time
            state.update({f"{key}:{name}": value.detach().to("cpu", copy=True) for key, value in whole.items()})
    if accelerator.is_main_process:
        scale = scaler_state(accelerator, optimizer)
        state.update({f"loss_scale:{key}": torch.tensor(value, dtype=torch.float64) for key, value in scale.items()})
    return {key.replace("_orig_mod.", ""): value.contiguous() for key, value in state.items()}


def _optimizer_entries(optimizer: Any, parameter: Any) -> dict[str, Tensor]:
    """Returns the optimizer's state of one parameter, whole; empty before its first step."""
    if is_deepspeed(optimizer):
        steps = [entry["step"] for entry in optimizer.state.values() if "step" in entry]
        if not parameter.requires_grad or not steps:
            return {}
        step = torch.as_tensor(steps[0], dtype=torch.float32)
        return {"step": step, **{key: _from_deepspeed(parameter, key) for key in ("exp_avg", "exp_avg_sq")}}
    entries = optimizer.state.get(parameter, {})
    return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in entries.items()}


@torch.no_grad()
def load_training_state(
    accelerator: Accelerator, model: nn.Module, optimizer: Any, state: Mapping[str, Tensor]
) -> None:
    """Puts back what `training_state` returned under any layout. Every process has the whole `state`.

    Raises:
        KeyError: a weight is missing.
    """
    named = {name.replace("_orig_mod.", ""): p for name, p in plain_model(accelerator, model).named_parameters()}
    entries: dict[str, dict[str, Tensor]] = {name: {} for name in named}
    for key, value in state.items():
        kind, _, name = key.partition(":")
        if kind != "loss_scale":
            entries[name][kind] = value
    scale = {key.removeprefix("loss_scale:"): value for key, value in state.items() if key.startswith("loss_scale:")}
    load_scaler_state(accelerator, optimizer, {key: value.item() for key, value in scale.items()})
    for name, parameter in named.items():
        set_full_weight(parameter, entries[name].pop("weight").to(accelerator.device))
    if is_deepspeed(optimizer):
        _load_into_deepspeed(accelerator, optimizer, named, entries)
        return
    by_parameter = {parameter: entries[name] for name, parameter in named.items()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    known = {
        number: {key: _as_state_of(parameter, value) for key, value in by_parameter[parameter].items()}
        for number, parameter in enumerate(order)
        if by_parameter.get(parameter)
    }
    optimizer.load_state_dict({"state": known, "param_groups": optimizer.state_dict()["param_groups"]})


def _as_state_of(parameter: Tensor, value: Tensor) -> Tensor:
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return _shared_out(value, parameter)
    return value


def _load_into_deepspeed(
    accelerator: Accelerator,
    optimizer: Any,
    named: Mapping[str, nn.Parameter],
    entries: Mapping[str, Mapping[str, Tensor]],
) -> None:
    for part in _deepspeed_parts(optimizer.optimizer):  # it has no state before its first step
        zeros = {key: torch.zeros_like(part) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[part] = {"step": torch.zeros((), device=part.device), **zeros}
    _link_deepspeed_state(optimizer.optimizer)
    step = torch.zeros(())
    for name, parameter in named.items():
        for key, value in entries[name].items():
            if key == "step":
                step = value
            elif parameter.requires_grad:
                _to_deepspeed(parameter, value.to(accelerator.device), key)
    for entry in optimizer.state.values():  # one a group of parameters
        if "step" in entry:
            entry["step"].copy_(step)


def _deepspeed_parts(zero: Any) -> list[Tensor]:
    """Returns the float32 parts that DeepSpeed's optimizer of any stage updates, one a group or sub-group."""
    names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
    return next(list(getattr(zero, name)) for name in names if hasattr(zero, name))


def _link_deepspeed_state(zero: Any) -> None:
    """Has ZeRO 1 and 2 find each parameter's state again. By itself it does so once, after the first group of
    parameters has stepped: the others' state is not there yet, and stays unknown (DeepSpeed 0.19)."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def is_deepspeed(optimizer: Any) -> bool:
    """True for an optimizer that DeepSpeed keeps: its own, in parts of many weights joined."""
    return type(optimizer).__name__ == "DeepSpeedOptimizerWrapper"


def scaler_state(accelerator: Accelerator, optimizer: Any) -> dict[str, float]:
    """Returns the state of the fp16 loss scale; empty in other precisions."""
    if accelerator.scaler is not None:
        return dict(accelerator.scaler.state_dict())
    scaler = getattr(getattr(optimizer, "optimizer", None), "loss_scaler", None)
    return {"scale": float(scaler.cur_scale)} if accelerator.mixed_precision == "fp16" and scaler is not None else {}


def load_scaler_state(accelerator: Accelerator, optimizer: Any, state: Mapping[str, float]) -> None:
    """Puts back what `scaler_state` returned; across layouts, the scale itself."""
    if not state or accelerator.mixed_precision != "fp16":
        return
    if accelerator.scaler is not None:
        own = accelerator.scaler.state_dict()  # some entries are whole numbers, and must stay so
        accelerator.scaler.load_state_dict({key: type(own[key])(state.get(key, own[key])) for key in own})
    else:
        optimizer.optimizer.loss_scaler.cur_scale = state["scale"]
