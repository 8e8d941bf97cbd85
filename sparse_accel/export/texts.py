"""Real sentences to prove an export on: data that is named, the run's own validation data, or those shipped here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, disable_progress_bars, enable_progress_bars
from torch import nn

from sparse_accel.cli.text_classification import DATA_SUFFIXES, GLUE_TASKS, TextClassificationArguments
from sparse_accel.data.columns import find_label_column
from sparse_accel.data.tables import read_table
from sparse_accel.errors import UsageError
from sparse_accel.models.loading import head_of
from sparse_accel.run_folder.checkpoints import checkpoint_step
from sparse_accel.run_folder.results import ARGUMENTS_FILE
from sparse_accel.tasks import load_text_classification
from sparse_accel.tasks.text_classification.encoding import tokenize_texts
from sparse_accel.tasks.text_classification.labels import LabelColumn, are_unpublished

if TYPE_CHECKING:
    from sparse_accel.cli.export import ExportArguments

SENTENCES = Path(__file__).with_name("sentences.txt")
# The flags of a training run that say what it was evaluated on.
_DATA_FLAGS = (
    *("task_name", "dataset_name", "dataset_config_name", "train_file", "validation_file", "test_file"),
    *("validation_ratio", "eval_on_test", "input_column_names", "label_column_name"),
    *("max_seq_length", "seed", "cache_dir"),
)


@dataclass(frozen=True)
class Texts:
    """Tokenized sentences.

    Attributes:
        source: where they come from, in words.
        rows: input_ids, attention_mask, token_type_ids where the tokenizer makes them, labels where there are any.
        metrics: name of the task's metrics.
        positive: the output that a GLUE task's F1 is of.
    """

    source: str
    rows: Dataset
    metrics: str = "default"
    positive: int = 1

    @property
    def has_labels(self) -> bool:
        return "labels" in self.rows.column_names


def find_texts(arguments: ExportArguments, model: nn.Module, tokenizer: Any, length: int) -> tuple[Texts, str]:
    """Returns sentences and a line on why not better ones, empty where they are the best there can be.

    Args:
        arguments: where the model lies and which data is named: a file, a GLUE task or a Hub dataset. None: the data
            that the run was evaluated on, if it is still there.
        length: tokens kept of a sentence.

    Raises:
        UsageError: the data that is named cannot be read.
    """
    folder = Path(str(arguments.model_path))
    flags: dict[str, Any] = {"max_eval_samples": arguments.max_eval_samples}
    if arguments.data is not None:
        columns = {name: getattr(arguments, name) for name in ("input_column_names", "label_column_name")}
        try:
            named = _named(arguments.data, arguments.label_column_name)
            return _load(folder, model, tokenizer, length, flags | named | columns), ""
        except UsageError as error:  # the flags that files have in training
            raise UsageError(re.sub("--(validation_file|test_file)", "--data", str(error))) from error
    recorded = _recorded(folder)
    if recorded is None:
        return shipped(tokenizer, length), "no validation data is recorded for this model; --data FILE names some"
    try:
        return _load(folder, model, tokenizer, length, recorded | flags), ""
    except UsageError as error:
        return shipped(tokenizer, length), f"the run's validation data cannot be used any more ({error})"


def shipped(tokenizer: Any, length: int) -> Texts:
    """The sentences of this package, without labels."""
    lines = [line for line in SENTENCES.read_text(encoding="utf-8").splitlines() if line.strip()]
    encoded = tokenizer(lines, truncation=True, max_length=length)
    names = ("input_ids", "attention_mask", "token_type_ids")
    return Texts("this package", Dataset.from_dict({name: encoded[name] for name in names if name in encoded}))


def _named(data: str, label_column: str | None) -> dict[str, Any]:
    """The flags that read what --data names; rows without labels are such as are predicted."""
    path = Path(data)
    if path.is_file() and path.suffix.lower() in DATA_SUFFIXES and not label_column:
        table = read_table(data)
        column = find_label_column(table, None)
        has_labels = column is not None and not are_unpublished(LabelColumn(table, column))
        return {"validation_file" if has_labels else "test_file": data}
    if path.is_file() or path.suffix.lower() in DATA_SUFFIXES:
        return {"validation_file": data}
    return {"task_name": data} if data in GLUE_TASKS else {"dataset_name": data}


def _recorded(folder: Path) -> dict[str, Any] | None:
    """The data flags of the run that made the folder, or of the run that a checkpoint belongs to."""
    home = folder.resolve().parent if checkpoint_step(folder.resolve()) >= 0 else folder
    try:
        flags = json.loads((home / ARGUMENTS_FILE).read_text(encoding="utf-8"))
        found = {name: flags[name] for name in _DATA_FLAGS if flags.get(name) not in (None, False)}
    except (OSError, ValueError, TypeError):
        return None
    if "input_column_names" in found:
        found["input_column_names"] = tuple(found["input_column_names"])
    return found if {"task_name", "dataset_name", "validation_file", "test_file", "train_file"} & found.keys() else None


def _load(folder: Path, model: nn.Module, tokenizer: Any, length: int, flags: dict[str, Any]) -> Texts:
    others = ("task_name", "dataset_name", "train_file", "validation_file", "eval_on_test")
    unlabelled = bool(flags.get("test_file")) and not any(flags.get(name) for name in others)
    if unlabelled:
        flags = {**flags, "max_predict_samples": flags["max_eval_samples"], "max_eval_samples": None}
    arguments = TextClassificationArguments(
        model_name_or_path=str(folder), output_dir=str(folder), do_eval=not unlabelled, do_predict=unlabelled, **flags
    )
    split = "test" if unlabelled else "validation"
    data = load_text_classification(arguments, head_of(model))
    disable_progress_bars()
    try:
        rows = tokenize_texts(data, tokenizer, min(length, arguments.max_seq_length))[split]
    finally:
        enable_progress_bars()
    return Texts(data.sources[split], rows, data.metrics, data.positive)
