"""Batches for gradient samples: their order is their own, and what a loader cannot do is said."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from loop import gradient_loader
from tiny import make_rows
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
)

from sparse_accel.data.gradient_batches import GradientBatches, rows_of_parts
from sparse_accel.errors import UsageError

NUMBERS: Any = [{"number": torch.tensor(number)} for number in range(10)]


def taken(loader: Any, count: int, *seed: int, **options: Any) -> list[list[int]]:
    """Returns the numbers of the first batches, as a run would draw them."""
    with torch.random.fork_rng():
        batches = islice(GradientBatches(loader).endless(options, *seed), count)
        return [batch["number"].tolist() for batch in batches]


def test_an_order_of_its_own_for_each_draw() -> None:
    loader = DataLoader(NUMBERS, batch_size=4, shuffle=True)
    first = taken(loader, 6, 0, 1)
    assert [len(batch) for batch in first] == [4, 4, 2] * 2  # epoch after epoch, without end
    assert sorted(chain(*first[:3])) == sorted(chain(*first[3:])) == list(range(10))
    torch.manual_seed(99)
    list(loader)  # what the run did before does not matter
    assert taken(loader, 6, 0, 1) == first
    draws = [first[:3], first[3:], taken(loader, 3, 0, 2), taken(loader, 3, 1, 1), taken(loader, 3, 5, 1)]
    assert len({str(draw) for draw in draws}) == 5


def test_a_loader_that_does_not_shuffle_is_shuffled_too() -> None:
    batches = taken(DataLoader(NUMBERS, batch_size=10), 3, 0)
    assert len({str(batch) for batch in batches}) == 3 and sorted(batches[0]) == list(range(10))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_itself_is_not_moved(workers: int) -> None:
    generator = torch.Generator().manual_seed(4)
    loader = DataLoader(NUMBERS, 3, sampler=WeightedRandomSampler([1.0] * 10, 10, generator=generator))
    before, ours = generator.get_state(), torch.get_rng_state()
    first = taken(loader, 4, 0, num_workers=workers)
    assert torch.equal(generator.get_state(), before) and torch.equal(torch.get_rng_state(), ours)
    assert taken(loader, 4, 0) == first != taken(loader, 4, 1)


def test_options_replace_those_of_the_loader() -> None:
    loader = DataLoader(NUMBERS, batch_size=4)
    assert [len(batch) for batch in taken(loader, 4, 0, batch_size=3)] == [3, 3, 3, 1]
    assert [len(batch) for batch in taken(loader, 4, 0, batch_size=3, drop_last=True)] == [3, 3, 3, 3]
    batches = GradientBatches(loader)
    assert (batches.batch_size({}), batches.batch_size({"batch_size": 7}), batches.rows) == (4, 7, 10)
    with pytest.raises(UsageError, match="the data has 10 rows, so with drop_last there is no batch of 16"):
        batches.batch_size({"batch_size": 16, "drop_last": True})


class OwnBatches(BatchSampler):
    """Batches of 2 and 3 rows, in an order by the epoch that was set."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(10, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        for start in range(0, 10, 5):
            yield order[start : start + 2]
            yield order[start + 2 : start + 5]


def test_a_batch_sampler_of_ones_own() -> None:
    loader = DataLoader(NUMBERS, batch_sampler=OwnBatches(RandomSampler(NUMBERS), 2, False))
    batches = taken(loader, 8, 0)
    assert [len(batch) for batch in batches] == [2, 3, 2, 3] * 2 and batches[:4] != batches[4:]
    with pytest.raises(
        UsageError, match="batch_size cannot be changed, because gradient_loader makes its batches by its"
    ):
        GradientBatches(loader).batch_size({"batch_size": 4})


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(NUMBERS)


def test_a_stream_keeps_its_order() -> None:
    loader = DataLoader(Stream(), batch_size=4)
    assert taken(loader, 4, 0) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]
    assert GradientBatches(loader).rows is None and GradientBatches(loader).batch_size({}) == 4
    with pytest.raises(UsageError, match="batch_size cannot be changed, because gradient_loader streams its rows"):
        GradientBatches(loader).batch_size({"batch_size": 8})


def test_the_rows_of_a_script() -> None:
    batch = next(GradientBatches(gradient_loader(make_rows(10))).endless({}, 0))
    assert batch.keys() >= {"input_ids", "attention_mask", "labels", "row_id"} and len(batch["labels"]) == 8


def test_loaders_that_cannot_be_used() -> None:
    prepared = Accelerator(cpu=True).prepare_data_loader(DataLoader(NUMBERS, batch_size=4))
    with pytest.raises(UsageError, match=r"prepared by Accelerate, .* pass the loader as it was before"):
        GradientBatches(prepared)
    with pytest.raises(UsageError, match="expected a torch DataLoader, got list"):
        GradientBatches(NUMBERS)
    shared = DataLoader(NUMBERS, sampler=DistributedSampler(NUMBERS, num_replicas=2, rank=0))
    with pytest.raises(UsageError, match="DistributedSampler gives each process other rows"):
        GradientBatches(shared)
    with pytest.raises(UsageError, match="expected batches that are dicts of tensors, got list"):
        next(GradientBatches(DataLoader(NUMBERS, collate_fn=list)).endless({}, 0))

    def uneven(rows: Any) -> dict[str, Tensor]:
        return {"a": torch.zeros(2), "b": torch.zeros(3)}

    with pytest.raises(UsageError, match=r"different numbers of rows: a \(2,\), b \(3,\)"):
        next(GradientBatches(DataLoader(NUMBERS, collate_fn=uneven)).endless({}, 0))


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.one_of(st.none(), st.integers(1, 20)))
def test_each_row_is_in_one_part_and_each_process_has_as_many(rows: int, processes: int, most: int | None) -> None:
    parts = [list(range(rows))[part] for part in rows_of_parts(rows, processes, most)]
    assert sorted(chain(*parts)) == list(range(rows))
    assert len(parts) % processes == 0 and (most is None or max(map(len, parts)) <= most)


def test_two_processes_have_the_parts_that_one_has() -> None:
    assert rows_of_parts(16, 1, 4) == rows_of_parts(16, 2, 4) == rows_of_parts(16, 4, 4)
