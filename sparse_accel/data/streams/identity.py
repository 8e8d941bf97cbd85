"""What the files of a stream were when a run began: a resumed run must read the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from huggingface_hub import HfFileSystem

from sparse_accel.errors import UsageError, first_line, listed

RESTORE = "Restore the file, or start a new run in another --output_dir."
_PIECE = 64 * 1024
_PIECES = 10


def identity_of(file: str) -> dict[str, Any]:
    """Returns the name of a file without its folder, its bytes, and the SHA-256 of ten pieces of it.

    The pieces have 64 KiB: the first, the last, and eight at equal distances between. So a change of equal length in
    the rest of a large file is not seen.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        with open(file, "rb") as stream:
            size = stream.seek(0, 2)
            digest = hashlib.sha256()
            for start in sorted({max(size - _PIECE, 0) * number // (_PIECES - 1) for number in range(_PIECES)}):
                stream.seek(start)
                digest.update(stream.read(_PIECE))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {first_line(error)}") from None
    return {"name": Path(file).name, "bytes": size, "sha256": digest.hexdigest()}


def hub_identity_of(url: str) -> dict[str, Any]:
    """Returns the path of a file in its repository on the Hub, its bytes, and the name that git gives to its content.

    Another commit with the same content is the same file. It needs no request if `datasets` has just listed the files.

    Args:
        url: hf://datasets/OWNER/NAME@COMMIT/PATH; or another address, whose name is itself and whose content is known
            by its ETag, if it has one.
    """
    system, path = url_to_fs(url)
    about = system.info(path)
    place: Any = system.resolve_path(path) if isinstance(system, HfFileSystem) else None
    name = url if place is None else place.path_in_repo
    return {"name": name, "bytes": about["size"], "content": about.get("blob_id") or about.get("ETag")}


def check_identities(files: Sequence[str], now: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]) -> None:
    """Checks that files are those that a run began with.

    Args:
        files: their paths, for messages.
        now: `identity_of`, or `hub_identity_of`, each of them.
        before: the same, as the run recorded it.

    Raises:
        UsageError: a file is missing, new, at another place in the list, or changed.
    """
    names, recorded = [each["name"] for each in now], [each["name"] for each in before]
    for name in recorded:
        if recorded.count(name) > names.count(name):
            raise UsageError(f"{name} is missing: this run began with it. {RESTORE}")
    for file, name in zip(files, names, strict=True):
        if names.count(name) > recorded.count(name):
            raise UsageError(
                f"{file} was not among the files that this run began with ({listed(recorded, 4)}). Leave it out, or "
                "start a new run in another --output_dir."
            )
    if names != recorded:
        raise UsageError(
            f"the files are in another order than when this run began ({listed(recorded, 4)}): {listed(names, 4)}. "
            "Give them in that order, or start a new run in another --output_dir."
        )
    for file, found, expected in zip(files, now, before, strict=True):
        if found["bytes"] != expected["bytes"]:
            change = f"it has {found['bytes']:,} bytes, and had {expected['bytes']:,}"
        elif found != expected:
            change = f"its {found['bytes']:,} bytes are not the same"
        else:
            continue
        raise UsageError(f"{file} was changed since this run began: {change}. {RESTORE}")
