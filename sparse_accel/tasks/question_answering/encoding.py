"""Converts questions and contexts to inputs of the model: windows over a context that is too long for one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_accel.data.tokenizing import MODEL_INPUTS
from sparse_accel.errors import UsageError, shown
from sparse_accel.tasks.question_answering.reading import ANSWER_STARTS, ANSWER_TEXTS, CONTEXT, ID, QUESTION

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Number of a question in its split, from 0: a column of questions, and of the windows made of them.
QUESTION_ROW = "question_row"
OFFSETS, CONTEXT_MASK, NO_ANSWER = "offsets", "context_mask", "no_answer"
# Both offsets of a token that is not part of the context.
NO_OFFSET = -1


def encode(
    rows: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, length: int, doc_stride: int
) -> dict[str, list[Any]]:
    """Returns some questions tokenized, each with its context, as one or more windows.

    These are the windows of transformers' run_qa.py, which truncates only the context, with overflow (there, those of
    a tokenizer that truncates on the left are aligned to the context's end). The question is first for a tokenizer that
    pads on the right, else the context, and white space at the beginning of a question is removed. If both fit into
    `length` tokens, there is one window. Else each has as many tokens of the context as fit, the last one maybe fewer,
    and begins with the last `doc_stride` tokens of the previous one. So every token of a context is in a window, and
    every answer of at most `doc_stride` + 1 tokens is whole in at least one.

    Unlike run_qa.py, an answer's tokens are those that share a character with it, white space at its ends not counted:
    run_qa.py takes the last token of all if the answer begins in the last one of the window, the previous word if it
    begins with white space, and a start after the end if one character has several tokens.

    Args:
        rows: id, question, context, question_row and, if the rows have them, answer_texts and answer_starts, from
            `reading.read_questions`.
        tokenizer: of the model, or of its teacher; a fast one.
        length: maximum number of tokens of a window, special tokens included.
        doc_stride: number of the context's tokens that two consecutive windows share, 0 or more.

    Returns:
        One entry per window of T tokens, without padding; in the order of the questions, and of the context.
        input_ids, attention_mask, token_type_ids if the tokenizer returns them: (T,).
        labels: if there are answers, the positions (2,) of the first and last token of the first answer, from 0; both
        that of the first [CLS] (else of the first beginning-of-sequence token, else 0) if the window does not contain
        the whole answer or there is none.
        offsets: (T, 2) int32, first character of each token in the context, and the one after its last; NO_OFFSET for
        the question and for special tokens. context_mask: (T,) int8, 1 for tokens of the context, else 0.
        no_answer: `no_answer_position` of the window. question_row.

    Raises:
        UsageError: a context must be split, but its question leaves room for at most `doc_stride` tokens of it.
    """
    question_first = tokenizer.padding_side == "right"
    questions = [question.lstrip() for question in rows[QUESTION]]
    texts = (questions, rows[CONTEXT]) if question_first else (rows[CONTEXT], questions)
    encoded = tokenizer(*texts, return_offsets_mapping=True, verbose=False)
    names = [name for name in MODEL_INPUTS if name in encoded]
    has_answers = ANSWER_TEXTS in rows
    result: dict[str, list[Any]] = {name: [] for name in (*names, OFFSETS, CONTEXT_MASK, NO_ANSWER, QUESTION_ROW)}
    if has_answers:
        result["labels"] = []
    for row, offset_pairs in enumerate(encoded["offset_mapping"]):
        sequence = np.asarray([-1 if each is None else each for each in encoded.sequence_ids(row)])
        of_context = np.flatnonzero(sequence == (1 if question_first else 0))
        # Tokens of the context are consecutive. It may have none: only characters that the tokenizer drops.
        begin, count = int(of_context[0]) if len(of_context) else len(sequence), len(of_context)
        room = length - (len(sequence) - count)
        if len(sequence) > length and room <= doc_stride:
            raise _no_room(rows[ID][row], len(sequence) - count, length, doc_stride)
        offsets = np.asarray(offset_pairs, dtype=np.int32).reshape(-1, 2)[begin : begin + count]
        answer = answer_tokens(offsets, rows[CONTEXT][row], *_first_answer(rows, row)) if has_answers else None
        for first, end in windows(count, room, doc_stride):
            kept = [*range(begin), *range(begin + first, begin + end), *range(begin + count, len(sequence))]
            for name in names:
                values = encoded[name][row]
                result[name].append([values[token] for token in kept])
            own_offsets = np.full((len(kept), 2), NO_OFFSET, dtype=np.int32)
            own_offsets[begin : begin + end - first] = offsets[first:end]
            result[OFFSETS].append(own_offsets)
            mask = np.zeros(len(kept), dtype=np.int8)
            mask[begin : begin + end - first] = 1
            result[CONTEXT_MASK].append(mask)
            result[QUESTION_ROW].append(rows[QUESTION_ROW][row])
            nothing = no_answer_position(result["input_ids"][-1], tokenizer)
            result[NO_ANSWER].append(nothing)
            if has_answers:
                inside = answer is not None and first <= answer[0] and answer[1] < end
                shift = begin - first
                result["labels"].append(
                    [answer[0] + shift, answer[1] + shift] if answer is not None and inside else [nothing, nothing]
                )
    return result


def answers_in_no_window(questions: Dataset, found: Dataset) -> int:
    """Returns how many answers are not whole in any window, so that all windows of their questions are trained to give
    none: longer ones than `doc_stride` + 1 tokens, and those without a token.

    Args:
        questions: with question_row and answer_texts.
        found: the windows that `encode` made of them, with labels.
    """
    labels, nothing, row = (np.asarray(found[name][:]) for name in ("labels", NO_ANSWER, QUESTION_ROW))
    whole = set(row[(labels != nothing[:, None]).any(axis=1)].tolist())
    answered = zip(questions[QUESTION_ROW][:], questions[ANSWER_TEXTS][:], strict=True)
    return sum(1 for number, texts in answered if texts and number not in whole)


def windows(count: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yields the windows over a context, as (first token, token after the last one); one if it fits.

    Args:
        count: number of tokens of the context.
        room: maximum number of tokens of a window.
        stride: number of tokens that consecutive windows share.

    Raises:
        ValueError: the context does not fit, and `stride` is not less than `room`.
    """
    if count > room and stride >= room:
        raise ValueError(f"stride must be less than room, got {stride} and {room}")
    first = 0
    while first + room < count:
        yield first, first + room
        first += room - stride
    yield first, count


def answer_tokens(offsets: np.ndarray, context: str, text: str | None, start: int) -> tuple[int, int] | None:
    """Returns the first and the last token of an answer, from 0; None if there is no answer, or it has no tokens.

    Args:
        offsets: (T, 2), of all tokens of the context, in characters.
        context: what the answer is in.
        text: the answer; None: there is none.
        start: its offset in the context, in characters from 0.
    """
    if text is None or not text.strip():
        return None
    start += len(text) - len(text.lstrip())
    end = start + len(text.strip())
    shared = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
    return (int(shared[0]), int(shared[-1])) if len(shared) else None


def no_answer_position(input_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the position of "no answer": the first [CLS], else the first beginning-of-sequence token, else 0."""
    for token in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if token is not None and token in input_ids:
            return list(input_ids).index(token)
    return 0


def _first_answer(rows: Mapping[str, list[Any]], row: int) -> tuple[str | None, int]:
    texts, starts = rows[ANSWER_TEXTS][row], rows[ANSWER_STARTS][row]
    return (texts[0], starts[0]) if texts else (None, 0)


def _no_room(id_: str, taken: int, length: int, doc_stride: int) -> UsageError:
    """Returns the error for a question of `taken` tokens, special tokens included."""
    needed = taken + doc_stride + 1
    return UsageError(
        f"question {shown(id_)} and the special tokens have {taken} tokens, so a row of {length} has room for "
        f"{max(length - taken, 0)} of its context, which is longer; windows that overlap by {doc_stride} need room for "
        f"{doc_stride + 1}. Set --max_seq_length to {needed} or more if the model can read so many tokens, reduce "
        "--doc_stride, or shorten or delete this question."
    )
