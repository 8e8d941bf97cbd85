"""The endless rows of a shard: windows, passes, and going on from any row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_rows import LineMaker, Packer, take

from sparse_accel.data.streams.order import RowMaker, ShardRows, rows_to_skip
from sparse_accel.errors import UsageError


class Texts:
    """A source in memory that counts the texts it gave."""

    def __init__(self, texts: list[str], resumable: bool = True) -> None:
        self.name, self.all, self.resumable, self.given = "shard 1 of 3 (texts)", texts, resumable, 0

    def texts(self, state: Any = None) -> Iterator[tuple[Any, str]]:
        for number in range(state["text"] if state else 0, len(self.all)):
            self.given += 1
            yield {"text": number} if self.resumable else None, self.all[number]


def shard_of(source: Texts, maker: RowMaker, window: int, state: Any = None, seed: int = 7) -> ShardRows:
    return ShardRows(source, maker, 1, 3, seed, window, json.loads(json.dumps(state)))


def all_rows(texts: list[str], width: int) -> list[dict[str, list[int]]]:
    """The rows of one pass, in the order of the texts."""
    maker = Packer(width)
    return [row for text in texts for row in maker.feed(text)] + maker.flush()


corpora = st.lists(st.text("abcdef", max_size=12), min_size=1, max_size=6)
widths, windows = st.integers(1, 6), st.integers(0, 9)


@given(corpora, widths, windows, st.booleans())
def test_each_pass_has_every_row_once_shuffled_in_windows(
    texts: list[str], width: int, window: int, resumable: bool
) -> None:
    made = all_rows(texts, width)
    rows = shard_of(Texts(texts, resumable), Packer(width), window)
    for epoch in range(3):
        size = max(window, 1)
        for number, start in enumerate(range(0, len(made), size)):
            part = made[start : start + size]
            order = np.random.default_rng([7, epoch, 1, number]).permutation(len(part)) if window else range(len(part))
            expected = [{**part[i], "row_id": (start + i) * 3 + 1, "epoch": epoch} for i in order]
            assert take(rows, len(part)) == expected


@given(corpora, widths, windows, st.booleans(), st.data())
def test_going_on_from_any_row(texts: list[str], width: int, window: int, resumable: bool, data: st.DataObject) -> None:
    """The rows after it are the same, and so is every later state; also after going on twice."""
    count = len(all_rows(texts, width))
    uninterrupted = shard_of(Texts(texts, resumable), Packer(width), window)
    resumed = shard_of(Texts(texts, resumable), Packer(width), window)
    for _ in range(2):
        done = data.draw(st.integers(0, 2 * count))
        assert take(resumed, done) == take(uninterrupted, done)
        state = resumed.state()
        assert state == uninterrupted.state()
        resumed = shard_of(Texts(texts, resumable), Packer(width), window, state)
        assert resumed.state() == state
    assert take(resumed, count + 1) == take(uninterrupted, count + 1)


def test_only_the_current_window_is_read_again() -> None:
    texts = ["abcd"] * 1000  # a row each
    source = Texts(texts)
    rows = shard_of(source, Packer(5), 100)
    take(rows, 950)
    state = rows.state()
    assert (state["window"], state["position"], state["source"]) == (9, 50, {"text": 900})
    again = Texts(texts)
    take(shard_of(again, Packer(5), 100, state), 50)
    assert again.given == 100
    assert rows_to_skip(again, state) == 0


def test_the_state_does_not_grow_with_the_window() -> None:
    texts = ["abcd" * 20] * 500
    sizes = set()
    for window in (1, 100, 400):
        rows = shard_of(Texts(texts), Packer(9), window)
        take(rows, 801)
        sizes.add(len(json.dumps(rows.state())) // 100)
    assert len(sizes) == 1


def test_a_source_without_states_is_read_from_the_beginning_of_the_pass() -> None:
    texts = ["abcd"] * 10
    rows = shard_of(Texts(texts, resumable=False), Packer(5), 4)
    take(rows, 10 + 6)
    state = rows.state()
    again = Texts(texts, resumable=False)
    assert rows_to_skip(again, state) == 4
    assert take(shard_of(again, Packer(5), 4, state), 20) == take(rows, 20)


def test_the_rows_of_the_first_pass_are_known_when_the_second_begins() -> None:
    rows = shard_of(Texts(["a", "", "b", "c"]), LineMaker(), 2)
    take(rows, 3)
    assert rows.state()["first_pass"] is None
    take(rows, 1)
    assert rows.state()["first_pass"] == 3
    take(rows, 5)
    assert (rows.state()["first_pass"], rows.state()["rows"]) == (3, 9)


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_a_shard_without_rows(texts: list[str]) -> None:
    with pytest.raises(UsageError, match=r"shard 1 of 3 \(texts\) gives no row.*--stream_shards to fewer than 3"):
        next(shard_of(Texts(texts), LineMaker(), 2))


@pytest.mark.parametrize("change", ["other text", "fewer", "another maker"])
def test_rows_that_are_not_those_of_the_run(change: str) -> None:
    texts = ["abcd"] * 10
    rows = shard_of(Texts(texts), Packer(5), 4)
    take(rows, 7)
    others = {"other text": [*texts[:5], "abcx", *texts[6:]], "fewer": texts[:5]}.get(change, texts)
    with pytest.raises(UsageError, match=r"up to row \d+ of pass 1 are not those.*--output_dir"):
        shard_of(Texts(others), Packer(3 if change == "another maker" else 5), 4, rows.state())


def test_seeds_and_passes_have_other_orders() -> None:
    def row_ids(seed: int) -> list[int]:
        return [row["row_id"] for row in take(shard_of(Texts(["abcd"] * 20), Packer(5), 20, seed=seed), 40)]

    assert len({tuple(row_ids(seed)[place:][:20]) for seed in (1, 2) for place in (0, 20)}) == 4
