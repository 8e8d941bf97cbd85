"""Flags of scripts/text_classification.py. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparse_accel.cli.data import Data
from sparse_accel.cli.parser import flag
from sparse_accel.cli.training import TrainingArguments
from sparse_accel.errors import UsageError

# The configurations of the dataset nyu-mll/glue.
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
# All values of --task_name: a task of another dataset is added here.
GLUE_TASKS = (*GLUE,)
DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression", "reranking")


@dataclass(kw_only=True)
class TextData(Data):
    """Data. One of task_name, dataset_name, or files."""

    sources: ClassVar[tuple[str, ...]] = ("task_name", "dataset_name")
    suffixes: ClassVar[tuple[str, ...]] = DATA_SUFFIXES
    read_here: ClassVar[tuple[str, ...]] = (".csv", ".tsv")

    task_name: str | None = flag(None, "GLUE task", choices=GLUE_TASKS)
    input_column_names: tuple[str, ...] | None = flag(
        None,
        "text column, or two columns for pairs: `text` or `sentence1,sentence2`; for rerankers query and document",
        default_text="detected by common names, else the only one or two text columns",
    )
    label_column_name: str | None = flag(
        None,
        "label column: integers or strings are classes, decimals are regression, lists are multi-label",
        default_text="label, else labels; for rerankers score, else these",
    )
    problem_type: str | None = flag(
        None,
        "type of the labels; reranking: scores of documents for queries, from 0 to 1 or whole grades",
        choices=PROBLEM_TYPES,
        default_text="detected; needed if all labels are decimals without a fraction, such as 1.0; reranking for the "
        "columns query, document and score",
    )


@dataclass(kw_only=True)
class TextClassificationArguments(TextData, TrainingArguments):
    """Arguments of scripts/text_classification.py, checked."""

    def __post_init__(self) -> None:
        if self.task_name == "imdb":  # SparseML's command accepts it as a task
            raise UsageError("--task_name imdb is not a GLUE task: use --dataset_name imdb.")
        super().__post_init__()

    def _fill_in(self) -> None:
        if self.dataset_name in ("glue", "nyu-mll/glue") and self.dataset_config_name in GLUE and not self.task_name:
            # GLUE named as a Hub dataset gets the splits and metrics of the GLUE task.
            self.task_name, self.dataset_name, self.dataset_config_name = self.dataset_config_name, None, None
        super()._fill_in()
