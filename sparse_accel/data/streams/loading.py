"""Micro-batches of a stream: workers read the shards of a process, and each step takes a piece from every worker.

A worker pads and collates its own rows, so that this process only joins tensors. A piece carries the states of its
shards after it. So the states that belong to the rows that were trained are known, however far workers read ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sparse_accel.data.loader_workers import begin_worker
from sparse_accel.data.streams.layout import Layout
from sparse_accel.data.streams.order import RowMaker, ShardRows, fresh_state, rows_to_skip
from sparse_accel.data.streams.shards import Corpus
from sparse_accel.errors import UsageError

Batch: TypeAlias = dict[str, Tensor]
# Columns of some rows, row by row -> tensors, (rows, ...).
RowCollator: TypeAlias = Callable[[dict[str, list[Any]]], Batch]


@dataclass(frozen=True)
class Stream:
    """What the rows of a stream and their order depend on.

    Attributes:
        corpus: its shards.
        make_maker: returns a new maker; called once for each shard, in the process that reads it. With a start method
            other than fork it must be picklable, as the corpus and the collator.
        seed: of the order, not negative.
        window: rows of a shard that are shuffled together; 0: they keep their order.
    """

    corpus: Corpus
    make_maker: Callable[[], RowMaker]
    seed: int
    window: int

    def settings(self) -> dict[str, Any]:
        """Returns what a resumed run must find unchanged."""
        return {"shards": self.corpus.shards, "seed": self.seed, "window": self.window, "corpus": self.corpus.identity}


@dataclass(frozen=True)
class _Part:
    """What a worker gives to a micro-batch.

    Attributes:
        places: what the rows of the micro-batch are sorted by, for each row; see `_place`.
        rows: collated, in this order.
    """

    places: list[tuple[int, ...]]
    rows: Batch


@dataclass(frozen=True)
class _Piece:
    """What a worker gives to a step.

    Attributes:
        parts: for each micro-batch; None for no rows.
        states: of the worker's shards, after these rows.
        error: message of a UsageError that ended the worker in place of rows; else empty.
    """

    parts: list[_Part | None]
    states: dict[int, dict[str, Any]]
    error: str = ""


class StreamLoader:
    """Yields the micro-batches of this process for each step, without end. Accelerate must not prepare it.

    A step takes the same number of rows from each shard. A micro-batch has the rows of certain shards, so that the same
    micro-batches, in other processes, end with the same bytes; where there are too few shards for that, the rows of a
    process are sorted by length and cut, the longest in the first micro-batch.

    Args:
        stream: rows and their order.
        layout: of the run; of this stream's shards.
        collator: is called in the workers with some rows' columns, `row_id` and `epoch` among them.
        padding: column of a batch -> value that fills it up, where workers gave different numbers of tokens.
        padding_side: right or left, as the collator's.
        place: is called with each micro-batch, such as to copy it to a device.

    Iterate once; the workers live as long as the iterator.

    Raises:
        UsageError: in iteration: what a source raises (see `shards`), or a state that its data no longer give.
    """

    def __init__(
        self,
        stream: Stream,
        layout: Layout,
        collator: RowCollator,
        *,
        padding: Mapping[str, int],
        padding_side: str = "right",
        place: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> None:
        if layout.shards != stream.corpus.shards:
            raise ValueError(f"a layout of {layout.shards} shards, but {stream.corpus.shards} in the corpus")
        self.stream, self.layout, self.collator, self.place = stream, layout, collator, place
        self.padding, self.padding_side = dict(padding), padding_side
        self._states = {shard: fresh_state() for shard in layout.own}

    def __iter__(self) -> Iterator[list[Batch]]:
        loader = DataLoader(
            _Pieces(self.stream, self.layout, self.collator, dict(self._states)),
            batch_size=None,
            num_workers=self.layout.workers,
            worker_init_fn=begin_worker,
            # A separate generator: the state of the global one must not change.
            generator=torch.Generator(),
        )
        pieces = cast(Iterator[_Piece], iter(loader))  # from each worker in turn
        try:
            while step := list(islice(pieces, self.layout.readers)):
                for piece in step:
                    if piece.error:
                        raise UsageError(piece.error)
                parts = zip(*(piece.parts for piece in step), strict=True)
                batches = [self._joined(each) for each in parts]
                for piece in step:
                    self._states |= piece.states
                yield [self.place(batch) for batch in batches]
        finally:
            del pieces  # ends the workers now: after an error, a traceback could keep them

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of this process's shards after the step yielded last, JSON-able; see `gathered`."""
        return {**self.stream.settings(), "states": {str(shard): state for shard, state in self._states.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> int:
        """Goes on from the gathered states of all shards; call it before the iteration.

        Returns:
            How many rows of this process's shards must be made again and skipped, because a source cannot begin in the
            middle; 0 if all can.

        Raises:
            UsageError: the corpus, the number of shards, the seed or the window is not that of the run so far.
        """
        now = self.stream.settings()
        flags = {"shards": "--stream_shards", "seed": "--seed", "window": "--shuffle_window"}
        for name, flag in flags.items():
            if now[name] != state[name]:
                raise UsageError(
                    f"{flag} {now[name]}: this run began with {state[name]}, and the order of its rows depends on it. "
                    f"Set it to {state[name]}, or start a new run in another --output_dir."
                )
        self.stream.corpus.check(state["corpus"])
        if lacking := [shard for shard in self.layout.own if str(shard) not in state["states"]]:
            raise ValueError(f"no state of the shards {lacking}")
        self._states = {shard: state["states"][str(shard)] for shard in self.layout.own}
        return sum(rows_to_skip(self.stream.corpus.shard(shard), each) for shard, each in self._states.items())

    def _joined(self, parts: Sequence[_Part | None]) -> Batch:
        """Returns one batch of those of the workers, padded to the longest, in the order of one reader."""
        given = [part for part in parts if part is not None]
        if len(given) == 1:
            return given[0].rows
        places = [place for part in given for place in part.places]
        order = sorted(range(len(places)), key=places.__getitem__)
        return {
            name: torch.cat(self._of_one_width(name, [part.rows[name] for part in given]))[order]
            for name in given[0].rows
        }

    def _of_one_width(self, name: str, tensors: list[Tensor]) -> list[Tensor]:
        if tensors[0].dim() == 1:
            return tensors
        width = max(tensor.shape[1] for tensor in tensors)
        if any(tensor.shape[1] < width for tensor in tensors) and name not in self.padding:
            raise ValueError(f"no padding value for column '{name}'")
        amounts = [width - tensor.shape[1] for tensor in tensors]
        sides = [(0, amount) if self.padding_side == "right" else (amount, 0) for amount in amounts]
        return [
            pad(tensor, side, value=self.padding[name]) if amount else tensor
            for tensor, side, amount in zip(tensors, sides, amounts, strict=True)
        ]


def gathered(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the state of all shards, for the checkpoint, from the `state_dict` of each process."""
    together = {shard: state for each in states for shard, state in each["states"].items()}
    if len(together) != states[0]["shards"] or len({state["rows"] for state in together.values()}) > 1:
        raise ValueError("the states of the processes are not those of all shards after the same step")
    return {**states[0], "states": dict(sorted(together.items(), key=lambda item: int(item[0])))}


def rows_of_first_pass(state: Mapping[str, Any]) -> int | None:
    """Returns the number of rows of the first pass over the shards of a `state_dict`, or of all if it is gathered.

    None while the first pass over one of them has not ended.
    """
    counts = [each["first_pass"] for each in state["states"].values()]
    return None if None in counts else sum(counts)


class _Pieces(IterableDataset[_Piece]):
    """The pieces of one worker, or of the process itself without workers."""

    def __init__(
        self, stream: Stream, layout: Layout, collator: RowCollator, states: Mapping[int, dict[str, Any]]
    ) -> None:
        self.stream, self.layout, self.collator, self.states = stream, layout, collator, states

    def __iter__(self) -> Iterator[_Piece]:
        info = get_worker_info()
        worker = info.id if info is not None else 0
        try:
            shards = {number: self._rows(number) for number in self.layout.own_of(worker)}
            while True:
                read = {number: list(islice(rows, self.layout.rows_per_shard)) for number, rows in shards.items()}
                parts = [self._collated(rows) for rows in self._micro_batches(read, worker)]
                yield _Piece(parts, {number: shard.state() for number, shard in shards.items()})
        except UsageError as error:  # torch would put a traceback into its message
            yield _Piece([], {}, error=str(error))

    def _rows(self, number: int) -> ShardRows:
        stream, state = self.stream, self.states[number]
        source, shards = stream.corpus.shard(number), self.layout.shards
        return ShardRows(source, stream.make_maker(), number, shards, stream.seed, stream.window, state)

    def _micro_batches(self, read: Mapping[int, list[dict[str, Any]]], worker: int) -> list[list[dict[str, Any]]]:
        """Returns the rows of each micro-batch, the longest first, from those of each shard."""
        layout = self.layout
        if not layout.micro_batches_have_shards:
            rows = iter(sorted((row for shard in read.values() for row in shard), key=_place))
            return [list(islice(rows, size)) for size in layout.parts_of(worker)]
        found: list[list[dict[str, Any]]] = [[] for _ in range(layout.accumulation)]
        for number, shard in read.items():
            found[layout.micro_batch_of(number)] += shard
        return [sorted(rows, key=_place) for rows in found]

    def _collated(self, rows: list[dict[str, Any]]) -> _Part | None:
        if not rows:
            return None
        return _Part(
            [_place(row) for row in rows], self.collator({name: [row[name] for row in rows] for name in rows[0]})
        )


def _place(row: Mapping[str, Any]) -> tuple[int, ...]:
    """What rows are sorted by: no two are equal, because sums over a batch depend on the order of its rows."""
    length = max(len(values) for values in row.values() if isinstance(values, list))
    return -length, row["epoch"], row["row_id"]
