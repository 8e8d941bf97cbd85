"""Ownership of the output folder: lock it, start or resume a run in it, or move its content aside."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_accel.distributed.collectives import by_main_process, largest
from sparse_accel.errors import UsageError
from sparse_accel.files import free_name, link_tree, make_folders
from sparse_accel.run_folder.checkpoints import (
    restore_complete,
)
from sparse_accel.run_folder.record import RUN_FILE, change_record, difference, read_record, write_record
from sparse_accel.run_folder.resume import named_checkpoint, resumed_from

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe_run import RecipeRun


_locks: list[Any] = []


@contextmanager
def release_folders() -> Iterator[None]:
    """At the end of the block, releases the locks of all output folders that were acquired inside it."""
    try:
        yield
    finally:
        while _locks:
            if (lock := _locks.pop()) is not None:
                Path(lock.lock_file).unlink(missing_ok=True)  # before the release, while nobody else can hold it
                lock.release()


def acquire(
    accelerator: Accelerator,
    arguments: TrainingArguments,
    run: RecipeRun,
    identity: dict[str, Any],
    settings: dict[str, Any],
) -> str:
    """Locks the output folder and returns what `acquire_folder` returns; the main process decides for all.

    Args:
        identity, settings: see `acquire_folder`.

    Raises:
        UsageError: see `acquire_folder`; also if another process is training in the folder, the checkpoint of
            --resume_from_checkpoint cannot be used, or a process cannot see the folder.
    """
    folder, resume_from = Path(str(arguments.output_dir)), arguments.resume_from_checkpoint

    def resumed_already() -> bool:
        return resumed_from(folder, str(resume_from))

    def decide() -> str:
        if not folder.is_file():
            _locks.append(lock_folder(folder))
            restore_complete(folder)
        restarted = restarted_by_scheduler()
        record = read_record(folder)
        finished = record is not None and record["finished"] and record["identity"] == identity
        action = acquire_folder(
            folder,
            identity,
            overwrite=arguments.overwrite_output_dir,
            restarted=restarted,
            settings=settings,
            checkpoint=None if finished else named_checkpoint(folder, resume_from, run),  # before anything is moved
        )
        if not (folder / LOCK_FILE).exists():  # the old content was moved aside, and the lock file with it
            _locks.append(lock_folder(folder))
        return action

    answer = by_main_process(accelerator, decide)
    if answer == "show" and isinstance(resume_from, str) and not by_main_process(accelerator, resumed_already):
        raise UsageError(
            f"--output_dir {folder} contains this run, finished: there is nothing to resume from {resume_from}. Leave "
            "out --resume_from_checkpoint to see its results, or name another --output_dir to train from there"
        )
    unreachable_rank = largest(-1 if folder.is_dir() else accelerator.process_index)  # a process on another machine
    if unreachable_rank >= 0:
        raise UsageError(
            f"process {unreachable_rank} cannot see --output_dir {folder}: with several machines it must be on a "
            "shared file system"
        )
    return str(answer)


# Settings that may change when an unfinished run resumes: another machine may require it.
MAY_CHANGE = ("precision", "nan_loss", "stream")
LOCK_FILE = ".lock"


# --- the output folder ------------------------------------------------------------------------------------------------


def restarted_by_scheduler() -> bool:
    """Returns whether SLURM has started this job again: the same command, which has to go on."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


def lock_folder(folder: Path, patience: float = 10.0) -> Any:
    """Locks an output folder for this process and returns the lock, held until `release` or the end of the process.

    Args:
        folder: created if it does not exist.
        patience: seconds to wait for another process that holds the lock.

    Returns:
        The lock; None if the file system does not support locks.

    Raises:
        UsageError: another process holds the lock, or the folder cannot be created.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=patience)
        if not (folder / LOCK_FILE).exists():  # the previous owner deleted the file at its end
            lock.release()
            lock.acquire(timeout=patience)
    except Timeout:
        raise UsageError(
            f"--output_dir {folder}: another process is training there, perhaps one whose launcher was killed. Wait "
            "for it, stop it, or choose another folder"
        ) from None
    except (NotImplementedError, OSError):  # if the folder is not writable, writing the next file reports it
        return None
    return lock


def make_folder(folder: Path) -> None:
    """Creates an output folder if it does not exist.

    Raises:
        UsageError: the folder cannot be created, or is a link to a folder that does not exist.
    """
    try:
        make_folders(folder)
    except OSError as error:
        if folder.is_symlink() and not folder.exists():
            raise UsageError(
                f"--output_dir {folder} is a link to {os.readlink(folder)}, which does not exist"
            ) from error
        raise UsageError(f"--output_dir {folder} cannot be created ({error.strerror}). Name another folder") from error


def acquire_folder(
    folder: Path,
    identity: dict[str, Any],
    *,
    overwrite: bool,
    restarted: bool = False,
    settings: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
) -> str:
    """Prepares an output folder for a run and returns what to do: `start`, `continue` or `show`.

    An unfinished run with the same identity resumes, and the results of a finished one are shown. A finished run with
    another identity is moved aside to FOLDER.1 (.2, ...). With `overwrite`, any content is moved aside, except this
    run's own when a scheduler `restarted` it with its original command. Only the main process calls it.

    Args:
        folder: may be a link to a folder: then the target of the link is moved aside, on its own disk.
        identity: what identifies this run; see `training.identity.identity_of`.
        overwrite: whether to move the content aside.
        restarted: whether a scheduler restarted this run.
        settings: values outside the identity that change the result. A run with the same identity and other settings
            is refused, but an unfinished one may resume with another precision (`MAY_CHANGE`).
        checkpoint: to start from; if its run is moved aside, the new folder gets this checkpoint too.

    Raises:
        UsageError: the folder contains an unfinished run with another identity, this run with other settings, or files
            that no run of this project wrote; or it is a file, the working folder, or cannot be moved.
    """
    real, aside, carried = folder.resolve(), folder, None
    record = read_record(folder)
    this_run = record is not None and record["identity"] == identity
    if not folder.exists() or (folder.is_dir() and not any(_content(folder))):
        action = "start"
    elif overwrite and record is None and real == Path.cwd():
        raise UsageError(
            f"--output_dir {folder} is your working folder, and contains files that are not from a run of this "
            "script: name a folder in it, such as ./run"
        )
    elif overwrite and not (restarted and this_run):
        move_aside(folder, "--overwrite_output_dir")
        action = "start"
    elif folder.is_file():
        raise UsageError(f"--output_dir {folder} is a file: name a folder")
    elif record is None:
        raise UsageError(
            f"--output_dir {folder} is not empty and does not contain a run of this script. Choose another folder, or "
            "pass --overwrite_output_dir to move it aside"
        )
    elif record["identity"] == identity:
        if record["finished"]:
            _check_settings(folder, record, settings or {})
            with contextlib.suppress(OSError):  # a disk that can only be read
                # Of a report, or of results that were measured again. A partial folder may be that of a running export.
                _delete_partial(folder, folders=False)
            return "show"
        _check_settings(folder, record, {k: v for k, v in (settings or {}).items() if k not in MAY_CHANGE})
        _delete_partial(folder)
        change_record(folder, **({"trained_with": settings} if settings else {}))
        return "continue"
    elif record["finished"]:
        differs = difference(record["identity"], identity)
        aside = move_aside(folder, f"it contains a finished run that differs in {differs}")
        if checkpoint is not None and real in checkpoint.resolve().parents:
            carried = checkpoint.resolve().relative_to(real)
        action = "start"
    elif {path.name for path in _content(folder)} <= {RUN_FILE, "arguments.json", "tracking"}:
        action = "start"  # that run ended before it trained anything
    else:
        raise UsageError(
            f"--output_dir {folder} contains an unfinished run that differs from this one in "
            f"{difference(record['identity'], identity)}. Repeat its command to finish it, choose another folder, "
            "or pass --overwrite_output_dir to move it aside"
        )
    make_folders(real)
    _delete_partial(real)  # of a run that ended before it was recorded
    write_record(real, identity, finished=False, **({"trained_with": settings} if settings else {}))
    if carried is not None:
        link_tree(aside / carried, real / carried)
    return action


def _check_settings(folder: Path, record: dict[str, Any], settings: dict[str, Any]) -> None:
    recorded = record.get("trained_with")  # older versions wrote no settings, and newer ones may write more
    before = {key: recorded[key] for key in settings if key in recorded} if isinstance(recorded, dict) else {}
    here = {key: settings[key] for key in before}
    if before != here:
        state = "a finished" if record["finished"] else "an unfinished"
        raise UsageError(
            f"--output_dir {folder} contains {state} run with this recipe and data, but this command would train "
            f"another model: they differ in {difference(before, here)}. Repeat the command of that run, choose another "
            "folder, or pass --overwrite_output_dir to train again"
        )


def _content(folder: Path) -> Iterator[Path]:
    """The content of a folder, without its lock file and partial files of a killed process."""
    own = {path for path in folder.glob(".*.partial")} | {folder / LOCK_FILE}
    return (path for path in folder.iterdir() if path not in own)


def move_aside(folder: Path, reason: str) -> Path:
    """Renames a folder to the first free FOLDER.N, prints it with the `reason`, and returns the new path.

    For a link, its target is renamed, so the data stays on the disk that was chosen for it. For the working folder,
    its content is moved and the folder itself stays, so that a shell in it keeps working.

    Raises:
        UsageError: the folder cannot be renamed, or this program runs in a folder below it.
    """
    real, here = folder.resolve(), Path.cwd()
    if real in here.parents:
        raise UsageError(
            f"--output_dir {folder} cannot be moved aside, because this program runs in it ({here}); {reason}. "
            "Run it from another folder, or name another --output_dir"
        )
    aside = free_name(real)
    as_typed = aside if folder.is_symlink() or folder.name != real.name else folder.with_name(aside.name)
    try:
        if real == here:
            aside.mkdir()
            for path in sorted(real.iterdir(), key=lambda path: path.name == RUN_FILE):  # run.json last
                if path.name != LOCK_FILE:
                    os.rename(path, aside / path.name)
        else:
            os.rename(real, aside)
    except OSError as error:
        raise UsageError(
            f"--output_dir {folder} cannot be moved aside to {aside} ({error.strerror}); {reason}. Name another folder"
        ) from error
    if aside.is_dir():
        (aside / LOCK_FILE).unlink(missing_ok=True)
    print(f"{folder} was moved to {as_typed}: {reason}")
    return as_typed


def _delete_partial(folder: Path, *, folders: bool = True) -> None:
    """Deletes the partial files, and folders, of a killed run."""
    for path in folder.glob(".*.partial"):
        if not path.is_dir():
            path.unlink()
        elif folders:
            shutil.rmtree(path)
