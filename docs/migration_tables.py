"""The generated parts of docs/migration.md: what became of SparseML 1.8's flags, modifiers and `zoo:` stubs.

A flag works if it is a field of our arguments; a refused one has its reason in the code. One that is neither is an
error here. What differs, and what to use instead of something, is written below by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modifier_tables import table

from sparse_accel.cli.export import ExportArguments
from sparse_accel.cli.masked_language_modeling import MaskedLanguageModelingArguments
from sparse_accel.cli.question_answering import QuestionAnsweringArguments
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.cli.token_classification import TokenClassificationArguments
from sparse_accel.modifiers import KNOWN_LATER, REGISTRY
from sparse_accel.zoo.known import ON_HUB, SHIPPED

WORKS, DIFFERS, REFUSED = "works", "works differently", "refused"

# Names of flags, in six paragraphs: those of its dataclasses ModelArguments, DataTrainingArguments and
# TrainingArguments; those of transformers 4.39's TrainingArguments, which its own derive from; those of its export; and
# those of the first two dataclasses of token classification, of question answering and of masked language modelling.
FLAGS = Path(__file__).with_name("sparseml_flags.txt")
_PARAGRAPHS = FLAGS.read_text(encoding="utf-8").split("\n\n")
OWN, TRAINER, EXPORT, TOKENS, QUESTIONS, LANGUAGE = (names.split() for names in _PARAGRAPHS)

# --- flags that work: what differs, and what is only worth knowing ----------------------------------------------------

_WHOLE_STEPS = "an integer; a fraction of the run, such as 0.1, is refused"

DIFFERENT = {
    "task_name": "the nine GLUE tasks; for `imdb`: `--dataset_name imdb`",
    "dataset_name": "old short names lead to today's ids; dataset scripts are not run",
    "max_seq_length": "128 by default, there 384",
    "pad_to_max_length": "off by default: a batch has rows of similar length, padded to its longest; same results "
    "without quantization and dropout",
    "max_train_samples": "drawn at random by `--seed`; there the first rows, often all of one class",
    "max_eval_samples": "drawn at random by `--seed`; there the first rows",
    "input_column_names": "two names, with a comma or a space between them; where several columns are possible and "
    "none is named, an error lists them",
    "label_column_name": "decimal numbers are regression (all without a fraction, such as 1.0: `--problem_type` "
    "decides), lists are several labels for each row; label names are kept",
    "use_teacher_tokenizer": "the student's rows are tokenized by the teacher's tokenizer; there it meant the "
    "opposite, a tokenizer for each model, which is the default here",
    "tokenizer_name": "names only the tokenizer; there it was also used as the model",
    "distill_teacher": "its logits are computed once and kept on disk; `self` works, there it crashed; labels are "
    "matched by name",
    "recipe": "see [zoo: stubs](#zoo-stubs) for where they lead; a wrong key is an error with file and line",
    "one_shot": "labels and head are the model's own; calibration rows need no labels",
    "best_model_after_epoch": "never before the recipe's last change of structure (final sparsity, frozen ranges)",
    "load_best_model_at_end": "only evaluations after the recipe's last change of structure count",
    "output_dir": "another run's finished folder is moved to DIR.1; the same run's results are printed",
    "overwrite_output_dir": "what is in the folder is moved to DIR.1, not deleted; a restarted SLURM job ignores it "
    "for its own run",
    "resume_from_checkpoint": "the recipe's clock continues, there it restarted; an unfinished run resumes without "
    "the flag too",
    "lr_scheduler_type": "only linear, cosine, constant and constant_with_warmup",
    "fp16": "without a GPU bf16 on CPUs that multiply it, else float32, with a warning; refused under FSDP2",
    "torch_compile": "refused under FSDP2 and DeepSpeed",
    "report_to": "wandb, tensorboard, both, or none, which is the default; there every tracker that is installed",
    "push_to_hub": "once, at the end of the run; there also each checkpoint",
    "save_steps": _WHOLE_STEPS,
    "eval_steps": _WHOLE_STEPS,
    "logging_steps": _WHOLE_STEPS,
    "debug": "shows the traceback of a usage error; the Trainer's own debug modes do not exist",
    "do_predict": "`test_predictions.csv` with label names and probabilities; also alone, on a trained folder",
}
REMARKS = {
    "model_revision": "of the student; a teacher is read from its main revision",
    "recipe_args": "a JSON object, or `a=1,b:2`",
    "evaluation_strategy": "its new name, `--eval_strategy`, works too",
    "num_train_epochs": "a recipe's own epochs win; a line says so",
    "max_steps": "a recipe's own epochs win; a line says so",
    "learning_rate": "a recipe's own learning rate wins",
    "save_total_limit": "the best checkpoint is always kept",
    "hub_token": "better: `HF_TOKEN` in the environment; it is written to no file",
    "max_predict_samples": "the first rows",
    "validation_ratio": "drawn by `--seed`; each class keeps its fraction",
}
DIFFERENT_FOR_TOKENS = {
    "train_file": "CoNLL files, JSON with lists, and Parquet; there JSON and CSV",
    "text_column_name": "by default `tokens` or `words`; there `tokens`, or the first column",
    "label_column_name": "by default `TASK_tags`, `tags` or `labels`; there `TASK_tags`, or the second column. In "
    "CoNLL files a number, counted from 1",
    "max_seq_length": "128 by default, there what the model takes; longer sentences are split between words, there "
    "cut off",
    "label_all_tokens": "later pieces of a word get its I- tag; figures always count words",
    "return_entity_level_metrics": "adds `f1_TYPE`; there also precision, recall and number",
}
DIFFERENT_FOR_QUESTIONS = {
    "dataset_name": "`squad` and `squad_v2` lead to today's ids; dataset scripts are not run",
    "train_file": "SQuAD's nested JSON, rows in JSON or JSON lines, and Parquet; there CSV, and JSON with rows under "
    "`data`. Each answer must be at its offset",
    "version_2_with_negative": "without it, questions without an answer are an error, there they were trained; also "
    "gives the figures of both kinds of questions and the best thresholds",
    "null_score_diff_threshold": "needs `--version_2_with_negative`; there it had no effect without it",
    "doc_stride": "a question that leaves no room for so many tokens of its context is an error with its id",
    "n_best_size": "a span that several windows give is listed once",
}
REMARKS_FOR_QUESTIONS = {
    "max_seq_length": "384 by default; at most what the model takes",
    "test_file": "answers are not needed",
}
DIFFERENT_FOR_LANGUAGE = {
    "dataset_name": "dataset scripts are not run",
    "max_seq_length": "128 by default; there not set",
    "mlm_probability": "this fraction of each row, at least one token",
    "distill_teacher": "runs in each step; needs the tokenizer of the model",
    "max_train_samples": "drawn at random by `--seed`; there the first texts",
    "one_shot": "the rows for ranges are masked, too",
}
REMARKS_FOR_LANGUAGE = {
    "tokenizer_name": "the tokenizer alone",
    "train_file": "also tsv, jsonl and Parquet",
    "pad_to_max_length": "same results without quantization and dropout",
}
REMARKS_FOR_TOKENS = {"task_name": "names the column of tags, `TASK_tags`; `ner` by default"}
DIFFERENT_IN_EXPORT = {
    "sequence_length": "any length by default; there the longest that the model takes",
    "opset": "18 by default (14 with `--format integer`), there 14; an error if the exporter does not reach it",
}
REMARKS_IN_EXPORT = {
    "task": "text_classification, token_classification, question_answering, masked_language_modeling, and their other "
    "names",
    "model_path": "also checkpoints, Hub ids and `zoo:` stubs",
}

# --- modifiers --------------------------------------------------------------------------------------------------------

NEW_MODIFIERS = {"HiddenStateDistillationModifier": "SparseML has none; `PerLayerDistillationModifier` is its own"}
DIFFERENT_MODIFIERS = {
    "EpochRangeModifier": "a modifier that starts or ends after the last epoch is an error; there it made training "
    "longer",
    "SetLearningRateModifier": "`end_epoch` must be the start of the next one, there it was ignored",
    "SetWeightDecayModifier": "`end_epoch` must be the start of the next one, there it was ignored",
    "TrainableParamsModifier": "also `__ALL_PRUNABLE__`; freezing for a part of the training is refused under "
    "DeepSpeed",
    "SetParamModifier": "`params` may be patterns; two that set a parameter at the same time are an error",
    "GradualParamModifier": "moves as `inter_func` says, there always linearly; at the end of training it is at "
    "`final_val`; `params` may be patterns",
    "LayerPruningModifier": "only blocks of the encoder; saved models have fewer layers, also in config.json, there an "
    "empty place was left; layers go before the forward of their step, there after it; also `re:` patterns; "
    "`end_epoch` is refused, there it put the layer back",
    "ConstantPruningModifier": "zeros are taken once, at the start; there in every step, so that a weight that "
    "happened to become 0 stayed 0. `__ALL_PRUNABLE__` does not include embeddings. A model without zeros gives a "
    "warning",
    "MagnitudePruningModifier": "also `global_sparsity`; keys have defaults; `mask_type: [rows, columns]` is a real "
    "block, there runs of consecutive weights",
    "GMPruningModifier": "as MagnitudePruningModifier; `phased: true` and a `score_type` other than magnitude are "
    "refused",
    "GlobalMagnitudePruningModifier": "as MagnitudePruningModifier",
    "MovementPruningModifier": "the same scores, also under DDP, where it failed there; also `global_sparsity` and "
    "`straight_through` (the paper's form); N:M masks are ranked by the score, there by its absolute value. Refused "
    "under DeepSpeed",
    "OBSPruningModifier": "runs in the training script, where it stopped with an error; the batch of an update step is "
    "trained on, there it was thrown away; the Fisher matrix is summed in float64, where float32 lost up to 41%; a "
    "short loader is read again, there fewer samples were divided by `num_grads`; more samples than training rows are "
    "an error; no samples where nothing is left to prune; `[1, 4]` is block4; `shuffle` in `grad_sampler_kwargs` is "
    "refused; also `grad_loss`. Refused under DeepSpeed",
    "StructuredPruningModifier": "`params`, `param_groups` and `mask_type` prune rows or columns as there; "
    "`__ALL_PRUNABLE__` does not include embeddings, and `params` must be given. Also a second form: heads, neurons "
    "and blocks that the export removes",
    "QuantizationModifier": "starts and freezes at its step, there one step late; ranges see training data only, "
    "there also evaluation data; the ranges of the classifier freeze too. A class in "
    "`custom_quantizable_module_types` that the model does not have is an error. Token ids and products in attention "
    "are never quantized; see [quantization.md](quantization.md#what-differs-from-sparseml)",
    "DistillationModifier": "`distill_output_keys` is `[logits]` by default; the reported evaluation loss is the "
    "task's; a single output (regression) is compared by squared error; two that compare the same output at the same "
    "time are an error",
    "PerLayerDistillationModifier": "padding does not count; `end_epoch` is the first step without; the mean square is "
    "that of all rows of a step; `re:` patterns, and layers that return a tuple, work; wrong names, numbers and widths "
    "of layers are found before training; projections have an AdamW of their own, which resumes with the run. "
    "Projections are refused under DeepSpeed",
}


def parts() -> dict[str, str]:
    """The generated parts of the page, by name."""
    text, token, question = TextClassificationArguments, TokenClassificationArguments, QuestionAnsweringArguments
    for_questions = DIFFERENT | DIFFERENT_FOR_QUESTIONS, REMARKS | REMARKS_FOR_QUESTIONS
    for_language = DIFFERENT | DIFFERENT_FOR_LANGUAGE, REMARKS | REMARKS_FOR_LANGUAGE
    return {
        "modifiers": modifiers_table(),
        "stubs": stubs_table(),
        "flags": flags_table(OWN, text, DIFFERENT, REMARKS),
        "trainer_flags": flags_table(TRAINER, text, DIFFERENT, REMARKS),
        "token_flags": flags_table(TOKENS, token, DIFFERENT | DIFFERENT_FOR_TOKENS, REMARKS | REMARKS_FOR_TOKENS),
        "question_flags": flags_table(QUESTIONS, question, *for_questions),
        "language_flags": flags_table(LANGUAGE, MaskedLanguageModelingArguments, *for_language),
        "export_flags": flags_table(EXPORT, ExportArguments, DIFFERENT_IN_EXPORT, REMARKS_IN_EXPORT),
    }


def flags_table(names: Iterable[str], arguments: Any, different: Mapping[str, str], remarks: Mapping[str, str]) -> str:
    """What became of each flag.

    Raises:
        KeyError: a flag is neither taken nor refused.
    """
    fields = dataclasses.fields(arguments)
    taken = {field.name for field in fields} | {field.metadata["old_name"] for field in fields}
    rows = []
    for name in names:
        if name not in taken:
            rows.append((f"`--{name}`", REFUSED, arguments.refused[name].rstrip(".")))
        elif name in remarks:
            rows.append((f"`--{name}`", WORKS, remarks[name]))
        else:
            rows.append((f"`--{name}`", DIFFERS if name in different else WORKS, different.get(name, "")))
    return table(("flag", "here", "what differs, or why not"), rows)


def modifiers_table() -> str:
    """What became of each modifier: those that are registered work, and those that are known are refused."""
    rows = []
    for name in REGISTRY:
        status = DIFFERS if name in DIFFERENT_MODIFIERS else WORKS
        if name in NEW_MODIFIERS:
            status = "new"
        rows.append((f"`{name}`", status, NEW_MODIFIERS.get(name, DIFFERENT_MODIFIERS.get(name, ""))))
    rows += [(f"`{name}`", REFUSED, reason) for name, reason in sorted(KNOWN_LATER.items())]
    return table(("modifier", "here", "what differs, or what to use"), rows)


def stubs_table() -> str:
    """The stubs that are known without a mirror: recipes of this package, and models of the Hub."""
    rows = []
    for recipe in SHIPPED:
        names = f"?recipe={recipe.names[0]}" if recipe.only_by_name else ""
        rows.append((f"`{recipe.stub}{names}`", f"recipe `{recipe.file}`", recipe.about))
    rows += [(f"`{model.stub}`", f"model `{model.hub_id}`", model.about) for model in ON_HUB]
    return table(("stub", "resolves to", "remark"), rows)
