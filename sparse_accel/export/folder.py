"""The deployment folder: when it may be replaced, and how a new one replaces it without a half-written state.

The new folder is written under a temporary name with this process's id, and two renames put it in place. The next
export restores or deletes what a killed process left behind.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_accel.errors import UsageError
from sparse_accel.files import make_folders, to_disk, tree_to_disk

REPORT, READABLE_REPORT, MODEL = "export_report.json", "export_report.md", "model.onnx"
# Written later, by sparse_accel.report; the next export deletes it with the other files of this one.
PAGE = "report.html"


def acquire(target: Path, source: str, *, overwrite: bool) -> None:
    """Checks that `target` may be written, and restores what a killed export had moved away.

    Args:
        target: absolute path of the deployment folder.
        source: folder or id of the exported model.
        overwrite: whether a model from another source may be replaced.

    Raises:
        UsageError: `target` contains another model than an earlier export of `source`, or cannot be written.
    """
    if target.exists() and not target.is_dir():
        raise UsageError(f"--output_dir {target} is a file: name a folder")
    if target == Path.cwd():
        raise UsageError(f"--output_dir {target} is the working folder: name a separate folder for the deployment")
    try:
        make_folders(target.parent)
        _clear_left_overs(target)
    except OSError as error:
        raise UsageError(f"--output_dir {target} cannot be written: {error.strerror}") from error
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"--output_dir {target} cannot be written: no permission in {target.parent}")
    if not target.is_dir() or not any(target.iterdir()) or overwrite:
        return
    record = _record(target)
    if record is None:
        held = [path.name for path in target.iterdir()]
        if any(name in (MODEL, "config.json") or name.startswith(("tokenizer", "vocab")) for name in held):
            raise UsageError(
                f"{target} contains a model that this script did not write. Choose another --output_dir, or pass "
                "--overwrite to replace it"
            )
        return  # only other files, which stay
    if record["source"]["folder"] != source:
        raise UsageError(
            f"{target} was made from another model, {record['source']['folder']}. Choose another --output_dir, or pass "
            "--overwrite to replace it"
        )


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yields a temporary folder that replaces `target` at the end of the block, or is deleted after an error.

    Files in `target` that an earlier export wrote are deleted; the user's own files stay.

    Raises:
        UsageError: the folder cannot be written.
    """
    partial, replaced = (target.with_name(f".{target.name}.{os.getpid()}.{state}") for state in _STATES)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_left_overs(target)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise UsageError(f"--output_dir {target} cannot be written: {error.strerror}") from error
    try:
        yield partial
        if target.is_dir():
            written = set((_record(target) or {}).get("written", []))
            for path in target.iterdir():
                if path.name in written or (partial / path.name).exists():
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.copytree(path, partial / path.name, symlinks=True)
                else:
                    shutil.copy2(path, partial / path.name, follow_symlinks=False)
        tree_to_disk(partial)
        to_disk(target.parent)
        if target.is_dir():
            os.rename(target, replaced)
        os.rename(partial, target)
        to_disk(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.is_dir() and not target.exists():  # the second rename failed
            os.rename(replaced, target)


_STATES = ("partial", "replaced")


def _record(target: Path) -> dict[str, Any] | None:
    """The report of the export in `target`; None if there is none, or it cannot be read."""
    try:
        found: dict[str, Any] = json.loads((target / REPORT).read_text(encoding="utf-8"))
        found["source"]["folder"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _clear_left_overs(target: Path) -> None:
    """Restores the folder of an export that was killed between its two renames, and deletes incomplete ones."""
    for state in reversed(_STATES):
        for path in target.parent.glob(f".{target.name}.*.{state}"):
            number = path.name.removeprefix(f".{target.name}.").removesuffix(f".{state}")
            if not number.isdigit() or _is_running(int(number)):
                continue
            if state == "replaced" and not target.exists():
                os.rename(path, target)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
