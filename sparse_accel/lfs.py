"""Git LFS pointers: the short text that a clone holds in place of a large file until `git lfs pull` fetches it."""

from __future__ import annotations

from pathlib import Path

_FIRST_LINE = b"version https://git-lfs.github.com/spec/v1"


def lfs_pointer_error(path: Path | str) -> str | None:
    """Returns what to tell the user when a file is a Git LFS pointer; None when it is not one.

    A file that cannot be read gives None too: the code that opens it reports why.
    """
    try:
        with open(path, "rb") as stream:
            is_pointer = stream.read(len(_FIRST_LINE)) == _FIRST_LINE
    except OSError:
        return None
    if not is_pointer:
        return None
    return f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository to fetch the file."
