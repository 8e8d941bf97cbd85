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
_NO_NEW_MODEL = "training starts from the weights of --model_name_or_path."
_ONE_DATASET = "a run reads one dataset: put the files of both into a folder, and pass it as --dataset_name."


@dataclass(kw_only=True)
class TextLines(Data):
    """Data: dataset_name, or files: txt with one text per line, or files with a column of texts."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet")
    read_here: ClassVar[tuple[str, ...]] = (".txt", ".csv", ".tsv")

    train_file: str | None = flag(
        None, "training texts: a txt file with one per line, or a csv, tsv, json, jsonl or parquet file", path=True
    )
    validation_file: str | None = flag(None, "texts for --do_eval, in one of these forms", path=True)
    test_file: str | None = flag(None, "texts for --eval_on_test, in one of these forms", path=True)
    validation_ratio: float | None = flag(
        None,
        "fraction of the training texts to hold out when there are no validation texts; drawn by --seed",
        above=0,
        below=1,
    )
    text_column_name: str | None = flag(
        None, "column of texts; not for txt files", default_text="detected by common names, else the only text column"
    )
    max_seq_length: int = flag(128, "tokens of a row, special tokens included; 512 at most for BERT", at_least=3)
    line_by_line: bool = flag(
        False, "make a row of each text, truncated to max_seq_length, instead of packing texts into rows of that length"
    )
    mlm_probability: float = flag(0.15, "fraction of the tokens to mask in each row", above=0, below=1)
    whole_word_mask: bool = flag(False, "mask whole words instead of single tokens")
    streaming: bool = flag(
        False,
        "read the training texts while training, for a corpus that does not fit the disk or takes long to tokenize",
    )
    stream_shards: int = flag(
        16,
        "parts of a stream; each step takes equally many rows from each. With --seed it fixes the order of the rows, "
        "for any number of processes",
        at_least=1,
    )
    shuffle_window: int = flag(256, "rows of a part of a stream that are shuffled together; 0: none are", at_least=0)
    steps_per_epoch: int | None = flag(
        None, "length of an epoch of a stream, in optimizer steps", at_least=1, default_text="all steps of max_steps"
    )


@dataclass(kw_only=True)
class MaskedLanguageModelingArguments(TextLines, TrainingArguments):
    """Arguments of scripts/masked_language_modeling.py, checked."""

    # Flags of all scripts that mean nothing here; most are errors.
    not_in_help: ClassVar[tuple[str, ...]] = (
        "do_predict",
        "max_predict_samples",
        "new_head",
        "label_smoothing_factor",
    )
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
        "model_type": _NO_NEW_MODEL,
        "config_overrides": _NO_NEW_MODEL,
        "dataset_name_2": _ONE_DATASET,
        "dataset_config_name_2": _ONE_DATASET,
        "validation_split_percentage": "use --validation_ratio, a fraction: 0.05 for 5 percent.",
    }

    def __post_init__(self) -> None:
        if self.do_predict:  # first, so that nobody looks for a file to predict
            raise UsageError("--do_predict: a language model predicts masked tokens only; measure it with --do_eval.")
        super().__post_init__()
        if self.new_head:
            raise UsageError("--new_head: a language model keeps its head, which has an output for each of its tokens.")
        if self.label_smoothing_factor:
            raise UsageError("--label_smoothing_factor is for classes; remove it.")
        self._check_stream()

    def _check_stream(self) -> None:
        if not self.streaming:
            if self.steps_per_epoch is not None:
                raise UsageError("--steps_per_epoch is the length of a stream's epoch: add --streaming, or remove it.")
            return
        for name in ("one_shot", "validation_ratio", "max_train_samples", "eval_on_test"):
            if getattr(self, name):
                raise UsageError(f"--{name} needs all training rows, and --streaming reads them one by one: use one.")
        if not self.do_train or self.steps_per_epoch is not None:
            return
        by_epoch = [name for name in ("eval_strategy", "save_strategy") if getattr(self, name) == "epoch"]
        why = "the epochs of the recipe" if self.recipe else f"--{by_epoch[0]} epoch" if by_epoch else ""
        if why or self.max_steps < 1:
            need = f"{why} need{'s' * bool(by_epoch and not self.recipe)} its length" if why else "it never ends"
            raise UsageError(
                f"--streaming: a stream has no epochs of its own, and {need}: add --steps_per_epoch N"
                + ("." if why else ", or --max_steps N.")
            )

    def warnings(self) -> list[str]:
        """Returns one line per flag that has no effect, or an unexpected one."""
        lines = [line for line in super().warnings() if "label names" not in line]
        if self.train_file and not (self.do_train or self.one_shot or self.validation_ratio):
            lines.append("--train_file is not used without --do_train or --one_shot.")
        return lines
