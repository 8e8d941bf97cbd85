"""Checkpoints: everything a run needs to go on, written beside and renamed into place.

checkpoint-120/                 also a Hugging Face model folder, as the output folder is
    model.safetensors, config.json, tokenizer, quantization.json     the model as it stands
    training_state/             weights as the optimizer knows them, optimizer, loss scale (Accelerate's files)
    recipe_state.safetensors    step, masks, ranges
    trainer_state.json          history, best evaluation
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparse_accel.errors import UsageError
from sparse_accel.model_files import save_model
from sparse_accel.run_identity import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.history import History
    from sparse_accel.recipe_run import RecipeRun

RECIPE_STATE = "recipe_state.safetensors"
TRAINER_STATE = "trainer_state.json"


def checkpoint_step(folder: Path) -> int:
    """Returns the step in a checkpoint folder's name, -1 for another folder."""
    found = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(found[1]) if found else -1


def checkpoints_in(folder: Path) -> list[Path]:
    """Returns the checkpoints of an output folder, oldest first. One that was being written has another name."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and checkpoint_step(path) >= 0]
    return sorted(found, key=checkpoint_step)


def save_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: Any,
    run: RecipeRun,
    history: History,
    keep: int | None = None,
) -> Path:
    """Writes `folder`/checkpoint-STEP, and deletes the oldest beyond `keep`, never the best. All processes call it."""
    final = folder / f"checkpoint-{run.progress.step}"
    partial = folder / f".{final.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    save_model(partial, accelerator, model, tokenizer)
    accelerator.save_state(str(partial / "training_state"))
    if accelerator.is_main_process:
        state = {key: value.detach().cpu().clone() for key, value in run.state_dict().items()}
        save_file(state, partial / RECIPE_STATE)
        history.write(partial / TRAINER_STATE, run.progress)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        if keep is not None:
            delete_old(folder, keep, best=history.best_step)
    accelerator.wait_for_everyone()
    return final


def delete_old(folder: Path, keep: int, best: int | None) -> None:
    """Deletes all but `keep` checkpoints: the newest, the best, and of the others the newest."""
    found = checkpoints_in(folder)
    kept = [path for path in found if path == found[-1] or checkpoint_step(path) == best]
    others = [path for path in found if path not in kept]
    for path in others[: max(len(found) - max(keep, len(kept)), 0)]:
        shutil.rmtree(path)


def load_checkpoint(folder: Path, accelerator: Accelerator, run: RecipeRun, history: History) -> None:
    """Puts model, optimizer, recipe state and history back as `save_checkpoint` found them.

    Raises:
        UsageError: the folder is no checkpoint of this run's recipe, or cannot be read.
    """
    try:
        state = load_file(folder / RECIPE_STATE)
        record = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
        own = {key: tuple(value.shape) for key, value in run.state_dict().items() if ":initial_sparsity:" not in key}
        found = {key: tuple(value.shape) for key, value in state.items() if ":initial_sparsity:" not in key}
        if own != found:
            raise UsageError(
                f"checkpoint {folder} belongs to a run of another recipe or model: it cannot be resumed here"
            )
        accelerator.load_state(str(folder / "training_state"))
        # It also puts back its count of micro-batches. Steps may be split otherwise now, and must begin with the first.
        accelerator.step = 0
        history.load(record)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"checkpoint {folder} cannot be read ({type(error).__name__}: {error}). Delete that folder to go on from "
            "an older checkpoint, or name one with --resume_from_checkpoint"
        ) from error
    run.load_state_dict({key: value.to(accelerator.device) for key, value in state.items()})


def publish(source: Path, output: Path) -> None:
    """Moves the files of a finished folder into the output folder, each by one rename, and deletes what it left."""
    for path in sorted(source.iterdir()):
        os.replace(path, output / path.name)
    source.rmdir()


def copy_model(checkpoint: Path, target: Path) -> None:
    """Copies the model files of a checkpoint, without what only training needs."""
    target.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.is_file() and path.name not in (RECIPE_STATE, TRAINER_STATE):
            shutil.copy2(path, target / path.name)


def write_json(path: Path, content: Any) -> None:
    """Writes readable JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else str(value)
