"""Flags of scripts/export_onnx.py. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparse_accel.cli.masked_language_modeling import MaskedLanguageModelingArguments
from sparse_accel.cli.parser import check_bounds, expand_paths, flag
from sparse_accel.cli.question_answering import QuestionAnsweringArguments
from sparse_accel.errors import UsageError, nearest

FORMATS = ("qdq", "integer")
TRACKERS = ("wandb", "mlflow")
_COLUMNS = ("input_column_names", "label_column_name")
# SparseML's task names -> ours.
_TASKS = {
    "text_classification": "text_classification",
    "sentiment_analysis": "text_classification",
    "glue": "text_classification",
    "token_classification": "token_classification",
    "ner": "token_classification",
    "question_answering": "question_answering",
    "qa": "question_answering",
    "sentence_embedding": "sentence_embedding",
    "sentence_similarity": "sentence_embedding",
    "feature_extraction": "sentence_embedding",
    "masked_language_modeling": "masked_language_modeling",
    "mlm": "masked_language_modeling",
    "fill_mask": "masked_language_modeling",
}
# Of all tasks, those whose models are exported.
EXPORTED = tuple(dict.fromkeys(_TASKS.values()))
_QUESTIONS, _LANGUAGE = "question_answering", "masked_language_modeling"
# Of some tasks, the flags that name columns and are refused, with the reasons.
_REFUSED_COLUMNS: dict[str, dict[str, str]] = {
    _QUESTIONS: {name: QuestionAnsweringArguments.refused[name] for name in _COLUMNS},
    _LANGUAGE: {"label_column_name": MaskedLanguageModelingArguments.refused["label_column_name"]},
}


@dataclass(kw_only=True)
class ExportArguments:
    """Export."""  # the heading of the group in --help

    refused: ClassVar[Mapping[str, str]] = {
        "finetuning_task": "the head and its labels are read from config.json",
        "onnx_file_name": "the file is always model.onnx, the name that runtimes expect",
        "num_export_samples": "pass real text as --data: the export is verified on it",
        "trust_remote_code": "code from a model folder is never run",
        "no_convert_qat": "a model trained in 8 bits is exported in 8 bits, and both are compared",
        "data_args": "use --data, --input_column_names and --label_column_name",
        "one_shot": "apply the recipe first, with --one_shot of the training script",
    }

    model_path: str | None = flag(
        None,
        "output folder or checkpoint of a training run, or any Hugging Face model with one of these heads",
        path=True,
    )
    task: str | None = flag(
        None,
        "task of the model: text_classification, token_classification, question_answering, sentence_embedding or "
        "masked_language_modeling",
        default_text="that of its config.json",
    )
    output_dir: str | None = flag(
        None, "folder to write", default_text="`deployment`, next to the model's folder", path=True
    )
    overwrite: bool = flag(False, "replace a deployment folder of another model")
    format: str = flag(
        "qdq",
        "graph format: qdq (onnxruntime, OpenVINO) or integer (MatMulInteger, for DeepSparse)",
        choices=FORMATS,
    )
    # Opset 13 introduced per-channel DequantizeLinear and Softmax over a single axis.
    opset: int | None = flag(None, "ONNX opset version", at_least=13, default_text="18 for qdq, 14 for integer")
    sequence_length: int | None = flag(
        None, "fixed number of tokens per row; inputs must then be padded to it", at_least=3, default_text="any length"
    )
    reduce_range: bool = flag(False, "7-bit activations, for CPUs without VNNI (their 8-bit sums overflow)")
    keep_structure: bool = flag(False, "write heads and neurons that are all zero too; without it, they are removed")
    kernels: bool = flag(
        False, "also write model.kernels.onnx, for programs in C, C++, C# and Java that load the library of kernels"
    )
    compress: bool = flag(False, "also write model.onnx.xz; sparse_accel.expand(FOLDER) restores the identical file")
    data: str | None = flag(
        None,
        "rows to verify the export on: a csv, tsv, json, jsonl or parquet file, a GLUE task or a Hub dataset; of "
        "questions, a json (also SQuAD's nested form), jsonl or parquet file or a Hub dataset; of a language model, a "
        "txt file too",
        default_text="the run's validation data if still available, else sentences of this package",
        path=True,
    )
    input_column_names: tuple[str, ...] | None = flag(
        None, "text column of --data, or two text columns", default_text="detected"
    )
    label_column_name: str | None = flag(None, "label column of --data", default_text="label, else labels")
    max_eval_samples: int = flag(2000, "maximum number of rows to verify on, drawn by a fixed seed", at_least=1)
    max_seq_length: int | None = flag(
        None,
        "maximum tokens per row during verification",
        at_least=3,
        default_text="that of the run, at most 128, or 384 for question answering",
    )
    version_2_with_negative: bool = flag(
        False, "question answering: questions may have no answer (SQuAD 2.0), if no run recorded this for the model"
    )
    deepsparse_python: str | None = flag(
        None,
        "Python interpreter with DeepSparse 1.8, to measure it too",
        default_text="not measured",
        path=True,
    )
    report_to: tuple[str, ...] = flag(
        (),
        "send the deployment and its figures to the trackers that followed the run of the model: wandb, mlflow",
        default_text="none",
    )
    debug: bool = flag(False, "show the traceback of a usage error")

    def __post_init__(self) -> None:
        expand_paths(self)
        check_bounds(self)
        if self.model_path is None:
            raise UsageError("--model_path is missing: the folder of the model to export.")
        if (task := self.task_name) is not None:
            self.check_task(task)
        for name in _COLUMNS:
            if getattr(self, name) and not self.data:
                raise UsageError(f"--{name} names a column of --data: add --data.")
        if self.kernels and self.format != "qdq":
            raise UsageError(f"--kernels needs the format qdq: leave out --format {self.format}, or --kernels.")
        self.report_to = tuple(word for text in self.report_to for word in text.replace(",", " ").split())
        for word in self.report_to:
            if word not in TRACKERS:
                raise UsageError(
                    f"--report_to: an export cannot be sent to '{word}'.{nearest(word, TRACKERS)} It can to: "
                    f"{', '.join(TRACKERS)}."
                )

    @property
    def task_name(self) -> str | None:
        """Returns this package's name of the task in --task; None without --task.

        Raises:
            UsageError: there is no such task.
        """
        if self.task is None:
            return None
        known = ", ".join(EXPORTED)
        name = self.task.replace("-", "_")
        if name not in _TASKS:
            raise UsageError(f"--task: unknown value '{self.task}'. Expected one of: {known}.")
        return _TASKS[name]

    def check_task(self, task: str) -> None:
        """Checks the flags that not every task has.

        Args:
            task: this package's name of the model's task.

        Raises:
            UsageError: a flag has no meaning for this task.
        """
        if self.version_2_with_negative and task != _QUESTIONS:
            raise UsageError(f"--version_2_with_negative is for {_QUESTIONS}, not for {task}: remove it.")
        for name, reason in _REFUSED_COLUMNS.get(task, {}).items():
            if getattr(self, name):
                raise UsageError(f"--{name} is not for {task}: {reason} Remove it.")
        if task == _LANGUAGE and len(self.input_column_names or ()) > 1:
            raise UsageError(f"--input_column_names: {task} reads one column of texts; name only that one.")
