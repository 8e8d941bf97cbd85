"""The accelerator of a run, and checks for contradictions between flags, launcher and recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin

from sparse_accel.console import set_log_level
from sparse_accel.data.loader_workers import report_lost_workers
from sparse_accel.distributed.environment import compilation
from sparse_accel.distributed.heartbeat import report_lost_processes
from sparse_accel.distributed.launch import check_launch, describe, gives_gradients, launch_options
from sparse_accel.distributed.threads import local_processes, set_threads, warn_of_processes
from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import check_gradients
from sparse_accel.nn.dropout import COMPILED, DROPOUT_VARIABLE, PYTORCH, use_compiled_dropout
from sparse_accel.run_folder.ownership import release_folders
from sparse_accel.training.compilation import compile_blocks
from sparse_accel.training.memory import keep_freed_memory
from sparse_accel.training.precision import check_precision, chosen_precision
from sparse_accel.training.tracking import check_trackers, logging_folder, trackers_ended

if TYPE_CHECKING:
    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe import Recipe


def make_accelerator(arguments: TrainingArguments, recipe: Recipe | None = None) -> Accelerator:
    """Returns the accelerator for the flags and the launcher; a precision flag overrides the launcher's precision.

    Raises:
        UsageError: flags, launcher, environment and recipe contradict each other.
    """
    set_log_level(arguments.log_level)
    transformers.utils.logging.disable_progress_bar()  # this project shows its own progress bar
    accelerator = Accelerator(
        mixed_precision=chosen_precision(arguments),
        # The sampler gives every step all its micro-batches, also the last step of an epoch.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=arguments.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=list(arguments.report_to) or None,
        project_dir=logging_folder(Path(str(arguments.output_dir))),
        kwargs_handlers=launch_options(find_unused_parameters=arguments.ddp_find_unused_parameters),
        # The flag compiles block by block, instead of what a launcher's setting does.
        dynamo_plugin=TorchDynamoPlugin(backend="no") if arguments.torch_compile else None,
    )
    _share_machine(arguments)
    check_trackers(accelerator, arguments.report_to)
    check_launch(accelerator)
    check_precision(accelerator)
    check_gradients(recipe.modifiers if recipe else [], gives_gradients(accelerator))
    compiled = "--torch_compile" if arguments.torch_compile else compilation(accelerator)
    if compiled and accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
        raise UsageError(
            f"torch.compile ({compiled}) under {describe(accelerator)} is not supported: these wrappers break the "
            "graph at each layer. Leave it out, or launch with accelerate_configs/ddp.yaml"
        )
    asked = os.environ.get(DROPOUT_VARIABLE) or COMPILED
    if asked not in (COMPILED, PYTORCH):
        raise UsageError(f"{DROPOUT_VARIABLE}={asked}: set it to {PYTORCH} or {COMPILED}, or leave it out")
    # A compiled graph makes its own numbers.
    use_compiled_dropout(asked == COMPILED and accelerator.device.type == "cpu" and not compiled)
    if arguments.nan_loss == "skip" and accelerator.distributed_type == "DEEPSPEED":
        raise UsageError("--nan_loss skip: DeepSpeed steps before the loss can be checked. Leave the flag out")
    return accelerator


def _share_machine(arguments: TrainingArguments) -> None:
    """Takes as many threads as this process may use, and warns of flags that ask for more processes than that."""
    set_threads()
    if not torch.cuda.is_available():
        keep_freed_memory()
    warn_of_processes({"--dataloader_num_workers": arguments.dataloader_num_workers * local_processes(os.environ)})


def configure_blocks(arguments: TrainingArguments, model: Any) -> None:
    """Turns on --gradient_checkpointing and --torch_compile for the blocks of a model, before it is wrapped.

    Raises:
        UsageError: as `recompute_activations`.
    """
    if arguments.gradient_checkpointing:
        recompute_activations(model)
    if arguments.torch_compile:
        compile_blocks(model)


def recompute_activations(model: Any) -> None:
    """Turns on gradient checkpointing: activations are recomputed in the backward pass instead of stored.

    Raises:
        UsageError: transformers does not support it for this architecture.
    """
    try:
        # The newer name first: the older one warns.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    except ValueError as error:
        raise UsageError(
            f"--gradient_checkpointing: transformers does not support it for {model.config.model_type}. Leave it out: "
            "a smaller --per_device_train_batch_size with more --gradient_accumulation_steps needs less memory too"
        ) from error


@contextmanager
def ending_run(accelerator: Accelerator) -> Iterator[None]:
    """At the end of the block, also after an error: ends the trackers' runs, releases the output folders, and leaves
    random numbers of dropout to PyTorch.

    Raises:
        ProcessLost: another process of this run ended; the message names it.
        WorkerLost: a loader worker of this process ended.
    """
    try:
        with trackers_ended(accelerator), release_folders(), report_lost_processes(), report_lost_workers():
            yield
    finally:
        use_compiled_dropout(False)
