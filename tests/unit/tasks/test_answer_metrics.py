"""Exact match and F1 of question answering, against values by hand and a plain loop."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_accel.tasks.question_answering.metrics import (
    answer_scores,
    best_thresholds,
    metric_names,
    normalize_answer,
    squad_metrics,
    squad_v2_metrics,
)

TEXTS = st.lists(st.sampled_from(["a", "The", "cat", "Cat,", "dog", "1,000", "!", "東京"]), max_size=4).map(" ".join)


@pytest.mark.parametrize(
    "text, normalized",
    [
        ("The Cat", "cat"),
        ("  the\tan \n a  ", ""),
        ("Theatre and anthem", "theatre and anthem"),
        ("U.S. Army's", "us armys"),
        ("the-end", "theend"),  # punctuation goes first, so "the" is not a word here
        ("1,234,567.8 %", "12345678"),
        ("$ ... !", ""),
        ("“Über” – ẞ", "“über” – ß"),  # punctuation outside of ASCII stays
        ("東京、the 日本。", "東京、 日本。"),
        ("東京the日本", "東京the日本"),
        ("a\u00a0b\u3000c", "b c"),
        ("a b_c", "bc"),
    ],
)
def test_normalized_texts(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    "prediction, gold, exact, f1",
    [
        ("the Master", ["Master"], 1, 1),
        ("the old Master", ["Master"], 0, 2 / 3),  # precision 1/2, recall 1
        ("x y", ["y z", "x y z w"], 0, 2 / 3),  # the better of 1/2 and 2/3
        ("x", ["y", "x"], 1, 1),
        ("x y z", ["y z", "w"], 0, 4 / 5),
        ("b b c", ["b c c"], 0, 2 / 3),  # b and c are common once each
        ("1,000 men", ["1000 men"], 1, 1),
        ("東京", ["東京都"], 0, 0),  # one word without spaces
        ("dog", ["cat"], 0, 0),
        ("", ["cat"], 0, 0),
    ],
)
@pytest.mark.parametrize("version_2", [False, True])
def test_scores_by_hand(prediction: str, gold: list[str], exact: float, f1: float, version_2: bool) -> None:
    assert list(answer_scores(prediction, gold, version_2)) == pytest.approx([exact, f1])


def test_texts_that_are_empty_when_normalized() -> None:
    assert answer_scores("the", ["!"]) == (1, 0)  # SQuAD 1.1: no common word
    assert answer_scores("the", ["!"], version_2=True) == (1, 1)
    assert answer_scores("the", ["!", "cat"], version_2=True) == (0, 0)  # "!" does not count
    assert answer_scores("", [], version_2=True) == (1, 1)
    assert answer_scores("?", [], version_2=True) == (1, 1)
    assert answer_scores("cat", [], version_2=True) == (0, 0)


def test_figures_of_squad_1() -> None:
    figures = squad_metrics(["the cat", "black cat", "dog", ""], [["cat"], ["cat", "dog"], ["cat"], ["cat"]])
    assert figures == pytest.approx({"exact_match": 1 / 4, "f1": (1 + 2 / 3) / 4})
    assert tuple(figures) == metric_names(version_2=False)


PREDICTIONS = ["cat", "black dog", "x", "", "y", "w"]
GOLD = [["cat"], ["dog", "old black dog"], ["z"], [], [], ["w"]]


def test_figures_of_squad_2() -> None:
    figures = squad_v2_metrics(PREDICTIONS, GOLD)
    expected = {
        "exact_match": 3 / 6,
        "f1": (1 + 0.8 + 0 + 1 + 0 + 1) / 6,
        "has_answer_exact_match": 2 / 4,
        "has_answer_f1": 2.8 / 4,
        "no_answer_exact_match": 1 / 2,
        "no_answer_f1": 1 / 2,
    }
    assert figures == pytest.approx(expected)
    everything = figures | best_thresholds(PREDICTIONS, GOLD, [0.0] * 6)
    assert set(everything) == set(metric_names(version_2=True))


def test_figures_of_a_kind_without_questions_are_left_out() -> None:
    assert squad_v2_metrics(["", "x"], [[], []]) == {
        "exact_match": 0.5,
        "f1": 0.5,
        "no_answer_exact_match": 0.5,
        "no_answer_f1": 0.5,
    }
    assert "no_answer_f1" not in squad_v2_metrics(["x"], [["x"]])
    # As in the script, a question with a gold answer that is empty when normalized has an answer.
    assert squad_v2_metrics([""], [["!"]])["has_answer_f1"] == 1.0


def test_best_thresholds_by_hand() -> None:
    # By null score: w (-4), cat (-3), y without answer (-1), black dog (0.5), x (2), "" (3).
    scores = [-3.0, 0.5, 2.0, 3.0, -1.0, -4.0]
    # Exact: 2 (all empty), 3, 4, 3, 3, 3, 3. F1: 2, 3, 4, 3, 3.8, 3.8, 3.8.
    found = best_thresholds(PREDICTIONS, GOLD, scores)
    assert list(found) == ["best_exact_match", "best_exact_match_threshold", "best_f1", "best_f1_threshold"]
    assert list(found.values()) == pytest.approx([4 / 6, -3.0, 4 / 6, -3.0])
    # With y behind: exact 2, 3, 4, 4, 4, 4, 3; F1 2, 3, 4, 4.8, ...
    found = best_thresholds(PREDICTIONS, GOLD, [*scores[:4], math.inf, -4.0])
    assert (found["best_exact_match"], found["best_exact_match_threshold"]) == (4 / 6, -3.0)
    assert [found["best_f1"], found["best_f1_threshold"]] == pytest.approx([4.8 / 6, 0.5])


def test_best_threshold_if_nothing_should_be_answered() -> None:
    expected = {"best_exact_match": 0.5, "best_exact_match_threshold": 0, "best_f1": 0.5, "best_f1_threshold": 0}
    assert best_thresholds(["x", "y"], [["z"], []], [-2.0, -1.0]) == expected


def test_what_cannot_be_counted_is_refused() -> None:
    for predictions, gold, message in [
        (["x"], [["x"], ["y"]], "1 predictions for 2 questions"),
        ([], [], "no questions"),
        (["x", "y"], [["x"], []], r"question 1 \(from 0\) has no gold answers"),
    ]:
        with pytest.raises(ValueError, match=message):
            squad_metrics(predictions, gold)
    with pytest.raises(ValueError, match="no questions"):
        squad_v2_metrics([], [])
    with pytest.raises(ValueError, match="no gold answers"):
        answer_scores("x", [])
    with pytest.raises(ValueError, match="1 null scores for 2 questions"):
        best_thresholds(["x", "y"], [["x"], []], [0.0])
    with pytest.raises(ValueError, match="NaN"):
        best_thresholds(["x"], [["x"]], [math.nan])


def plain_f1(prediction: str, gold: str) -> float:
    """2 * common / (both), with words crossed out one by one."""
    words, left = normalize_answer(prediction).split(), normalize_answer(gold).split()
    total, common = len(words) + len(left), 0
    for word in words:
        if word in left:
            left.remove(word)
            common += 1
    return 2 * common / total if total else 1.0


Rows = list[tuple[str, list[str], float]]
ROWS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=3), st.floats(-9, 9)), min_size=1, max_size=8)


@given(rows=ROWS)
def test_a_plain_loop_counts_the_same(rows: Rows) -> None:
    exact, f1 = 0.0, 0.0
    for prediction, gold, _ in rows:
        answers = [text for text in gold if normalize_answer(text)] or [""]
        exact += any(normalize_answer(text) == normalize_answer(prediction) for text in answers)
        f1 += max(plain_f1(prediction, text) for text in answers)
    figures = squad_v2_metrics([row[0] for row in rows], [row[1] for row in rows])
    assert figures["exact_match"] == pytest.approx(exact / len(rows))
    assert figures["f1"] == pytest.approx(f1 / len(rows))


@given(rows=ROWS)
def test_the_best_threshold_gives_the_best_figure(rows: Rows) -> None:
    """For different null scores, and predictions with words; every threshold is tried."""
    rows = [row for row in {row[2]: row for row in rows}.values() if normalize_answer(row[0])]
    if not rows:
        return
    predictions, gold, scores = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    figures = {}
    for threshold in (-math.inf, *scores):
        kept = [text if score <= threshold else "" for text, score in zip(predictions, scores, strict=True)]
        # The script gives no credit for "" where the only gold answers are articles and punctuation.
        graded = [each if not each or any(map(normalize_answer, each)) else ["cow"] for each in gold]
        figures[threshold] = squad_v2_metrics(kept, graded)
    best = best_thresholds(predictions, gold, scores)
    for name in ("exact_match", "f1"):
        assert best[f"best_{name}"] == pytest.approx(max(each[name] for each in figures.values()))
        if best[f"best_{name}_threshold"] in figures and best[f"best_{name}"] > figures[-math.inf][name]:
            assert figures[best[f"best_{name}_threshold"]][name] == pytest.approx(best[f"best_{name}"])
