"""Which checkpoint a run resumes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_accel.console import say, warn
from sparse_accel.data.streams.loading import StreamLoader
from sparse_accel.distributed.collectives import by_main_process
from sparse_accel.errors import UsageError
from sparse_accel.files import free_name
from sparse_accel.run_folder.checkpoints import (
    check_recipe,
    checkpoint_step,
    checkpoints_in,
    load_checkpoint,
    newest_intact,
    verify,
)
from sparse_accel.run_folder.record import change_record, difference, read_record
from sparse_accel.run_folder.stream_state import resume_stream

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe_run import RecipeRun
    from sparse_accel.run_folder.trainer_state import History


def resume_run(
    arguments: TrainingArguments, accelerator: Accelerator, run: RecipeRun, history: History, loader: Any = None
) -> None:
    """Restores model, optimizer, recipe and history from the checkpoint to resume from, if any, and a stream's place.
    Call it after `run.bind`, on all processes.

    Args:
        loader: of the training rows.

    Raises:
        UsageError: the checkpoint cannot be read, or the stream is not the one that the run began with.
    """
    checkpoint = checkpoint_to_resume(arguments, accelerator, Path(str(arguments.output_dir)))
    if checkpoint is not None:
        load_checkpoint(checkpoint, accelerator, run, history)
        if isinstance(loader, StreamLoader):
            resume_stream(accelerator, loader, checkpoint)


def checkpoint_to_resume(arguments: TrainingArguments, accelerator: Accelerator, folder: Path) -> Path | None:
    """Returns the checkpoint to resume from: the one given, else the newest intact one in the folder; None if none.

    A given checkpoint is used only at the first start from it: the same command again resumes from the checkpoints
    saved since. Checkpoints in the folder that are newer than the given one are moved aside.
    """
    asked = arguments.resume_from_checkpoint
    found: Path | None
    if isinstance(asked, str) and by_main_process(accelerator, lambda: resumed_from(folder, asked)):
        found = by_main_process(accelerator, lambda: newest_intact(folder))
        if found is not None:
            say(accelerator, f"{folder} contains training done since {asked}: resuming from {found.name}")
            return found
    if isinstance(asked, str):
        path = Path(asked)
        by_main_process(accelerator, lambda: _warn_of_another_run(folder, path))
        by_main_process(accelerator, lambda: _set_newer_aside(folder, path, asked))
        return path
    found = by_main_process(accelerator, lambda: newest_intact(folder))
    return found


def named_checkpoint(folder: Path, asked: str | bool | None, run: RecipeRun) -> Path | None:
    """The checkpoint of --resume_from_checkpoint, verified; None if the flag is not set, or was used before.

    Raises:
        UsageError: the checkpoint does not exist, is damaged, or belongs to another recipe.
    """
    if not asked or (isinstance(asked, str) and resumed_from(folder, asked) and checkpoints_in(folder)):
        return None
    path = newest_intact(folder) if asked is True else Path(str(asked))
    if path is None:
        raise UsageError(f"--resume_from_checkpoint: {folder} contains no checkpoint. Leave the flag out to start")
    if not path.is_dir():
        near = ", ".join(found.name for found in checkpoints_in(path.parent)) or "none"
        raise UsageError(f"--resume_from_checkpoint {asked}: the folder does not exist. Checkpoints next to it: {near}")
    if problem := verify(path):
        raise UsageError(f"--resume_from_checkpoint {asked} is damaged: {problem}. Name another checkpoint")
    check_recipe(path, run)
    return path


def resumed_from(folder: Path, asked: str) -> bool:
    record = read_record(folder) or {}
    start = record.get("resumed_from")
    return isinstance(start, str) and (start == asked or Path(start).resolve() == Path(asked).resolve())


def _warn_of_another_run(folder: Path, checkpoint: Path) -> None:
    here, there = read_record(folder), read_record(checkpoint.parent)
    if here is not None and there is not None and here["identity"] != there["identity"]:
        different = difference(there["identity"], here["identity"])
        warn(f"{checkpoint} belongs to a run that differs from this one in {different}")


def _set_newer_aside(folder: Path, start: Path, asked: str) -> None:
    """Moves aside the checkpoints of a folder that are newer than the one to start from, and records the start."""
    for checkpoint in checkpoints_in(folder):
        if checkpoint_step(checkpoint) > checkpoint_step(start):
            aside = free_name(checkpoint.with_name(f"{checkpoint.name}.left"))
            os.rename(checkpoint, aside)
            warn(f"{checkpoint} is newer than the checkpoint you resume from: it was moved to {aside.name}")
    change_record(folder, finished=False, resumed_from=asked)
