"""Text classification as a task: one answer per row."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from torch import Tensor

from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.cli.training import TrainingArguments
from sparse_accel.data.columns import SCORE, find_label_column, ranks_documents
from sparse_accel.data.tables import read_table
from sparse_accel.errors import UsageError, listed
from sparse_accel.nn.losses import distillation_loss, task_loss
from sparse_accel.tasks.base import Details, Task
from sparse_accel.tasks.label_names import (
    MULTI_LABEL,
    REGRESSION,
    RERANKING,
    SINGLE_LABEL,
    Head,
    head_in,
    set_problem_type,
)
from sparse_accel.tasks.text_classification.data import TextClassificationData, load_text_classification
from sparse_accel.tasks.text_classification.details import classification_details
from sparse_accel.tasks.text_classification.encoding import tokenize_texts
from sparse_accel.tasks.text_classification.labels import LabelColumn, are_hidden
from sparse_accel.tasks.text_classification.metrics import compute_metrics, metric_names
from sparse_accel.tasks.text_classification.predictions import prediction_table, ranking_table
from sparse_accel.tasks.text_classification.reranking import (
    RELEVANT,
    best_documents,
    ranking_details,
    ranking_metrics,
)

# Sentences without a query of their own are ranked for the sentence before them, so many at a time.
_DOCUMENTS = 4


class TextClassification(Task):
    """Predicts one label per text, several labels, or a score: a number, or how well a document answers a query.

    A reranker is trained with the binary cross-entropy between its one output and the score, 0 to 1, as sentence-
    transformers' CrossEncoder by default. Its metrics and decisions are those of queries: the order of their documents.

    Attributes:
        problem_type: as in config.json, or reranking.
        metrics: name of the metric set: a GLUE task, or "default".
        positive: number of the output whose F1 a GLUE task reports.
        highest: of a reranker, the score in the data that its output counts as 1: 1, or the highest grade.
    """

    name: ClassVar[str] = "text_classification"
    arguments: ClassVar[type[TrainingArguments]] = TextClassificationArguments
    text_flag: ClassVar[str] = "input_column_names"
    architecture: ClassVar[str] = "ForSequenceClassification"
    purpose: ClassVar[str] = "classify texts"
    unit: ClassVar[str] = "sentences"

    def __init__(self, head: Head, data: TextClassificationData | None = None) -> None:
        super().__init__(head, data)
        self.problem_type = head.problem_type_for(None)
        self.metrics = data.metrics if data else "default"
        self.positive = data.positive if data else 1
        self.highest = head.highest or 1

    @classmethod
    def load(cls, arguments: TextClassificationArguments, head: Head | None) -> TextClassification:
        data = load_text_classification(arguments, head)
        return cls(Head(data.label_names, data.problem_type, data.highest), data)

    @classmethod
    def of_sentences(cls, head: Head, sentences: list[str]) -> TextClassification:
        columns = {"text": sentences}
        if head.problem_type == RERANKING:
            before = [sentences[row - row % _DOCUMENTS - 1] for row in range(len(sentences))]
            columns = {"query": before, "document": sentences}
        data = TextClassificationData(
            splits={"test": Dataset.from_dict(columns)},
            sources={"test": "sentences"},
            label_names=head.names,
            text_columns=tuple(columns),
            label_column=None,
            problem_type=head.problem_type_for(None),
            metrics="default",
        )
        return cls(head, data)

    @classmethod
    def has_labels(cls, file: str) -> bool:
        table = read_table(file)
        column = SCORE if ranks_documents(table) else find_label_column(table, None)
        return column is not None and not are_hidden(LabelColumn(table, column))

    @property
    def is_reranker(self) -> bool:
        """Whether its rows are documents that are ranked for queries."""
        return self.problem_type == RERANKING

    @property
    def data(self) -> TextClassificationData:
        assert isinstance(self.rows, TextClassificationData)
        return self.rows

    def configure(self, config: Any) -> None:
        super().configure(config)
        set_problem_type(config, Head(self.head.names, self.problem_type, self.head.highest))

    def check_teacher(self, name: str, student: Any, teacher: Any) -> None:
        kind = head_in(teacher.config, f"--distill_teacher {name}").problem_type
        if {self.problem_type, kind} == {REGRESSION, RERANKING}:
            raise UsageError(
                f"--distill_teacher {name} was trained for {kind}, but the model is trained for {self.problem_type}: "
                "the output of a regression is the score, that of a reranker its logit. Use a teacher of the same kind"
            )

    def tokenize(self, tokenizer: Any, length: int, **options: Any) -> dict[str, Dataset]:
        return tokenize_texts(self.data, tokenizer, length, **options)

    def describe_columns(self) -> str:
        if self.is_reranker:
            query, document = self.data.text_columns
            scores = f", score: {self.data.label_column}" if self.data.label_column else ""
            queries = f"; to evaluate: {words}" if (words := self.data.describe_queries()) else ""
            return f"query: {query}, document: {document}{scores}{queries}"
        pair = ", a pair" if len(self.data.text_columns) == 2 else ""
        labels = f"; labels: {self.data.label_column}" if self.data.label_column else ""
        return f"text: {', '.join(self.data.text_columns)}{pair}{labels}"

    def describe_labels(self) -> str:
        if self.is_reranker:
            scale = f"grades, divided by {self.highest}" if self.highest > 1 else "scores"
            return f"reranking: {scale}, 0 to 1; relevant: {'1' if self.highest > 1 else f'{RELEVANT:g}'} or more"
        return f"{self.problem_type.replace('_', ' ')}: {listed(self.head.names)}"

    def check_flags(self, arguments: TrainingArguments) -> None:
        super().check_flags(arguments)
        if self.label_smoothing and self.problem_type != SINGLE_LABEL:
            kind = self.problem_type.replace("_", " ")
            raise UsageError(f"--label_smoothing_factor needs one label per row, but this is {kind}: remove it")

    # --- training -----------------------------------------------------------------------------------------------------

    def row_weights(self, rows: Dataset) -> np.ndarray:
        return np.ones(len(rows), dtype=np.int64)

    def weights(self, batch: dict[str, Tensor]) -> Tensor:
        return self.units(batch).float()

    def loss(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        if self.is_reranker:
            return task_loss(outputs["logits"], batch["labels"][:, None], MULTI_LABEL)
        return task_loss(outputs["logits"], batch["labels"], self.problem_type, label_smoothing)

    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        return distillation_loss(student, teacher, temperature, MULTI_LABEL if self.is_reranker else self.problem_type)

    def agreement(self, student: Tensor, teacher: Tensor, batch: dict[str, Any]) -> Tensor | None:
        if self.problem_type in (REGRESSION, RERANKING):
            return None
        if self.problem_type == MULTI_LABEL:
            return ((student >= 0) == (teacher >= 0)).float().mean(dim=-1)
        return (student.argmax(dim=-1) == teacher.argmax(dim=-1)).float()

    def labelled(self, batch: dict[str, Tensor]) -> Tensor:
        return self.units(batch)

    def class_labels(self, rows: Dataset) -> np.ndarray | None:
        return np.asarray(rows["labels"]) if self.problem_type == SINGLE_LABEL else None

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def unit_counts(self, rows: Dataset) -> np.ndarray:
        return np.ones(len(rows), dtype=np.int64)

    def units(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["row_id"] >= 0

    def decisions(self, logits: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        if self.problem_type == REGRESSION:
            return None
        if self.is_reranker:
            return best_documents(logits[:, 0], self.data.queries(split))[:, None]
        return logits >= 0 if self.problem_type == MULTI_LABEL else logits.argmax(axis=1, keepdims=True)

    def decision_unit(self) -> str:
        return "queries" if self.is_reranker else self.unit

    def decision_gaps(self, first: np.ndarray, second: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        if not self.is_reranker:
            return super().decision_gaps(first, second, rows, split)
        queries = self.data.queries(split)
        one, other = (best_documents(logits[:, 0], queries) for logits in (first, second))
        gaps = [np.abs(logits[one, 0].astype(np.float64) - logits[other, 0]) for logits in (first, second)]
        # Never 0, which says that they are the same.
        return np.where(one == other, 0.0, np.maximum(np.minimum(*gaps), np.finfo(np.float64).tiny))

    def metric_dependencies(self) -> list[Any]:
        if self.is_reranker:
            # Queries that differ only in what the tokenizer ignores have the same tokens.
            measured = sorted(split for split in self.data.splits if split != "train")
            numbers = {split: self.data.queries(split).tobytes() for split in measured}
            queries = hashlib.sha256(repr(numbers).encode()).hexdigest()
            return [self.problem_type, self.highest, queries]
        return [self.problem_type, self.metrics, self.positive]

    def figure_names(self) -> tuple[str, ...]:
        return metric_names(self.metrics, self.problem_type)

    def figures(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, float]:
        if self.is_reranker:
            return ranking_metrics(*self._ranked(logits, rows, split))
        return compute_metrics(self.metrics, self.problem_type, logits, np.asarray(rows["labels"]), self.positive)

    def details(self, logits: np.ndarray, rows: Dataset, split: str) -> Details:
        texts = self.data.splits[split].select_columns(list(self.data.text_columns))
        if self.is_reranker:
            return ranking_details(*self._ranked(logits, rows, split), texts)
        return classification_details(logits, np.asarray(rows["labels"]), self.head.names, self.problem_type, texts)

    def support(self, rows: Dataset, split: str) -> int:
        return len(np.unique(self.data.queries(split))) if self.is_reranker else len(rows)

    def predictions(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, str]:
        if self.is_reranker:
            return {"predictions.csv": ranking_table(logits[:, 0], self.data.queries(split))}
        return {"predictions.csv": prediction_table(logits, self.head.names, self.problem_type)}

    def _ranked(self, logits: np.ndarray, rows: Dataset, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Returns the arguments of `ranking_metrics`."""
        return logits[:, 0], np.asarray(rows["labels"]), self.data.queries(split), self.highest
