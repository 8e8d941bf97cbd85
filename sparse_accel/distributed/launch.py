"""The layout of processes: options and checks for the launcher, before and while the model is wrapped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import nn

from sparse_accel.distributed.collectives import LONGEST_WAIT, largest
from sparse_accel.distributed.environment import check_environment, is_requested
from sparse_accel.errors import UsageError


def launch_options(*, find_unused_parameters: bool = False) -> list[Any]:
    """Returns the `kwargs_handlers` that `Accelerator` needs so that masks and quantizers are correct under DDP.

    This project keeps their buffers equal itself; DDP's broadcast would overwrite them with rank 0's in every forward.

    Args:
        find_unused_parameters: as for DDP.

    Raises:
        UsageError: the environment has variables of a launcher that did not start this process.
    """
    check_environment()
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # Accelerate does not have the new name yet
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed guesses the device and warns
    # On a CPU, DeepSpeed would ask for its own backend instead of gloo. One process needs no backend.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    gloo = "gloo" if several and not torch.cuda.is_available() else None
    return [
        DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=find_unused_parameters),
        InitProcessGroupKwargs(backend=gloo, timeout=LONGEST_WAIT),
    ]


def check_launch(accelerator: Accelerator) -> None:
    """Refuses launches that Accelerate did not set up as requested, and settings under which masks would be wrong.

    Raises:
        UsageError: names the setting, and what to set instead.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    alone = accelerator.distributed_type == DistributedType.NO
    if asked != accelerator.num_processes or (asked > 1 and alone):
        raise UsageError(
            f"the launcher started {asked} processes, but they do not train together: each would train alone. "
            "On a CPU, set distributed_type: MULTI_GPU in the launcher's file and ACCELERATE_USE_CPU=true in the "
            "environment; FSDP needs GPUs"
        )
    if is_requested("FSDP") and accelerator.distributed_type != DistributedType.FSDP:
        raise UsageError(
            f"the launcher asked for FSDP, but Accelerate uses {accelerator.distributed_type.value}: FSDP needs GPUs "
            "and use_cpu: false"
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise UsageError("FSDP 1 is not supported: set fsdp_version: 2 in the launcher's file (fsdp_config)")
        if plugin.cpu_ram_efficient_loading:
            raise UsageError(
                "fsdp_cpu_ram_efficient_loading gives all processes but one an empty model, but each process needs the "
                "weights to make masks: set it to false in the launcher's file (fsdp_config)"
            )
        if plugin.activation_checkpointing:
            raise UsageError(
                "fsdp_activation_checkpointing renames weights: set it to false in the launcher's file (fsdp_config) "
                "and pass --gradient_checkpointing"
            )
        if accelerator.mixed_precision == "fp16":
            raise UsageError("fp16 under FSDP is not supported: use bf16, or ddp.yaml for fp16")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        if accelerator.state.deepspeed_plugin.zero3_init_flag:
            raise UsageError(
                "zero3_init_flag splits the model during loading, before masks are made: set it to false in the "
                "launcher's file (deepspeed_config)"
            )
        from transformers.integrations import unset_hf_deepspeed_config  # type: ignore[attr-defined]

        unset_hf_deepspeed_config()  # otherwise transformers splits all it loads, even the teacher, despite that flag
    largest(0)  # connects the CPUs of the processes now, so that a failure shows here


def before_prepare(accelerator: Accelerator, model: nn.Module, micro_batch_size: int, max_grad_norm: float) -> None:
    """Sets options of FSDP and DeepSpeed that they would guess otherwise. Call it before `accelerator.prepare`.

    Args:
        micro_batch_size: rows per micro-batch and process.
        max_grad_norm: clip gradients to this norm; 0 turns clipping off. DeepSpeed clips itself, by default at 1.0.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        # FSDP's own guess treats the embeddings as a block too, and then cannot shard the block inside it.
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = block_classes(model)
        # Accelerate shards embeddings and an output layer that shares their weight as a group of their own, where it
        # finds them; but the bias of the output layer may be its head's too, which is in another group.
        found: Any = model
        found.get_input_embeddings = found.get_output_embeddings = lambda: None
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=micro_batch_size,
            gradient_accumulation_steps=accelerator.gradient_accumulation_steps,
            gradient_clipping=max_grad_norm,
        )


def block_classes(model: nn.Module) -> list[str]:
    """Returns the class names of the model's blocks: the entries of its outermost ModuleLists."""
    return sorted({type(block).__name__ for blocks in block_lists(model).values() for block in blocks})


def block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Returns the outermost ModuleLists of a model, by name."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    return {name: m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}


def gives_gradients(accelerator: Accelerator) -> bool:
    """Returns whether gradients can be read and changed between backward and step; DeepSpeed steps in the backward."""
    return accelerator.distributed_type != DistributedType.DEEPSPEED


def precision_name(accelerator: Accelerator) -> str:
    """Returns the precision of training as people write it: float32, bf16, fp16 or fp8."""
    return "float32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision


def describe(accelerator: Accelerator) -> str:
    """Returns the layout as text for the start-up table, such as `FSDP2, 2 processes`."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        name = f"DeepSpeed ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    else:
        kind = {DistributedType.NO: "one process", DistributedType.FSDP: "FSDP2"}
        name = kind.get(accelerator.distributed_type, "DDP")
    return name if accelerator.num_processes == 1 else f"{name}, {accelerator.num_processes} processes"


@contextmanager
def explain_unused_weights() -> Iterator[None]:
    """Turns DDP's error about weights without a gradient into one that names the flag.

    Raises:
        UsageError: the model has weights without a gradient in some step.
    """
    try:
        yield
    except RuntimeError as error:
        if "Expected to have finished reduction" not in str(error):
            raise
        raise UsageError(
            "the model does not use all weights in every step, but DDP waits for a gradient of each: pass "
            "--ddp_find_unused_parameters, or freeze those weights with a TrainableParamsModifier"
        ) from error
