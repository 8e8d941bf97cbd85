"""How processes are laid out: what launchers are asked for, and told, before and while the model is wrapped."""

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
from sparse_accel.distributed.environment import check_environment, is_asked_for
from sparse_accel.errors import UsageError


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
