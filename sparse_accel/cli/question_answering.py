"""Flags of scripts/question_answering.py. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparse_accel.cli.data import Data
from sparse_accel.cli.parser import flag
from sparse_accel.cli.refused import REFUSED
from sparse_accel.cli.training import TrainingArguments
from sparse_accel.errors import UsageError

_COLUMNS = "the columns are id, question, context and answers, as in SQuAD."


@dataclass(kw_only=True)
class QuestionData(Data):
    """Data: dataset_name, or files: SQuAD's nested JSON, or rows with id, question, context and answers."""

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl", ".parquet")
    read_here: ClassVar[tuple[str, ...]] = (".json",)

    train_file: str | None = flag(
        None, "training questions: a json (also SQuAD's nested form), jsonl or parquet file", path=True
    )
    validation_file: str | None = flag(None, "questions for --do_eval, in one of these forms", path=True)
    test_file: str | None = flag(None, "questions for --do_predict; answers are not needed", path=True)
    max_seq_length: int = flag(
        384,
        "maximum tokens per row: the question, a part of its context, special tokens; longer contexts become several "
        "rows",
        at_least=5,
    )
    doc_stride: int = flag(
        128, "tokens of a long context that two consecutive rows share; longer answers may be in no row", at_least=0
    )
    version_2_with_negative: bool = flag(False, "questions may have no answer in their context (SQuAD 2.0)")
    null_score_diff_threshold: float = flag(
        0.0,
        "answer with nothing if the score of no answer is above that of the best answer by more than this; needs "
        "--version_2_with_negative",
    )
    n_best_size: int = flag(20, "number of best start and end tokens to combine, and of answers to write", at_least=1)
    max_answer_length: int = flag(30, "maximum tokens of an answer", at_least=1)


@dataclass(kw_only=True)
class QuestionAnsweringArguments(QuestionData, TrainingArguments):
    """Arguments of scripts/question_answering.py, checked."""

    not_in_help: ClassVar[tuple[str, ...]] = ("label_smoothing_factor",)  # of all scripts, but an error here
    refused: ClassVar[Mapping[str, str]] = REFUSED | {
        "input_column_names": _COLUMNS,
        "text_column_name": _COLUMNS,
        "text_column_names": _COLUMNS,
        "text_column_delimiter": _COLUMNS,
        "label_column_name": _COLUMNS,
        "question_column_name": _COLUMNS,
        "context_column_name": _COLUMNS,
        "answer_column_name": _COLUMNS,
        "label_names": "an answer is a part of its context.",
        "metric_name": "the metrics are exact match and F1, as in SQuAD.",
        "task": "this script has one task; name the data with --dataset_name or files.",
        "task_name": "this script has one task; name the data with --dataset_name or files.",
        "do_regression": "an answer is a part of its context.",
        "problem_type": "an answer is a part of its context.",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.null_score_diff_threshold and not self.version_2_with_negative:
            raise UsageError(
                "--null_score_diff_threshold decides when a question has no answer: add --version_2_with_negative, or "
                "remove it."
            )
        if self.label_smoothing_factor:
            raise UsageError("--label_smoothing_factor: an answer has one start and one end; remove it.")

    def warnings(self) -> list[str]:
        """Returns one line per flag that has no effect, or an unexpected one."""
        lines = [line for line in super().warnings() if "label names" not in line]
        if self.train_file and not (self.do_train or self.one_shot or self.validation_ratio):
            lines.append("--train_file is not used without --do_train or --one_shot.")
        return lines
