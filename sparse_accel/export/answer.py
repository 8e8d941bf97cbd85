"""Answer questions with a deployment folder, as an application would: in the form of the pipeline `question-answering`
that transformers had until version 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_accel.data.batches import Collator, inputs_of
from sparse_accel.errors import UsageError, shown
from sparse_accel.tasks.question_answering.answers import Answer, Prediction, Window, best_answers
from sparse_accel.tasks.question_answering.encoding import CONTEXT_MASK, NO_ANSWER, OFFSETS, QUESTION_ROW, encode
from sparse_accel.tasks.question_answering.reading import CONTEXT, ID, QUESTION

_OUTPUTS = ["start_logits", "end_logits"]
# As in the evaluation of a run, unless more answers are asked for.
_N_BEST = 20
_BATCH_ROWS = 32

Floats = NDArray[np.floating]


def answer(
    folder: str | Path,
    question: str | Sequence[str],
    context: str | Sequence[str],
    *,
    top_k: int = 1,
    doc_stride: int = 128,
    max_seq_len: int = 384,
    max_answer_len: int = 15,
    handle_impossible_answer: bool = False,
) -> Any:
    """Returns the parts of contexts that answer questions, computed by onnxruntime on the CPU, with the kernels of
    sparse_accel.runtime where this CPU has them. The model is loaded by each call: give it many questions at once.

    The answers are those of the evaluation of a run: a long context is split into windows, and the best span of all
    windows is the one with the highest sum of logits. The score of an answer is that of the pipeline of transformers
    4: the probability of its first token times that of its last one, each a softmax over the tokens of the context and
    the token for "no answer" of a window; the highest one, if it is in several windows. Unlike there, answers are not
    extended to whole words, equal texts at several places are several answers, and answers in different windows are
    ordered by their logits, so that scores of several windows need not fall.

    Args:
        folder: a deployment of a question answering model.
        question: a question, or several.
        context: the text that has its answer, or one for each question; one text is used for all questions.
        top_k: number of answers to return for a question, best first; fewer if there are fewer.
        doc_stride: tokens that two windows of a long context share; at most half of a window is used.
        max_seq_len: maximum tokens of a window, if the model can read so many: question, context, special tokens.
        max_answer_len: maximum tokens of an answer.
        handle_impossible_answer: whether "" may be the answer: where the token for "no answer" has a higher sum of
            logits than the best span in all windows.

    Returns:
        For a question: `score` from 0 to 1, `start` and `end`, characters of the context from 0, and `answer`, which is
        context[start:end]; "" at 0 to 0 for no answer. With top_k > 1, a list of these. For several questions, a list
        with an entry for each.

    Raises:
        UsageError: the folder has another kind of model; a question or context is empty; a question leaves no room for
            its context.
        ValueError: there are not as many contexts as questions, or a setting is out of its range.
        FileNotFoundError: there is no model.onnx.
    """
    if min(top_k, max_answer_len, max_seq_len) < 1 or doc_stride < 0:
        raise ValueError("top_k, max_answer_len and max_seq_len must be at least 1, and doc_stride at least 0")
    questions, contexts = _texts(question, context)
    if not questions:
        return []
    model, tokenizer = _load(Path(folder))
    fixed = model.get_inputs()[0].shape[1]  # a number if --sequence_length fixed it, else a name
    fixed = fixed if isinstance(fixed, int) else None
    length = min(max_seq_len, tokenizer.model_max_length, fixed or max_seq_len)
    rows = _encoded(questions, contexts, tokenizer, length, min(doc_stride, length // 2))
    windows: list[list[_Scored]] = [[] for _ in questions]
    for row, logits in enumerate(_logits(model, Collator(tokenizer, fixed), rows)):
        windows[rows[QUESTION_ROW][row]].append(_Scored(_window(rows, row), *logits))
    found = []
    for text, own in zip(contexts, windows, strict=True):
        prediction = best_answers(
            text,
            [each.window for each in own],
            [each.start_logits for each in own],
            [each.end_logits for each in own],
            n_best_size=max(_N_BEST, top_k),
            max_answer_length=max_answer_len,
            version_2_with_negative=handle_impossible_answer,
        )
        best = [
            {
                "score": _score(each, own, max_answer_len),
                "start": each.start,
                "end": each.end,
                "answer": each.text,
            }
            for each in _best_first(prediction)[:top_k]
        ]
        found.append(best if top_k > 1 else best[0])
    return found[0] if isinstance(question, str) else found


@dataclass(frozen=True, eq=False)
class _Scored:
    """A window and its logits, (tokens,) each."""

    window: Window
    start_logits: Floats
    end_logits: Floats

    def probabilities(self) -> tuple[Floats, Floats]:
        """Returns the probabilities of start and end: over the tokens of the context, and that for "no answer"."""
        counted = self.window.in_context.copy()
        counted[self.window.no_answer] = True
        pair = []
        for logits in (self.start_logits, self.end_logits):
            known = np.where(counted, logits.astype(np.float64), -np.inf)
            weights = np.exp(known - known.max())
            pair.append(weights / weights.sum())
        return pair[0], pair[1]


def _texts(question: str | Sequence[str], context: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns questions and contexts, checked, as many of one as of the other; errors as for `answer`."""
    questions = [question] if isinstance(question, str) else list(question)
    contexts = [context] * len(questions) if isinstance(context, str) else list(context)
    if len(questions) != len(contexts) or (isinstance(question, str) and not isinstance(context, str)):
        raise ValueError(f"{len(questions)} questions, {len(contexts)} contexts: give a context for each, or one text")
    for name, texts in (("question", questions), ("context", contexts)):
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise UsageError(f"{name} {number} (from 0) is {shown(text)}: expected a text that is not empty")
    return questions, contexts


def _load(folder: Path) -> tuple[Any, Any]:
    """Returns session and tokenizer of a deployment."""
    from transformers import AutoTokenizer

    from sparse_accel.runtime import session

    model = session(folder)
    names = [entry.name for entry in model.get_outputs()]
    if names != _OUTPUTS:
        raise UsageError(f"{folder} is not a deployment of a question answering model: its outputs are {names}")
    return model, AutoTokenizer.from_pretrained(folder)


def _encoded(
    questions: list[str], contexts: list[str], tokenizer: Any, length: int, stride: int
) -> dict[str, list[Any]]:
    """Returns the windows of all questions, as columns."""
    rows: dict[str, list[Any]] = {
        ID: questions,
        QUESTION: questions,
        CONTEXT: contexts,
        QUESTION_ROW: list(range(len(questions))),
    }
    try:
        return encode(rows, tokenizer, length, stride)
    except UsageError as error:  # it names flags of the training script
        message = str(error).replace("--max_seq_length", "max_seq_len").replace("--doc_stride", "doc_stride")
        raise UsageError(message) from error


def _logits(model: Any, collator: Collator, rows: dict[str, list[Any]]) -> Iterator[tuple[Floats, Floats]]:
    """Yields the start and end logits of each window, (tokens,) float32, without padding."""
    columns = {name: values for name, values in rows.items() if name in collator.tokenizer.model_input_names}
    for first in range(0, len(rows[QUESTION_ROW]), _BATCH_ROWS):
        batch = {name: values[first : first + _BATCH_ROWS] for name, values in columns.items()}
        padded = {name: value.numpy() for name, value in inputs_of(collator(batch)).items()}
        outputs = model.run(_OUTPUTS, {entry.name: padded[entry.name] for entry in model.get_inputs()})
        tokens = padded["attention_mask"].astype(bool)
        for start, end, own in zip(*outputs, tokens, strict=True):
            yield start[own], end[own]


def _window(rows: dict[str, list[Any]], row: int) -> Window:
    return Window(rows[OFFSETS][row], rows[CONTEXT_MASK][row].astype(bool), rows[NO_ANSWER][row])


def _best_first(prediction: Prediction) -> list[Answer]:
    """Returns the n best answers; the decision is the first, also where "no answer" has the same score."""
    return [prediction.answer, *(each for each in prediction.n_best if each is not prediction.answer)]


def _score(found: Answer, windows: list[_Scored], max_answer_len: int) -> float:
    """Returns the score of an answer: the highest of its tokens in any window; of "no answer", the lowest one."""
    nothing, scores = [], [0.0]
    for each in windows:
        (start, end), window = each.probabilities(), each.window
        nothing.append(float(start[window.no_answer] * end[window.no_answer]))
        first = np.flatnonzero(window.in_context & (window.offsets[:, 0] == found.start))
        last = np.flatnonzero(window.in_context & (window.offsets[:, 1] == found.end))
        steps = last[None, :] - first[:, None]
        row, column = np.nonzero((steps >= 0) & (steps < max_answer_len))
        scores += (start[first[row]] * end[last[column]]).tolist()
    return max(scores) if found.text else min(nothing)
