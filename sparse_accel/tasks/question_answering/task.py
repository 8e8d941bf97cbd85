"""Question answering as a task: the part of a text that answers a question, as in SQuAD."""

from __future__ import annotations

import json
import sys
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from torch import Tensor

from sparse_accel.cli.question_answering import QuestionAnsweringArguments
from sparse_accel.cli.training import TrainingArguments
from sparse_accel.data.tokenizing import tokenize
from sparse_accel.errors import UsageError, counted
from sparse_accel.nn.losses import answer_distillation_loss, answer_loss
from sparse_accel.tasks.base import Task, TaskData
from sparse_accel.tasks.details import MOST_CHARACTERS, MOST_MISTAKES, Details, ProofWords
from sparse_accel.tasks.label_names import Head
from sparse_accel.tasks.question_answering.answers import Answer, Prediction, Window, best_answers
from sparse_accel.tasks.question_answering.data import NAMES, check_outputs, load_question_answering
from sparse_accel.tasks.question_answering.encoding import (
    CONTEXT_MASK,
    NO_ANSWER,
    OFFSETS,
    QUESTION_ROW,
    answers_in_no_window,
    encode,
)
from sparse_accel.tasks.question_answering.metrics import (
    answer_scores,
    best_thresholds,
    metric_names,
    squad_metrics,
    squad_v2_metrics,
)
from sparse_accel.tasks.question_answering.reading import ANSWER_TEXTS, CONTEXT, ID, QUESTION, has_answers, read_squad

# The tokens of a long context that two windows share, by default and at most half of a window.
_STRIDE = 128
_COLUMNS = ["input_ids", OFFSETS, CONTEXT_MASK, NO_ANSWER, QUESTION_ROW]
_ROWS_AT_ONCE = 500


class QuestionAnswering(Task):
    """Finds the answer to a question in its context. A long context becomes several rows, *windows*.

    Logits are (R, T, 2): start and end. The loss is a mean over windows; metrics count questions, whose answer is the
    best one of all their windows.

    Attributes:
        doc_stride, version_2, threshold, n_best_size, longest: --doc_stride, --version_2_with_negative,
            --null_score_diff_threshold, --n_best_size, --max_answer_length.
    """

    name: ClassVar[str] = "question_answering"
    arguments: ClassVar[type[TrainingArguments]] = QuestionAnsweringArguments
    text_flag: ClassVar[str] = ""
    architecture: ClassVar[str] = "ForQuestionAnswering"
    purpose: ClassVar[str] = "answer questions"
    unit: ClassVar[str] = "questions"
    row_name: ClassVar[str] = "questions"
    logit_keys: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")
    compares_tokens: ClassVar[bool] = True
    logits_of_a_score: ClassVar[int] = 2
    proof_words: ClassVar[ProofWords] = ProofWords("answers", "exact match and F1", "answers", are_means=True)
    keeps_evaluated: ClassVar[bool] = True

    def __init__(self, head: Head, data: TaskData | None = None) -> None:
        super().__init__(head, data)
        self.doc_stride, self.version_2, self.threshold, self.n_best_size, self.longest = _STRIDE, False, 0.0, 20, 30
        self._lost = 0  # answers that are in no window
        self._latest: tuple[np.ndarray, list[Prediction]] | None = None

    @classmethod
    def load(cls, arguments: QuestionAnsweringArguments, head: Head | None) -> QuestionAnswering:
        task = cls(head or Head(NAMES), load_question_answering(arguments, head))
        task.doc_stride, task.version_2 = arguments.doc_stride, arguments.version_2_with_negative
        task.threshold, task.n_best_size = arguments.null_score_diff_threshold, arguments.n_best_size
        task.longest = arguments.max_answer_length
        return task

    @classmethod
    def of_sentences(cls, head: Head, sentences: list[str]) -> QuestionAnswering:
        check_outputs(head)
        numbers = list(range(len(sentences)))
        columns = {
            ID: [str(number) for number in numbers],
            QUESTION: [sentences[number - 1] for number in numbers],
            CONTEXT: sentences,
            QUESTION_ROW: numbers,
        }
        return cls(head, TaskData({"test": Dataset.from_dict(columns)}, {"test": "sentences"}, NAMES))

    @classmethod
    def has_labels(cls, file: str) -> bool:
        return has_answers(read_squad(file))

    def tokenize(self, tokenizer: Any, length: int, **options: Any) -> dict[str, Dataset]:
        if not tokenizer.is_fast:
            raise UsageError(
                f"{type(tokenizer).__name__} cannot map tokens to characters: question answering needs a model with a "
                "fast tokenizer (tokenizer.json)"
            )
        settings = {"length": min(length, tokenizer.model_max_length), "doc_stride": self.doc_stride}
        found = tokenize(self.data.splits, tokenizer, encode, settings, cache_dir=self.data.cache_dir, **options)
        if "train" in found and self.is_labelled(found["train"]):
            self._lost = answers_in_no_window(self.data.splits["train"], found["train"])
        return found

    def describe_columns(self) -> str:
        return f"{QUESTION}, {CONTEXT}; answers: answers"

    def describe_labels(self) -> str:
        without = ", or no answer" if self.version_2 else ""
        lost = f"; {counted(self._lost, 'answer')} whole in no window, trained as none" if self._lost else ""
        return (
            f"first and last token of the answer{without}; long contexts in windows that share {self.doc_stride}{lost}"
        )

    # --- training -----------------------------------------------------------------------------------------------------

    def row_weights(self, rows: Dataset) -> np.ndarray:
        return np.ones(len(rows), dtype=np.int64)

    def weights(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["row_id"] >= 0).float()

    def loss(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        return answer_loss(self.logits(outputs), batch["labels"], _tokens(batch))

    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        return answer_distillation_loss(student, teacher, _tokens(batch, student), temperature)

    def agreement(self, student: Tensor, teacher: Tensor, batch: dict[str, Any]) -> Tensor | None:
        outside = ~_tokens(batch, student)[..., None]
        chosen = [logits.masked_fill(outside, -np.inf).argmax(dim=1) for logits in (student, teacher)]
        return (chosen[0] == chosen[1]).all(dim=1).float()

    def labelled(self, batch: dict[str, Tensor]) -> Tensor:
        return self.units(batch)

    def labelled_counts(self, rows: Dataset) -> np.ndarray:
        return self.unit_counts(rows)

    # --- evaluation: all tokens have logits, and the answers are found in those of all windows of a question ----------

    def unit_counts(self, rows: Dataset) -> np.ndarray:
        return np.asarray([len(ids) for ids in rows["input_ids"]], dtype=np.int64)

    def units(self, batch: dict[str, Tensor]) -> Tensor:
        return _tokens(batch) & (batch["row_id"] >= 0)[:, None]

    def decisions(self, logits: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        """Returns a number of each question's answer, (questions, 1) int64: the same if all characters are the same."""
        found = self._predicted(logits, rows, split)
        return np.asarray([[each.answer.start << 32 | each.answer.end] for each in found], dtype=np.int64)

    def decision_gaps(self, first: np.ndarray, second: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        runs = [self._predicted(logits, rows, split) for logits in (first, second)]
        return np.asarray([_gap(*pair) for pair in zip(*runs, strict=True)], dtype=np.float64)

    def metric_dependencies(self) -> list[Any]:
        return [self.version_2, self.threshold, self.n_best_size, self.longest]

    def figure_names(self) -> tuple[str, ...]:
        return metric_names(self.version_2)

    def headline(self) -> str:
        return "f1"

    def figures(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, float]:
        found, gold = self._predicted(logits, rows, split), self.data.splits[split][ANSWER_TEXTS][:]
        answers = [each.answer.text for each in found]
        if not self.version_2:
            return squad_metrics(answers, gold)
        spans = [each.best_span.text if each.best_span else "" for each in found]
        return squad_v2_metrics(answers, gold) | best_thresholds(spans, gold, [_null_score(each) for each in found])

    def details(self, logits: np.ndarray, rows: Dataset, split: str) -> Details:
        questions = self.data.splits[split]
        found, gold = self._predicted(logits, rows, split), questions[ANSWER_TEXTS][:]
        wrong = [
            (-each.answer.probability, row)
            for row, (each, texts) in enumerate(zip(found, gold, strict=True))
            if not answer_scores(each.answer.text, texts, self.version_2)[0]
        ]
        mistakes = [
            {
                "row": row,
                "text": questions[row][QUESTION][:MOST_CHARACTERS],
                "label": " / ".join(dict.fromkeys(gold[row]))[:MOST_CHARACTERS],
                "predicted": found[row].answer.text[:MOST_CHARACTERS],
                "confidence": float(-negative),
            }
            for negative, row in sorted(wrong)[:MOST_MISTAKES]
        ]
        return Details(mistakes=mistakes)

    def support(self, rows: Dataset, split: str) -> int:
        return len(self.data.splits[split])

    def prediction_names(self) -> tuple[str, ...]:
        names = ("predictions.json", "nbest_predictions.json")
        return (*names, "null_odds.json") if self.version_2 else names

    def predictions(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, str]:
        """Returns the files that the official scripts of SQuAD and transformers' run_qa.py read and write, each a JSON
        object by id: the answers; the n best answers with their probabilities; how much no answer is better."""
        found = dict(zip(self.data.splits[split][ID], self._predicted(logits, rows, split), strict=True))
        n_best = {
            id_: [
                {
                    "text": answer.text,
                    "probability": answer.probability,
                    "start_logit": answer.start_logit,
                    "end_logit": answer.end_logit,
                }
                for answer in each.n_best
            ]
            for id_, each in found.items()
        }
        contents = [
            {id_: each.answer.text for id_, each in found.items()},
            n_best,
            # JSON has no infinity: a question without any possible answer.
            {id_: min(_null_score(each), sys.float_info.max) for id_, each in found.items()} if self.version_2 else {},
        ]
        return {
            name: json.dumps(content, ensure_ascii=False, indent=4) + "\n"
            for name, content in zip(self.prediction_names(), contents, strict=False)
        }

    def _predicted(self, logits: np.ndarray, rows: Dataset, split: str) -> list[Prediction]:
        """Returns the prediction for each question of a split; those for the last logits are kept."""
        if self._latest is None or self._latest[0] is not logits:
            self._latest = (logits, self._find(logits, rows, self.data.splits[split][CONTEXT][:]))
        return self._latest[1]

    def _find(self, logits: np.ndarray, rows: Dataset, contexts: list[str]) -> list[Prediction]:
        windows: list[list[Window]] = [[] for _ in contexts]
        parts: list[list[np.ndarray]] = [[] for _ in contexts]
        begin = 0
        for batch in rows.select_columns(_COLUMNS).iter(_ROWS_AT_ONCE):
            for row, question in enumerate(batch[QUESTION_ROW]):
                end = begin + len(batch["input_ids"][row])
                offsets = np.asarray(batch[OFFSETS][row], dtype=np.int64)
                mask = np.asarray(batch[CONTEXT_MASK][row], dtype=np.bool_)
                windows[question].append(Window(offsets, mask, batch[NO_ANSWER][row]))
                parts[question].append(logits[begin:end])
                begin = end
        return [
            best_answers(
                context,
                windows[row],
                [part[:, 0] for part in parts[row]],
                [part[:, 1] for part in parts[row]],
                n_best_size=self.n_best_size,
                max_answer_length=self.longest,
                version_2_with_negative=self.version_2,
                null_score_diff_threshold=self.threshold,
            )
            for row, context in enumerate(contexts)
        ]


def _tokens(batch: dict[str, Any], like: Tensor | None = None) -> Tensor:
    """Returns where a batch has tokens, not padding, (R, T) bool; if it does not say, everywhere in logits `like`."""
    mask = batch.get("attention_mask")
    if mask is None:
        assert like is not None
        return like.new_ones(like.shape[:2]).bool()
    tokens: Tensor = mask.bool()
    return tokens


def _gap(first: Prediction, second: Prediction) -> float:
    """Returns the smaller of the differences between the scores of two answers in both predictions; inf if neither
    prediction has both among its n best."""
    one, other = (_place(each.answer) for each in (first, second))
    if one == other:
        return 0.0
    gaps = [
        abs(scores[one] - scores[other])
        for scores in ({_place(answer): answer.score for answer in each.n_best} for each in (first, second))
        if one in scores and other in scores
    ]
    return max(min(gaps, default=float("inf")), sys.float_info.min)  # never 0, which says that they are the same


def _place(answer: Answer) -> tuple[int, int]:
    return answer.start, answer.end


def _null_score(prediction: Prediction) -> float:
    assert prediction.null_score_difference is not None
    return prediction.null_score_difference
