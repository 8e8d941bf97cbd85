"""The precision of training: what flags, launcher, machine and an earlier start of the same run make of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from sparse_accel.console import warn
from sparse_accel.distributed.collectives import largest
from sparse_accel.distributed.environment import is_requested
from sparse_accel.distributed.processor import bfloat16_is_fast
from sparse_accel.errors import UsageError
from sparse_accel.run_folder.ownership import restarted_by_scheduler
from sparse_accel.run_folder.record import read_record

if TYPE_CHECKING:
    from sparse_accel.cli.training import TrainingArguments

_VARIABLE = "ACCELERATE_MIXED_PRECISION"
# What `Accelerator` calls the precisions that a CPU trains in.
_ON_CPUS = {"float32": "no", "bf16": "bf16"}


def chosen_precision(arguments: TrainingArguments) -> str | None:
    """Returns the `mixed_precision` of an Accelerator: a flag overrides the launcher; None: the launcher's, or float32.

    Without a GPU, fp16 becomes bf16 on CPUs that multiply it, else float32; a warning says so. A run that began on
    another kind of CPU keeps its precision: the same command continues it, or shows its results.
    """
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else None
    asked = precision or os.environ.get(_VARIABLE, "").lower()
    if asked != "fp16" or _has_gpu():
        return precision
    if not (arguments.do_train or arguments.one_shot):
        return "no"  # evaluation is in float32, whatever is asked for
    what = "--fp16" if precision else f"fp16 ({_VARIABLE})"
    here = "bf16" if bfloat16_is_fast() else "float32"
    before, folder = _precision_before(arguments)
    found = before if before in _ON_CPUS else here
    reason = f", as the run in {folder}" if found != here else ", which this CPU multiplies" if found == "bf16" else ""
    warn(f"{what} needs a GPU, but there is none: training in {found}{reason}")
    return _ON_CPUS[found]


def check_precision(accelerator: Accelerator) -> None:
    """Refuses a run whose processes have different precisions. All processes must call it.

    Raises:
        UsageError: on all processes.
    """
    number = ("no", "bf16", "fp16", "fp8").index(accelerator.mixed_precision)
    if largest(number) != -largest(-number):
        raise UsageError(
            "the processes of this run would train in different precisions: without a GPU, fp16 becomes bf16 on CPUs "
            f"that multiply it, and float32 on others, and {_VARIABLE} may differ between machines. Pass --bf16, or "
            "start all processes without fp16"
        )


def bfloat16_hint(arguments: TrainingArguments, *, resumed: bool) -> list[str]:
    """Returns a notice that --bf16 would be faster, where nobody chose a precision; otherwise an empty list.

    A launcher's `no` counts as chosen: it is in the launcher's file, or was typed.

    Args:
        resumed: whether the run continues: then it keeps its precision.
    """
    chosen = arguments.bf16 or arguments.fp16 or os.environ.get(_VARIABLE)
    if chosen or resumed or _has_gpu() or not bfloat16_is_fast():
        return []
    return ["this CPU multiplies bfloat16: with --bf16, training is faster"]


def _has_gpu() -> bool:
    return torch.cuda.is_available() and not is_requested("CPU")


def _precision_before(arguments: TrainingArguments) -> tuple[str, Path]:
    """Returns the precision of the run that this command continues or shows, and its folder; "" if there is none."""
    output = Path(str(arguments.output_dir))
    if arguments.overwrite_output_dir and not restarted_by_scheduler():
        return "", output
    named = arguments.resume_from_checkpoint
    for folder in [Path(named).parent, output] if isinstance(named, str) else [output]:
        if (record := read_record(folder)) is not None:
            settings = record.get("trained_with")
            # Versions that recorded no precision trained in float32 where fp16 was asked for without a GPU.
            return str(settings.get("precision", "float32") if isinstance(settings, dict) else "float32"), folder
    return "", output
