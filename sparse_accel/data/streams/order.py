"""The rows of one shard: pass after pass without end, shuffled in windows, resumable after any row."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from sparse_accel.data.streams.shards import ShardSource
from sparse_accel.errors import UsageError

Row = dict[str, list[int]]


class RowMaker(Protocol):
    """Makes the rows of one shard from its texts, such as token ids of a fixed number of tokens.

    What it returns depends on its state and the texts alone.
    """

    def feed(self, text: str) -> list[Row]:
        """Returns the rows that are complete with this text; integers below 2^31."""
        ...

    def flush(self) -> list[Row]:
        """Returns the rows of what is pending at the end of a pass, after which nothing is pending."""
        ...

    def state(self) -> Any:
        """Returns what is pending, JSON-able; later calls do not change the returned object."""
        ...

    def restore(self, state: Any) -> None:
        """Replaces what is pending."""
        ...


class _Made(NamedTuple):
    """A row, as arrays of 4 bytes an integer, and from where it can be made again.

    Attributes:
        source, maker: states before the text that completed the row.
        skip: number of rows from there to this one.
    """

    columns: dict[str, array[int]]
    source: Any
    maker: Any
    skip: int


class ShardRows(Iterator[dict[str, Any]]):
    """The endless rows of a shard: the columns of its maker, and two integers, `row_id` and `epoch`.

    After the last row the next pass begins (epoch 0, 1, ...). Rows are shuffled in windows of `window` rows, the last
    of a pass may be shorter: window n of pass e of shard s is permuted by a generator with the seed
    (seed, e, s, n). `row_id` is (place in the shard before shuffling) * shards + shard: the same in each pass.

    The state is JSON-able: where the current window begins, and how many of its rows were given. In memory are the
    window, one text and what the maker has pending.

    Args:
        source: texts of the shard.
        maker: of its rows; not shared with another shard.
        number, shards: of this shard, from 0, and how many there are.
        seed: not negative.
        window: rows that are shuffled together; 0: the rows keep their order.
        state: to go on from; None: from the beginning. The current window is then read again; if the source cannot
            begin in the middle, the pass up to it, too (`rows_to_skip`).

    Raises:
        UsageError: a pass has no row; or, with a state, the rows of the current window are not those of the run so far;
            and what the source raises.
    """

    def __init__(
        self,
        source: ShardSource,
        maker: RowMaker,
        number: int,
        shards: int,
        seed: int,
        window: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.source, self.maker, self.number, self.shards, self.seed = source, maker, number, shards, seed
        self._size, self._shuffled = max(window, 1), window > 1
        state = state or fresh_state()
        self._pass, self._position, self._given = state["pass"], state["position"], state["rows"]
        self._first_pass: int | None = state["first_pass"]
        self._rows: list[_Made] = []
        self._order: list[int] = []
        self._made = self._make(state)
        self._window = state["window"]
        if not self._position:
            self._window -= 1  # nothing was given yet
            return
        self._read()
        if self._checksum != state["checksum"]:
            read = self._window * self._size + len(self._rows)
            raise UsageError(
                f"{source.name}: the rows up to row {read:,} of pass {self._pass + 1} are not those that the run was "
                "trained with. The data, the tokenizer or a flag of how texts become rows has changed: undo that, or "
                "start a new run in another --output_dir."
            )

    def __next__(self) -> dict[str, Any]:
        if self._position == len(self._rows):
            self._next_window()
        place = self._order[self._position]
        self._position += 1
        self._given += 1
        row_id = (self._window * self._size + place) * self.shards + self.number
        columns = {name: values.tolist() for name, values in self._rows[place].columns.items()}
        return {**columns, "row_id": row_id, "epoch": self._pass}

    def state(self) -> dict[str, Any]:
        """Returns the state after the row given last.

        Its keys: pass and window (from 0); position, the number of rows of this window that were given; source, maker
        and skip, which say where the window begins; checksum of its rows; rows, the number given over all passes; and
        first_pass, the number of rows of the first pass, None before its end.
        """
        if not self._rows:
            return fresh_state()
        first = self._rows[0]
        return {
            "pass": self._pass,
            "window": self._window,
            "position": self._position,
            "source": first.source,
            "maker": first.maker,
            "skip": first.skip,
            "checksum": self._checksum,
            "rows": self._given,
            "first_pass": self._first_pass,
        }

    def _next_window(self) -> None:
        rows = self._window * self._size + len(self._rows)  # of this pass, so far
        self._window += 1
        self._read()
        if not self._rows and rows > 0:  # the pass has ended
            if self._pass == 0:
                self._first_pass = rows
            self._pass, self._window = self._pass + 1, 0
            self._made = self._make(fresh_state())
            self._read()
        if not self._rows:
            raise UsageError(
                f"{self.source.name} gives no row: it has only blank lines, or less text than a row. Set "
                f"--stream_shards to fewer than {self.shards}."
            )
        self._position = 0

    def _read(self) -> None:
        """Reads the next window of this pass; it has no rows if the pass has ended."""
        self._rows = []  # not both windows at once
        self._rows = list(islice(self._made, self._size))
        self._order = list(range(len(self._rows)))
        if self._shuffled:
            generator = np.random.default_rng([self.seed, self._pass, self.number, self._window])
            self._order = generator.permutation(len(self._rows)).tolist()
        self._checksum = 0
        for row in self._rows:
            for values in row.columns.values():
                self._checksum = zlib.crc32(values, self._checksum)

    def _make(self, state: dict[str, Any]) -> Iterator[_Made]:
        """Returns the rows from the beginning of a window to the end of its pass."""
        if state["maker"] is not None:
            self.maker.restore(state["maker"])
        return islice(_rows_from(self.source, self.maker, state["source"]), state["skip"], None)


def _rows_from(source: ShardSource, maker: RowMaker, state: Any) -> Iterator[_Made]:
    """Yields the rows from a state to the end of the pass. No method: with a cycle, a source would be closed late."""
    pending, skip, begun = None, 0, False
    for place, text in source.texts(state):
        if source.resumable or not begun:
            state, pending, skip, begun = place, maker.state(), 0, True
        for row in maker.feed(text):
            yield _Made(_compact(row), state, pending, skip)
            skip += 1
    # They count as rows of the last text, so that no state is needed for the end of a source.
    for row in maker.flush():
        yield _Made(_compact(row), state, pending, skip)
        skip += 1


def fresh_state() -> dict[str, Any]:
    """Returns the state of a shard of which no row was given."""
    beginning = {"source": None, "maker": None, "skip": 0, "checksum": 0}
    return {"pass": 0, "window": 0, "position": 0, **beginning, "rows": 0, "first_pass": None}


def rows_to_skip(source: ShardSource, state: dict[str, Any]) -> int:
    """Returns how many rows before the current window must be made again to go on from a state; usually 0."""
    return 0 if source.resumable else state["skip"]


def _compact(row: Row) -> dict[str, array[int]]:
    return {name: array("i", values) for name, values in row.items()}
