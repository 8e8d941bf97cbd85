"""Which checkpoint a run goes on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_accel.console import say, warn
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

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe_run import RecipeRun
    from sparse_accel.run_folder.trainer_state import History


def resume_run(arguments: TrainingArguments, accelerator: Accelerator, run: RecipeRun, history: History) -> None:
    """Puts model, optimizer, recipe and history back to where the run is to go on, after `run.bind`; else nothing."""
    checkpoint = checkpoint_to_resume(arguments, accelerator, Path(str(arguments.output_dir)))
    if checkpoint is not None:
        load_checkpoint(checkpoint, accelerator, run, history)


def checkpoint_to_resume(arguments: TrainingArguments, accelerator: Accelerator, folder: Path) -> Path | None:
    """Returns the checkpoint to go on from: the one that was named, else the newest whole one in the folder, if any.

    A named one counts at the run's first start from there; the same command again goes on from what that start saved.
    Newer checkpoints in the folder are of the course that is left, and moved aside.
    """
    asked = arguments.resume_from_checkpoint
    found: Path | None
    if isinstance(asked, str) and by_main_process(accelerator, lambda: _resumed_from(folder, asked)):
        found = by_main_process(accelerator, lambda: newest_intact(folder))
        if found is not None:
            say(accelerator, f"{folder} holds what was trained since {asked}: going on from {found.name}")
            return found
    if isinstance(asked, str):
        path = Path(asked)
        by_main_process(accelerator, lambda: _warn_of_another_run(folder, path))
        by_main_process(accelerator, lambda: _set_newer_aside(folder, path, asked))
        return path
    found = by_main_process(accelerator, lambda: newest_intact(folder))
    return found


def _named_checkpoint(folder: Path, asked: str | bool | None, run: RecipeRun) -> Path | None:
    """The checkpoint that --resume_from_checkpoint asks for, checked; None where it asks for none, or has been used.

    Raises:
        UsageError: it is not there, damaged, or of another recipe.
    """
    if not asked or (isinstance(asked, str) and _resumed_from(folder, asked) and checkpoints_in(folder)):
        return None
    path = newest_intact(folder) if asked is True else Path(str(asked))
    if path is None:
        raise UsageError(f"--resume_from_checkpoint: {folder} holds no checkpoint. Leave the flag out to start")
    if not path.is_dir():
        near = ", ".join(found.name for found in checkpoints_in(path.parent)) or "none"
        raise UsageError(f"--resume_from_checkpoint {asked}: there is no such folder. Checkpoints beside it: {near}")
    if problem := verify(path):
        raise UsageError(f"--resume_from_checkpoint {asked} is damaged: {problem}. Name another checkpoint")
    check_recipe(path, run)
    return path


def _resumed_from(folder: Path, asked: str) -> bool:
    record = read_record(folder) or {}
    start = record.get("resumed_from")
    return isinstance(start, str) and (start == asked or Path(start).resolve() == Path(asked).resolve())


def _warn_of_another_run(folder: Path, checkpoint: Path) -> None:
    here, there = read_record(folder), read_record(checkpoint.parent)
    if here is not None and there is not None and here["identity"] != there["identity"]:
        different = difference(there["identity"], here["identity"])
        warn(f"{checkpoint} is of a run that differs from this one in {different}")


def _set_newer_aside(folder: Path, start: Path, asked: str) -> None:
    """Moves checkpoints of a folder that are newer than the one to start from aside, and records the start."""
    for checkpoint in checkpoints_in(folder):
        if checkpoint_step(checkpoint) > checkpoint_step(start):
            aside = free_name(checkpoint.with_name(f"{checkpoint.name}.left"))
            os.rename(checkpoint, aside)
            warn(f"{checkpoint} is of the course that --resume_from_checkpoint leaves: it was moved to {aside.name}")
    change_record(folder, finished=False, resumed_from=asked)
