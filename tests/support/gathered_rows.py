"""A process of two that gather rows, and what one process makes of all of them. For test_gathered_rows.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from process_group import process_group
from torch import Tensor

from sparse_accel.distributed.collectives import gather_rows, largest
from sparse_accel.errors import UsageError
from sparse_accel.models.teacher_table import map_table, read_table

PROCESSES, ENTRIES, WIDTH = 2, 7, 3


def check(rank: int, folder: str) -> None:
    with process_group(rank, Path(folder), PROCESSES):
        check_gradients(rank)
        check_tables(rank, Path(folder))


def check_gradients(rank: int) -> None:
    """Process 0 has 3 rows, process 1 has 2; each has a loss of its own over the rows of both."""
    torch.manual_seed(0)
    rows, factors = torch.randn(5, 2, WIDTH), torch.randn(2, 5, 2, WIDTH)
    own = (rows[:3] if rank == 0 else rows[3:]).clone().requires_grad_()
    found = gather_rows(own, largest(len(own)))
    assert torch.equal(found, torch.stack([rows[:3], torch.cat([rows[3:], torch.zeros(1, 2, WIDTH)])]))

    def loss(values: Tensor, process: int) -> Tensor:
        return (values.square() * factors[process]).sum()

    loss(torch.cat([found[0], found[1, :2]]), rank).backward()
    alone = rows.clone().requires_grad_()
    (loss(alone, 0) + loss(alone, 1)).backward()
    assert alone.grad is not None and own.grad is not None
    torch.testing.assert_close(own.grad, alone.grad[:3] if rank == 0 else alone.grad[3:])


def check_tables(rank: int, folder: Path) -> None:
    """Each process has every other entry. One machine: the first process writes. Two: each has a file of its own."""
    values = torch.arange(ENTRIES * WIDTH, dtype=torch.float32).view(ENTRIES, WIDTH)
    taken: list[int] = []

    def batches() -> Any:
        for numbers in torch.arange(ENTRIES).split(4):
            own = numbers[rank::PROCESSES]
            taken.extend(own.tolist())
            yield own, values[own]

    for machines in (1, 2):
        is_first = rank == 0 or machines == 2
        accelerator: Any = _OnMachine(is_first)
        path = folder / (f"{machines}" if machines == 1 else f"{machines}_{rank}") / "table.npy"
        table, found = map_table(accelerator, path, ENTRIES, batches())
        assert not found and torch.equal(table[torch.arange(ENTRIES)], values)
        before = len(taken)
        table, found = map_table(accelerator, path, ENTRIES, batches())
        assert found and len(taken) == before
        assert torch.equal(table[torch.tensor([[3, -1]])], values[[3, -1]][None])
        if machines == 2 and rank == 1:
            path.unlink()  # this machine lost its file: both compute
        table, found = map_table(accelerator, path, ENTRIES, batches())
        assert found == (machines == 1) and torch.equal(table[torch.arange(ENTRIES)], values)
        assert [each.name for each in path.parent.iterdir()] == ["table.npy"]
    check_full_disk(rank, folder, batches)


def check_full_disk(rank: int, folder: Path, batches: Any) -> None:
    """A folder that cannot be made on one machine ends all processes with the same error."""
    if rank == 0:
        (folder / "blocked").write_text("")
    dist.barrier()
    path = folder / ("blocked" if rank == 0 else "free") / "table.npy"
    try:
        accelerator: Any = _OnMachine(True)
        map_table(accelerator, path, ENTRIES, batches())
    except UsageError as error:
        assert "--cache_dir" in str(error)
    else:
        raise AssertionError("no error")
    assert read_table(path, ENTRIES) is None and (rank == 0 or not [*path.parent.iterdir()])


class _OnMachine:
    """What a table needs of an Accelerator; whether this process is the first of its machine."""

    def __init__(self, is_first: bool) -> None:
        self.is_local_main_process = is_first

    def wait_for_everyone(self) -> None:
        dist.barrier()
