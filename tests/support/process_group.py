"""A group of processes on this machine, for tests whose processes assert for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist


@contextmanager
def process_group(rank: int, folder: Path, processes: int) -> Iterator[None]:
    """Joins a gloo group that meets in `folder`, and leaves it when every process has come to the end.

    A process that leaves while another still reads from it closes that one's connection, which ends it by a signal.
    """
    store = dist.FileStore(str(folder / "store"), processes)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()
