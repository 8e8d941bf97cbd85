"""Figures of token classification, against counts by hand."""

from __future__ import annotations

import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from sparse_accel.tasks.token_classification.metrics import entity_metrics, f1_by_type, metric_names
from sparse_accel.tasks.token_classification.tags import BIOES, IOB1, IOB2, PLAIN, convert, spans

Sentences = list[list[str]]


def pairs_of(letters: str) -> st.SearchStrategy[tuple[Sentences, Sentences]]:
    """True and predicted tags in any order, which most schemes do not allow; every other prediction or so is right."""
    tag = st.just("O") | st.tuples(st.sampled_from(letters), st.sampled_from(["PER", "a-b"])).map("-".join)
    word = st.tuples(tag, st.none() | tag).map(lambda both: (both[0], both[1] or both[0]))
    sentences = st.lists(st.lists(word, min_size=1, max_size=8), min_size=1, max_size=4)
    return sentences.map(lambda rows: ([[a for a, _ in row] for row in rows], [[b for _, b in row] for row in rows]))


def split(*sentences: str) -> Sentences:
    return [sentence.split() for sentence in sentences]


def test_figures_counted_by_hand() -> None:
    true = split("B-PER I-PER O B-LOC O", "B-LOC B-LOC O")
    # Right: LOC in 0, and the second LOC in 1. Wrong: PER is too short, LOC in 1 became ORG.
    predicted = split("B-PER O O B-LOC O", "B-ORG B-LOC I-PER")
    figures = entity_metrics(true, predicted, IOB2)
    assert figures == pytest.approx({"precision": 2 / 5, "recall": 2 / 4, "f1": 4 / 9, "accuracy": 5 / 8})
    assert tuple(figures) == metric_names(IOB2)
    assert f1_by_type(true, predicted, IOB2) == pytest.approx({"LOC": 4 / 5, "ORG": 0.0, "PER": 0.0})


def test_an_entity_of_another_sentence_is_not_right() -> None:
    assert entity_metrics(split("B-A O", "O O"), split("O O", "B-A O"), IOB2)["f1"] == 0.0


def test_nothing_to_find_is_0_and_not_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
        assert entity_metrics(split("O O"), split("O O"), IOB2) == {**nothing, "accuracy": 1.0}
        assert entity_metrics(split("O O"), split("O B-A"), IOB2) == {**nothing, "accuracy": 0.5}
        assert entity_metrics(split("B-A"), split("O"), IOB2) == {**nothing, "accuracy": 0.0}
        assert f1_by_type(split("O O"), split("O O"), IOB2) == {}


def test_plain_tags() -> None:
    true, predicted = split("DT NN VB", "NN"), split("DT VB VB", "NN")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = entity_metrics(true, predicted, PLAIN)
        by_tag = f1_by_type(true, predicted, PLAIN)
    assert figures == pytest.approx({"accuracy": 3 / 4, "f1_macro": (1 + 2 / 3 + 2 / 3) / 3})
    assert tuple(figures) == metric_names(PLAIN)
    assert by_tag == pytest.approx({"DT": 1.0, "NN": 2 / 3, "VB": 2 / 3})


def test_tags_without_a_type() -> None:
    assert f1_by_type(split("B I O B"), split("B I O O"), IOB2) == pytest.approx({"_": 2 / 3})


def test_what_cannot_be_counted_is_refused() -> None:
    for true, predicted, message in [
        (split("O O"), split("O"), "different lengths"),
        (split("O"), split("O", "O"), "different lengths"),
        ([], [], "no tags"),
        (split("O NN"), split("O O"), "'NN' is not an entity tag"),
    ]:
        with pytest.raises(ValueError, match=message):
            entity_metrics(true, predicted, IOB2)


@given(pair=pairs_of("BIES"))
def test_the_same_tags_are_right(pair: tuple[Sentences, Sentences]) -> None:
    true, _ = pair
    figures = entity_metrics(true, true, BIOES)
    assert figures["accuracy"] == 1
    assert figures["f1"] == figures["precision"] == figures["recall"] == any(spans(tags, BIOES) for tags in true)
    assert set(f1_by_type(true, true, BIOES).values()) <= {1.0}


@given(pair=pairs_of("BIES"))
def test_figures_of_two_files_change_places_with_them(pair: tuple[Sentences, Sentences]) -> None:
    true, predicted = pair
    one, other = entity_metrics(true, predicted, BIOES), entity_metrics(predicted, true, BIOES)
    assert (one["precision"], one["recall"], one["f1"]) == (other["recall"], other["precision"], other["f1"])
    assert all(0 <= figure <= 1 for figure in one.values())
    total = one["precision"] + one["recall"]
    assert math.isclose(one["f1"], 2 * one["precision"] * one["recall"] / total if total else 0.0)


@given(pair=pairs_of("BIES"), to=st.sampled_from([IOB1, IOB2]))
def test_the_scheme_does_not_change_what_is_found(pair: tuple[Sentences, Sentences], to: str) -> None:
    true, predicted = ([convert(tags, BIOES, to) for tags in side] for side in pair)
    before, after = entity_metrics(*pair, BIOES), entity_metrics(true, predicted, to)
    assert all(before[name] == after[name] for name in ("precision", "recall", "f1"))
    assert f1_by_type(*pair, BIOES) == f1_by_type(true, predicted, to)


@pytest.mark.parametrize("letters", ["BI", "BIES"])
@settings(max_examples=200)
@given(data=st.data())
def test_the_figures_are_those_of_the_spans(letters: str, data: st.DataObject) -> None:
    """Counted here one by one; and seqeval reads the same spans in tags of any order."""
    true, predicted = data.draw(pairs_of(letters))
    there = {(row, *span) for row, tags in enumerate(true) for span in spans(tags, BIOES)}
    found = {(row, *span) for row, tags in enumerate(predicted) for span in spans(tags, BIOES)}
    right = len(there & found)
    figures = entity_metrics(true, predicted, BIOES)
    assert figures["precision"] == pytest.approx(right / len(found) if found else 0.0)
    assert figures["recall"] == pytest.approx(right / len(there) if there else 0.0)
    assert figures["f1"] == pytest.approx(2 * right / (len(there) + len(found)) if there or found else 0.0)
    by_type = f1_by_type(true, predicted, BIOES)
    assert by_type.keys() == {type_ for _, type_, _, _ in there | found}
    for tags in predicted:
        assert spans(tags, BIOES) == [(type_, begin, end + 1) for type_, begin, end in get_entities(tags)]
