"""Masking is a pure function of its counters: equal to a slow one in plain Python, and the same in any batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from sparse_accel.nn.losses import IGNORED
from sparse_accel.tasks.masked_language_modeling.masking import (
    NO_WORD,
    chosen_counts,
    chosen_tokens,
    mask_tokens,
    masked_counts,
    splitmix64,
)

MASK, RANDOM_IDS = 4, torch.arange(5, 30)
# Two special tokens, six tokens of four words, a special token, padding.
ROW = [NO_WORD, 0, 0, 1, 2, 2, 2, NO_WORD, 3, 3, NO_WORD]


def masked(words: Tensor, row_id: Tensor, *, whole_words: bool = False, **others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Ids before and after masking, and labels."""
    ids = torch.where(words == NO_WORD, 3, 5 + torch.arange(words.numel()).reshape(words.shape) % 25)
    options: dict[str, Any] = {"seed": 7, "epoch": 0, "probability": 0.15, "mask_id": MASK, "random_ids": RANDOM_IDS}
    options |= {"words": words if whole_words else None, **others}
    return ids, *mask_tokens(ids, words != NO_WORD, row_id, **options)


def single_tokens(rows: int, tokens: int) -> Tensor:
    return torch.arange(tokens).repeat(rows, 1)


# --- a slow version ---------------------------------------------------------------------------------------------------


def slow_mix(state: int, index: int = 0) -> int:
    """splitmix64.c, in unsigned integers."""
    bits = (1 << 64) - 1
    value = (state + (index + 1) * 0x9E3779B97F4A7C15) & bits
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & bits
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & bits
    return value ^ (value >> 31)


def slow_number(seed: int, epoch: int, stream: int, row: int, index: int) -> int:
    key = 0
    for part in (seed, epoch, stream, row):
        key = slow_mix(key ^ (part & ((1 << 64) - 1)))
    return slow_mix(key, index) >> 2


def slow_chosen(words: Sequence[int], whole: bool, seed: int, epoch: int, row: int, probability: float) -> list[int]:
    """The places of the chosen tokens of a row, as create_pretraining_data.py looks for them."""
    units: list[list[int]] = []
    for place, word in enumerate(words):
        if word == NO_WORD:
            continue
        if whole and units and place > 0 and words[place - 1] == word:
            units[-1].append(place)
        else:
            units.append([place])
    number = sum(map(len, units))
    count = max(1, round(probability * number)) if number else 0
    order = sorted(range(len(units)), key=lambda unit: slow_number(seed, epoch, 0, row, unit))
    chosen: list[int] = []
    for unit in order:
        if len(chosen) >= count:
            break
        if len(chosen) + len(units[unit]) <= count:
            chosen += units[unit]
    if not chosen and units:
        chosen = units[order[0]]
    return sorted(chosen)


def slow_masked(
    ids: Sequence[int], words: Sequence[int], chosen: list[int], seed: int, epoch: int, row: int
) -> list[int]:
    position, result = 0, list(ids)
    for place, word in enumerate(words):
        if word == NO_WORD:
            continue
        if place in chosen:
            tenth = slow_number(seed, epoch, 1, row, position) % 10
            if tenth < 8:
                result[place] = MASK
            elif tenth == 8:
                result[place] = int(RANDOM_IDS[slow_number(seed, epoch, 2, row, position) % len(RANDOM_IDS)])
        position += 1
    return result


ROWS = st.lists(
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=12).map(
        lambda parts: [
            number if is_word else NO_WORD for number, (size, is_word) in enumerate(parts) for _ in range(size)
        ]
    ),
    min_size=1,
    max_size=5,
)
SETTINGS = {
    "rows": ROWS,
    "whole": st.booleans(),
    "seed": st.integers(0, 2**63 - 1),
    "epoch": st.integers(0, 1000),
    "first_row": st.sampled_from([0, 5, 2**40]),
    "probability": st.sampled_from([0.01, 0.15, 0.3, 0.5, 1.0]),
}


@settings(deadline=None)
@given(**SETTINGS, side=st.sampled_from(["left", "right"]), padding=st.integers(0, 5))
def test_equals_the_slow_version_in_any_batch(
    rows: list[list[int]],
    whole: bool,
    seed: int,
    epoch: int,
    first_row: int,
    probability: float,
    side: str,
    padding: int,
) -> None:
    width = max(map(len, rows)) + padding

    def padded(values: Sequence[int], filler: int) -> list[int]:
        more = [filler] * (width - len(values))
        return [*values, *more] if side == "right" else [*more, *values]

    ids = [
        [5 + (3 * place + row) % 25 if word >= 0 else 3 for place, word in enumerate(each)]
        for row, each in enumerate(rows)
    ]
    words = torch.tensor([padded(each, NO_WORD) for each in rows])
    found, labels = mask_tokens(
        torch.tensor([padded(each, 0) for each in ids]),
        words != NO_WORD,
        first_row + torch.arange(len(rows)),
        seed=seed,
        epoch=epoch,
        probability=probability,
        mask_id=MASK,
        random_ids=RANDOM_IDS,
        words=words if whole else None,
    )
    for row, own in enumerate(rows):
        chosen = slow_chosen(own, whole, seed, epoch, first_row + row, probability)
        assert found[row].tolist() == padded(slow_masked(ids[row], own, chosen, seed, epoch, first_row + row), 0)
        own_labels = [ids[row][place] if place in chosen else IGNORED for place in range(len(own))]
        assert labels[row].tolist() == padded(own_labels, IGNORED)


# --- fixed numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]),
    ],
)
def test_splitmix64(state: int, expected: list[int]) -> None:
    """Numbers that implementations of it are usually checked against."""
    found = splitmix64(torch.tensor(state), torch.arange(len(expected)))
    assert [value % 2**64 for value in found.tolist()] == expected


def test_a_masked_row() -> None:
    """Checkpoints depend on it: a run that resumes must mask what it would have masked."""
    ids, found, labels = masked(torch.tensor([ROW, ROW]), torch.tensor([0, 1]), probability=0.5, seed=42, epoch=3)
    assert found.tolist() == [[3, 6, 7, 8, 4, 4, 4, 3, 13, 4, 3], [3, 17, 18, 4, 20, 21, 22, 3, 5, 29, 3]]
    assert [(row != IGNORED).nonzero().flatten().tolist() for row in labels] == [[4, 5, 6, 9], [3, 5, 8, 9]]
    assert torch.where(labels == IGNORED, found, labels).tolist() == ids.tolist()
    _, found, _ = masked(torch.tensor([ROW]), torch.tensor([9]), whole_words=True, probability=0.5, seed=42, epoch=3)
    assert found.tolist() == [[3, 4, 4, 8, 9, 10, 11, 3, 4, 4, 3]]


# --- how many ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10_000), max_size=20), st.floats(0.001, 1.0))
def test_counts_are_rounded_as_in_python(numbers: list[int], probability: float) -> None:
    expected = [max(1, round(probability * number)) if number else 0 for number in numbers]
    array = np.asarray(numbers, dtype=np.int32)
    assert masked_counts(array, probability).tolist() == expected
    assert masked_counts(array, probability).dtype == np.int64
    assert masked_counts(torch.from_numpy(array), probability).tolist() == expected


def test_halves_are_rounded_to_even_numbers() -> None:
    assert masked_counts(np.array([0, 1, 3, 10, 30, 90]), 0.15).tolist() == [0, 1, 1, 2, 4, 14]


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.01, float("nan")])
def test_a_probability_out_of_its_range(probability: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        masked_counts(np.array([3]), probability)


@settings(deadline=None)
@given(rows=ROWS, whole=st.booleans(), epoch=st.integers(0, 50), probability=st.sampled_from([0.15, 0.4, 1.0]))
def test_counts_of_rows(rows: list[list[int]], whole: bool, epoch: int, probability: float) -> None:
    found = chosen_counts(rows, seed=3, epoch=epoch, probability=probability, whole_words=whole)
    assert found.dtype == np.int64
    assert found.tolist() == [len(slow_chosen(own, whole, 3, epoch, row, probability)) for row, own in enumerate(rows)]
    if not whole:
        maskable = np.array([sum(word != NO_WORD for word in row) for row in rows])
        assert (found == masked_counts(maskable, probability)).all()


@pytest.mark.parametrize("whole", [False, True])
def test_counts_of_more_rows_than_are_taken_at_once(whole: bool) -> None:
    rows = [[row % 2, 2, 2, 3, 4, 4, 4] for row in range(2100)]
    found = chosen_counts(rows, seed=3, epoch=1, probability=0.4, whole_words=whole)
    assert found.tolist() == [len(slow_chosen(own, whole, 3, 1, row, 0.4)) for row, own in enumerate(rows)]
    assert chosen_counts([], seed=3, epoch=1, probability=0.4, whole_words=whole).tolist() == []


# --- whole words ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(ROWS, st.integers(0, 100), st.sampled_from([0.05, 0.15, 0.5, 1.0]))
def test_words_are_whole(rows: list[list[int]], epoch: int, probability: float) -> None:
    for row, words in enumerate(rows):
        own = torch.tensor([words])
        chosen = chosen_tokens(own >= 0, torch.tensor([row]), seed=1, epoch=epoch, probability=probability, words=own)[
            0
        ]
        maskable = int((own >= 0).sum())
        for word in {*words} - {NO_WORD}:
            assert chosen[own[0] == word].unique().numel() == 1
        count, found = int(masked_counts(np.array(maskable), probability)), int(chosen.sum())
        assert (found == 0) == (maskable == 0)
        if found > count:
            assert (
                own[0][chosen].unique().numel() == 1 and min(words.count(word) for word in words if word >= 0) > count
            )
        if probability == 1.0:
            assert found == maskable


def test_neighbouring_words_and_cut_words_stay_apart() -> None:
    """A special token cuts a run: the parts are two words."""
    words = torch.tensor([[0, 0, NO_WORD, 0, 0, 1, 1]]).repeat(200, 1)
    chosen = chosen_tokens(words >= 0, torch.arange(200), seed=1, epoch=0, probability=0.33, words=words)
    assert {tuple(row) for row in chosen.int().tolist()} == {
        (1, 1, 0, 0, 0, 0, 0),
        (0, 0, 0, 1, 1, 0, 0),
        (0, 0, 0, 0, 0, 1, 1),
    }


def test_tokens_that_are_not_masked_may_have_a_word() -> None:
    """They cut it as a special token does, also at its beginning."""
    words = torch.tensor([[0, 0, 1, 1, 1, 1, 1]]).repeat(200, 1)
    maskable = torch.tensor([[True, True, False, True, True, False, True]]).repeat(200, 1)
    chosen = chosen_tokens(maskable, torch.arange(200), seed=1, epoch=0, probability=0.4, words=words)
    assert {tuple(row) for row in chosen.int().tolist()} == {
        (1, 1, 0, 0, 0, 0, 0),
        (0, 0, 0, 1, 1, 0, 0),
        (0, 0, 0, 0, 0, 0, 1),
    }


# --- what changes, and what does not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
def test_seeds_epochs_and_rows_differ(whole: bool) -> None:
    words = single_tokens(3, 64)
    rows = torch.tensor([0, 1, 1_000_000])
    seen = set()
    for seed in range(3):
        for epoch in range(3):
            _, _, labels = masked(words, rows, seed=seed, epoch=epoch, whole_words=whole)
            seen |= {tuple(row) for row in (labels != IGNORED).int().tolist()}
            assert ((labels != IGNORED).sum(dim=1) == 10).all()
    assert len(seen) == 27


def test_an_epoch_for_each_row() -> None:
    words, rows = single_tokens(4, 40), torch.tensor([3, 3, 8, 3])
    together = masked(words, rows, epoch=torch.tensor([0, 5, 5, 0]))
    for row, epoch in enumerate((0, 5, 5, 0)):
        ids = together[0][row : row + 1]
        alone = mask_tokens(
            ids,
            torch.ones_like(ids, dtype=torch.bool),
            rows[row : row + 1],
            seed=7,
            epoch=epoch,
            probability=0.15,
            mask_id=MASK,
            random_ids=RANDOM_IDS,
        )
        assert alone[0].equal(together[1][row : row + 1]) and alone[1].equal(together[2][row : row + 1])


def test_fillers_have_no_labels() -> None:
    words = single_tokens(2, 40)
    ids, found, labels = masked(words, torch.tensor([2, -1]))
    assert (labels[0] != IGNORED).sum() == 6 and (labels[1] == IGNORED).all()
    assert not found[1].equal(ids[1])  # masked as any row: it costs the same, and its loss is not that of a copy
    assert masked(words[:1], torch.tensor([2]))[1][0].equal(found[0])


def test_inputs_are_not_changed() -> None:
    words = torch.tensor([ROW])
    before = words.clone()
    ids = torch.full_like(words, 9)
    mask_tokens(
        ids,
        words >= 0,
        torch.tensor([0]),
        seed=0,
        epoch=0,
        probability=1.0,
        mask_id=MASK,
        random_ids=RANDOM_IDS,
        words=words,
    )
    assert words.equal(before) and (ids == 9).all()


def test_a_row_without_tokens_to_mask() -> None:
    for whole in (False, True):
        words = torch.tensor([[NO_WORD] * 4, [NO_WORD, 0, NO_WORD, NO_WORD]])
        ids, found, labels = masked(words, torch.tensor([0, 1]), whole_words=whole)
        assert found[0].equal(ids[0]) and (labels[0] == IGNORED).all()
        assert labels[1].tolist() == [IGNORED, int(ids[1, 1]), IGNORED, IGNORED]


def test_no_random_ids() -> None:
    with pytest.raises(ValueError, match="random_ids is empty"):
        masked(torch.tensor([ROW]), torch.tensor([0]), random_ids=RANDOM_IDS[:0])


# --- statistics -------------------------------------------------------------------------------------------------------

# 400,000 tokens of rows whose length is no round number.
MANY = single_tokens(4000, 101)


def test_special_tokens_are_never_masked_and_only_allowed_tokens_are_put_in() -> None:
    words = MANY.clone()
    words[:, [0, 50, 100]] = NO_WORD
    allowed = torch.tensor([5, 11, 29])
    ids, found, labels = masked(words, torch.arange(4000), random_ids=allowed)
    special = words == NO_WORD
    assert found[special].equal(ids[special]) and (labels[special] == IGNORED).all()
    changed = found[(found != ids) & (found != MASK)]
    assert sorted(changed.unique().tolist()) == allowed.tolist()
    assert ((labels != IGNORED).sum(dim=1) == 15).all()


def test_eighty_ten_ten() -> None:
    """A random token is the original in 1 of 25 cases."""
    ids, found, labels = masked(MANY, torch.arange(4000))
    chosen = labels != IGNORED
    before, after = ids[chosen], found[chosen]
    assert labels[chosen].equal(before) and found[~chosen].equal(ids[~chosen])
    counts = [int((after == MASK).sum()), int((after == before).sum())]
    counts.append(len(after) - sum(counts))
    expected = np.array([0.8, 0.1 + 0.1 / 25, 0.1 * 24 / 25]) * len(after)
    assert len(after) == 60_000 and chisquare(counts, expected).pvalue > 0.01
    others = after[(after != MASK) & (after != before)]
    assert chisquare(torch.bincount(others - 5, minlength=25).numpy()).pvalue > 0.01


def test_positions_are_equally_likely_and_outcomes_independent_of_them() -> None:
    _, found, labels = masked(MANY, torch.arange(4000), epoch=2)
    chosen = labels != IGNORED
    # Without replacement in a row, so the statistic is smaller than that of independent draws by 86/100.
    assert chisquare(chosen.sum(dim=0).numpy()).statistic * 100 / 86 < 135.8  # 1% of chi-square with 100 degrees
    masks = (found == MASK).sum(dim=0).double()
    expected = 0.8 * chosen.sum(dim=0).double()
    assert float(((masks - expected) ** 2 / (expected * 0.2)).sum()) < 136.9  # 1% with 101 degrees of freedom


def test_epochs_are_independent() -> None:
    """Tokens that two epochs mask both: a hypergeometric number in each row, mean 15 * 15 / 101."""
    first, second = ((masked(MANY, torch.arange(4000), epoch=epoch)[2] != IGNORED) for epoch in (0, 1))
    both = (first & second).sum(dim=1).double()
    mean, variance = 225 / 101, 225 / 101 * (86 / 101) * (86 / 100)
    assert abs(float(both.mean()) - mean) < 2.6 * (variance / 4000) ** 0.5
