"""Labels of the pieces that a tokenizer makes of words, and the parts of a sentence that is too long for a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_accel.nn.losses import IGNORED
from sparse_accel.tasks.token_classification.tags import align, inside_labels, split_points


def test_inside_labels() -> None:
    assert inside_labels(["O", "B-A", "I-A", "B-B", "S-A", "B-B-A", "I-B-A"]) == [0, 2, 2, 3, 4, 6, 6]
    assert inside_labels(["O", "B", "I"]) == [0, 2, 2]
    assert inside_labels(["BE", "IE", "B"]) == [0, 1, 2]


def test_align() -> None:
    names = ["O", "B-A", "I-A", "B-B"]
    word_ids = [None, 0, 0, 0, 1, 2, 2, 3, None, None]
    labels = [1, 2, 0, 3]
    inside = inside_labels(names)
    first = [IGNORED, 1, IGNORED, IGNORED, 2, 0, IGNORED, 3, IGNORED, IGNORED]
    assert align(word_ids, labels, all_tokens=False, inside=inside) == first
    every = [IGNORED, 1, 2, 2, 2, 0, 0, 3, IGNORED, IGNORED]
    assert align(word_ids, labels, all_tokens=True, inside=inside) == every
    # Words that were cut off, or of which nothing is left.
    assert align([None, 0, 2], labels, all_tokens=False, inside=inside) == [IGNORED, 1, 0]
    assert align([], [], all_tokens=True, inside=inside) == []


@given(lengths=st.lists(st.integers(1, 4), max_size=8), labels=st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_every_word_keeps_its_label(lengths: list[int], labels: list[int]) -> None:
    word_ids = [None, *(word for word, length in enumerate(lengths) for _ in range(length)), None]
    aligned = align(word_ids, labels, all_tokens=False, inside=[0, 2, 2, 3])
    assert [label for label in aligned if label != IGNORED] == labels[: len(lengths)]
    every = align(word_ids, labels, all_tokens=True, inside=[0, 2, 2, 3])
    assert [label == IGNORED for label in every] == [word is None for word in word_ids]


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "limit", "inside", "parts"),
    [
        ([1, 1, 1], 3, "", [(0, 3)]),
        ([1, 1, 1], 2, "", [(0, 2), (2, 3)]),
        ([2, 2, 2], 3, "", [(0, 1), (1, 2), (2, 3)]),
        ([1, 9, 1, 1], 3, "", [(0, 1), (1, 2), (2, 4)]),
        ([0, 3, 0], 3, "", [(0, 3)]),
        ([], 3, "", []),
        # The last word that fits begins an entity, or is in one.
        ([1, 1, 1, 1], 3, "...i", [(0, 2), (2, 4)]),
        ([1, 1, 1, 1], 3, "..ii", [(0, 1), (1, 4)]),
        ([1, 1, 1, 1, 1], 3, "..i.i", [(0, 3), (3, 5)]),
        # It began with the part, or before it.
        ([1, 1, 1, 1], 3, ".iii", [(0, 3), (3, 4)]),
        ([1, 1, 1, 1, 1, 1], 2, "..iii.", [(0, 1), (1, 3), (3, 5), (5, 6)]),
    ],
)
def test_split_points(lengths: list[int], limit: int, inside: str, parts: list[tuple[int, int]]) -> None:
    assert split_points(lengths, limit, [sign == "i" for sign in inside] if inside else None) == parts


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12), st.integers(1, 8), st.booleans())
def test_parts_hold_all_words_and_cut_no_entity_that_fits(
    words: list[tuple[int, bool]], limit: int, by_tags: bool
) -> None:
    lengths, inside = [length for length, _ in words], [bool(row) and each for row, (_, each) in enumerate(words)]
    parts = split_points(lengths, limit, inside if by_tags else None)
    assert [word for begin, end in parts for word in range(begin, end)] == list(range(len(words)))
    assert all(begin < end for begin, end in parts)
    assert all(sum(lengths[begin:end]) <= limit or end == begin + 1 for begin, end in parts)
    if not by_tags:  # as few parts as there can be: no word fits in the part before
        assert all(sum(lengths[begin : end + 1]) > limit for begin, end in parts[:-1])
        return
    for _, cut in parts[:-1]:
        if inside[cut]:
            begin = next(word for word in range(cut, -1, -1) if not inside[word])
            end = next((word for word in range(cut, len(words)) if not inside[word]), len(words))
            assert sum(lengths[begin:end]) > limit


def test_parts_without_any_piece_are_refused() -> None:
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        split_points([1], 0)
