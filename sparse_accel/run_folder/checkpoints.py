"""Checkpoints: everything a run needs to resume, written to a temporary folder and renamed into place.

checkpoint-120/                 also a Hugging Face model folder, like the output folder
    model.safetensors, config.json, tokenizer, quantization.json     the model at this step
    training_state.safetensors  weights as the optimizer holds them, the optimizer's state, the fp16 loss scale
    recipe_state.safetensors    step, masks, ranges
    trainer_state.json          history, best evaluation
    stream_state.json           the place of each shard of a stream
    checksums.json              size and SHA-256 of each of these files, written last

All tensors are complete and stored by weight name, whatever layout wrote them: a run may resume under another layout.
The names in the states are those of the model that is trained; a model file does not contain layers that were dropped,
and renumbers the others.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparse_accel.console import warn
from sparse_accel.data.streams.loading import StreamLoader
from sparse_accel.distributed.collectives import by_main_process
from sparse_accel.distributed.optimizer_state import load_training_state, training_state
from sparse_accel.distributed.weights import plain_model
from sparse_accel.errors import UsageError
from sparse_accel.files import digest_of, free_name, put_in_place, to_disk, tree_to_disk, write_json
from sparse_accel.models.files import save_model
from sparse_accel.nn.blocks import with_skipped
from sparse_accel.nn.dropout import PYTORCH, dropout_numbers, use_compiled_dropout
from sparse_accel.run_folder.stream_state import STREAM_STATE, state_of_all

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.recipe_run import RecipeRun
    from sparse_accel.run_folder.trainer_state import History

TRAINING_STATE = "training_state.safetensors"
RECIPE_STATE = "recipe_state.safetensors"
TRAINER_STATE = "trainer_state.json"
CHECKSUMS = "checksums.json"


def checkpoint_step(folder: Path) -> int:
    """Returns the step in a checkpoint folder's name; -1 for any other folder."""
    found = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(found[1]) if found else -1


def checkpoints_in(folder: Path) -> list[Path]:
    """Returns the checkpoints of an output folder, oldest first. An incomplete checkpoint has another name."""
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
    loader: Any = None,
) -> Path:
    """Writes `folder`/checkpoint-STEP and deletes the oldest beyond `keep`, never the best. All processes must call it.

    Args:
        folder: the output folder.
        model, tokenizer: `model` as `accelerator.prepare` returned it.
        keep: number of checkpoints to keep; None keeps all.
        loader: of the training rows; a stream's place is saved too.

    Returns:
        The path of the checkpoint.

    Raises:
        UsageError: the checkpoint cannot be written (often a full disk), or a weight contains NaN or inf. Earlier
            checkpoints are unchanged.
    """
    final = folder / f"checkpoint-{run.progress.step}"
    partial = folder / f".{final.name}.partial"

    def write() -> None:
        save_file(training, partial / TRAINING_STATE)
        save_file({key: value.detach().cpu().clone() for key, value in recipe_state.items()}, partial / RECIPE_STATE)
        history.write(partial / TRAINER_STATE, run.progress)
        if place is not None:
            write_json(partial / STREAM_STATE, place)
        write_checksums(partial)
        put_in_place(partial, final)
        if keep is not None:
            delete_old(folder, keep, best=history.best_step)

    with with_skipped(plain_model(accelerator, model)):  # a run resumes with all layers, and drops them again
        training = training_state(accelerator, model, run.optimizer)  # on all processes
    recipe_state, place = run.state_dict(), state_of_all(loader) if isinstance(loader, StreamLoader) else None
    # The weights are checked, because the loss of a step is computed before its update and cannot show a bad update.
    broken = by_main_process(accelerator, lambda: _not_finite(training))
    if broken:
        raise UsageError(
            f"{broken} contains NaN or inf after step {run.progress.step}: this checkpoint was not written; "
            "earlier checkpoints are intact. Lower --learning_rate (or the recipe's init_lr), or use --bf16 or float32 "
            "instead of --fp16"
        )
    with write_errors(accelerator, partial, f"checkpoint {final}"):
        by_main_process(accelerator, lambda: shutil.rmtree(partial, ignore_errors=True))
        save_model(partial, accelerator, model, tokenizer)
        by_main_process(accelerator, write)
    return final


def _not_finite(state: dict[str, Tensor]) -> str:
    """Returns the name of the first weight that contains NaN or inf; empty if there is none."""
    weights = {key.partition(":")[2]: value for key, value in state.items() if key.startswith("weight:")}
    return next((name for name, weight in weights.items() if not weight.isfinite().all()), "")


@contextmanager
def write_errors(accelerator: Accelerator, partial: Path, what: str) -> Iterator[None]:
    """Turns a failed write (full disk, no permission) into a UsageError and deletes the partial folder.

    Args:
        partial: the folder that the block writes to.
        what: what is written, for the message.

    Raises:
        UsageError: the block raised OSError or SafetensorError.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        raise UsageError(
            f"{what} cannot be written ({error}). Earlier files are intact. Free disk space (--save_total_limit keeps "
            "fewer checkpoints), then run the same command again to resume"
        ) from error


def write_checksums(folder: Path) -> None:
    """Writes checksums.json for a folder's files and flushes all of them to disk; call it before the final rename."""
    sums = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        to_disk(path)
        sums[path.name] = {"bytes": path.stat().st_size, "sha256": digest_of(path)}
    write_json(folder / CHECKSUMS, sums)
    to_disk(folder / CHECKSUMS)
    to_disk(folder)


def verify(checkpoint: Path) -> str:
    """Returns what is wrong with a checkpoint's files, as text; empty if every file matches its checksum."""
    try:
        sums = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
        for name in (TRAINING_STATE, RECIPE_STATE, TRAINER_STATE):
            if name not in sums:
                return f"{CHECKSUMS} does not list {name}"
        for name, entry in sums.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"] or digest_of(path) != entry["sha256"]:
                return f"{name} does not match its checksum"
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{CHECKSUMS} cannot be read ({error})"
    return ""


def restore_complete(folder: Path) -> None:
    """Renames checkpoints that are complete but whose run was killed before the final rename."""
    for partial in sorted(folder.glob(".checkpoint-*.partial")):
        final = folder / partial.name.removeprefix(".").removesuffix(".partial").removesuffix(".older")
        if not final.exists() and not verify(partial):
            os.rename(partial, final)


def newest_intact(folder: Path) -> Path | None:
    """Returns the newest intact checkpoint, None if there is none. Damaged ones are moved aside with a warning."""
    for checkpoint in reversed(checkpoints_in(folder)):
        problem = verify(checkpoint)
        if not problem:
            return checkpoint
        aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
        aside = free_name(aside) if aside.exists() else aside
        os.rename(checkpoint, aside)
        warn(f"{checkpoint} is damaged: {problem}. It was moved to {aside.name}; an older checkpoint is used, if any")
    return None


def delete_old(folder: Path, keep: int, best: int | None) -> None:
    """Deletes all but `keep` checkpoints. The newest and the best are always kept, then the newest of the others.

    Args:
        best: step of the best checkpoint; None if there is none.
    """
    found = checkpoints_in(folder)
    kept = [path for path in found if path == found[-1] or checkpoint_step(path) == best]
    others = [path for path in found if path not in kept]
    for path in others[: max(len(found) - max(keep, len(kept)), 0)]:
        doomed = path.with_name(f".deleted-{path.name}.partial")  # if killed here, this is not a checkpoint any more
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        to_disk(folder)
        shutil.rmtree(doomed)


def check_recipe(checkpoint: Path, run: RecipeRun) -> None:
    """Raises UsageError if a checkpoint contains the state of modifiers that the run does not have (by name)."""
    with safe_open(checkpoint / RECIPE_STATE, framework="pt") as state:
        found = {":".join(key.split(":")[:2]) for key in state.keys() if ":" in key}  # noqa: SIM118
    if not found <= {f"{number}:{modifier.name}" for number, modifier in enumerate(run.modifiers)}:
        raise UsageError(f"checkpoint {checkpoint} {_OF_ANOTHER_RUN}")


def load_checkpoint(folder: Path, accelerator: Accelerator, run: RecipeRun, history: History) -> None:
    """Restores model, optimizer, recipe state and history from a checkpoint. All processes must call it.

    Raises:
        UsageError: the checkpoint belongs to another recipe or model, or cannot be read.
    """
    try:
        state, training = load_file(folder / RECIPE_STATE), load_file(folder / TRAINING_STATE)
        record = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
        try:
            run.load_state_dict({key: value.to(accelerator.device) for key, value in state.items()})
        except ValueError as error:
            raise UsageError(f"checkpoint {folder} {_OF_ANOTHER_RUN} ({error})") from error
        load_training_state(accelerator, run.model, run.optimizer, training)
        history.load(record)
        _resume_dropout(folder, accelerator, record.get("dropout", PYTORCH))  # older versions had no other
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"checkpoint {folder} cannot be read ({type(error).__name__}: {error}). Delete that folder to resume from "
            "an older checkpoint, or name one with --resume_from_checkpoint"
        ) from error


def _resume_dropout(checkpoint: Path, accelerator: Accelerator, recorded: str) -> None:
    """Keeps PyTorch's random numbers if a run had them, so that its result is that of an uninterrupted run."""
    if recorded == PYTORCH:
        use_compiled_dropout(False)
    elif dropout_numbers() == PYTORCH and accelerator.device.type == "cpu" and accelerator.is_main_process:
        warn(
            f"{checkpoint} was trained with the compiled library's random numbers for dropout, which are not available "
            "here (the library is missing, torch.compile is on, or SPARSE_ACCEL_DROPOUT is set): the run resumes with "
            "PyTorch's, and its result will differ from that of an uninterrupted run"
        )


_OF_ANOTHER_RUN = "belongs to a run with another recipe or model: this run cannot resume from it"


def publish(source: Path, output: Path) -> None:
    """Moves the files of `source` into the output folder, one rename per file, and deletes the empty `source`. All of
    it is on disk before and after."""
    tree_to_disk(source)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            put_in_place(path, output / path.name)
        else:
            os.replace(path, output / path.name)
    to_disk(output)
    source.rmdir()


def copy_model(checkpoint: Path, target: Path) -> None:
    """Copies the model files of a checkpoint to the new folder `target`, without the files that only training needs."""
    target.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.is_file() and path.name not in (TRAINING_STATE, RECIPE_STATE, TRAINER_STATE, STREAM_STATE, CHECKSUMS):
            shutil.copy2(path, target / path.name)
        elif path.is_dir():
            shutil.copytree(path, target / path.name)
