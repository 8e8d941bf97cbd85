"""What is said of loader workers that were lost, however torch reports it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from sparse_accel.data.loader_workers import WorkerLost, report_lost_workers
from sparse_accel.errors import UsageError

KILLED = "DataLoader worker (pid 4711) is killed by signal: Killed. "
FULL = (
    "DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that dataloader's workers are out of"
)


@pytest.fixture(autouse=True)
def torchs_own_handler() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, handler)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (KILLED, ["(process 4711, Killed)", "memory ran out"]),
        (FULL, ["(process 4711, Bus error)", "shared memory (/dev/shm) was full"]),
        ("DataLoader worker (pid(s) 4711, 4712) exited unexpectedly", ["(process 4711, 4712)", "memory ran out"]),
    ],
)
def test_what_torch_says(message: str, words: list[str]) -> None:
    for earlier in (None, ValueError("while it was read")):
        with pytest.raises(WorkerLost) as caught, report_lost_workers():
            try:
                raise RuntimeError(message)
            except RuntimeError as error:
                if earlier is None:
                    raise
                raise UsageError("a row cannot be read") from error
        said = str(caught.value)
        assert all(word in said for word in [*words, "--dataloader_num_workers", "same command again"]), said
        assert caught.value.exit_code == 1 and caught.value.of_one_process


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), UsageError("a flag"), ConnectionResetError("a server")])
def test_other_errors_are_as_they_were(error: Exception) -> None:
    with pytest.raises(type(error), match=re.escape(str(error))) as caught, report_lost_workers():
        raise error
    assert caught.value is error


class Dying(IterableDataset[torch.Tensor]):
    """A worker that a system without memory kills while it reads its fourth row."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        for row in range(9):
            if row == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield torch.full((40_000,), row)


def test_a_worker_that_is_killed() -> None:
    with pytest.raises(WorkerLost, match=r"a loader worker.* ended"), report_lost_workers():
        list(DataLoader(Dying(), num_workers=1))
