"""Digests of weights and rows: equal content gives equal digests on all machines."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_accel.files import write_text

if TYPE_CHECKING:
    import pyarrow
    import torch
    from torch import nn

# The digest of rows depends on it.
_ROWS_AT_ONCE = 10_000
# Of this many tokens or more, the text may be longer than Arrow's offsets of 32 bits reach.
_MOST_VALUES = 50_000_000


def fingerprint_of_weights(model: nn.Module) -> str:
    """Returns a digest of all weights, names and shapes: 32 hex digits of a SHA-256."""
    return fingerprint(model.state_dict())


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns a digest of the names, shapes, dtypes and bytes of tensors: 32 hex digits of a SHA-256."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content: Any = tensor.detach().cpu().contiguous().flatten().view(_bytes()).numpy()
        digest.update(content)
    return digest.hexdigest()[:32]


def fingerprint_of_rows(dataset: Any) -> str:
    """Returns a digest of all tokens and labels of a tokenized dataset, in order: 32 hex digits of a SHA-256.

    It is stored beside the files of a cache of tokenized rows, whose digest is then not computed again until they
    change.
    """
    files = _files_of_cache(dataset)
    known = _read_known(files)
    if known is not None:
        return known
    digest = hashlib.sha256()
    for name in sorted(dataset.column_names):
        digest.update(name.encode())
        column = dataset.select_columns([name]).with_format("arrow")
        for start in range(0, len(dataset), _ROWS_AT_ONCE):
            digest.update(_as_json(column[start : start + _ROWS_AT_ONCE].column(0).combine_chunks()))
    found = digest.hexdigest()[:32]
    _write_known(files, found)
    return found


def _as_json(column: pyarrow.Array) -> Any:
    """Returns the bytes of `json.dumps` of a column; those of integers and of lists of them without objects for each.

    Runs recorded digests of these bytes, and resume only if they are the same.
    """
    import pyarrow
    from pyarrow import compute, types

    in_lists = types.is_list(column.type)
    values = column.flatten() if in_lists else column
    if not types.is_integer(values.type) or column.null_count or values.null_count or len(values) > _MOST_VALUES:
        return json.dumps(column.to_pylist()).encode()
    entries = values.cast(pyarrow.string())
    if in_lists:
        ends = compute.cumulative_sum(compute.list_value_length(column).cast(pyarrow.int32()))
        offsets = pyarrow.concat_arrays([pyarrow.array([0], pyarrow.int32()), ends])
        rows = compute.binary_join(pyarrow.ListArray.from_arrays(offsets, entries), ", ")
        entries = compute.binary_join_element_wise("[", rows, "]", "")
    whole = pyarrow.ListArray.from_arrays(pyarrow.array([0, len(entries)], pyarrow.int32()), entries)
    return compute.binary_join_element_wise("[", compute.binary_join(whole, ", "), "]", "")[0].as_buffer()


def _files_of_cache(dataset: Any) -> list[Path]:
    """Returns the files of a cache that is named by what its rows are made of, and has these rows; else none."""
    files = [Path(each["filename"]) for each in dataset.cache_files]
    name = dataset._fingerprint  # of other rows, such as some of those in the files, it is another
    return files if files and all(file.stem.partition("_")[0] == name for file in files) else []


def _state_of(files: list[Path]) -> list[list[int]]:
    return [[each.st_size, each.st_mtime_ns] for each in map(os.stat, files)]


def _read_known(files: list[Path]) -> str | None:
    if not files:
        return None
    try:
        stored = json.loads(_known_file(files).read_text(encoding="utf-8"))
        same = stored["files"] == _state_of(files)
        return str(stored["digest"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged
        return None


def _write_known(files: list[Path], digest: str) -> None:
    if files:
        with suppress(OSError):  # a folder that only others may write to
            write_text(_known_file(files), json.dumps({"digest": digest, "files": _state_of(files)}))


def _known_file(files: list[Path]) -> Path:
    return files[0].with_name(f"{files[0].stem.partition('_')[0]}.digest.json")


def _bytes() -> Any:
    import torch

    return torch.uint8
