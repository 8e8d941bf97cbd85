"""Batches: every row once an epoch, the same global batches however they are split, marked fillers, padding."""

from __future__ import annotations

import copy
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from tiny import make_rows, make_tokenizer

from sparse_accel.data.batches import (
    Collator,
    GlobalBatchSampler,
    Rows,
    inputs_of,
    make_loader,
    split_rows,
    teacher_inputs_of,
)

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=300)
SIZES = st.integers(1, 9)
SPLITS = st.sampled_from([1, 2, 3, 4])


def global_batches(sampler: GlobalBatchSampler) -> list[list[list[int]]]:
    """The micro-batches of each step."""
    batches = list(sampler)
    assert len(batches) == sampler.steps * sampler.splits
    return [batches[start : start + sampler.splits] for start in range(0, len(batches), sampler.splits)]


def real(batch: list[list[int]]) -> list[int]:
    return sorted(row for part in batch for row in part if row >= 0)


@given(LENGTHS, SIZES, SPLITS, st.none() | st.integers(0, 5), st.integers(0, 3))
def test_every_row_once_an_epoch(lengths: list[int], size: int, splits: int, seed: int | None, epoch: int) -> None:
    sampler = GlobalBatchSampler(lengths, size, splits, seed)
    sampler.epoch = epoch
    batches = global_batches(sampler)
    assert sorted(row for batch in batches for row in real(batch)) == list(range(len(lengths)))
    assert [len(real(batch)) for batch in batches] == [sampler.rows_in_step(step) for step in range(sampler.steps)]
    assert all(len(real(batch)) == size * splits for batch in batches[:-1])  # only the last one is short
    assert len(sampler) == sampler.steps * splits and sampler.global_batch_size == size * splits
    for batch in batches:
        assert len(batch) == splits and all(batch)  # no process is left without a row: a filler, if need be
        assert all(-1 - row in real(batch) for part in batch for row in part if row < 0)


@given(LENGTHS, st.integers(0, 5), st.integers(0, 3))
def test_a_step_sees_the_same_rows_however_it_is_split(lengths: list[int], seed: int, epoch: int) -> None:
    found = []
    for splits in (1, 2, 4):
        sampler = GlobalBatchSampler(lengths, 8 // splits, splits, seed)
        sampler.epoch = epoch
        found.append([real(batch) for batch in global_batches(sampler)])
    assert found[0] == found[1] == found[2]


@given(LENGTHS, SIZES, SPLITS, st.integers(0, 5), st.data())
def test_a_resumed_epoch_goes_on_where_it_was(
    lengths: list[int], size: int, splits: int, seed: int, data: st.DataObject
) -> None:
    sampler = GlobalBatchSampler(lengths, size, splits, seed)
    whole = list(sampler)
    first = data.draw(st.integers(0, sampler.steps))
    sampler.first_step = first
    assert list(sampler) == whole[first * splits :]
    assert list(sampler) == whole  # the next pass starts at the beginning again


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = GlobalBatchSampler([3] * 40, 4, 1, seed)
        sampler.epoch = epoch
        return [int(row) for row in sampler.order()]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(found) for found in orders}) == 4
    assert order(1, 1) == orders[3]


def test_rows_of_like_lengths_share_a_batch_and_batches_come_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 801)
    sampler = GlobalBatchSampler(list(lengths), 8, 1, seed=0)
    batches = [[int(lengths[row]) for row in batch] for batch in sampler]
    spread = [max(batch) - min(batch) for batch in batches[:-1]]
    assert np.mean(spread) < 5 and len(batches[-1]) == 1
    longest = [max(batch) for batch in batches]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_evaluation_shows_the_longest_rows_first() -> None:
    lengths = [3, 9, 1, 9, 5]
    assert list(GlobalBatchSampler(lengths, 2, 1, seed=None)) == [[1, 3], [4, 0], [2]]


def test_rows_are_dealt_out_evenly() -> None:
    assert split_rows([5, 6, 7, 8, 9], 2) == [[5, 7, 9], [6, 8]]
    assert split_rows([5], 3) == [[5], [-6], [-6]]
    assert split_rows([0, 4], 4) == [[0], [4], [-1], [-1]]


# --- rows and tensors -------------------------------------------------------------------------------------------------


def test_rows_carry_their_numbers_and_fillers_are_marked() -> None:
    rows = Rows(make_rows(5))
    batch = rows.__getitems__([3, 0, -4])  # the last: row 3 as a filler
    assert batch["row_id"] == [3, 0, -1]
    assert batch["input_ids"][0] == batch["input_ids"][2] == make_rows(5)[3]["input_ids"]
    assert rows[4] == {**make_rows(5)[4], "row_id": 4} and len(rows) == 5
    assert Rows(make_rows(5)).__getitems__([-1])["row_id"] == [-1]


@pytest.mark.parametrize(
    ("settings", "tokens"), [({}, 9), ({"multiple": 8}, 16), ({"length": 20}, 20), ({"length": 20, "multiple": 8}, 24)]
)
def test_batches_are_padded(settings: dict[str, Any], tokens: int) -> None:
    texts = make_tokenizer()(["good film", "the bad plot is a terrible movie", "fine"])
    columns = {**texts, "labels": [1, 0, 1], "row_id": [4, 2, -1]}
    batch = Collator(make_tokenizer(), **settings)(columns)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels", "row_id"}
    assert all(batch[name].shape == (3, tokens) for name in ("input_ids", "token_type_ids", "attention_mask"))
    assert batch["attention_mask"].sum(1).tolist() == [len(ids) for ids in texts["input_ids"]]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    assert batch["labels"].tolist() == [1, 0, 1] and batch["row_id"].tolist() == [4, 2, -1]


@pytest.mark.parametrize(
    ("labels", "dtype", "shape"),
    [([1, 0], torch.int64, (2,)), ([1.5, 0.0], torch.float32, (2,)), ([[1.0, 0.0], [0.0, 0.0]], torch.float32, (2, 2))],
)
def test_labels_keep_their_kind(labels: list[Any], dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    batch = Collator(make_tokenizer())({**make_tokenizer()(["good", "bad"]), "labels": labels, "row_id": [0, 1]})
    assert batch["labels"].dtype == dtype and batch["labels"].shape == shape


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_reads_the_sampler_anew_in_every_pass_and_leaves_the_global_generator(workers: int) -> None:
    rows = make_rows(11)
    sampler = GlobalBatchSampler([len(ids) for ids in rows["input_ids"]], 2, 2, seed=0)
    loader = make_loader(rows, sampler, Collator(make_tokenizer()), workers=workers)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    passes = []
    for epoch, first in ((0, 0), (1, 0), (1, 2)):
        sampler.epoch, sampler.first_step = epoch, first
        passes.append([batch["row_id"].tolist() for batch in loader])
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(row for batch in passes[0] for row in batch) == list(range(11))
    assert passes[0] != passes[1] and passes[2] == passes[1][2 * 2 :]


# --- a teacher with another tokenizer ---------------------------------------------------------------------------------


def test_a_teacher_with_another_tokenizer_has_its_own_columns() -> None:
    """They are padded by its tokenizer, to its own number of tokens, and are no inputs of the model."""
    own = copy.deepcopy(make_tokenizer())
    own.padding_side = "left"
    rows = {**make_rows(4)[:], "row_id": [0, 1, 2, 3]}
    plain = Collator(make_tokenizer())(dict(rows))
    ids = [[2, 7, 3], [2, 3], [2, 7, 8, 9, 3], [2, 3]]
    columns = {"teacher_input_ids": ids, "teacher_attention_mask": [[1] * len(each) for each in ids]}
    batch = Collator(make_tokenizer(), teacher_tokenizer=own)({**rows, **columns})
    assert batch["teacher_input_ids"][1].tolist() == [0, 0, 0, 2, 3]
    assert batch["teacher_attention_mask"].sum(dim=1).tolist() == [3, 2, 5, 2]
    assert all(torch.equal(batch[name], value) for name, value in plain.items())
    assert inputs_of(batch).keys() == inputs_of(plain).keys()
    assert teacher_inputs_of(batch).keys() == {"input_ids", "attention_mask"}
    assert teacher_inputs_of(plain).keys() == inputs_of(plain).keys()


def test_columns_that_only_answers_need_are_in_no_batch() -> None:
    """Offsets of all tokens would be padded and moved to the device in every step."""
    columns = {"input_ids": [[2, 3], [2, 4, 3]], "labels": [[0, 1], [0, 0]], "question_row": [0, 1]}
    answers: dict[str, Any] = {"offsets": [[[0, 1]] * 2, [[0, 1]] * 3], "context_mask": [[0, 1], [0, 1, 1]]}
    dataset = Dataset.from_dict(columns | answers | {"no_answer": [0, 0]})
    rows = Rows(dataset)
    assert rows.__getitems__([0, -2]).keys() == rows[1].keys() == {"input_ids", "labels", "row_id"}
    assert dataset.column_names[-1] == "no_answer" and len(rows) == 2
