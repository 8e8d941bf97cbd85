"""model.onnx in small: packed, and expanded again to the identical file.

Pruned weights are runs of one byte in an 8-bit file, and xz packs them to nearly what a list of zeros and a list of the
rest would take; so the archive is an ordinary .xz, which `xz -d` opens as well.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
from pathlib import Path
from typing import IO, Any

from sparse_accel.errors import UsageError

ARCHIVE = "model.onnx.xz"
# No context bits: neighbouring weights say nothing about each other.
_FILTERS: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0}]


def compress(path: Path, archive: Path) -> None:
    """Packs a file, and holds what comes out of the archive against it."""
    with open(path, "rb") as source, lzma.open(archive, "wb", check=lzma.CHECK_SHA256, filters=_FILTERS) as packed:
        shutil.copyfileobj(source, packed, 2**20)
    with open(path, "rb") as source, lzma.open(archive) as packed:
        if _digest(source) != _digest(packed):
            raise UsageError(f"{archive} does not expand to {path}: the disk is at fault; try again")


def expand(archive: str | Path, target: str | Path | None = None) -> Path:
    """Expands an archive of `--compress` to the model.onnx that it was made from, and returns its path.

    Args:
        archive: model.onnx.xz, or the folder that holds it.
        target: where to write; None: beside the archive, as model.onnx. An existing file is replaced when the archive
            was read to its end.

    Raises:
        UsageError: no such archive, or a damaged one.
    """
    archive = Path(archive) / ARCHIVE if Path(archive).is_dir() else Path(archive)
    path = Path(target) if target is not None else archive.with_suffix("")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with lzma.open(archive) as packed, open(partial, "wb") as expanded:
            shutil.copyfileobj(packed, expanded, 2**20)
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
