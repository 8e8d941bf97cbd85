"""MIGRATION.md: every flag of SparseML 1.8's commands, and what became of it, as the code says.

    python tests/migration_table.py      # writes the file anew

Flags that work are fields of our arguments, refused ones stand with their reasons beside them; one that is neither is
an error here. What a flag does differently is said in `CHANGED`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparse_accel.cli.export import ExportArguments
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.cli.token_classification import TokenClassificationArguments

FILE = Path(__file__).resolve().parent.parent / "MIGRATION.md"

# Names of flags, in four paragraphs: those of its dataclasses ModelArguments, DataTrainingArguments and
# TrainingArguments; those of transformers 4.39's TrainingArguments, which its own derive from; its export's; and those
# of token classification's first two dataclasses.
FLAGS = Path(__file__).with_name("sparseml_flags.txt")
OWN, TRAINER, EXPORT, TOKENS = (names.split() for names in FLAGS.read_text(encoding="utf-8").split("\n\n"))

CHANGED = {
    "task_name": "the nine GLUE tasks; for its `imdb`: `--dataset_name imdb`",
    "dataset_name": "short names of the time lead to today's ids; dataset scripts are not run",
    "max_seq_length": "128 by default, 384 there",
    "pad_to_max_length": "off by default: batches of like lengths, padded to their longest row; same results, faster",
    "max_train_samples": "a draw by `--seed`; there the first rows, often of one class",
    "max_eval_samples": "a draw by `--seed`",
    "validation_ratio": "classes in proportion",
    "input_column_names": "words apart work as well as the comma; a guess between several columns is an error",
    "label_column_name": "decimals are regression (without a fraction, as 1.0: `--problem_type` decides), lists "
    "multi-label; label names are kept as texts",
    "tokenizer_name": "names the tokenizer alone; there also the model",
    "model_revision": "of the student; a teacher is its main revision",
    "distill_teacher": "its logits are computed once and looked up; `self` works; labels are matched by name",
    "recipe": "`zoo:` stubs lead to the places that README lists; a wrong key is an error with file and line",
    "one_shot": "labels and head are the model's own; calibration rows need no labels",
    "recipe_args": "JSON, or `a=1,b:2`",
    "best_model_after_epoch": "never before the recipe's last change of structure",
    "load_best_model_at_end": "only of evaluations after the recipe's last change of structure",
    "output_dir": "what a finished run left there is moved aside, never overwritten",
    "overwrite_output_dir": "what is there is moved aside to DIR.1",
    "resume_from_checkpoint": "the clock goes on; an unfinished run goes on without the flag too",
    "evaluation_strategy": "still taken; `--eval_strategy` is its name now",
    "num_train_epochs": "a recipe's epochs win, and a line says so",
    "max_steps": "a recipe's epochs win, and a line says so",
    "learning_rate": "a recipe's learning rate wins; the rate that is logged is the one applied",
    "lr_scheduler_type": "linear, cosine, constant, constant_with_warmup",
    "fp16": "float32 with a warning where there is no GPU; not under FSDP2",
    "torch_compile": "refused under FSDP2 and DeepSpeed",
    "report_to": "none by default; wandb, tensorboard",
    "save_total_limit": "the best checkpoint is always kept",
    "save_steps": "whole steps, no shares",
    "eval_steps": "whole steps, no shares",
    "logging_steps": "whole steps, no shares",
    "debug": "shows the traceback of a usage error; the Trainer's own modes are not there",
    "do_predict": "writes label names and probabilities; works alone on a trained folder",
}
CHANGED_FOR_TOKENS = {
    "task_name": "which column of tags: `TASK_tags`, as there; `ner` by default",
    "train_file": "CoNLL files, JSON with lists, and Parquet; there JSON, and CSV, which has no lists",
    "text_column_name": "by default `tokens` or `words`; there `tokens`, else the first column",
    "label_column_name": "by default `TASK_tags`, `tags` or `labels`; there `TASK_tags`, else the second column; in "
    "CoNLL files a number, from 1",
    "max_seq_length": "128 by default; longer sentences are split between words, there cut off",
    "max_predict_samples": "the first rows",
    "label_all_tokens": "the pieces of a word after its first have its I- tag; figures are always of words",
    "return_entity_level_metrics": "adds `f1_TYPE`; there precision, recall and number as well",
}
CHANGED_IN_EXPORT = {
    "task": "text_classification and token_classification, and their other names",
    "model_path": "output folders and checkpoints, `zoo:` stubs and Hub ids too",
    "sequence_length": "any length by default; there the longest that the model takes",
    "opset": "18, or 14 with `--format integer`; an error if it is not reached",
}


def table() -> str:
    """The whole file."""
    return "\n".join(
        [
            "# Every flag of SparseML's commands",
            "",
            "What became of the flags of SparseML 1.8.0. Made from the code by `python tests/migration_table.py`; a",
            "test keeps it true. A flag that is refused ends the command with exit code 2 and the reason below.",
            "`--no_FLAG`, which those commands had for each flag that is true by default, works as `--FLAG false`, or",
            "is refused as `--FLAG` is.",
            "",
            "## `sparseml.transformers.text_classification`, `sparseml.transformers.train.text_classification`",
            "",
            *_rows(OWN, TextClassificationArguments, CHANGED),
            "",
            "From transformers' `TrainingArguments` (4.39):",
            "",
            *_rows(TRAINER, TextClassificationArguments, CHANGED),
            "",
            "## `sparseml.transformers.token_classification`, `sparseml.transformers.train.token_classification`",
            "",
            "Flags that it has beside those of transformers' `TrainingArguments`, for which see above:",
            "",
            *_rows(TOKENS, TokenClassificationArguments, CHANGED | CHANGED_FOR_TOKENS),
            "",
            "## `sparseml.transformers.question_answering`, `sparseml.transformers.masked_language_modeling`",
            "",
            "Known, not supported yet: they say so, and end with exit code 2.",
            "",
            "## `sparseml.transformers.export_onnx`",
            "",
            *_rows(EXPORT, ExportArguments, CHANGED_IN_EXPORT),
            "",
        ]
    )


def _rows(names: Iterable[str], arguments: Any, changed: dict[str, str]) -> list[str]:
    fields = dataclasses.fields(arguments)
    taken = {field.name for field in fields} | {field.metadata["old_name"] for field in fields}
    lines = ["| flag | here | what changed, or why not |", "|---|---|---|"]
    for name in names:
        if name in taken:
            lines.append(f"| `--{name}` | works | {changed.get(name, '')} |".replace("|  |", "| |"))
        else:
            lines.append(f"| `--{name}` | refused | {arguments.refused[name].rstrip('.')} |")
    return lines


if __name__ == "__main__":
    FILE.write_text(table(), encoding="utf-8")
