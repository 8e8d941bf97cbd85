"""How a stream is divided: into shards, and these among processes and the loader workers of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparse_accel.errors import UsageError, counted


@dataclass(frozen=True)
class Layout:
    """The shards of a stream, and which of them this process reads.

    Every step takes the same number of rows from each shard. So the order of the rows depends on the number of shards,
    not on processes, workers or accumulation steps.

    Attributes:
        shards: of the stream; a multiple of processes x workers.
        batch_size: rows of a global batch: a multiple of `shards`, and of processes x accumulation steps.
        processes, process: world size, and the rank of this process.
        workers: loader processes of each process; 0: the process reads by itself.
        accumulation: micro-batches of each process in a step.

    Raises:
        UsageError: the numbers do not fit; the message names the nearest that do.
    """

    shards: int
    batch_size: int
    processes: int = 1
    process: int = 0
    workers: int = 0
    accumulation: int = 1

    def __post_init__(self) -> None:
        readers, given, rows = self.processes * self.readers, f"--stream_shards {self.shards}", self._rows()
        if self.batch_size % (self.processes * self.accumulation):
            raise ValueError(
                f"a global batch of {self.batch_size} rows cannot be divided among {self.processes} processes x "
                f"{self.accumulation} accumulation steps"
            )
        if self.shards < self.processes:
            raise UsageError(
                f"{given}: fewer shards than processes ({self.processes}), and each process reads shards of its own. "
                f"{self._remedy()}"
            )
        if self.shards % readers:
            raise UsageError(
                f"{given} is not a multiple of {readers} (processes × loader workers: {self.processes} × "
                f"{self.readers}): each worker reads the same number of shards. {self._remedy()}"
            )
        if self.batch_size % self.shards:
            raise UsageError(
                f"{given} does not divide the global batch of {rows}: each step takes the same number of "
                f"rows from every shard. {self._remedy()}"
            )

    @property
    def readers(self) -> int:
        """Returns how many workers, or this process in their place, read the shards of a process; at least 1."""
        return max(self.workers, 1)

    @property
    def rows_per_shard(self) -> int:
        """Returns how many rows of each shard a step takes."""
        return self.batch_size // self.shards

    @property
    def own(self) -> list[int]:
        """Returns the shards of this process."""
        return list(range(self.process, self.shards, self.processes))

    def own_of(self, worker: int) -> list[int]:
        """Returns the shards of a loader worker of this process."""
        return self.own[worker :: self.readers]

    @property
    def splits(self) -> int:
        """Returns how many micro-batches a global batch has, over all processes."""
        return self.processes * self.accumulation

    @property
    def micro_batches_have_shards(self) -> bool:
        """Returns whether each micro-batch has the rows of shards of its own.

        Number k of the micro-batches of a step, of all processes, then has those of the shards k, k + splits, ..., and
        is the same in each layout with as many splits.
        """
        return self.shards % self.splits == 0

    def micro_batch_of(self, shard: int) -> int:
        """Returns the micro-batch of its process, 0 to accumulation - 1, that has the rows of a shard."""
        return shard % self.splits // self.processes

    def parts_of(self, worker: int) -> list[int]:
        """Returns how many rows a worker gives to each micro-batch of a step, if they have no shards; (accumulation,).

        Over all workers, each micro-batch gets the same number: what is left over of a worker's rows goes to the
        micro-batches after those that got what the worker before it had left over.
        """
        each, left = divmod(len(self.own_of(worker)) * self.rows_per_shard, self.accumulation)
        return [each + ((part - worker * left) % self.accumulation < left) for part in range(self.accumulation)]

    def _rows(self) -> str:
        return counted(self.batch_size, "row")

    def _remedy(self) -> str:
        """Returns what to set instead."""
        readers = self.processes * self.readers
        fitting = [shards for shards in range(readers, self.batch_size + 1, readers) if self.batch_size % shards == 0]
        if fitting:
            return f"Set --stream_shards to {_nearest(self.shards, fitting)}."
        rows = self.batch_size // self.processes  # of one process: `processes` divides `batch_size`
        counts = [workers for workers in range(1, rows + 1) if rows % workers == 0]
        return (
            f"No number of shards fits a global batch of {self._rows()} and {counted(readers, 'reader')}: set "
            f"--dataloader_num_workers to {_nearest(self.readers, counts)}."
        )


def _nearest(number: int, fitting: Iterable[int]) -> str:
    """Returns the largest smaller and the smallest larger of some numbers, for a message: `8 or 16`."""
    known = list(fitting)
    below = max((each for each in known if each < number), default=None)
    above = min((each for each in known if each > number), default=None)
    return " or ".join(str(each) for each in (below, above) if each is not None)
