"""The identity of a run, and the settings that change its result without being part of the identity."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from accelerate import Accelerator
from torch import nn

from sparse_accel.data.tokenizing import tokenizer_digest
from sparse_accel.distributed.launch import precision_name
from sparse_accel.fingerprints import fingerprint_of_rows, fingerprint_of_weights
from sparse_accel.models.files import fingerprint_of_model
from sparse_accel.models.loading import head_of
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.run_folder.environment import record_environment
from sparse_accel.run_folder.ownership import acquire
from sparse_accel.run_folder.results import record_arguments
from sparse_accel.training.loaders import Batches, TokenizedRows
from sparse_accel.training.schedule import Schedule
from sparse_accel.training.streaming import StreamSampler
from sparse_accel.training.tracking import start_trackers

if TYPE_CHECKING:
    from sparse_accel.cli.training import TrainingArguments


def take_folder(
    arguments: TrainingArguments,
    accelerator: Accelerator,
    run: RecipeRun,
    model: nn.Module,
    rows: TokenizedRows,
    sampler: Batches,
    schedule: Schedule,
) -> bool:
    """Acquires the output folder for this run, writes arguments.json, and starts the trackers.

    Returns:
        False if the folder contains this run, finished; then there is nothing to train.

    Raises:
        UsageError: the folder belongs to another run, or cannot be created; or a tracker does not start.
    """
    identity = identity_of(arguments, run, model, rows, sampler, schedule)
    settings = settings_of(arguments, accelerator, run, model, rows.splits, schedule)
    if isinstance(sampler, StreamSampler):
        settings["stream"] = _fingerprint_of_stream(sampler)
    if acquire(accelerator, arguments, run, identity, settings) == "show":
        return False
    record_arguments(accelerator, Path(str(arguments.output_dir)), arguments)
    record_environment(accelerator, Path(str(arguments.output_dir)))
    start_trackers(accelerator, arguments, run.recipe)
    return True


def identity_of(
    arguments: TrainingArguments,
    run: RecipeRun,
    model: nn.Module,
    rows: TokenizedRows,
    sampler: Batches,
    schedule: Schedule,
) -> dict[str, Any]:
    """Returns the identity of this run: if any of these values differs, it is another run."""
    flags: tuple[str, ...] = ("seed", "learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps")
    flags += ("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "max_seq_length")
    flags += ("label_smoothing_factor",)
    return {
        "model": fingerprint_of_weights(model),
        "data": _fingerprint_of_data(rows, sampler),
        "recipe": run.recipe.resolved() if run.recipe else None,
        "teacher": fingerprint_of_weights(run.teacher.model) if run.teacher else None,
        "global_batch_size": sampler.global_batch_size,
        "total_steps": schedule.total_steps,
        **{flag: getattr(arguments, flag) for flag in flags},
        **run.task.training_settings(),
        **(_settings_of_stream(sampler) if isinstance(sampler, StreamSampler) else {}),
    }


def _settings_of_stream(sampler: StreamSampler) -> dict[str, int]:
    """Returns the flags that the order of a stream's rows and the length of its epochs depend on."""
    stream = sampler.loader.stream
    return {
        "stream_shards": stream.corpus.shards,
        "shuffle_window": stream.window,
        "steps_per_epoch": sampler.steps,
    }


def _fingerprint_of_stream(sampler: StreamSampler) -> str:
    """Returns a digest of a corpus. A finished run on other files is another one; an unfinished run that resumes says
    which file has changed."""
    return hashlib.sha256(repr(sampler.loader.stream.corpus.identity).encode()).hexdigest()[:32]


def _fingerprint_of_data(rows: TokenizedRows, sampler: Batches) -> str:
    """Returns the digest of the training rows; of a stream, that of the tokenizer: the content of its files is a
    setting, whose change is told by the files."""
    if isinstance(sampler, StreamSampler):
        return hashlib.sha256(f"stream {tokenizer_digest(rows.tokenizer)}".encode()).hexdigest()[:32]
    return fingerprint_of_rows(rows.splits["train"])


# Entries of a model's configuration that do not change what it computes, or are compared elsewhere.
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "problem_type", "initializer_range", "use_cache")


def settings_of(
    arguments: TrainingArguments,
    accelerator: Accelerator,
    run: RecipeRun,
    model: nn.Module,
    rows: dict[str, Any],
    schedule: Schedule | None = None,
) -> dict[str, Any]:
    """Returns the settings that change a run's result but are not part of its identity. A finished run with other
    settings is another result; an unfinished one may resume only with other settings of `ownership.MAY_CHANGE`.

    Args:
        rows: tokenized splits, by name.
        schedule: None for --one_shot.
    """
    head, config = head_of(model), cast(Any, model).config.to_dict()
    settings: dict[str, Any] = {
        "label_names": head.names,
        "problem_type": head.problem_type,
        "precision": precision_name(accelerator),
        **{
            f"config.{name}": value
            for name, value in config.items()
            if isinstance(value, (bool, int, float, str)) and name not in _NOT_OF_THE_MODEL
        },
    }
    if any(modifier.needs_rows for modifier in run.modifiers):
        settings["pad_to_max_length"] = arguments.pad_to_max_length  # observers see padding too
    if run.teacher is not None:
        settings["teacher"] = f"{fingerprint_of_model(run.teacher.model)} {run.teacher.order}"
    if schedule is not None:
        settings["nan_loss"] = arguments.nan_loss
        settings["load_best_model_at_end"] = arguments.load_best_model_at_end
    if schedule is not None and arguments.load_best_model_at_end:  # then the evaluations decide the result
        judged = ("metric_for_best_model", "greater_is_better", "best_model_after_epoch")
        settings |= {name: getattr(arguments, name) for name in judged}
        validation = [fingerprint_of_rows(rows[split]) for split in sorted(rows) if split.startswith("validation")]
        settings |= {"steps_between_evaluations": schedule.evaluate_every, "validation_rows": " ".join(validation)}
        settings["steps_between_checkpoints"] = schedule.save_every
        if arguments.metric_for_best_model.removeprefix("eval_") != "loss":
            data = {name: split for name, split in run.task.data.splits.items() if name.startswith("validation")}
            judged_by = [fingerprint_of_rows(data[split]) for split in sorted(data)]
            settings["metric_settings"] = repr([*run.task.metric_dependencies(), *judged_by])
    return settings
