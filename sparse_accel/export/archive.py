"""Compression of model.onnx to an archive, and expansion to the identical file.

In an 8-bit file, pruned weights are runs of one byte, and xz packs them nearly as well as a sparse format would. So the
archive is an ordinary .xz file, which `xz -d` can expand too.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
from pathlib import Path
from typing import IO, Any

from sparse_accel.errors import UsageError
from sparse_accel.files import to_disk

ARCHIVE = "model.onnx.xz"
# No context bits: neighbouring weights are independent of each other.
_FILTERS: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0}]


def compress(path: Path, archive: Path) -> None:
    """Compresses a file, and checks that the archive expands to the same content.

    Raises:
        UsageError: it does not.
    """
    with open(path, "rb") as source, lzma.open(archive, "wb", check=lzma.CHECK_SHA256, filters=_FILTERS) as packed:
        shutil.copyfileobj(source, packed, 2**20)
    with open(path, "rb") as source, lzma.open(archive) as packed:
        if _digest(source) != _digest(packed):
            raise UsageError(f"{archive} does not expand to the content of {path}: check the disk and try again")


def expand(archive: str | Path, target: str | Path | None = None) -> Path:
    """Expands an archive made with --compress to the identical model.onnx, and returns the path of that file.

    Args:
        archive: model.onnx.xz, or the folder that contains it.
        target: the file to write; None writes model.onnx next to the archive. An existing file is replaced only after
            the archive was read completely.

    Raises:
        UsageError: the archive does not exist, or is damaged.
    """
    archive = Path(archive) / ARCHIVE if Path(archive).is_dir() else Path(archive)
    path = Path(target) if target is not None else archive.with_suffix("")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with lzma.open(archive) as packed, open(partial, "wb") as expanded:
            shutil.copyfileobj(packed, expanded, 2**20)
        to_disk(partial)
        os.replace(partial, path)
    except FileNotFoundError:
        raise UsageError(f"there is no archive {archive}") from None
    except (lzma.LZMAError, EOFError) as error:
        raise UsageError(f"{archive} is damaged ({error}): export again with --compress") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _digest(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := stream.read(2**20):
        digest.update(block)
    return digest.hexdigest()
