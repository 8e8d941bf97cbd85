"""The state of an optimizer, for checkpoints that any layout can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sparse_accel.distributed.weights import (
    distribute,
    from_deepspeed,
    full_weight,
    plain_model,
    reshard,
    set_full_weight,
    to_deepspeed,
)


@torch.no_grad()
def training_state(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Returns weights as the optimizer holds them and its state, by name, whole: `weight:NAME`, `exp_avg:NAME`, ...

    The main process gets them, on its CPU; the others an empty dict.
    """
    state: dict[str, Tensor] = {}
    reshard(model)
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
        return {"step": step, **{key: from_deepspeed(parameter, key) for key in ("exp_avg", "exp_avg_sq")}}
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
        return distribute(value, parameter)
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
                to_deepspeed(parameter, value.to(accelerator.device), key)
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
