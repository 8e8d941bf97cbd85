"""What makes a run the run it is, and what becomes of an output folder that already holds one.

The identity is model, data, resolved recipe, teacher, seed, global batch and lengths. How the work is laid out over
processes, how batches are split, what is logged and saved, and how many workers read data are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_accel.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

RUN_FILE = "run.json"
LOCK_FILE = ".lock"


def fingerprint_of_weights(model: nn.Module) -> str:
    """Returns a digest of all weights, names and shapes included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(_bytes()).numpy())
    return digest.hexdigest()[:32]


def fingerprint_of_rows(dataset: Any) -> str:
    """Returns a digest of a tokenized dataset: every token and label, in order."""
    digest = hashlib.sha256()
    for name in sorted(dataset.column_names):
        digest.update(name.encode())
        for start in range(0, len(dataset), 10_000):
            digest.update(json.dumps(dataset[start : start + 10_000][name]).encode())
    return digest.hexdigest()[:32]


def _bytes() -> Any:
    import torch

    return torch.uint8


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
        raise UsageError(f"--output_dir {folder} cannot be made ({error.strerror}). Name another folder") from error


def claim_folder(folder: Path, identity: dict[str, Any], *, overwrite: bool, restarted: bool = False) -> str:
    """Prepares an output folder for a run and returns what is to be done: `start`, `continue` or `show`.

    An unfinished run of the same identity is continued, a finished one shown. A finished run of another identity is
    moved aside to FOLDER.1 (.2, ...), and so is whatever is there when `overwrite` is set, but for this very run where
    a scheduler `restarted` it with the words that it was first given. The main process calls it.

    Raises:
        UsageError: the folder holds an unfinished run of another identity, or files that no run of ours wrote.
    """
    record = read_record(folder)
    this_run = record is not None and record["identity"] == identity
    if not folder.exists() or (folder.is_dir() and not any(_content(folder))):
        action = "start"
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
            return "show"
        _delete_partial(folder)
        return "continue"
    elif record["finished"]:
        move_aside(folder, f"it holds a finished run that differs in {difference(record['identity'], identity)}")
        action = "start"
    elif {path.name for path in _content(folder)} <= {RUN_FILE, "arguments.json", "tracking"}:
        action = "start"  # it ended before it had trained anything
    else:
        raise UsageError(
            f"--output_dir {folder} holds an unfinished run that differs from this one in "
            f"{difference(record['identity'], identity)}. Repeat its command to finish it, choose another folder, or "
            "pass --overwrite_output_dir to have it moved aside"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, identity, finished=False)
    return action


def _content(folder: Path) -> Iterator[Path]:
    """What a folder holds, but for its lock and what a killed process was writing."""
    own = {path for path in folder.glob(".*.partial")} | {folder / LOCK_FILE}
    return (path for path in folder.iterdir() if path not in own)


def read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record: Any = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"identity", "finished"} <= record.keys() else None


def write_record(folder: Path, identity: dict[str, Any], *, finished: bool, resumed_from: str | None = None) -> None:
    record = {"finished": finished, "identity": identity}
    record |= {"resumed_from": resumed_from} if resumed_from else {}
    write_text(folder / RUN_FILE, json.dumps(record, indent=2) + "\n")


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Returns the entries in which two identities differ, in words: of a recipe, its first line that differs."""
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return "; ".join(f"{key} ({_in_words(old.get(key), new.get(key))})" for key in keys)


def _in_words(old: Any, new: Any) -> str:
    if isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        pairs = zip_longest(old.splitlines(), new.splitlines(), fillvalue="nothing")
        old, new = next((pair for pair in pairs if pair[0] != pair[1]), (old, new))
    old, new = ("none" if value is None else _shortened(str(value).strip()) for value in (old, new))
    return f"{old} there, {new} here"


def _shortened(text: str) -> str:
    first = text.partition("\n")[0]
    return first if len(first) <= 60 else first[:57] + "..."


def move_aside(folder: Path, reason: str) -> Path:
    """Renames a folder to the first free FOLDER.N, says so, and returns its new place."""
    aside = free_name(folder)
    os.rename(folder, aside)
    (aside / LOCK_FILE).unlink(missing_ok=True)
    print(f"{folder} was moved aside to {aside}: {reason}")
    return aside


def free_name(path: Path) -> Path:
    """Returns the first of PATH.1, PATH.2, ... that is not there."""
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free


def _delete_partial(folder: Path) -> None:
    """Deletes what a killed run was writing beside the files and folders that it was meant to become."""
    for path in folder.glob(".*.partial"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a file beside and renames it into place, so that a reader meets the old or the new one, whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
