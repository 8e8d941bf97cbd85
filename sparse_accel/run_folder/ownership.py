"""The output folder of a run: claimed at the start, filled at the end, shown when it is asked for again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_accel.distributed.collectives import by_main_process, largest
from sparse_accel.errors import UsageError
from sparse_accel.files import free_name, link_tree
from sparse_accel.run_folder.checkpoints import (
    restore_complete,
)
from sparse_accel.run_folder.record import RUN_FILE, change_record, difference, read_record, write_record
from sparse_accel.run_folder.resume import _named_checkpoint, _resumed_from

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe_run import RecipeRun


_locks: list[Any] = []


@contextmanager
def release_folders() -> Iterator[None]:
    """At its end, other processes may claim what was claimed inside of the block."""
    try:
        yield
    finally:
        while _locks:
            if (lock := _locks.pop()) is not None:
                Path(lock.lock_file).unlink(missing_ok=True)  # first: then nobody else has it
                lock.release()


def acquire(
    accelerator: Accelerator,
    arguments: TrainingArguments,
    run: RecipeRun,
    identity: dict[str, Any],
    settings: dict[str, Any],
) -> str:
    """As `acquire_folder`, decided by the main process for all."""
    folder, resume_from = Path(str(arguments.output_dir)), arguments.resume_from_checkpoint

    def resumed_already() -> bool:
        return _resumed_from(folder, str(resume_from))

    def decide() -> str:
        if not folder.is_file():
            _locks.append(lock_folder(folder))
            restore_complete(folder)
        restarted = os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
        record = read_record(folder)
        finished = record is not None and record["finished"] and record["identity"] == identity
        action = acquire_folder(
            folder,
            identity,
            overwrite=arguments.overwrite_output_dir,
            restarted=restarted,
            settings=settings,
            checkpoint=None if finished else _named_checkpoint(folder, resume_from, run),  # before anything is moved
        )
        if not (folder / LOCK_FILE).exists():  # what was there was moved aside, its lock with it
            _locks.append(lock_folder(folder))
        return action

    answer = by_main_process(accelerator, decide)
    if answer == "show" and isinstance(resume_from, str) and not by_main_process(accelerator, resumed_already):
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


# Settings that an unfinished run may go on with in another way: it may have to, on another machine.
MAY_CHANGE = ("precision", "nan_loss")
LOCK_FILE = ".lock"


# --- the output folder ------------------------------------------------------------------------------------------------


def lock_folder(folder: Path, patience: float = 10.0) -> Any:
    """Takes an output folder for this process and returns its lock, which ends with the process or by `release`.

    Args:
        folder: made where it is not there.
        patience: seconds to wait for another process that has it.

    Returns:
        the lock; None where the file system has none.

    Raises:
        UsageError: another process has it.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=patience)
        if not (folder / LOCK_FILE).exists():  # who had it deleted it when it ended
            lock.release()
            lock.acquire(timeout=patience)
    except Timeout:
        raise UsageError(
            f"--output_dir {folder}: another process is training there, perhaps one whose launcher was killed. Wait "
            "until it ends, or end it; or choose another folder"
        ) from None
    except (NotImplementedError, OSError):  # if it cannot be written at all, the next file says so
        return None
    return lock


def make_folder(folder: Path) -> None:
    """Makes an output folder where it is not there.

    Raises:
        UsageError: it cannot be made there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if folder.is_symlink() and not folder.exists():
            raise UsageError(
                f"--output_dir {folder} is a link to {os.readlink(folder)}, which does not exist"
            ) from error
        raise UsageError(f"--output_dir {folder} cannot be made ({error.strerror}). Name another folder") from error


def acquire_folder(
    folder: Path,
    identity: dict[str, Any],
    *,
    overwrite: bool,
    restarted: bool = False,
    settings: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
) -> str:
    """Prepares an output folder for a run and returns what is to be done: `start`, `continue` or `show`.

    An unfinished run of the same identity is continued, a finished one shown. A finished run of another identity is
    moved aside to FOLDER.1 (.2, ...), and so is whatever is there when `overwrite` is set, but for this very run where
    a scheduler `restarted` it with the words that it was first given. The main process calls it.

    Args:
        folder: may be a link to a folder: what it leads to is moved aside there.
        identity: what makes this run itself.
        overwrite: whether to move aside what is there.
        restarted: by a scheduler.
        settings: what is not part of the identity and yet changes the result. A run of this identity with others is
            refused; an unfinished one may continue with another precision (`MAY_CHANGE`).
        checkpoint: to start from; one of a run that is moved aside comes along.

    Raises:
        UsageError: the folder holds an unfinished run of another identity, this very run finished with other settings,
            or files that no run of ours wrote; or it cannot be moved.
    """
    real, aside, brought = folder.resolve(), folder, None
    record = read_record(folder)
    this_run = record is not None and record["identity"] == identity
    if not folder.exists() or (folder.is_dir() and not any(_content(folder))):
        action = "start"
    elif overwrite and record is None and real == Path.cwd():
        raise UsageError(
            f"--output_dir {folder} is the folder that you are in, and holds files that are not of a run of this "
            "script: name a folder in it, such as ./run"
        )
    elif overwrite and not (restarted and this_run):
        move_aside(folder, "--overwrite_output_dir")
        action = "start"
    elif folder.is_file():
        raise UsageError(f"--output_dir {folder} is a file: name a folder")
    elif record is None:
        raise UsageError(
            f"--output_dir {folder} is not empty, and what it holds is not a run of this script. Choose another "
            "folder, or pass --overwrite_output_dir to have it moved aside"
        )
    elif record["identity"] == identity:
        if record["finished"]:
            _check_settings(folder, record, settings or {})
            return "show"
        _check_settings(folder, record, {k: v for k, v in (settings or {}).items() if k not in MAY_CHANGE})
        _delete_partial(folder)
        change_record(folder, **({"trained_with": settings} if settings else {}))
        return "continue"
    elif record["finished"]:
        differs = difference(record["identity"], identity)
        aside = move_aside(folder, f"it holds a finished run that differs in {differs}")
        if checkpoint is not None and real in checkpoint.resolve().parents:
            brought = checkpoint.resolve().relative_to(real)
        action = "start"
    elif {path.name for path in _content(folder)} <= {RUN_FILE, "arguments.json", "tracking"}:
        action = "start"  # it ended before it had trained anything
    else:
        raise UsageError(
            f"--output_dir {folder} holds an unfinished run that differs from this one in "
            f"{difference(record['identity'], identity)}. Repeat its command to finish it, choose another folder, "
            "or pass --overwrite_output_dir to have it moved aside"
        )
    real.mkdir(parents=True, exist_ok=True)
    write_record(real, identity, finished=False, **({"trained_with": settings} if settings else {}))
    if brought is not None:
        link_tree(aside / brought, real / brought)
    return action


def _check_settings(folder: Path, record: dict[str, Any], settings: dict[str, Any]) -> None:
    recorded = record.get("trained_with")  # older runs have none, and newer ones may have more
    before = {key: recorded[key] for key in settings if key in recorded} if isinstance(recorded, dict) else {}
    here = {key: settings[key] for key in before}
    if before != here:
        state = "a finished" if record["finished"] else "an unfinished"
        raise UsageError(
            f"--output_dir {folder} holds {state} run of this recipe and data, and this command would train another "
            f"model: they differ in {difference(before, here)}. Repeat the command of that run, choose another folder, "
            "or pass --overwrite_output_dir to train again"
        )


def _content(folder: Path) -> Iterator[Path]:
    """What a folder holds, but for its lock and what a killed process was writing."""
    own = {path for path in folder.glob(".*.partial")} | {folder / LOCK_FILE}
    return (path for path in folder.iterdir() if path not in own)


def move_aside(folder: Path, reason: str) -> Path:
    """Renames a folder to the first free FOLDER.N, says so, and returns its new place.

    Of a link, the folder that it leads to is renamed: the disk that it was meant for stays the same. Of the working
    folder, all that is in it is moved: it stays the folder that a shell is in.

    Raises:
        UsageError: it cannot be renamed.
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
            for path in sorted(real.iterdir(), key=lambda path: path.name == RUN_FILE):  # the record last
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
    print(f"{folder} was moved aside to {as_typed}: {reason}")
    return as_typed


def _delete_partial(folder: Path) -> None:
    """Deletes what a killed run was writing beside the files and folders that it was meant to become."""
    for path in folder.glob(".*.partial"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
