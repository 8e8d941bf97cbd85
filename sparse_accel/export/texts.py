"""Real text to prove an export on: the data of --data, the run's own validation data, or sentences of this package."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, disable_progress_bars, enable_progress_bars
from torch import nn

from sparse_accel.cli.text_classification import GLUE_TASKS
from sparse_accel.errors import UsageError
from sparse_accel.models.loading import max_length
from sparse_accel.run_folder.checkpoints import checkpoint_step
from sparse_accel.run_folder.results import ARGUMENTS_FILE
from sparse_accel.tasks import MaskedLanguageModeling, QuestionAnswering, Task
from sparse_accel.tasks.label_names import head_in

if TYPE_CHECKING:
    from sparse_accel.cli.export import ExportArguments

SENTENCES = Path(__file__).with_name("sentences.txt")
# The flags of a training run that select its validation data, that name a source of it, and that say how rows are made
# of other data and answered: of questions, and of texts.
_DATA_FLAGS = (
    *("task_name", "dataset_name", "dataset_config_name", "train_file", "validation_file", "test_file"),
    *("validation_ratio", "eval_on_test", "input_column_names", "text_column_name", "label_column_name"),
    *("label_all_tokens", "max_score", "relevant_score", "seed", "cache_dir", "streaming"),
)
_SOURCES = {"task_name", "dataset_name", "validation_file", "test_file", "train_file"}
_ANSWER_FLAGS = (
    *("max_seq_length", "doc_stride", "version_2_with_negative", "null_score_diff_threshold", "n_best_size"),
    *("max_answer_length", "line_by_line", "mlm_probability", "whole_word_mask"),
)


@dataclass(frozen=True)
class Texts:
    """Tokenized sentences, or questions with their contexts.

    Attributes:
        source: where they come from, as text.
        rows: input_ids, attention_mask, token_type_ids if the tokenizer makes them, the task's columns, and labels if
            there are any.
        task: computes the metrics.
        split: their split in the task's data.
    """

    source: str
    rows: Dataset
    task: Task
    split: str

    @property
    def has_labels(self) -> bool:
        return self.task.has_figures(self.rows, self.split)

    @property
    def count(self) -> int:
        """Returns how many sentences or questions there are; a long one may be several tokenized rows."""
        return len(self.task.data.splits[self.split])


def find_texts(
    arguments: ExportArguments, kind: type[Task], model: nn.Module, tokenizer: Any, length: int
) -> tuple[Texts, str]:
    """Returns sentences, and a line why they are only those of this package; empty if they are the requested ones.

    Args:
        arguments: name the model and the data: a file, a GLUE task or a Hub dataset. Without --data, the run's
            validation data is used, if it still exists.
        kind: the task of the model.
        length: maximum number of tokens per row.

    Raises:
        UsageError: the data of --data cannot be read.
    """
    folder = Path(str(arguments.model_path))
    recorded = _recorded(folder)
    flags: dict[str, Any] = {"max_eval_samples": arguments.max_eval_samples}
    longest = arguments.max_seq_length or 0
    if longest > recorded.get("max_seq_length", kind.arguments.max_seq_length):  # less is in `length`
        flags["max_seq_length"] = longest
    if arguments.version_2_with_negative:
        flags["version_2_with_negative"] = True
    if arguments.data is not None:
        names = (*_ANSWER_FLAGS, "seed") if issubclass(kind, MaskedLanguageModeling) else _ANSWER_FLAGS  # of the masks
        flags = {name: recorded[name] for name in names if name in recorded} | flags
        try:
            return _load(folder, kind, model, tokenizer, length, flags | _named(arguments, kind)), ""
        except UsageError as error:
            raise UsageError(_for_export(str(error))) from error
    if not _SOURCES & recorded.keys():
        note = "no validation data is recorded for this model; name it with --data FILE"
        return shipped(kind, model, tokenizer, length, recorded | flags), note
    try:
        return _load(folder, kind, model, tokenizer, length, recorded | flags), ""
    except UsageError as error:
        note = f"the run's validation data can no longer be used ({_for_export(str(error))})"
        return shipped(kind, model, tokenizer, length, recorded | flags), note


def shipped(kind: type[Task], model: Any, tokenizer: Any, length: int, flags: Mapping[str, Any]) -> Texts:
    """Returns the sentences of this package, without labels; for question answering, each with the one before it as its
    question; for a language model, with masked tokens.

    Args:
        flags: of the run that say whether a question may have no answer, and which tokens are masked.

    Raises:
        UsageError: such a question has no room in a row, or the model knows none of the words.
    """
    lines = [line for line in SENTENCES.read_text(encoding="utf-8").splitlines() if line.strip()]
    task = kind.of_sentences(head_in(model.config, "config.json"), lines)
    if isinstance(task, MaskedLanguageModeling):
        task.seed, task.probability = flags.get("seed", task.seed), flags.get("mlm_probability", task.probability)
        task.whole_words, task.line_by_line = (bool(flags.get(name)) for name in ("whole_word_mask", "line_by_line"))
        try:
            return Texts("this package", _tokenized(task, tokenizer, length)["test"], task, "test")
        except UsageError as error:
            raise UsageError(
                f"a language model cannot be proven on sentences of this package ({error}): name texts with --data FILE"
            ) from error
    if not isinstance(task, QuestionAnswering):
        return Texts("this package", _tokenized(task, tokenizer, length)["test"], task, "test")
    task.doc_stride = min(task.doc_stride, length // 4)
    task.version_2 = bool(flags.get("version_2_with_negative"))
    task.threshold = float(flags.get("null_score_diff_threshold", 0.0))
    try:
        return Texts("this package", _tokenized(task, tokenizer, length)["test"], task, "test")
    except UsageError as error:
        raise UsageError(
            f"rows of {length} tokens are too short to prove question answering on sentences of this package: name "
            "questions that fit with --data FILE, or allow more tokens"
        ) from error


def _for_export(message: str) -> str:
    """Returns a message about the flags of a training script, as one about those of the export."""
    message = re.sub("(--train_file and )?--(validation_file|test_file)", "--data", message)
    message = message.replace("--text_column_name", "--input_column_names")
    return message.replace(", reduce --doc_stride, or shorten", ", or shorten")


def _named(arguments: ExportArguments, kind: type[Task]) -> dict[str, Any]:
    """The training flags that read the data of --data; a file without labels is read as a test file."""
    data, path = str(arguments.data), Path(str(arguments.data))
    flags = {"label_column_name": arguments.label_column_name, kind.text_flag: arguments.input_column_names}
    if kind.text_flag == "text_column_name" and arguments.input_column_names:
        flags[kind.text_flag] = arguments.input_column_names[0]
    if path.is_file() and path.suffix.lower() in kind.arguments.suffixes:
        labelled = bool(arguments.label_column_name) or kind.has_labels(data)
        return {**flags, "validation_file" if labelled else "test_file": data}
    if path.is_file() or path.suffix.lower() in kind.arguments.suffixes:
        return {**flags, "validation_file": data}
    is_task = "task_name" in kind.arguments.sources and data in GLUE_TASKS
    return {**flags, "task_name" if is_task else "dataset_name": data}


def _recorded(folder: Path) -> dict[str, Any]:
    """The data flags of the run that made the folder, or of the run that a checkpoint belongs to; empty without one."""
    home = folder.resolve().parent if checkpoint_step(folder.resolve()) >= 0 else folder
    try:
        flags = json.loads((home / ARGUMENTS_FILE).read_text(encoding="utf-8"))
        names = (*_DATA_FLAGS, *_ANSWER_FLAGS)
        found = {name: flags[name] for name in names if flags.get(name) is not None and flags[name] is not False}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    if "input_column_names" in found:
        found["input_column_names"] = tuple(found["input_column_names"])
    return found


def _load(folder: Path, kind: type[Task], model: Any, tokenizer: Any, length: int, flags: dict[str, Any]) -> Texts:
    others = ("task_name", "dataset_name", "train_file", "validation_file", "eval_on_test")
    unlabelled = bool(flags.get("test_file")) and not any(flags.get(name) for name in others)
    if unlabelled:
        flags = {**flags, "max_predict_samples": flags["max_eval_samples"], "max_eval_samples": None}
    known = {field.name for field in dataclasses.fields(kind.arguments)}
    arguments = kind.arguments(
        model_name_or_path=str(folder),
        output_dir=str(folder),
        do_eval=not unlabelled,
        do_predict=unlabelled,
        **{name: value for name, value in flags.items() if name in known},
    )
    split = "test" if unlabelled else "validation"
    task = kind.load(arguments, head_in(model.config, "config.json"))
    if isinstance(task, QuestionAnswering):
        is_shorter = length < min(arguments.max_seq_length, max_length(tokenizer, model))
        if is_shorter or "doc_stride" not in flags:  # else these are the windows of the run
            task.doc_stride = min(task.doc_stride, length // 3)
    rows = _tokenized(task, tokenizer, min(length, arguments.max_seq_length))[split]
    return Texts(task.data.sources[split], rows, task, split)


def _tokenized(task: Task, tokenizer: Any, length: int) -> dict[str, Dataset]:
    disable_progress_bars()
    try:
        return task.tokenize(tokenizer, length)
    finally:
        enable_progress_bars()
