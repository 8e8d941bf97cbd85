"""Flags of scripts/masked_language_modeling.py. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparse_accel.cli.data import Data
from sparse_accel.cli.parser import flag
from sparse_accel.cli.refused import REFUSED
from sparse_accel.cli.training import TrainingArguments
from sparse_accel.errors import UsageError

_NO_LABELS = "texts have no labels: their tokens are masked."


@dataclass(kw_only=True)
class TextLines(Data):
    """Data: dataset_name, or files: txt with one text per line, or files with a column of texts."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet")
    read_here: ClassVar[tuple[str, ...]] = (".txt", ".csv", ".tsv")

    train_file: str | None = flag(
        None, "training texts: a txt file with one per line, or a csv, tsv, json, jsonl or parquet file", path=True
    )
    validation_file: str | None = flag(None, "texts for --do_eval, in one of these forms", path=True)
    text_column_name: str | None = flag(
        None, "column of texts; not for txt files", default_text="detected by common names, else the only text column"
    )
    max_seq_length: int = flag(128, "tokens of a row, special tokens included; 512 at most for BERT", at_least=3)
    line_by_line: bool = flag(
        False, "make a row of each text, truncated to max_seq_length, instead of packing texts into rows of that length"
    )
    mlm_probability: float = flag(0.15, "fraction of the tokens to mask in each row", above=0, below=1)
    whole_word_mask: bool = flag(False, "mask whole words instead of single tokens")


@dataclass(kw_only=True)
class MaskedLanguageModelingArguments(TextLines, TrainingArguments):
    """Arguments of scripts/masked_language_modeling.py, checked."""

    refused: ClassVar[Mapping[str, str]] = REFUSED | {
        "input_column_names": "name the text column with --text_column_name.",
        "text_column_names": "name the text column with --text_column_name.",
        "label_column_name": _NO_LABELS,
        "task": "this script has one task; name the data with --dataset_name or files.",
        "task_name": "this script has one task; name the data with --dataset_name or files.",
        "do_regression": _NO_LABELS,
        "problem_type": _NO_LABELS,
        "mlm": "this script masks tokens; other language models are not supported.",
        "plm_probability": "this script masks single tokens or whole words; permutations are not supported.",
        "max_span_length": "this script masks single tokens or whole words; permutations are not supported.",
        "block_size": "use --max_seq_length.",
        "low_cpu_mem_usage": "weights are read directly into the model.",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.do_predict:
            raise UsageError("--do_predict: a language model predicts masked tokens only; measure it with --do_eval.")
        if self.new_head:
            raise UsageError("--new_head: a language model keeps its head, which has an output for each of its tokens.")
        if self.label_smoothing_factor:
            raise UsageError("--label_smoothing_factor is for classes; remove it.")

    def warnings(self) -> list[str]:
        """Returns one line per flag that has no effect, or an unexpected one."""
        lines = [line for line in super().warnings() if "label names" not in line]
        if self.train_file and not (self.do_train or self.one_shot or self.validation_ratio):
            lines.append("--train_file is not used without --do_train or --one_shot.")
        return lines
