"""Atomic writing of files and folders, which survives a power loss."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: a reader, and whoever looks after a power loss, sees the complete old file or the
    complete new one."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically, as `write_text` does."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        to_disk(partial)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    to_disk(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON atomically. One-element tensors become numbers, other objects their `str`."""
    write_text(path, json.dumps(content, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def put_in_place(partial: Path, final: Path) -> None:
    """Renames a complete folder, which is on disk, to its final name; then deletes an older one of that name."""
    if final.exists():
        older = final.with_name(f".{final.name}.older.partial")
        shutil.rmtree(older, ignore_errors=True)
        os.rename(final, older)
        os.rename(partial, final)
        to_disk(final.parent)
        shutil.rmtree(older)
    else:
        os.rename(partial, final)
        to_disk(final.parent)


def to_disk(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on disk and survive a power loss (fsync)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:  # a folder that may not be listed; some file systems do not support this for folders
        if path.is_file():
            raise


def make_folders(path: Path) -> None:
    """Makes a folder, and those above it, unless they are there; their names are on disk then."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        to_disk(each.parent)


def tree_to_disk(folder: Path) -> None:
    """Waits until all files of a folder, and of the folders in it, are on disk."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            to_disk(path)
    to_disk(folder)


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def free_name(path: Path) -> Path:
    """Returns the first of PATH.1, PATH.2, ... that does not exist."""
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free


def link_tree(source: Path, target: Path) -> None:
    """Copies a folder with hard links if the file system supports them; so neither copy may be changed in place."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    partial = target.with_name(f".{target.name}.partial")
    shutil.copytree(source, partial, copy_function=link)
    tree_to_disk(partial)
    os.rename(partial, target)


def lfs_pointer_error(path: Path | str) -> str | None:
    """Returns an error message if a file is a Git LFS pointer, else None.

    A pointer is the short text that replaces a large file in a clone until `git lfs pull` fetches it. Returns None also
    for a file that cannot be read: the code that opens it reports why.
    """
    try:
        with open(path, "rb") as stream:
            is_pointer = stream.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return None
    if not is_pointer:
        return None
    return f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository to fetch the file."
