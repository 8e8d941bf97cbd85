"""The mapped table of a teacher's outputs: what is read from disk, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import make_bert, make_rows, make_tokenizer
from torch import Tensor

from sparse_accel.errors import UsageError
from sparse_accel.models import teacher as teachers
from sparse_accel.models import teacher_table
from sparse_accel.models.teacher import Teacher
from sparse_accel.models.teacher_table import MappedTable, map_table, read_table

WIDTH = 64


def batches(entries: int, size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
    """The entries in an order of their own, as rows sorted by length have."""
    for numbers in torch.randperm(entries, generator=torch.Generator().manual_seed(0)).split(size):
        yield numbers, numbers[:, None].float().expand(-1, WIDTH)


def test_entries_are_found_by_number(tmp_path: Path) -> None:
    table, found = map_table(Accelerator(), tmp_path / "new" / "table.npy", 2500, batches(2500))
    assert not found and table.shape == (2500, WIDTH)
    numbers = torch.tensor([[7, 2499], [0, 1]])
    assert torch.equal(table[numbers][..., 5], numbers.float())
    nothing: Any = iter(())  # it is not computed again
    again, found = map_table(Accelerator(), tmp_path / "new" / "table.npy", 2500, nothing)
    assert found and torch.equal(again[numbers], table[numbers])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.npy"]


def test_the_column_of_the_largest_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_table, "_ENTRIES_AT_ONCE", 7)
    values = torch.rand(50, 3)
    table, _ = map_table(Accelerator(), tmp_path / "table.npy", 50, [(torch.arange(50), values)])
    assert torch.equal(table.columns_of_largest(), values.argmax(1))


def test_logits_of_millions_of_rows_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, rows = [], make_rows(9)
    for most in (9, 8):
        monkeypatch.setattr(teachers, "_MOST_ENTRIES_IN_MEMORY", {False: most, True: most})
        teacher = Teacher(make_bert())
        assert not teacher.make_table(Accelerator(cpu=True), rows, make_tokenizer(), batch_size=4, cache=tmp_path)
        assert isinstance(teacher.table, MappedTable) == (most == 8)
        tables.append(teacher.outputs({"row_id": torch.tensor([3, 8, -1])}, ["logits"])["logits"][:2])
    assert torch.equal(*tables)


@pytest.mark.parametrize("damage", ["missing", "cut off", "not an array", "other rows", "other type"])
def test_a_damaged_file_is_no_table(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "table.npy"
    np.save(path, np.zeros((9, 2), dtype=np.float64 if damage == "other type" else np.float32))
    if damage == "missing":
        path.unlink()
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-8])
    if damage == "not an array":
        path.write_bytes(b"PK")
    assert read_table(path, 8 if damage == "other rows" else 9) is None


def test_what_failed_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield next(batches(2500))
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        map_table(Accelerator(), tmp_path / "table.npy", 2500, broken())
    assert [*tmp_path.iterdir()] == []


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UsageError, match=r"No space left.*--cache_dir"):
        map_table(Accelerator(), tmp_path / "table.npy", 2500, batches(2500))
    assert [*tmp_path.iterdir()] == []


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """Anonymous memory, the kind that the system cannot drop: 100 MB of rows are written and all looked up."""
    entries = 400_000

    def anonymous() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    map_table(Accelerator(), tmp_path / "small.npy", 2000, batches(2000))  # what is loaded once
    most, before = 0.0, anonymous()

    def watched() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal most
        for start in range(0, entries, 1000):
            numbers = torch.arange(start, start + 1000)
            yield numbers, numbers[:, None].float().expand(-1, WIDTH)
            most = max(most, anonymous())

    table, _ = map_table(Accelerator(), tmp_path / "table.npy", entries, watched())
    for start in range(0, entries, 1000):
        assert float(table[torch.arange(start, start + 1000)][3, 0]) == start + 3
        most = max(most, anonymous())
    assert most - before < 20
