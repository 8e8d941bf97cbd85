"""The output folder of a run: claimed at the start, filled at the end, shown when it is asked for again."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sparse_accel import run_identity
from sparse_accel.checkpoints import (
    TRAINER_STATE,
    check_recipe,
    checkpoint_step,
    checkpoints_in,
    copy_model,
    damage,
    name_whole_ones,
    newest_whole,
    publish,
    written_or_said,
)
from sparse_accel.console import print_above_bar, say, warn
from sparse_accel.distributed.collectives import by_main_process, largest
from sparse_accel.errors import UsageError
from sparse_accel.files import free_name, write_json, write_text
from sparse_accel.model_files import load, save_model
from sparse_accel.nn.layers import quantized_linears
from sparse_accel.report import results_table
from sparse_accel.sparsity import sparsity_report

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.text_classification import TextClassificationArguments
    from sparse_accel.history import History
    from sparse_accel.recipe_run import RecipeRun

ALL_RESULTS = "all_results.json"
EVAL_RESULTS = "eval_results.json"
ARGUMENTS_FILE = "arguments.json"


_locks: list[Any] = []


@contextmanager
def folders_let_go() -> Iterator[None]:
    """At its end, other processes may claim what was claimed inside of the block."""
    try:
        yield
    finally:
        while _locks:
            if (lock := _locks.pop()) is not None:
                Path(lock.lock_file).unlink(missing_ok=True)  # first: then nobody else has it
                lock.release()


def claim(
    accelerator: Accelerator,
    arguments: TextClassificationArguments,
    run: RecipeRun,
    identity: dict[str, Any],
    settings: dict[str, Any],
) -> str:
    """As `run_identity.claim_folder`, decided by the main process for all."""
    folder, resume_from = Path(str(arguments.output_dir)), arguments.resume_from_checkpoint

    def went_on() -> bool:
        return _went_on_from(folder, str(resume_from))

    def decide() -> str:
        if not folder.is_file():
            _locks.append(run_identity.lock_folder(folder))
            name_whole_ones(folder)
        restarted = os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
        record = run_identity.read_record(folder)
        finished = record is not None and record["finished"] and record["identity"] == identity
        action = run_identity.claim_folder(
            folder,
            identity,
            overwrite=arguments.overwrite_output_dir,
            restarted=restarted,
            settings=settings,
            checkpoint=None if finished else _named_start(folder, resume_from, run),  # before anything is moved
        )
        if not (folder / run_identity.LOCK_FILE).exists():  # what was there was moved aside, its lock with it
            _locks.append(run_identity.lock_folder(folder))
        return action

    answer = by_main_process(accelerator, decide)
    if answer == "show" and isinstance(resume_from, str) and not by_main_process(accelerator, went_on):
        raise UsageError(
            f"--output_dir {folder} holds this very run, finished: nothing is left to resume from {resume_from}. Leave "
            "out --resume_from_checkpoint to see its results, or name another --output_dir to train from there"
        )
    blind = largest(0 if folder.is_dir() else accelerator.process_index + 1)  # one of another machine
    if blind:
        raise UsageError(
            f"--output_dir {folder} was made by the main process and is not to be seen from process {blind - 1}: with "
            "several machines it must lie on a file system that they share"
        )
    return str(answer)


def record_arguments(accelerator: Accelerator, folder: Path, arguments: TextClassificationArguments) -> None:
    """Writes the run's flags as a file of settings, data files by their whole paths: what the run can be repeated from,
    and where the export looks for its validation data."""
    if not accelerator.is_main_process:
        return
    flags = arguments.to_dict()
    for name in ("train_file", "validation_file", "test_file", "dataset_name"):
        if flags[name] is not None and Path(flags[name]).exists():
            flags[name] = str(Path(flags[name]).resolve())
    given = {name: value for name, value in flags.items() if value is not None and name != "resume_from_checkpoint"}
    write_json(folder / ARGUMENTS_FILE, given)


def checkpoint_to_resume(arguments: TextClassificationArguments, accelerator: Accelerator, folder: Path) -> Path | None:
    """Returns the checkpoint to go on from: the one that was named, else the newest whole one in the folder, if any.

    A named one counts at the run's first start from there; the same command again goes on from what that start saved.
    Newer checkpoints in the folder are of the course that is left, and moved aside.
    """
    asked = arguments.resume_from_checkpoint
    found: Path | None
    if isinstance(asked, str) and by_main_process(accelerator, lambda: _went_on_from(folder, asked)):
        found = by_main_process(accelerator, lambda: newest_whole(folder))
        if found is not None:
            say(accelerator, f"{folder} holds what was trained since {asked}: going on from {found.name}")
            return found
    if isinstance(asked, str):
        path = Path(asked)
        by_main_process(accelerator, lambda: _warn_of_another_run(folder, path))
        by_main_process(accelerator, lambda: _leave_course(folder, path, asked))
        return path
    found = by_main_process(accelerator, lambda: newest_whole(folder))
    return found


def _named_start(folder: Path, asked: str | bool | None, run: RecipeRun) -> Path | None:
    """The checkpoint that --resume_from_checkpoint asks for, checked; None where it asks for none, or has been used.

    Raises:
        UsageError: it is not there, damaged, or of another recipe.
    """
    if not asked or (isinstance(asked, str) and _went_on_from(folder, asked) and checkpoints_in(folder)):
        return None
    path = newest_whole(folder) if asked is True else Path(str(asked))
    if path is None:
        raise UsageError(f"--resume_from_checkpoint: {folder} holds no checkpoint. Leave the flag out to start")
    if not path.is_dir():
        near = ", ".join(found.name for found in checkpoints_in(path.parent)) or "none"
        raise UsageError(f"--resume_from_checkpoint {asked}: there is no such folder. Checkpoints beside it: {near}")
    if problem := damage(path):
        raise UsageError(f"--resume_from_checkpoint {asked} is damaged: {problem}. Name another checkpoint")
    check_recipe(path, run)
    return path


def _went_on_from(folder: Path, asked: str) -> bool:
    record = run_identity.read_record(folder) or {}
    start = record.get("resumed_from")
    return isinstance(start, str) and (start == asked or Path(start).resolve() == Path(asked).resolve())


def _warn_of_another_run(folder: Path, checkpoint: Path) -> None:
    here, there = run_identity.read_record(folder), run_identity.read_record(checkpoint.parent)
    if here is not None and there is not None and here["identity"] != there["identity"]:
        different = run_identity.difference(there["identity"], here["identity"])
        warn(f"{checkpoint} is of a run that differs from this one in {different}")


def _leave_course(folder: Path, start: Path, asked: str) -> None:
    """Moves checkpoints of a folder that are newer than the one to start from aside, and records the start."""
    for checkpoint in checkpoints_in(folder):
        if checkpoint_step(checkpoint) > checkpoint_step(start):
            aside = free_name(checkpoint.with_name(f"{checkpoint.name}.left"))
            os.rename(checkpoint, aside)
            warn(f"{checkpoint} is of the course that --resume_from_checkpoint leaves: it was moved to {aside.name}")
    run_identity.change_record(folder, finished=False, resumed_from=asked)


def print_line(accelerator: Accelerator, run: RecipeRun, figures: dict[str, float]) -> None:
    """Prints an evaluation."""
    words = ", ".join(f"{name.removeprefix('eval_')} {value:.4f}" for name, value in sorted(figures.items()))
    moment = f"epoch {run.progress.epoch:6.2f}  step {run.progress.step:6d}"
    print_above_bar(accelerator, f"{moment}  {words}  [{run.phase() or 'dense'}]")


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Gives a function that returns the seconds since the block began."""
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start


def write_final(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: Any,
    run: RecipeRun,
    history: History,
    seconds: float,
) -> None:
    """Fills the output folder with the trained model (the best checkpoint's, where one was chosen) and its figures.

    Everything is written into a folder beside, read back, and only then moved into place. Called by all processes.
    """
    partial = folder / ".final.partial"
    best = folder / f"checkpoint-{history.best_step}"
    chosen = by_main_process(accelerator, lambda: history.best_step is not None and best.is_dir() and not damage(best))
    if history.best_step is not None and not chosen:
        warn(f"the best checkpoint, {best.name}, is gone or damaged: the model of the last step is written instead")
        history.best_step = None

    def fill() -> None:
        if chosen:
            copy_model(best, partial)
        saved = load(partial)
        report = sparsity_report(saved)
        on, linears = quantized_linears(saved)
        losses = [entry["train/loss"] for entry in history.log if "train/loss" in entry]
        figures: dict[str, Any] = {
            "epoch": run.progress.epoch,
            "global_step": run.progress.step,
            "best_step": history.best_step,
            "train_loss": losses[-1] if losses else None,
            "train_runtime": seconds,
            "encoder_sparsity": report["encoder_linear"]["sparsity"],
            "model_sparsity": report["model"]["sparsity"],
            "quantized_linears": on,
            "linears": linears,
        }
        write_json(partial / "sparsity.json", report)
        write_json(partial / "train_results.json", figures)
        history.write(partial / TRAINER_STATE, run.progress)
        if run.recipe is not None:
            write_text(partial / "recipe.yaml", run.recipe.resolved())
            suffix = Path(run.recipe.source).suffix or ".yaml"
            write_text(partial / f"recipe_as_given{suffix}", run.recipe.text)
        publish(partial, folder)
        write_json(folder / ALL_RESULTS, {**_without_evaluation(folder), **figures})
        run_identity.change_record(folder, measured={})

    with written_or_said(accelerator, partial, f"the model in {folder}"):
        by_main_process(accelerator, lambda: shutil.rmtree(partial, ignore_errors=True))
        if not chosen:
            save_model(partial, accelerator, model, tokenizer)
        by_main_process(accelerator, fill)


def write_evaluation(
    accelerator: Accelerator, folder: Path, model: str, figures: dict[str, Any], measured_on: str
) -> None:
    """Writes the figures of an evaluation into a file of their own and into all_results.json, in place of older ones.

    Args:
        model: folder or id of what was measured; `eval_model` names it where the folder is the run of another model.
        measured_on: what `evaluation.measured_on` says; the next same command then has nothing to measure.
    """
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        own = Path(model).resolve() == folder.resolve()
        if not own and run_identity.read_record(folder) is not None:
            figures = {**figures, "eval_model": model}
        write_json(folder / EVAL_RESULTS, figures)
        write_json(folder / ALL_RESULTS, {**_without_evaluation(folder), **figures})
        remember(accelerator, folder, EVAL_RESULTS, measured_on if own else f"another model: {model}")
    accelerator.wait_for_everyone()


def remember(accelerator: Accelerator, folder: Path, name: str, measured_on: str) -> None:
    """Records what the figures or predictions in the file `name` of a run's folder were measured on."""
    if accelerator.is_main_process:
        run_identity.change_record(folder, measured=_measured(folder) | {name: measured_on})


def is_measured(accelerator: Accelerator, folder: Path, names: list[str], measured_on: str) -> bool:
    """Whether the files `names` of a finished run already hold what would be measured now.

    Where they do not, what they were measured on is forgotten first: a kill while they are written leaves no claim.
    """

    def look() -> bool:
        record, measured = run_identity.read_record(folder), _measured(folder)
        known = record is not None and record["finished"] and measured.get(names[0]) == measured_on
        if known and all((folder / name).is_file() for name in names) and _figures_are_there(folder, names):
            return True
        if names[0] in measured:
            run_identity.change_record(folder, measured={k: v for k, v in measured.items() if k != names[0]})
        return False

    return bool(by_main_process(accelerator, look))


def _measured(folder: Path) -> dict[str, str]:
    record = run_identity.read_record(folder) or {}
    return dict(record["measured"]) if isinstance(record.get("measured"), dict) else {}


def _figures_are_there(folder: Path, names: list[str]) -> bool:
    """Whether eval_results.json, where it is asked for, can be read and is what all_results.json says."""
    if EVAL_RESULTS not in names:
        return True
    try:
        figures = json.loads((folder / EVAL_RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(figures, dict) and bool(figures) and figures.items() <= read_results(folder).items()


def mark_finished(accelerator: Accelerator, folder: Path) -> None:
    """From now on the same command shows the folder's results."""
    if accelerator.is_main_process:
        run_identity.change_record(folder, finished=True)


def show(accelerator: Accelerator, folder: Path) -> None:
    """Prints the figures of all_results.json."""
    figures = read_results(folder)
    if figures:
        say(accelerator, results_table({**figures, "folder": str(folder)}))


def read_results(folder: Path) -> dict[str, Any]:
    """Returns all_results.json, empty where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / ALL_RESULTS).read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return {}


def _without_evaluation(folder: Path) -> dict[str, Any]:
    """all_results.json without the figures of an evaluation: of other rows, or of another model."""
    return {name: value for name, value in read_results(folder).items() if not name.startswith("eval_")}
