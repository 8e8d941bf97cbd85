"""Text classification as a task: one answer per row."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from torch import Tensor

from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.cli.training import TrainingArguments
from sparse_accel.data.arrow_columns import numbers_in
from sparse_accel.data.columns import find_label_column
from sparse_accel.data.tables import read_table
from sparse_accel.errors import UsageError, listed
from sparse_accel.nn.losses import distillation_loss, task_loss
from sparse_accel.tasks.base import Task
from sparse_accel.tasks.details import Details
from sparse_accel.tasks.label_names import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Head, head_in, set_problem_type
from sparse_accel.tasks.text_classification.data import RowRules, TextClassificationData, load_text_classification
from sparse_accel.tasks.text_classification.details import classification_details
from sparse_accel.tasks.text_classification.encoding import tokenize_texts
from sparse_accel.tasks.text_classification.labels import LabelColumn, are_hidden
from sparse_accel.tasks.text_classification.metrics import compute_metrics, metric_names
from sparse_accel.tasks.text_classification.predictions import prediction_table


class TextClassification(RowRules, Task):
    """Predicts one label per text, several labels, or a number. A subclass has a problem type of its own.

    Attributes:
        problem_type: as in config.json, or `own_type`.
        metrics: name of the metric set: a GLUE task, or "default".
        positive: number of the output whose F1 a GLUE task reports.

    Raises:
        ValueError: the head belongs to the class that `class_for` gives.
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
        if (kind := self.class_for(head)) is not type(self):
            raise ValueError(f"a head for {self.problem_type} belongs to {kind.__name__}, not to {type(self).__name__}")

    @classmethod
    def class_for(cls, head: Head) -> type[TextClassification]:
        problem_type = head.problem_type_for(None)
        return next((kind for kind in cls.__subclasses__() if kind.own_type == problem_type), cls)

    @classmethod
    def load(cls, arguments: TextClassificationArguments, head: Head | None) -> TextClassification:
        data = load_text_classification(arguments, head, (cls, *cls.__subclasses__()))
        found = Head(data.label_names, data.problem_type, data.highest)
        return cls.class_for(found)(found, data)

    @classmethod
    def of_sentences(cls, head: Head, sentences: list[str]) -> TextClassification:
        kind = cls.class_for(head)
        columns = kind.columns_of(sentences)
        data = TextClassificationData(
            splits={"test": Dataset.from_dict(columns)},
            sources={"test": "sentences"},
            label_names=head.names,
            text_columns=tuple(columns),
            label_column=None,
            problem_type=head.problem_type_for(None),
            metrics="default",
        )
        return kind(head, data)

    @classmethod
    def columns_of(cls, sentences: list[str]) -> dict[str, list[str]]:
        """Returns the text columns that are made of sentences, by name."""
        return {"text": sentences}

    @classmethod
    def has_labels(cls, file: str) -> bool:
        table = read_table(file)
        kind = next((kind for kind in cls.__subclasses__() if kind.fits(table)), cls)
        column = find_label_column(table, None, kind.label_columns)
        return column is not None and not are_hidden(LabelColumn(table, column))

    @property
    def data(self) -> TextClassificationData:
        assert isinstance(self.rows, TextClassificationData)
        return self.rows

    def configure(self, config: Any) -> None:
        super().configure(config)
        set_problem_type(config, Head(self.head.names, self.problem_type, self.head.highest))

    def check_teacher(self, name: str, student: Any, teacher: Any) -> None:
        other = head_in(teacher.config, f"--distill_teacher {name}")
        are_scores = self.head.is_regression and other.is_regression
        if are_scores and other.problem_type not in (None, self.problem_type):
            raise UsageError(
                f"--distill_teacher {name} was trained for {other.problem_type}, but the model is trained for "
                f"{self.problem_type}: their outputs are not on the same scale. Use a teacher of the same kind"
            )

    def tokenize(self, tokenizer: Any, length: int, **options: Any) -> dict[str, Dataset]:
        return tokenize_texts(self.data, tokenizer, length, **options)

    def describe_columns(self) -> str:
        pair = ", a pair" if len(self.data.text_columns) == 2 else ""
        labels = f"; labels: {self.data.label_column}" if self.data.label_column else ""
        return f"text: {', '.join(self.data.text_columns)}{pair}{labels}"

    def describe_labels(self) -> str:
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
        return task_loss(outputs["logits"], batch["labels"], self.problem_type, label_smoothing)

    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        return distillation_loss(student, teacher, temperature, self.problem_type)

    def agreement(self, student: Tensor, teacher: Tensor, batch: dict[str, Any]) -> Tensor | None:
        if self.problem_type == REGRESSION:
            return None
        if self.problem_type == MULTI_LABEL:
            return ((student >= 0) == (teacher >= 0)).float().mean(dim=-1)
        return (student.argmax(dim=-1) == teacher.argmax(dim=-1)).float()

    def labelled(self, batch: dict[str, Tensor]) -> Tensor:
        return self.units(batch)

    def class_labels(self, rows: Dataset) -> np.ndarray | None:
        return numbers_in(rows, "labels") if self.problem_type == SINGLE_LABEL else None

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def unit_counts(self, rows: Dataset) -> np.ndarray:
        return np.ones(len(rows), dtype=np.int64)

    def units(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["row_id"] >= 0

    def decisions(self, logits: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        if self.problem_type == REGRESSION:
            return None
        return logits >= 0 if self.problem_type == MULTI_LABEL else logits.argmax(axis=1, keepdims=True)

    def metric_dependencies(self) -> list[Any]:
        return [self.problem_type, self.metrics, self.positive]

    def figure_names(self) -> tuple[str, ...]:
        return metric_names(self.metrics, self.problem_type)

    def figures(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, float]:
        return compute_metrics(self.metrics, self.problem_type, logits, np.asarray(rows["labels"]), self.positive)

    def details(self, logits: np.ndarray, rows: Dataset, split: str) -> Details:
        texts = self.data.splits[split].select_columns(list(self.data.text_columns))
        return classification_details(logits, np.asarray(rows["labels"]), self.head.names, self.problem_type, texts)

    def predictions(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, str]:
        return {"predictions.csv": prediction_table(logits, self.head.names, self.problem_type)}
