"""Streams of rows in tests: makers of rows from texts, a collator, and the rows of some steps in any layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparse_accel.data.streams.layout import Layout
from sparse_accel.data.streams.loading import Stream, StreamLoader, gathered

PADDING = {"input_ids": -1, "attention_mask": 0}


class LineMaker:
    """A row for each text that is not blank: its code points."""

    def feed(self, text: str) -> list[dict[str, list[int]]]:
        return [{"input_ids": [ord(sign) for sign in text]}] if text.strip() else []

    def flush(self) -> list[dict[str, list[int]]]:
        return []

    def state(self) -> None:
        return None

    def restore(self, state: None) -> None:
        assert state is None


class Packer:
    """Rows of `width` code points of all texts, with a 0 after each text; the last of a pass may be shorter."""

    def __init__(self, width: int = 5) -> None:
        self.width, self.pending = width, list[int]()

    def feed(self, text: str) -> list[dict[str, list[int]]]:
        self.pending += [*map(ord, text), 0]
        rows = []
        while len(self.pending) >= self.width:
            rows.append({"input_ids": self.pending[: self.width]})
            self.pending = self.pending[self.width :]
        return rows

    def flush(self) -> list[dict[str, list[int]]]:
        rest, self.pending = self.pending, []
        return [{"input_ids": rest}] if rest else []

    def state(self) -> list[int]:
        return list(self.pending)

    def restore(self, state: list[int]) -> None:
        self.pending = list(state)


def collate(columns: dict[str, list[Any]]) -> dict[str, Tensor]:
    """Pads the rows with -1, which is no code point."""
    rows = [torch.tensor(ids) for ids in columns["input_ids"]]
    ids = pad_sequence(rows, batch_first=True, padding_value=-1)
    numbers = {name: torch.tensor(columns[name]) for name in ("row_id", "epoch")}
    return {"input_ids": ids, "attention_mask": (ids >= 0).long(), **numbers}


def rows_in(batch: dict[str, Tensor]) -> list[tuple[int, int, list[int]]]:
    """The rows of a batch without padding: (epoch, row_id, input_ids)."""
    masks = batch["attention_mask"].bool()
    ids = [row[mask].tolist() for row, mask in zip(batch["input_ids"], masks, strict=True)]
    return list(zip(batch["epoch"].tolist(), batch["row_id"].tolist(), ids, strict=True))


def steps_of(
    stream: Stream,
    batch_size: int,
    steps: int,
    state: dict[str, Any] | None = None,
    *,
    processes: int = 1,
    workers: int = 0,
    accumulation: int = 1,
) -> tuple[list[list[tuple[int, int, list[int]]]], dict[str, Any]]:
    """The rows of each global batch, sorted, and the state after the last one, as a checkpoint holds it."""
    batches: list[list[Any]] = [[] for _ in range(steps)]
    states = []
    for process in range(processes):
        layout = Layout(stream.corpus.shards, batch_size, processes, process, workers, accumulation)
        loader = StreamLoader(stream, layout, collate, padding=PADDING)
        if state is not None:
            loader.load_state_dict(state)
        for step, micro_batches in enumerate(islice(loader, steps)):
            assert len(micro_batches) == accumulation
            for micro_batch in micro_batches:
                assert len(micro_batch["row_id"]) == batch_size // (processes * accumulation)
                batches[step] += rows_in(micro_batch)
        states.append(loader.state_dict())
    return [sorted(batch) for batch in batches], json.loads(json.dumps(gathered(states)))


def take(rows: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The next rows."""
    return list(islice(rows, count))
