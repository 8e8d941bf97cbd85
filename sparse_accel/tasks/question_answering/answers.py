"""From the start and end logits of the windows of a question to its n best answers; numpy only.

A long context is split into overlapping *windows*: rows of tokens with the question and a part of the context. The
rules are those of `postprocess_qa_predictions` in utils_qa.py of transformers' question answering example, which
SparseML uses. What differs:

- A span of characters that several windows (or tokens) give is one answer, with its highest score; the example lists it
  several times.
- Spans without characters are not answers.
- If no pair of the best start and end tokens is a valid span, the best of all valid spans are taken; the example gives
  the text "empty". Only a question without any valid span has the answer "".
- Equal scores have a fixed order: earlier start first, then fewer characters.
- Tokens that pad a batch are not part of a window, so that an answer does not depend on its batch.
- The token for "no answer" is that of the window; in the example it is always the first.
- The best span is always in the list of n best; with n = 1, the example may list the null answer alone.

Shapes: W windows, T tokens of the longest of them, P pairs of a start and an end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_accel.errors import UsageError, shown

Ints = NDArray[np.int64]
# The window, the start token and the end token of some spans, (P,) each.
Pairs = tuple[Ints, Ints, Ints]


@dataclass(frozen=True, eq=False)
class Window:
    """The tokens of a row that is the input of the model, special tokens included and padding left out.

    Attributes:
        offsets: (tokens, 2) integers: first character of each token, and the one after its last, counted in the whole
            context (code points, as Python slices). Only used for tokens of the context.
        in_context: (tokens,) bool: whether a token belongs to the context; not the question, not special tokens.
        no_answer: position of the token that stands for "no answer", from 0: the [CLS] token.

    Raises:
        ValueError: no tokens, arrays of other shapes or types, or a position outside of the window.
    """

    offsets: NDArray[np.integer]
    in_context: NDArray[np.bool_]
    no_answer: int = 0

    def __post_init__(self) -> None:
        offsets, marks = self.offsets, self.in_context
        if marks.ndim != 1 or marks.dtype != np.bool_ or not len(marks):
            raise ValueError(f"in_context is {marks.dtype} {marks.shape}; expected bool (tokens,), at least one token")
        if offsets.shape != (len(marks), 2) or not np.issubdtype(offsets.dtype, np.integer):
            raise ValueError(f"offsets are {offsets.dtype} {offsets.shape}; expected integers ({len(marks)}, 2)")
        if not 0 <= self.no_answer < len(marks):
            raise ValueError(f"no_answer is {self.no_answer}; the window has {len(marks)} tokens")


@dataclass(frozen=True)
class Answer:
    """A possible answer to a question: a span of its context, or the null answer (text "").

    Attributes:
        text: the span, context[start:end].
        start: first character in the context; 0 for the null answer.
        end: the character after the last one; 0 for the null answer.
        start_logit: of its first token; for the null answer, that of the token `no_answer`.
        end_logit: of its last token; for the null answer, that of the token `no_answer`.
        probability: softmax of the score over all answers in the list of n best.
    """

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float
    probability: float

    @property
    def score(self) -> float:
        """Sum of the two logits."""
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class Prediction:
    """What a model answers to a question.

    Attributes:
        answer: the decision, one of n_best.
        n_best: the best answers, highest score first; at least one, no span twice. It has n_best_size of them or fewer,
            plus, with null answers, the null answer and the best span if they are not among these.
        null_score_difference: score of the null answer minus that of the best span (null odds in the example); inf if
            there is no span; None without null answers.
    """

    answer: Answer
    n_best: tuple[Answer, ...]
    null_score_difference: float | None

    @property
    def best_span(self) -> Answer | None:
        """The best answer that is not the null answer; None if there is none."""
        return next((answer for answer in self.n_best if answer.text), None)


def best_answers(
    context: str,
    windows: Sequence[Window],
    start_logits: Sequence[NDArray[np.floating]],
    end_logits: Sequence[NDArray[np.floating]],
    *,
    n_best_size: int = 20,
    max_answer_length: int = 30,
    version_2_with_negative: bool = False,
    null_score_diff_threshold: float = 0.0,
) -> Prediction:
    """Returns the answer to a question, and its n best answers.

    A valid span starts and ends at tokens of the context in the same window, its end not before its start, and has at
    most `max_answer_length` tokens and at least one character. Its score is start logit + end logit, in float64.
    Candidates are all pairs of the `n_best_size` tokens of a window with the highest start logits and the `n_best_size`
    with the highest end logits, also counting tokens outside of the context. Memory grows with W * (T + n_best_size²).

    Args:
        context: the whole text that the offsets count in.
        windows: all windows of the question, in the order of the text.
        start_logits: (tokens,) of each window; float16, float32 or float64. -inf: never.
        end_logits: the same for the end.
        n_best_size: number of tokens and of answers that are kept; at least 1.
        max_answer_length: in tokens; at least 1.
        version_2_with_negative: whether a question may have no answer (SQuAD 2.0). The null answer's score is the
            smallest over the windows of start logit + end logit at the token `no_answer`.
        null_score_diff_threshold: the null answer is given if its score - that of the best span is above this; inf:
            only if there is no valid span.

    Raises:
        UsageError: a logit is NaN or +inf; the message names the window and the context.
        ValueError: no windows, different lengths, offsets outside of the context, or a setting out of its range.
    """
    if n_best_size < 1 or max_answer_length < 1 or np.isnan(null_score_diff_threshold):
        raise ValueError(
            f"n_best_size {n_best_size}, max_answer_length {max_answer_length}, null_score_diff_threshold "
            f"{null_score_diff_threshold}: the first two must be at least 1, the last a number"
        )
    table = _table(context, windows, start_logits, end_logits)
    spans = _best_spans(context, table, _pairs_of_best_tokens(table, n_best_size, max_answer_length), n_best_size)
    if not spans:
        spans = _best_spans(context, table, _all_pairs(table, max_answer_length), n_best_size)
    rows, tokens = np.arange(len(windows)), np.array([window.no_answer for window in windows])
    nulls = np.stack([table.start_logits[rows, tokens], table.end_logits[rows, tokens]], axis=1)
    start_logit, end_logit = nulls[nulls.sum(axis=1).argmin()].tolist()
    null = Answer("", 0, 0, start_logit, end_logit, 1.0)
    difference = None
    if version_2_with_negative:
        difference = null.score - spans[0].score if spans else float("inf")
    if not spans:
        return Prediction(null, (null,), difference)
    kept = spans
    if version_2_with_negative:
        kept = sorted([null, *spans], key=lambda answer: -answer.score)[:n_best_size]
        kept += [answer for answer in (null, spans[0]) if answer not in kept]
    n_best = _with_probabilities(kept)
    wanted = "" if difference is not None and difference > null_score_diff_threshold else spans[0].text
    return Prediction(next(answer for answer in n_best if answer.text == wanted), n_best, difference)


@dataclass(frozen=True, eq=False)
class _Table:
    """All windows, padded to the longest with logits of -inf outside of the context; (W, T), offsets (W, T, 2)."""

    start_logits: NDArray[np.float64]
    end_logits: NDArray[np.float64]
    offsets: Ints
    in_context: NDArray[np.bool_]


def _table(
    context: str,
    windows: Sequence[Window],
    start_logits: Sequence[NDArray[np.floating]],
    end_logits: Sequence[NDArray[np.floating]],
) -> _Table:
    """Returns all windows in one table, checked; errors as for `best_answers`."""
    if not windows:
        raise ValueError("no windows")
    shapes = [window.in_context.shape for window in windows]
    for name, logits in (("start", start_logits), ("end", end_logits)):
        if (found := [np.shape(each) for each in logits]) != shapes:
            raise ValueError(f"{name} logits have the shapes {found}, the windows {shapes}")
    table = _Table(
        _stacked(start_logits, -np.inf, np.float64),
        _stacked(end_logits, -np.inf, np.float64),
        _stacked([window.offsets for window in windows], 0, np.int64),
        _stacked([window.in_context for window in windows], False, np.bool_),
    )
    for name, values in (("start", table.start_logits), ("end", table.end_logits)):
        if (broken := ~(values < np.inf).all(axis=1)).any():  # NaN is not below inf
            raise UsageError(
                f"the model's {name} logits contain NaN or +inf in window {broken.argmax()} (from 0) of the context "
                f"{shown(context)}, so the question has no answer. Check the model's weights for NaN; if it runs in "
                f"float16, run it in float32."
            )
    outside = ((table.offsets < 0) | (table.offsets > len(context))).any(axis=2) & table.in_context
    if outside.any():
        window, token = np.argwhere(outside)[0].tolist()
        begin, end = table.offsets[window, token].tolist()
        raise ValueError(
            f"token {token} of window {window} has the offsets {begin} to {end}, but its context has {len(context)} "
            f"characters: {shown(context)}. Offsets must count characters of this text, not bytes or those of a window."
        )
    return table


def _stacked(arrays: Sequence[NDArray[Any]], fill: float, dtype: Any) -> NDArray[Any]:
    """Returns arrays of different lengths as one, the shorter ones filled at their end."""
    result = np.full((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), fill, dtype=dtype)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return result


def _pairs_of_best_tokens(table: _Table, count: int, longest: int) -> Pairs:
    """Returns the pairs of `longest` tokens or fewer of the `count` best start and end tokens of each window."""
    starts, ends = (
        np.argsort(-logits, axis=1, kind="stable")[:, :count] for logits in (table.start_logits, table.end_logits)
    )
    steps = ends[:, None, :] - starts[:, :, None]
    windows, row, column = np.nonzero((steps >= 0) & (steps < longest))
    return windows, starts[windows, row], ends[windows, column]


def _all_pairs(table: _Table, longest: int) -> Pairs:
    """Returns the pairs of `longest` tokens or fewer that start in the context."""
    tokens = table.in_context.shape[1]
    windows, starts = np.nonzero(table.in_context)
    ends = starts[:, None] + np.arange(min(longest, tokens))
    row, column = np.nonzero(ends < tokens)
    return windows[row], starts[row], ends[row, column]


def _best_spans(context: str, table: _Table, pairs: Pairs, count: int) -> list[Answer]:
    """Returns the `count` best valid and different spans among pairs of tokens, best first, all with probability 1."""
    windows, first, last = pairs
    begins, ends = table.offsets[windows, first, 0], table.offsets[windows, last, 1]
    start_logits, end_logits = table.start_logits[windows, first], table.end_logits[windows, last]
    scores = start_logits + end_logits
    valid = table.in_context[windows, first] & table.in_context[windows, last] & (begins < ends) & (scores > -np.inf)
    begins, ends, start_logits, end_logits = (each[valid] for each in (begins, ends, start_logits, end_logits))
    order = np.lexsort((ends - begins, begins, -scores[valid]))  # by the last key first
    _, unique = np.unique(begins[order] * (len(context) + 1) + ends[order], return_index=True)
    chosen = order[np.sort(unique)[:count]]
    columns = (begins[chosen], ends[chosen], start_logits[chosen], end_logits[chosen])
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        Answer(context[begin:end], begin, end, start_logit, end_logit, 1.0)
        for begin, end, start_logit, end_logit in rows
    ]


def _with_probabilities(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """Returns the answers, best first, with their probabilities; the best score is finite."""
    weights = np.exp(np.array([answer.score for answer in answers]) - answers[0].score)
    probabilities = (weights / weights.sum()).tolist()
    return tuple(
        Answer(each.text, each.start, each.end, each.start_logit, each.end_logit, probability)
        for each, probability in zip(answers, probabilities, strict=True)
    )
