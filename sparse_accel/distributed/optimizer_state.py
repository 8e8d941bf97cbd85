"""The state of an optimizer, in a form for checkpoints that any layout can read."""

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
    """Returns the weights as the optimizer holds them, and its state, complete and by name: `weight:NAME`,
    `exp_avg:NAME`, `loss_scale:KEY`, ...

    All processes must call it. The main process gets the tensors on its CPU, the others get an empty dict.
    """
    state: dict[str, Tensor] = {}
    reshard(model)
    if is_deepspeed(optimizer):
        _link_deepspeed_state(optimizer.optimizer)
    for name, parameter in plain_model(accelerator, model).named_parameters():
        whole = {"weight": full_weight(parameter), **_optimizer_entries(optimizer, parameter)}
        if accelerator.is_main_process:  # copied to its CPU one weight at a time, to save GPU memory
            state.update({f"{key}:{name}": value.detach().to("cpu", copy=True) for key, value in whole.items()})
    if accelerator.is_main_process:
        scale = scaler_state(accelerator, optimizer)
        state.update({f"loss_scale:{key}": torch.tensor(value, dtype=torch.float64) for key, value in scale.items()})
    return {key.replace("_orig_mod.", ""): value.contiguous() for key, value in state.items()}


def _optimizer_entries(optimizer: Any, parameter: Any) -> dict[str, Tensor]:
    """Returns the complete optimizer state of one parameter; empty before its first step."""
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
    """Restores what `training_state` returned under any layout. Every process must have the complete `state`.

    Raises:
        KeyError: a weight is missing, or is not in the model.
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
    for part in _deepspeed_parts(optimizer.optimizer):  # DeepSpeed has no state before its first step
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
    for entry in optimizer.state.values():  # one entry per parameter group
        if "step" in entry:
            entry["step"].copy_(step)


def _deepspeed_parts(zero: Any) -> list[Tensor]:
    """Returns the float32 parts that DeepSpeed's optimizer updates at any stage, one per group or sub-group."""
    names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
    return next(list(getattr(zero, name)) for name in names if hasattr(zero, name))


def _link_deepspeed_state(zero: Any) -> None:
    """Makes ZeRO 1 and 2 link each parameter to its state again. DeepSpeed 0.19 does it only once, after the first
    parameter group has stepped, when the state of the other groups does not exist yet."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def is_deepspeed(optimizer: Any) -> bool:
    """Returns whether DeepSpeed owns the optimizer; its state is then in flat parts that join many weights."""
    return type(optimizer).__name__ == "DeepSpeedOptimizerWrapper"


def scaler_state(accelerator: Accelerator, optimizer: Any) -> dict[str, float]:
    """Returns the state of the fp16 loss scaler; empty in other precisions."""
    if accelerator.scaler is not None:
        return dict(accelerator.scaler.state_dict())
    scaler = getattr(getattr(optimizer, "optimizer", None), "loss_scaler", None)
    return {"scale": float(scaler.cur_scale)} if accelerator.mixed_precision == "fp16" and scaler is not None else {}


def load_scaler_state(accelerator: Accelerator, optimizer: Any, state: Mapping[str, float]) -> None:
    """Restores what `scaler_state` returned; between different layouts, only the scale."""
    if not state or accelerator.mixed_precision != "fp16":
        return
    if accelerator.scaler is not None:
        own = accelerator.scaler.state_dict()  # some entries are integers and must stay integers
        accelerator.scaler.load_state_dict({key: type(own[key])(state.get(key, own[key])) for key in own})
    else:
        optimizer.optimizer.loss_scaler.cur_scale = state["scale"]
