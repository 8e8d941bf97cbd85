"""A teacher's outputs on all training rows as a file that is mapped into memory, for rows that may be millions.

The file is in NumPy's format. Neither computing nor reading it takes memory for more than a batch: what is mapped are
pages of the file, which the system drops when memory is short.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sparse_accel.distributed.collectives import gather_rows, largest
from sparse_accel.errors import UsageError, first_line
from sparse_accel.files import to_disk

if TYPE_CHECKING:
    from accelerate import Accelerator


_ENTRIES_AT_ONCE = 100_000


class MappedTable:
    """Rows of float32 in a file, looked up like those of a tensor.

    Args:
        values: (entries, C), mapped.
    """

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns (entries, C)."""
        return self._values.shape

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """Returns the entries of these numbers, (..., C), on their device; only those are read."""
        return torch.from_numpy(self._values[numbers.cpu().numpy()]).to(numbers.device)

    def columns_of_largest(self) -> Tensor:
        """Returns the column of the largest number of each entry, (entries,) int64."""
        starts = range(0, len(self._values), _ENTRIES_AT_ONCE)
        parts = [self._values[start : start + _ENTRIES_AT_ONCE].argmax(axis=1) for start in starts]
        return torch.from_numpy(np.concatenate(parts))


def read_table(path: Path, entries: int) -> MappedTable | None:
    """Returns the table in a file; None if it is missing, damaged, or of another number of entries."""
    try:
        values = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    fits = values.ndim == 2 and len(values) == entries and values.dtype == np.float32
    return MappedTable(values) if fits else None


def map_table(
    accelerator: Accelerator, path: Path, entries: int, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[MappedTable, bool]:
    """Returns the table, and whether it was on disk. All processes must call it.

    Machines may have different disks, so the first process of each writes the file, from the batches of all. It is
    computed if one machine lacks it.

    Args:
        path: of the file, on each machine.
        entries: number of rows of the table.
        batches: of this process: numbers of entries, (N,) int64, and their values, (N, C) float32. Together, the
            processes have each entry; they have equally many batches. They are taken only if the table is computed.

    Raises:
        UsageError: a disk has no room for the file.
    """
    writes = accelerator.is_local_main_process
    lacks = largest(int(writes and read_table(path, entries) is None))
    if lacks:
        _write(path, entries, batches, writes)
    accelerator.wait_for_everyone()
    found = read_table(path, entries)
    if found is None:
        raise UsageError(
            f"{path} was written by another process of this machine, but cannot be read: processes of one machine need "
            "the same --cache_dir"
        )
    return found, not lacks


def _write(path: Path, entries: int, batches: Iterable[tuple[Tensor, Tensor]], writes: bool) -> None:
    partial = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.partial")
    table: np.ndarray | None = None
    with _removed(partial):
        for numbers, values in batches:
            if table is None:
                table, failed = _allocate(partial, (entries, values.shape[1])) if writes else (np.zeros(0), "")
                if largest(bool(failed)):
                    raise UsageError(
                        f"{path.parent} has no room for the teacher's outputs on the training rows "
                        f"({entries * values.shape[1] * 4 / 1e9:.1f} GB): {failed or 'on another machine'}. Free some, "
                        "or name another folder with --cache_dir"
                    )
            rows = largest(len(numbers))
            # Numbers count from 1 here: 0 is a row that a process does not have.
            all_numbers, all_values = gather_rows(numbers + 1, rows).flatten(), gather_rows(values, rows).flatten(0, 1)
            if writes:
                real = all_numbers > 0
                table[(all_numbers[real] - 1).cpu().numpy()] = all_values[real].float().cpu().numpy()
        if writes:
            assert isinstance(table, np.memmap)
            table.flush()
            to_disk(partial)
            os.replace(partial, path)


def _allocate(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, str]:
    """Returns a new file's rows, mapped, and what was wrong if there is no room: a write to mapped memory without room
    on the disk would end the process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        return np.zeros(0), first_line(error)
    return table, ""


@contextmanager
def _removed(partial: Path) -> Iterator[None]:
    """Deletes a partial file if the block fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
