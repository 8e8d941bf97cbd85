"""Answers from start and end logits, against values by hand and a plain loop."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_accel.errors import UsageError
from sparse_accel.tasks.question_answering.answers import Answer, Prediction, Window, best_answers

CONTEXT = "Ada met Babbage in London"
# Of [CLS] [QUESTION] [SEP] Ada met Babbage in London [SEP]; 0 to 8.
LOW = -10.0


def window_of(context: str, first: int = 0, last: int | None = None, pattern: str = r"\w+|[^\w\s]") -> Window:
    """[CLS] [QUESTION] [SEP], then the words first to last - 1 of a context, then [SEP]."""
    words = [match.span() for match in re.finditer(pattern, context)][first:last]
    offsets = np.array([(0, 0), (0, 3), (0, 0), *words, (0, 0)])
    return Window(offsets, np.array([False] * 3 + [True] * len(words) + [False]))


def logits(window: Window, **values: float) -> np.ndarray:
    """LOW but for the tokens t3=..., as float32."""
    result = np.full(len(window.in_context), LOW, dtype=np.float32)
    for name, value in values.items():
        result[int(name[1:])] = value
    return result


def ask(starts: dict[str, float], ends: dict[str, float], **options: Any) -> Prediction:
    """One window over CONTEXT."""
    window = window_of(CONTEXT)
    return best_answers(CONTEXT, [window], [logits(window, **starts)], [logits(window, **ends)], **options)


def texts(prediction: Prediction) -> list[str]:
    return [answer.text for answer in prediction.n_best]


def test_the_best_spans_by_hand() -> None:
    found = ask({"t3": 2.0, "t5": 3.0}, {"t5": 1.0, "t7": 2.5}, n_best_size=2)
    # 3 + 2.5, 3 + 1; then 2 + 2.5 is better than 3 + 1.
    assert [(each.text, each.start, each.end, each.score) for each in found.n_best] == [
        ("Babbage in London", 8, 25, 5.5),
        ("Ada met Babbage in London", 0, 25, 4.5),
    ]
    first = 1 / (1 + math.exp(-1))
    assert [each.probability for each in found.n_best] == pytest.approx([first, 1 - first])
    assert found.answer is found.n_best[0] is found.best_span
    assert (found.answer.start_logit, found.answer.end_logit) == (3.0, 2.5)
    assert found.null_score_difference is None
    assert all(CONTEXT[each.start : each.end] == each.text for each in found.n_best)


def test_a_span_ends_at_or_after_its_start_and_is_not_too_long() -> None:
    assert ask({"t7": 5.0, "t4": 1.0}, {"t3": 5.0, "t4": 1.0}).answer.text == "met"  # not London ... Ada
    starts, ends = {"t3": 5.0, "t7": 1.0}, {"t7": 5.0}
    assert ask(starts, ends, max_answer_length=5).answer.text == CONTEXT
    assert ask(starts, ends, max_answer_length=4).answer.text == "London"
    assert ask(starts, ends, max_answer_length=1).answer.text == "London"


def test_the_question_and_special_tokens_are_not_answers() -> None:
    found = ask({"t1": 9.0, "t2": 8.0, "t5": 0.0}, {"t1": 9.0, "t8": 8.0, "t5": 0.0})
    assert found.answer.text == "Babbage"
    # As in run_qa.py, they count among the best tokens. None of the best two is in the context here: all spans count.
    found = ask({"t1": 9.0, "t2": 8.0, "t5": 0.0}, {"t1": 9.0, "t8": 8.0, "t5": 0.0}, n_best_size=2)
    assert [(each.text, each.score) for each in found.n_best] == [("Babbage", 0.0), ("Ada met Babbage", -10.0)]


@pytest.mark.parametrize("threshold, answer", [(0.0, ""), (0.99, ""), (1.0, "London"), (2.0, "London"), (-5.0, "")])
def test_the_null_answer_wins_above_the_threshold(threshold: float, answer: str) -> None:
    starts, ends = {"t0": 2.0, "t7": 1.0}, {"t0": 2.0, "t7": 2.0}
    found = ask(starts, ends, version_2_with_negative=True, null_score_diff_threshold=threshold, n_best_size=3)
    assert found.null_score_difference == 1.0
    assert found.answer.text == answer
    assert texts(found) == ["", "London"]
    assert found.best_span is not None and found.best_span.text == "London"
    assert ask(starts, ends).answer.text == "London"  # SQuAD 1.1


def test_null_answer_and_best_span_are_always_listed() -> None:
    weak = ask({"t7": 9.0}, {"t7": 9.0}, version_2_with_negative=True, n_best_size=1)
    assert texts(weak) == ["London", ""] and weak.answer.text == "London"
    strong = ask({"t0": 9.0, "t7": 1.0}, {"t0": 9.0, "t7": 1.0}, version_2_with_negative=True, n_best_size=1)
    assert texts(strong) == ["", "London"] and strong.answer.text == ""
    for found in (weak, strong):
        assert sum(each.probability for each in found.n_best) == pytest.approx(1)


def test_the_null_score_is_the_smallest_of_the_windows() -> None:
    windows = [window_of(CONTEXT, 0, 3), window_of(CONTEXT, 2, 5)]
    starts = [logits(windows[0], t0=5.0), logits(windows[1], t0=1.0, t5=2.0)]
    ends = [logits(windows[0], t0=5.0), logits(windows[1], t0=0.5, t5=2.0)]
    found = best_answers(CONTEXT, windows, starts, ends, version_2_with_negative=True)
    assert found.null_score_difference == 1.5 - 4.0
    assert found.answer.text == "London"
    null = next(each for each in found.n_best if not each.text)
    assert (null.start, null.end, null.start_logit, null.end_logit) == (0, 0, 1.0, 0.5)


def test_the_token_for_no_answer_may_be_the_last() -> None:
    window = window_of(CONTEXT)
    last = Window(window.offsets, window.in_context, no_answer=8)
    starts, ends = logits(window, t0=9.0, t8=1.0, t7=2.0), logits(window, t0=9.0, t8=1.5, t7=2.0)
    assert best_answers(CONTEXT, [last], [starts], [ends], version_2_with_negative=True).null_score_difference == -1.5


def test_a_span_of_two_windows_is_one_answer_with_its_best_score() -> None:
    windows = [window_of(CONTEXT, 0, 4), window_of(CONTEXT, 2, 5)]  # Babbage in: both
    starts = [logits(windows[0], t5=1.0), logits(windows[1], t3=3.0)]
    ends = [logits(windows[0], t5=4.0, t6=1.0), logits(windows[1], t3=1.0, t4=4.0)]
    found = best_answers(CONTEXT, windows, starts, ends, n_best_size=3)
    assert [(each.text, each.score) for each in found.n_best] == [("Babbage in", 7.0), ("Babbage", 5.0)]


def test_an_answer_at_the_border_of_two_windows() -> None:
    """It is only in the second window; a span does not go from one window to the next."""
    windows = [window_of(CONTEXT, 0, 3), window_of(CONTEXT, 2, 5)]
    starts = [logits(windows[0], t5=5.0), logits(windows[1], t3=1.0)]
    ends = [logits(windows[0]), logits(windows[1], t4=5.0)]
    assert best_answers(CONTEXT, windows, starts, ends).answer.text == "Babbage in"


def test_equal_scores_have_a_fixed_order() -> None:
    window = window_of("a b c")
    zeros = np.zeros(7, dtype=np.float32)
    found = best_answers("a b c", [window], [zeros], [zeros])
    assert texts(found) == ["a", "a b", "a b c", "b", "b c", "c"]
    both = best_answers("a b c", [window, window], [zeros, zeros], [zeros, zeros])
    assert both == found


@pytest.mark.parametrize("windows", [1, 3])
def test_no_context_means_no_answer(windows: int) -> None:
    window = Window(np.zeros((4, 2), dtype=np.int32), np.zeros(4, dtype=bool))
    scores = [np.array([1.0, 5.0, 5.0, 5.0])] * windows
    plain = best_answers("", [window] * windows, scores, scores)
    assert plain == Prediction(Answer("", 0, 0, 1.0, 1.0, 1.0), (Answer("", 0, 0, 1.0, 1.0, 1.0),), None)
    options: dict[str, Any] = {"version_2_with_negative": True, "null_score_diff_threshold": math.inf}
    negative = best_answers("", [window] * windows, scores, scores, **options)
    assert (negative.answer.text, negative.null_score_difference, negative.best_span) == ("", math.inf, None)


def test_a_model_may_mask_with_infinity() -> None:
    window = window_of(CONTEXT)
    nowhere = np.full(9, -np.inf, dtype=np.float16)
    found = best_answers(CONTEXT, [window], [nowhere], [nowhere], version_2_with_negative=True)
    assert found.answer == Answer("", 0, 0, -math.inf, -math.inf, 1.0) and found.null_score_difference == math.inf
    one = nowhere.copy()
    one[4] = 1
    found = best_answers(CONTEXT, [window], [one], [one], version_2_with_negative=True)
    assert found.answer == Answer("met", 4, 7, 1.0, 1.0, 1.0) and found.null_score_difference == -math.inf
    assert [each.probability for each in found.n_best] == [1.0, 0.0]


@pytest.mark.parametrize(
    "context, pattern, first, last, answer",
    [
        ("Er hieß Gauß 𝒳 e\u0301 .", r"\S+", 6, 7, "𝒳 e\u0301"),
        ("東京は日本の首都です。", r".", 3, 4, "東京"),
        ("It has 1,234,567 people.", r"\w+|[^\w\s]", 5, 9, "1,234,567"),
        ("Wait ... what?", r"\w+|[^\w\s]", 4, 6, "..."),
        ("emoji 👩‍🔬 here", r"\S+", 4, 4, "👩‍🔬"),
    ],
)
def test_offsets_count_characters(context: str, pattern: str, first: int, last: int, answer: str) -> None:
    window = window_of(context, pattern=pattern)
    starts, ends = logits(window, **{f"t{first}": 9.0}), logits(window, **{f"t{last}": 9.0})
    found = best_answers(context, [window], [starts], [ends]).answer
    assert found.text == answer == context[found.start : found.end]


def test_tokens_of_one_character_give_one_answer_and_empty_spans_none() -> None:
    """Byte-level tokens share the offsets of a character; a token may be empty."""
    offsets = np.array([(0, 0), (0, 1), (0, 1), (1, 1), (1, 2)])
    window = Window(offsets, np.array([False, True, True, True, True]))
    scores = np.array([0.0, 1.0, 1.0, 9.0, 0.0])
    found = best_answers("東x", [window], [scores], [scores])
    # The empty token is no answer alone, but may end or begin one: 東 is tokens 1 to 3, and x is tokens 3 to 4.
    assert [(each.text, each.score) for each in found.n_best] == [("東", 10.0), ("x", 9.0), ("東x", 1.0)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["start", "end"])
def test_broken_logits_are_an_error(value: float, side: str) -> None:
    windows = [window_of(CONTEXT), window_of(CONTEXT, 2)]
    good = [logits(window) for window in windows]
    broken = [good[0], logits(windows[1], t1=value)]
    pair = (broken, good) if side == "start" else (good, broken)
    with pytest.raises(UsageError, match=rf"{side} logits contain NaN or \+inf in window 1 .*'Ada met Babbage"):
        best_answers(CONTEXT, windows, *pair)


def test_wrong_arguments_are_errors() -> None:
    window, other = window_of(CONTEXT), window_of(CONTEXT, 1)
    right, short = logits(window), logits(other)
    cases: list[tuple[list[Window], list[np.ndarray], list[np.ndarray], dict[str, Any], str]] = [
        ([], [], [], {}, "no windows"),
        ([window], [short], [right], {}, r"start logits have the shapes \[\(8,\)\], the windows \[\(9,\)\]"),
        ([window], [right], [right, right], {}, "end logits"),
        ([window], [right], [right], {"n_best_size": 0}, "at least 1"),
        ([window], [right], [right], {"max_answer_length": 0}, "at least 1"),
        ([window], [right], [right], {"null_score_diff_threshold": math.nan}, "a number"),
    ]
    for windows, starts, ends, options, message in cases:
        with pytest.raises(ValueError, match=message):
            best_answers(CONTEXT, windows, starts, ends, **options)
    in_bytes = np.array([(0, 0), (0, 2), (3, 8)])  # of "é chat": the first letter has two bytes
    marks = np.array([False, True, True])
    with pytest.raises(ValueError, match=r"token 2 of window 0 has the offsets 3 to 8, .* 6 characters: 'é chat'"):
        best_answers("é chat", [Window(in_bytes, marks)], [np.zeros(3)], [np.zeros(3)])
    for offsets, mask, position, message in [
        (np.zeros((3, 2)), marks, 0, "float64"),
        (np.zeros((2, 2), dtype=int), marks, 0, r"expected integers \(3, 2\)"),
        (in_bytes, marks.astype(int), 0, "expected bool"),
        (in_bytes[:0], marks[:0], 0, "at least one token"),
        (in_bytes, marks, 3, "no_answer is 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            Window(offsets, mask, position)


Question = tuple[str, list[Window], list[np.ndarray], list[np.ndarray]]


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Small windows with any offsets and marks, and logits among which many are equal."""
    context = draw(st.text("ab é東", max_size=8))
    value = st.sampled_from([0.0, 1.0, 1.0, -1.5, 2.25, -math.inf]) | st.floats(-8, 8, width=32)
    windows, starts, ends = [], list[np.ndarray](), list[np.ndarray]()
    for _ in range(draw(st.integers(1, 4))):
        tokens = draw(st.integers(1, 9))
        place = st.integers(0, len(context))
        offsets = draw(st.lists(st.tuples(place, place).map(sorted), min_size=tokens, max_size=tokens))
        marks = draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
        windows.append(Window(np.array(offsets), np.array(marks), draw(st.integers(0, tokens - 1))))
        for side in (starts, ends):
            side.append(np.array(draw(st.lists(value, min_size=tokens, max_size=tokens)), dtype=np.float32))
    return context, windows, starts, ends


def plain_spans(question: Question, count: int | None, longest: int) -> list[tuple[float, int, int]]:
    """(-score, start, end) of all valid spans, sorted; of the `count` best tokens of each window, or of all."""
    _, windows, starts, ends = question
    best: dict[tuple[int, int], float] = {}
    for window, start, end in zip(windows, starts, ends, strict=True):
        tokens = range(len(start))
        for first in sorted(tokens, key=lambda token: (-start[token], token))[:count]:
            for last in sorted(tokens, key=lambda token: (-end[token], token))[:count]:
                span = int(window.offsets[first][0]), int(window.offsets[last][1])
                score = float(start[first]) + float(end[last])
                fits = first <= last < first + longest and span[0] < span[1] and score > -math.inf
                if fits and window.in_context[first] and window.in_context[last]:
                    best[span] = max(score, best.get(span, -math.inf))
    return sorted((-score, *span) for span, score in best.items())


@settings(max_examples=200, deadline=None)
@given(
    question=questions(),
    count=st.integers(1, 12),
    longest=st.integers(1, 9),
    negative=st.booleans(),
    threshold=st.sampled_from([-1.0, 0.0, 2.0, math.inf]),
)
def test_a_plain_loop_finds_the_same(
    question: Question, count: int, longest: int, negative: bool, threshold: float
) -> None:
    context, windows, starts, ends = question
    spans = plain_spans(question, count, longest) or plain_spans(question, None, longest)
    places = [window.no_answer for window in windows]
    null = min(float(s[place]) + float(e[place]) for s, e, place in zip(starts, ends, places, strict=True))
    expected = spans[:count]
    if negative or not spans:
        expected = sorted([(-null, 0, 0), *spans])[:count]
        expected += [each for each in [(-null, 0, 0), *spans[:1]] if each not in expected]
    wins = not spans or (negative and null + spans[0][0] > threshold)
    found = best_answers(
        *question,
        n_best_size=count,
        max_answer_length=longest,
        version_2_with_negative=negative,
        null_score_diff_threshold=threshold,
    )
    assert [(-each.score, each.start, each.end) for each in found.n_best] == expected
    assert [each.text for each in found.n_best] == [context[start:end] for _, start, end in expected]
    assert found.answer == found.n_best[expected.index((-null, 0, 0) if wins else spans[0])]
    assert found.null_score_difference == ((null + spans[0][0] if spans else math.inf) if negative else None)
    weights = [math.exp(expected[0][0] - each[0]) if spans else 1.0 for each in expected]
    assert [each.probability for each in found.n_best] == pytest.approx([each / sum(weights) for each in weights])
