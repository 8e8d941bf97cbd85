"""What differs between tasks: head, rows, loss, figures. A new task is a folder here, flags in cli/, and a script.

Tasks differ in what they judge. A *unit* is one answer of the model that is right or wrong: a row of text
classification, a word of token classification. Shapes: R rows, T tokens, C outputs of the head, U units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sparse_accel.errors import UsageError, nearest
from sparse_accel.tasks.label_names import Head, set_labels

if TYPE_CHECKING:
    from datasets import Dataset

    from sparse_accel.cli.training import TrainingArguments


@dataclass(frozen=True)
class TaskData:
    """Rows and labels, before a tokenizer or a model is known.

    Attributes:
        splits: train, validation, test, and what else the task has, as far as they are asked for. `validation` is what
            is evaluated on, be it the test rows (--eval_on_test) or a hold-out.
        sources: where the rows of each split come from, for people.
        label_names: in the order of the model's outputs.
        keeps_head: whether these are the outputs of the model's own fine-tuned head; else it gets a new one.
        cache_dir: folder for tokenized rows; None: the Hugging Face cache.
    """

    splits: dict[str, Dataset]
    sources: dict[str, str]
    label_names: list[str]
    keeps_head: bool = False
    cache_dir: str | None = None


class Task(ABC):
    """One task of one run.

    Args:
        head: names of the model's outputs, and its problem type.
        data: the rows; None for a task that is known by its model alone.

    Attributes:
        label_smoothing: fraction of each label's weight that is spread over all labels in training.
    """

    # Its name in commands and scripts, its flags, the one of the text's columns, and how the class names of models with
    # its head end.
    name: ClassVar[str]
    arguments: ClassVar[type[TrainingArguments]]
    text_flag: ClassVar[str]
    architecture: ClassVar[str]
    # What models with that head do, in words.
    purpose: ClassVar[str]
    # What is judged, and what the loss is a mean over, in words.
    unit: ClassVar[str]
    # Columns of tokenized rows that have one value a token, and what these are padded with.
    token_columns: ClassVar[Mapping[str, int]] = {}

    def __init__(self, head: Head, data: TaskData | None = None) -> None:
        self.head = head
        self.rows = data
        self.label_smoothing = 0.0

    # --- head and rows ------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def load(cls, arguments: Any, head: Head | None) -> Task:
        """Loads the rows that a run needs.

        Args:
            arguments: which data, and what is done with it.
            head: of a fine-tuned model, whose labels the data's are matched with; None: the data says them.

        Raises:
            UsageError: data that is not there or not as asked: with file, row, line and column; or labels of data and
                model that do not match.
        """

    @classmethod
    @abstractmethod
    def of_sentences(cls, head: Head, sentences: list[str]) -> Task:
        """The task with sentences without labels, as its split `test`."""

    @classmethod
    @abstractmethod
    def has_labels(cls, file: str) -> bool:
        """Whether the rows of a file of data have labels, in the column that usually has them."""

    @property
    def data(self) -> TaskData:
        assert self.rows is not None
        return self.rows

    def configure(self, config: Any) -> None:
        """Writes the task into a model's configuration."""
        set_labels(config, self.head.names)

    @classmethod
    def tokenizer_options(cls, address: str, **source: Any) -> dict[str, Any]:
        """What the tokenizer of a model, a folder or Hub id, is loaded with beside the usual."""
        return {}

    @abstractmethod
    def tokenize(self, tokenizer: Any, length: int, **options: Any) -> dict[str, Dataset]:
        """Returns every split as the model takes it.

        Args:
            tokenizer: of the model, or of its teacher.
            length: most tokens of a row, special tokens included.
            options: num_workers and overwrite_cache, as `data.tokenizing.tokenize` takes them.

        Raises:
            UsageError: the tokenizer cannot do what the task needs.
        """

    @abstractmethod
    def describe_columns(self) -> str:
        """Which columns are read, in words."""

    @abstractmethod
    def describe_labels(self) -> str:
        """What the labels are, in words."""

    def check_flags(self, arguments: TrainingArguments) -> None:
        """Takes what flags say of the loss, and raises UsageError for those that these labels have no use for."""
        self.label_smoothing = arguments.label_smoothing_factor
        if arguments.load_best_model_at_end:
            check_metric_name(arguments.metric_for_best_model, self.figure_names())

    # --- training -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def row_weights(self, rows: Dataset) -> np.ndarray:
        """What each tokenized row counts in the loss: 1, or the number of its labelled tokens; (rows,) int64."""

    @abstractmethod
    def weights(self, batch: dict[str, Tensor]) -> Tensor:
        """The same for the rows of a batch, (R,) float32; 0 for fillers."""

    @abstractmethod
    def loss(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        """Returns (R,) float32: each row's loss, the mean over its labelled tokens where it has several."""

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        """Returns (R,) float32: how far the student's logits are from the teacher's, where the loss has labels."""

    def mean(self, values: Tensor, batch: dict[str, Any]) -> Tensor:
        """Returns the mean loss of a batch, (), of that of its rows, (R,): for a loop that has a mean loss only."""
        return values.mean()

    def answers(self, rows: Dataset) -> np.ndarray | None:
        """The right class, by number, of what a teacher's logits are kept of; None where there are no classes."""
        return None

    @abstractmethod
    def labelled(self, batch: dict[str, Tensor]) -> Tensor:
        """What a teacher's logits are kept of: (R,) bool, the real rows; or (R, T) bool, their labelled tokens."""

    # --- evaluation ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def unit_counts(self, rows: Dataset) -> np.ndarray:
        """The number of units of each tokenized row, (rows,) int64."""

    @abstractmethod
    def units(self, batch: dict[str, Tensor]) -> Tensor:
        """Where the units of real rows are among a batch's outputs: (R,) bool, or (R, T) bool."""

    @abstractmethod
    def decisions(self, logits: np.ndarray) -> np.ndarray | None:
        """What the model decides by its logits (U, C), one row a unit; None where it decides nothing: a score."""

    @abstractmethod
    def judged_by(self) -> list[Any]:
        """What figures and predictions depend on beside model and rows; plain values."""

    @abstractmethod
    def figure_names(self) -> tuple[str, ...]:
        """The names of `figures`."""

    @abstractmethod
    def figures(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, float]:
        """Returns what a model is judged by.

        Args:
            logits: (U, C), in the order of the rows and of their units.
            rows: tokenized, with labels.
            split: whose rows they are.
        """

    def support(self, rows: Dataset, split: str) -> int:
        """How many answers figures other than an accuracy rest on: rows, or words of entities."""
        return len(rows)

    @abstractmethod
    def predictions(self, logits: np.ndarray, rows: Dataset, split: str) -> str:
        """Returns what the model predicts for the rows of a split, as CSV; arguments as for `figures`."""


def check_metric_name(name: str, names: Sequence[str]) -> None:
    """Raises UsageError when --metric_for_best_model names no figure of a task; `loss` is always one.

    Args:
        name: with `eval_` in front, or without.
        names: the task's figures.
    """
    known = ("loss", *names)
    if (plain := name.removeprefix("eval_")) not in known:
        raise UsageError(
            f"--metric_for_best_model: this task has no '{plain}'.{nearest(plain, known)} It has: {', '.join(known)}."
        )


def unit_numbers(units: Tensor, row_id: Tensor, starts: Tensor) -> Tensor:
    """Returns the place of each unit of a batch in a table of all units, in the order of `tensor[units]`.

    Args:
        units: (R,) or (R, T) bool.
        row_id: (R,) int64, not negative where there are units.
        starts: (rows,) int64: the number of units before each row.
    """
    first = starts[row_id.clamp(min=0)]
    if units.ndim == 1:
        return first[units]
    return (first[:, None] + units.cumsum(1) - 1)[units]


def starts_of(counts: np.ndarray) -> Tensor:
    """Returns the number of units before each row, (rows,) int64, of their counts."""
    return torch.from_numpy(np.cumsum(counts) - counts)
