"""The shards of a corpus: ranges of bytes of text files, or the own shards of an iterable dataset.

Both are read the same way: each shard gives its texts in order, each with the state from which reading begins again
with that text. States are JSON-able and do not depend on processes or workers.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from datasets import IterableDataset

from sparse_accel.data.lines import check_text, checked_text, raw_lines, text_of
from sparse_accel.data.streams.identity import RESTORE, check_identities, identity_of
from sparse_accel.errors import UsageError, counted, first_line, listed

_BYTES_AT_ONCE = 1 << 16
# Up to this size an error says how many shards would work; the search takes time with the square of the lines.
_SMALL_CORPUS = 1 << 18


class ShardSource(Protocol):
    """The texts of one shard.

    Attributes:
        name: of the shard, for messages.
        resumable: whether `texts` can begin in the middle; otherwise its states are None.
    """

    name: str
    resumable: bool

    def texts(self, state: Any = None) -> Iterator[tuple[Any, str]]:
        """Yields each text, and the state from which reading begins with it. A state of None is the beginning."""
        ...


class Corpus(Protocol):
    """The shards of a stream.

    Attributes:
        name: for messages.
        shards: their number.
        identity: what a resumed run must find unchanged, JSON-able.
    """

    name: str
    shards: int
    identity: Any

    def shard(self, number: int) -> ShardSource:
        """Returns the texts of a shard, from 0."""
        ...

    def check(self, identity: Any) -> None:
        """Raises UsageError if the corpus is not the one that a run began with."""
        ...


# --- text files -------------------------------------------------------------------------------------------------------


class TextFiles:
    """Text files, cut into shards of about equal bytes. A text is a line, or a column of the JSON object in a line.

    The files are one sequence of bytes, in their order. Shard s of S is its range [s * total // S,
    (s + 1) * total // S): a line belongs to the shard in which its first byte lies.

    Args:
        files: paths; those that end in .jsonl have one JSON object a line.
        shards: number of shards.
        column: of the texts in .jsonl files.

    Raises:
        UsageError: a file cannot be used (see `lines.check_text`), or no line begins in the range of a shard.
    """

    def __init__(self, files: Sequence[str], shards: int, column: str | None = None) -> None:
        self.files, self.shards, self.column = list(files), shards, column
        others = f" and {counted(len(self.files) - 1, 'more file')}" if len(self.files) > 1 else ""
        self.name = f"{self.files[0]}{others}"
        for file in self.files:
            check_text(file)
            if _is_json(file) and column is None:
                raise UsageError(f"{file}: the column with the texts must be named.")
        self.identity = [identity_of(file) for file in self.files]
        self._ends = list(accumulate(each["bytes"] for each in self.identity))
        self._starts = self._line_starts()
        for number, (start, end) in enumerate(pairwise(self._starts)):
            if start == end:
                raise UsageError(
                    f"--stream_shards {shards}: no line begins in shard {number} (they count from 0). "
                    f"{listed(self.files, 4)}: {self._ends[-1]:,} bytes in all, with too few lines or too long ones. "
                    f"{self._fewer()}"
                )

    def shard(self, number: int) -> FileShard:
        """Returns the lines of a shard, from 0."""
        start, end = self._starts[number : number + 2]
        parts = []
        for file, before, after in zip(self.files, [0, *self._ends], self._ends, strict=False):
            begin, stop = max(start, before) - before, min(end, after) - before
            if begin < stop:
                parts.append(Part(file, begin, stop, after - before))
        return FileShard(f"shard {number} of {self.shards} ({self._place(start)})", parts, self.column)

    def check(self, identity: Any) -> None:
        """Raises UsageError if a file is not as it was when the run began; the message names it."""
        check_identities(self.files, self.identity, identity)

    def _place(self, position: int) -> str:
        file = bisect_right(self._ends, position)
        return f"{self.files[file]}, from byte {position - ([0, *self._ends][file]):,}"

    def _line_starts(self) -> list[int]:
        """Returns where the first line of each shard begins, and the end of the last one; (shards + 1,)."""
        total, starts = self._ends[-1], [0]
        for number in range(1, self.shards):
            wanted = number * total // self.shards
            # A line longer than a range is passed over once, not once for each range that it covers.
            starts.append(starts[-1] if wanted <= starts[-1] else self._line_start(wanted))
        return [*starts, total]

    def _line_start(self, position: int) -> int:
        """Returns the first byte of a line at or after `position`, over all files; their total if there is none."""
        number = bisect_right(self._ends, position)
        before = [0, *self._ends][number]
        if position == before:
            return position
        try:
            with open(self.files[number], "rb") as stream:
                stream.seek(position - before - 1)
                found = _after_line_feed(stream)
        except OSError as error:
            raise UsageError(f"{self.files[number]} cannot be read: {first_line(error)}") from None
        return self._ends[number] if found is None else before + found

    def _fewer(self) -> str:
        total = self._ends[-1]
        if total > _SMALL_CORPUS:
            return "Set --stream_shards to fewer."
        bases = zip(self.files, [0, *self._ends], strict=False)
        starts = np.array([base + offset for file, base in bases for offset, line in raw_lines(file) if line.strip()])
        # The shard of a byte b is the largest s with s * total // S <= b.
        largest = next(
            shards
            for shards in range(min(self.shards, len(starts)), 0, -1)
            if len(np.unique(((starts + 1) * shards - 1) // total)) == shards
        )
        return f"Set --stream_shards to at most {largest}."


@dataclass(frozen=True)
class Part:
    """The part of a shard in one file: bytes `start` to `stop` of `size`; a line begins at `start`."""

    file: str
    start: int
    stop: int
    size: int


class FileShard:
    """The lines of one range of bytes. Its state is {"part": number of the file in the shard, "offset": in the file}.

    Raises:
        UsageError: while it is read, if a line is no text, or a file does not end where it ended at first.
    """

    resumable = True

    def __init__(self, name: str, parts: Sequence[Part], column: str | None) -> None:
        self.name, self.parts, self.column = name, list(parts), column

    def texts(self, state: Any = None) -> Iterator[tuple[Any, str]]:
        """Yields each text and its state; blank lines are texts, but not in .jsonl files."""
        first, offset = (state["part"], state["offset"]) if state else (0, self.parts[0].start)
        for number, part in enumerate(self.parts[first:], start=first):
            begin = offset if number == first else part.start
            column = self.column if _is_json(part.file) else None
            end = begin
            for line, (start, content) in enumerate(raw_lines(part.file, begin), start=1):
                end = start + len(content)
                if end > part.stop or (end < part.size and not content.endswith(b"\n")):
                    break
                text = text_of(part.file, start, line if begin == 0 else None, content, column)
                if text is not None:
                    yield {"part": number, "offset": start}, text
                if end == part.stop:
                    break
            if end != part.stop:
                raise UsageError(
                    f"{part.file} was changed while it was read: it had {part.size:,} bytes and a line that ended at "
                    f"byte {part.stop:,}, and now one that ends at byte {end:,}. {RESTORE}"
                )


def _after_line_feed(stream: BinaryIO) -> int | None:
    """Returns the place after the next line feed; None if the file ends before, or with it."""
    while piece := stream.read(_BYTES_AT_ONCE):
        found = piece.find(b"\n")
        if found >= 0:
            return stream.tell() - len(piece) + found + 1
    return None


def _is_json(file: str) -> bool:
    return Path(file).suffix.lower() == ".jsonl"


# --- datasets ---------------------------------------------------------------------------------------------------------


class DatasetShards:
    """An iterable dataset of `datasets`: shard s of S has its own shards (files) i with i % S == s.

    Args:
        dataset: rows in a fixed order, not split among processes.
        column: of the texts.
        shards: number of shards.
        name: of the dataset, for messages.

    Raises:
        UsageError: the dataset has fewer own shards, or no such column.
    """

    def __init__(self, dataset: IterableDataset, column: str, shards: int, name: str) -> None:
        known = dataset.column_names
        if known is not None and column not in known:
            raise UsageError(f"{name} has no column '{column}'. Its columns: {listed(known)}.")
        if dataset.num_shards < shards:
            own = counted(dataset.num_shards, "shard")
            raise UsageError(
                f"--stream_shards {shards}: {name} has only {own} of its own (files), and each "
                f"shard of the stream needs one. Set --stream_shards to at most {dataset.num_shards}."
            )
        # The other columns are not decoded.
        self.dataset = dataset if known is None else dataset.select_columns([column])
        self.column, self.shards, self.name = column, shards, name
        self.identity = {"name": name, "own_shards": dataset.num_shards}

    def shard(self, number: int) -> DatasetShard:
        """Returns the texts of a shard, from 0."""
        return DatasetShard(
            f"{self.name}, shard {number} of {self.shards}", self.dataset, self.column, (self.shards, number)
        )

    def check(self, identity: Any) -> None:
        """Raises UsageError if the dataset has another name or number of own shards than when the run began."""
        if identity != self.identity:
            own = counted(self.identity["own_shards"], "shard")
            raise UsageError(
                f"{self.name} with {own} of its own (files) is not what this run began "
                f"with: {identity.get('name')} with {identity.get('own_shards')}. Start a new run in another "
                "--output_dir."
            )


class DatasetShard:
    """The texts of some of a dataset's own shards. Its state is {"row": from 0, "dataset": the dataset's}.

    Args:
        name: for messages.
        dataset: the complete one.
        column: of the texts.
        part: number of shards, and which of them this one is.
    """

    def __init__(self, name: str, dataset: IterableDataset, column: str, part: tuple[int, int]) -> None:
        self.name, self.dataset, self.column, self.part = name, dataset, column, part
        self.resumable = _keeps_state(dataset)

    def texts(self, state: Any = None) -> Iterator[tuple[Any, str]]:
        """Yields each text and its state.

        Raises:
            UsageError: a value is not text, or the dataset raises an error, such as one of the network.
        """
        shards, number = self.part
        # Sharded again for each reading, because a dataset keeps the state that it began with.
        dataset = self.dataset.shard(shards, number, contiguous=False)
        row = 0
        if state is not None:
            row = state["row"]
            dataset.load_state_dict(state["dataset"])
        before = state["dataset"] if state is not None else dataset.state_dict() if self.resumable else None
        try:
            # Not iter(dataset): inside a loader worker, that reads only some of the shards.
            for batch in dataset.iter(batch_size=1):
                if self.column not in batch:
                    raise UsageError(
                        f"{self.name}, row {row + 1}: has no column '{self.column}'. Columns: {listed(batch)}."
                    )
                value = batch[self.column][0]
                if value is not None:  # a row without a text is left out, like a blank one
                    text = checked_text(f"{self.name}, row {row + 1}, column '{self.column}'", value)
                    yield {"row": row, "dataset": before} if self.resumable else None, text
                row += 1
                before = dataset.state_dict() if self.resumable else None
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"{self.name}, row {row + 1} cannot be read: {first_line(error)}. If the cause has passed, the same "
                "command resumes from the last checkpoint."
            ) from error


def _keeps_state(dataset: Any) -> bool:
    """Whether a dataset's state says all of where it is, in JSON: not that of a shuffle buffer, whose rows it lacks."""
    try:
        state = dataset.state_dict()
        if json.loads(json.dumps(state)) != state:
            return False
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    inner = [dataset._ex_iterable]
    while inner:
        step = inner.pop()
        if type(step).__name__ == "BufferShuffledExamplesIterable":
            return False
        inner += [step.ex_iterable] if hasattr(step, "ex_iterable") else getattr(step, "ex_iterables", [])
    return True
