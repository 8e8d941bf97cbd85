"""What differs between tasks: head, rows, loss, metrics. A new task is a folder here, flags in cli/, and a script.

Tasks also differ in what is evaluated. A *unit* is one answer of the model that is right or wrong: a row of text
classification, a word of token classification. Shapes: R rows, T tokens, C outputs of the head, U units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sparse_accel.errors import UsageError, nearest
from sparse_accel.tasks.details import Details, ProofWords
from sparse_accel.tasks.label_names import Head, set_labels

if TYPE_CHECKING:
    from datasets import Dataset

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.data.streams.order import RowMaker
    from sparse_accel.data.streams.shards import Corpus
    from sparse_accel.data.tables import Origin


@dataclass(frozen=True)
class TaskData:
    """Rows and labels of a run; independent of tokenizer and model.

    Attributes:
        splits: those of train, validation, test and the task's other splits that the run needs. `validation` is the
            split for evaluation, also if it is the test rows (--eval_on_test) or held-out rows.
        sources: where the rows of each split come from, for messages.
        label_names: in the order of the model's outputs.
        origins: what the rows of each split are taken from; held-out rows from the training rows.
        stream: training texts that are read as the run trains, in place of the split `train`; None: there are none.
        keeps_head: whether the labels are the outputs of the model's fine-tuned head; else it gets a new head.
        cache_dir: folder for tokenized rows; None: the Hugging Face cache.
    """

    splits: dict[str, Dataset]
    sources: dict[str, str]
    label_names: list[str]
    origins: dict[str, Origin] = field(default_factory=dict)
    stream: Corpus | None = None
    keeps_head: bool = False
    cache_dir: str | None = None


class Task(ABC):
    """The task of a run.

    Args:
        head: names of the model's outputs, and its problem type.
        data: the rows; None if only the model is known.

    Attributes:
        label_smoothing: fraction of each label's weight that is spread over all labels in training.
    """

    # Name in commands and scripts; flags; the flag of the text columns; suffix of the class names of models with this
    # head, empty for encoders without one.
    name: ClassVar[str]
    arguments: ClassVar[type[TrainingArguments]]
    text_flag: ClassVar[str]
    architecture: ClassVar[str]
    # What models with this head do, for messages.
    purpose: ClassVar[str]
    # What is evaluated, and what the loss is a mean over, for messages.
    unit: ClassVar[str]
    # What the rows of the data are, for messages.
    row_name: ClassVar[str] = "rows"
    # Columns of tokenized rows with one value per token -> their padding value.
    token_columns: ClassVar[Mapping[str, int]] = {}
    # The outputs of the model that are its logits.
    logit_keys: ClassVar[tuple[str, ...]] = ("logits",)
    # Whether the distance from a teacher depends on the temperature of the recipe.
    uses_temperature: ClassVar[bool] = True
    # Whether the logits of a teacher on all training rows are kept in a table: they are few, and do not change.
    keeps_table: ClassVar[bool] = True
    # Whether that table is a file that each process maps into memory: for many rows with many outputs each.
    table_on_disk: ClassVar[bool] = False
    # Whether teacher and student are compared token by token.
    compares_tokens: ClassVar[bool] = False
    # Whether the logits of all evaluated rows can be kept; otherwise only `kept` of them are, for all rows.
    has_few_logits: ClassVar[bool] = True
    # How many logits are summed to the score of a decision, where `decision_gaps` compares scores.
    logits_of_a_score: ClassVar[int] = 1
    # Whether the logits of a unit are a vector of which the direction counts, as in an embedding.
    are_vectors: ClassVar[bool] = False
    # What the proof of an export calls decisions, figures, and what the rows need to have for figures.
    proof_words: ClassVar[ProofWords] = ProofWords()
    # Whether what the model says about the evaluation rows is written too, as --do_predict does for the test rows.
    keeps_evaluated: ClassVar[bool] = False

    def __init__(self, head: Head, data: TaskData | None = None) -> None:
        self.head = head
        self.rows = data
        self.label_smoothing = 0.0

    # --- data ---------------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def load(cls, arguments: Any, head: Head | None) -> Task:
        """Returns the task with the rows that a run needs.

        Args:
            arguments: flags that name the data and its use.
            head: of a fine-tuned model, with whose labels those of the data are matched; None: the data defines them.

        Raises:
            UsageError: data is missing or invalid (with file, row, line and column), or its labels do not match those
                of the model.
        """

    @classmethod
    @abstractmethod
    def of_sentences(cls, head: Head, sentences: list[str]) -> Task:
        """Returns the task with sentences without labels as its split `test`."""

    @classmethod
    @abstractmethod
    def has_labels(cls, file: str) -> bool:
        """Whether the rows of a data file have labels, in a column with a usual name."""

    @property
    def data(self) -> TaskData:
        """Returns the rows; only for a task that has some."""
        assert self.rows is not None
        return self.rows

    # --- the model ----------------------------------------------------------------------------------------------------

    @classmethod
    def is_for(cls, names: Sequence[str], config: Any) -> bool:
        """Returns whether models are of this task, by the names of their classes and their configuration."""
        return any(name.endswith(cls.architecture) for name in names)

    @classmethod
    def class_for(cls, head: Head) -> type[Task]:
        """Returns the class for a model with this head: this one, or a subclass for its problem type."""
        return cls

    def configure(self, config: Any) -> None:
        """Writes labels and settings of the task into a model's configuration."""
        set_labels(config, self.head.names)

    @classmethod
    def configure_untrained(cls, config: Any, names: list[str], arguments: TrainingArguments) -> None:
        """Writes the labels of a model that --one_shot changes into its configuration, and what only flags say."""
        set_labels(config, names)

    @classmethod
    def complete(cls, model: Any, address: str, **source: Any) -> Any:
        """Returns a model, as it was read, after changing it in place to one of the task; most need no change.

        Args:
            model: of transformers.
            address: the folder or Hub id that it was read from.
            source: revision and cache_dir of a Hub id.

        Raises:
            UsageError: the folder lacks what the task needs.
        """
        return model

    @classmethod
    def extra_files(cls, model: Any, tokenizer: Any) -> dict[str, Any]:
        """Returns the content of JSON files that the task adds to the folder of a model, by their path in it."""
        return {}

    @classmethod
    def export_obstacle(cls, model: Any) -> str:
        """Returns why an exported graph cannot have a model's outputs, as a sentence; empty if it can."""
        return ""

    def check_teacher(self, name: str, student: Any, teacher: Any) -> None:
        """Checks that the outputs of a teacher can be compared with the student's, where labels do not tell.

        Args:
            name: value of --distill_teacher.
            student, teacher: the models.

        Raises:
            UsageError: they cannot.
        """
        if self.head.names:
            return
        own, other = (int(model.config.vocab_size) for model in (student, teacher))
        if own != other:
            raise UsageError(
                f"--distill_teacher {name} has an output for each of {other} tokens, the model for {own}: use a "
                "teacher with the model's vocabulary"
            )

    # --- rows ---------------------------------------------------------------------------------------------------------

    @classmethod
    def tokenizer_options(cls, address: str, **source: Any) -> dict[str, Any]:
        """Returns additional arguments for loading the tokenizer of a model (a folder or Hub id)."""
        return {}

    @abstractmethod
    def tokenize(self, tokenizer: Any, length: int, **options: Any) -> dict[str, Dataset]:
        """Returns every split tokenized, as inputs for the model.

        Args:
            tokenizer: of the model, or of its teacher.
            length: maximum number of tokens of a row, special tokens included.
            options: num_workers and overwrite_cache of `data.tokenizing.tokenize`.

        Raises:
            UsageError: the tokenizer cannot do what the task needs.
        """

    def row_maker(self, tokenizer: Any, length: int) -> Callable[[], RowMaker]:
        """Returns what makes the maker of the rows of a shard of `data.stream`; arguments as for `tokenize`."""
        raise NotImplementedError(f"{self.name} has no streams")

    @abstractmethod
    def describe_columns(self) -> str:
        """Returns which columns are read, for the table at the start of a run."""

    def describe_parts(self, counts: Mapping[str, tuple[int, int]]) -> str:
        """Returns how many tokenized rows there are, for the same table; empty if they are as many as the rows.

        Args:
            counts: by split, the number of rows and of tokenized rows.
        """
        longer = (f"{rows} {split} in {parts} parts" for split, (rows, parts) in counts.items() if parts > rows)
        return f"; longer rows are split: {words}" if (words := ", ".join(longer)) else ""

    @abstractmethod
    def describe_labels(self) -> str:
        """Returns what the labels are, for the table at the start of a run."""

    def check_flags(self, arguments: TrainingArguments) -> None:
        """Takes over the flags of the loss.

        Raises:
            UsageError: a flag has no effect for these labels, or --metric_for_best_model is unknown.
        """
        self.label_smoothing = arguments.label_smoothing_factor
        if arguments.load_best_model_at_end:
            check_metric_name(arguments.metric_for_best_model, self.figure_names())

    # --- training -----------------------------------------------------------------------------------------------------

    def is_labelled(self, rows: Dataset) -> bool:
        """Returns whether tokenized rows have labels, or get them in `prepare`."""
        return "labels" in rows.column_names

    def prepare(self, batch: dict[str, Tensor], epoch: int) -> dict[str, Tensor]:
        """Returns a batch as the model gets its rows in an epoch: as they are, unless the task masks tokens."""
        return batch

    def training_settings(self) -> dict[str, Any]:
        """Returns the flags of the task that change a run's result but not its tokenized rows; plain values."""
        return {}

    @classmethod
    def logits(cls, outputs: Any) -> Tensor:
        """Returns the logits among the outputs of a model: (R, C), or (R, T, C) with one row per token."""
        found = [outputs[key] for key in cls.logit_keys]
        return found[0] if len(found) == 1 else torch.stack(found, dim=-1)

    @abstractmethod
    def row_weights(self, rows: Dataset) -> np.ndarray:
        """Returns the weight of each tokenized row in the loss: 1, or its number of labelled tokens; (rows,) int64."""

    @abstractmethod
    def weights(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns the same for the rows of a batch, (R,) float32; 0 for fillers."""

    def evaluation_weights(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns the weight of each row of a batch in the mean loss of an evaluation, (R,) float32."""
        return self.weights(batch)

    @abstractmethod
    def loss(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        """Returns the loss of each row, (R,) float32: a mean over its labelled tokens if it has several."""

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        """Returns the distance of the student's logits from the teacher's, (R,) float32, where the loss has labels."""

    def agreement(self, student: Tensor, teacher: Tensor, batch: dict[str, Any]) -> Tensor | None:
        """Returns the fraction of each row's labelled units for which both models decide the same, (R,) float32; None
        if there are no decisions."""
        return None

    def mean(self, values: Tensor, batch: dict[str, Any]) -> Tensor:
        """Returns the mean loss of a batch, (), from the losses of its rows, (R,); for loops that use a mean loss."""
        return values.mean()

    def class_labels(self, rows: Dataset) -> np.ndarray | None:
        """Returns the class numbers of all rows or tokens whose teacher logits are kept; None: there are no classes."""
        return None

    @abstractmethod
    def labelled(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns where teacher logits are kept: (R,) bool, the real rows; or (R, T) bool, their labelled tokens."""

    def labelled_counts(self, rows: Dataset) -> np.ndarray:
        """Returns for how many outputs of each tokenized row teacher logits are kept, (rows,) int64."""
        return self.row_weights(rows)

    # --- evaluation ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def unit_counts(self, rows: Dataset) -> np.ndarray:
        """Returns the number of units of each tokenized row, (rows,) int64."""

    @abstractmethod
    def units(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns which outputs of a batch are units of real rows: (R,) bool, or (R, T) bool."""

    def kept(self, outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        """Returns what an evaluation keeps of each output, float32 (R, C) or (R, T, C): its logits, where they are few.
        All methods below get this as `logits`."""
        return self.logits(outputs).float()

    @abstractmethod
    def decisions(self, logits: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        """Returns the decisions, (D, n), one row per answer that is right or wrong; None if there is none (a score).
        Arguments as for `figures`; labels are not needed."""

    def decision_gaps(self, first: np.ndarray, second: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        """Returns how far two runs are from the same decisions, (D,) float64; None if there are no decisions.

        It is 0 for a decision that is the same in both, and inf for one that differs. Where a decision is one of many
        candidates with scores, it is the difference of the scores of both decisions, in the run where that is smaller.

        Args:
            first, second: of both runs; the other arguments as for `figures`.
        """
        decided = [self.decisions(logits, rows, split) for logits in (first, second)]
        if decided[0] is None or decided[1] is None:
            return None
        return np.where((decided[0] == decided[1]).all(axis=1), 0.0, np.inf)

    def decision_unit(self) -> str:
        """Returns what there is one decision about, for messages."""
        return self.unit

    @abstractmethod
    def metric_dependencies(self) -> list[Any]:
        """Returns what metrics and predictions depend on besides model and rows; plain values."""

    @abstractmethod
    def figure_names(self) -> tuple[str, ...]:
        """Returns the names of the metrics of `figures`."""

    @abstractmethod
    def figures(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, float]:
        """Returns the metrics of a model, by name.

        Args:
            logits: (U, C), in the order of the rows and of their units.
            rows: tokenized rows with labels.
            split: name of the split that the rows belong to.
        """

    def has_figures(self, rows: Dataset, split: str) -> bool:
        """Returns whether `figures` can be computed: the rows have labels. Arguments as for `figures`."""
        return "labels" in rows.column_names

    def headline(self) -> str:
        """Returns the name of the metric that stands for all, where there is room for one."""
        return self.figure_names()[0]

    def details(self, logits: np.ndarray, rows: Dataset, split: str) -> Details:
        """Returns what lies behind the figures; arguments as for `figures`."""
        return Details()

    def support(self, rows: Dataset, split: str) -> int:
        """Returns the number of answers behind metrics other than accuracy: rows, or words of entities."""
        return len(rows)

    def prediction_names(self) -> tuple[str, ...]:
        """Returns the names of the files of `predictions`."""
        return ("predictions.csv",)

    @abstractmethod
    def predictions(self, logits: np.ndarray, rows: Dataset, split: str) -> Mapping[str, str | bytes]:
        """Returns the predictions for the rows of a split, as the content of each file; arguments as for `figures`."""


def check_metric_name(name: str, names: Sequence[str]) -> None:
    """Checks that --metric_for_best_model is a metric of the task; `loss` always is.

    Args:
        name: value of the flag, with or without the prefix `eval_`.
        names: names of the task's metrics.

    Raises:
        UsageError: it is not; the message gives the nearest name and all names.
    """
    known = ("loss", *names)
    if (plain := name.removeprefix("eval_")) not in known:
        raise UsageError(
            f"--metric_for_best_model: this task has no '{plain}'.{nearest(plain, known)} It has: {', '.join(known)}."
        )
