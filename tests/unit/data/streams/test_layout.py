"""How shards are divided among processes and workers."""

from __future__ import annotations

import math
import re
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_accel.data.streams.layout import Layout
from sparse_accel.errors import UsageError

numbers = st.integers(1, 6)


@given(numbers, numbers, st.integers(0, 4), numbers, numbers)
def test_each_shard_has_one_reader_and_each_micro_batch_the_same_rows(
    processes: int, shards_per_reader: int, workers: int, accumulation: int, rows: int
) -> None:
    readers = max(workers, 1)
    shards = processes * readers * shards_per_reader
    batch_size = math.lcm(shards, processes * accumulation) * rows
    layouts = [Layout(shards, batch_size, processes, process, workers, accumulation) for process in range(processes)]
    own = [layout.own_of(worker) for layout in layouts for worker in range(readers)]
    assert sorted(chain.from_iterable(own)) == list(range(shards))
    for layout in layouts:
        parts = [layout.parts_of(worker) for worker in range(readers)]
        assert all(sum(each) == shards_per_reader * layout.rows_per_shard for each in parts)
        assert {sum(each) for each in zip(*parts, strict=True)} == {batch_size // (processes * accumulation)}
        for worker in range(readers):
            for shard in layout.own_of(worker):
                number = layout.micro_batch_of(shard) * processes + layout.process
                assert not layout.micro_batches_have_shards or shard % (processes * accumulation) == number
                assert (shard % processes, shard // processes % readers) == (layout.process, worker)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"shards": 2, "batch_size": 16, "processes": 4}, ["fewer shards than processes (4)", "to 4."]),
        ({"shards": 6, "batch_size": 48, "processes": 2, "workers": 2}, ["multiple of 4", "to 4 or 8."]),
        ({"shards": 5, "batch_size": 16}, ["divide", "16 rows", "to 4 or 8."]),
        ({"shards": 32, "batch_size": 16}, ["divide", "16 rows", "to 16."]),
        ({"shards": 0, "batch_size": 16}, ["fewer", "to 1."]),
        ({"shards": 12, "batch_size": 8, "processes": 2, "workers": 3}, ["--dataloader_num_workers to 2 or 4."]),
    ],
)
def test_numbers_that_do_not_fit(numbers: dict[str, int], words: list[str]) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--stream_shards {numbers['shards']}")) as caught:
        Layout(**numbers)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@given(st.integers(1, 64), st.integers(1, 40), st.integers(1, 4), st.integers(0, 3))
def test_what_an_error_proposes_works(shards: int, per_process: int, processes: int, workers: int) -> None:
    batch_size = per_process * processes
    try:
        Layout(shards, batch_size, processes, 0, workers)
    except UsageError as error:
        proposed = re.findall(r"\d+", str(error).split(" to ")[-1])
        assert proposed
        for value in map(int, proposed):
            if "--dataloader_num_workers to" in str(error):
                Layout(processes * value, batch_size, processes, 0, value)
            else:
                Layout(value, batch_size, processes, 0, workers)


def test_a_batch_that_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="9 rows"):
        Layout(shards=3, batch_size=9, accumulation=2)
