"""From flags to the pieces of a training run: accelerator, loaders, teacher, schedule, identity."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, TorchDynamoPlugin
from torch import nn
from torch.utils.data import DataLoader

from sparse_accel.cli.parser import given
from sparse_accel.console import warn
from sparse_accel.data.batches import Collator, GlobalBatchSampler, make_loader
from sparse_accel.data.tokenizing import tokenizer_digest
from sparse_accel.distributed.environment import compilation
from sparse_accel.distributed.launch import check_launch, describe, gives_gradients, launch_options
from sparse_accel.errors import UsageError, listed
from sparse_accel.fingerprints import fingerprint_of_rows, fingerprint_of_weights
from sparse_accel.models.files import fingerprint_of_model
from sparse_accel.models.loading import head_of, load_teacher, sequence_limit
from sparse_accel.models.teacher import Teacher
from sparse_accel.modifiers import Modifier
from sparse_accel.optimizer import usual_rate
from sparse_accel.recipe_run import RecipeRun, check_gradients
from sparse_accel.tasks import check_metric_name
from sparse_accel.tasks.text_classification.encoding import tokenize_texts
from sparse_accel.tracking import logging_folder
from sparse_accel.training_loop import Schedule

if TYPE_CHECKING:
    from sparse_accel.cli.text_classification import TextClassificationArguments
    from sparse_accel.recipe import Recipe
    from sparse_accel.tasks import TextClassificationData


def make_accelerator(arguments: TextClassificationArguments, recipe: Recipe | None = None) -> Accelerator:
    """Returns the accelerator as flags and launcher ask for it; a flag wins over the launcher's precision.

    Raises:
        UsageError: flags, launcher, environment and recipe do not fit together.
    """
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else None
    asked = precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower()
    if asked == "fp16" and not torch.cuda.is_available():
        what = "--fp16" if precision else "fp16 (ACCELERATE_MIXED_PRECISION)"
        warn(f"{what} needs a GPU and there is none here: training in float32")
        precision = "no"
    transformers.utils.logging.disable_progress_bar()  # one bar is enough: ours
    accelerator = Accelerator(
        mixed_precision=precision,
        # The sampler makes every step of whole micro-batches, the last one of an epoch too.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=arguments.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=list(arguments.report_to) or None,
        project_dir=logging_folder(Path(str(arguments.output_dir))),
        kwargs_handlers=launch_options(find_unused_parameters=arguments.ddp_find_unused_parameters),
        dynamo_plugin=_compilation() if arguments.torch_compile else None,
    )
    check_launch(accelerator)
    check_gradients(recipe.modifiers if recipe else [], gives_gradients(accelerator))
    if (compiled := compilation(accelerator)) and accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
        raise UsageError(
            f"torch.compile with {compiled} under {describe(accelerator)} is not supported: these wrappers take layers "
            "apart while they run, which breaks the graph at each. Leave it out, or launch with "
            "accelerate_configs/ddp.yaml"
        )
    if arguments.nan_loss == "skip" and accelerator.distributed_type == "DEEPSPEED":
        raise UsageError("--nan_loss skip: DeepSpeed steps before the loss can be looked at. Leave the flag out")
    return accelerator


def _compilation() -> TorchDynamoPlugin:
    """Compiles for batches of any shape: they differ in length, and the last one in rows."""
    # A graph each for training and evaluation, before quantization, in its first step, with moving and frozen ranges;
    # beyond the default of 8, PyTorch would go on without compiling.
    torch._dynamo.config.recompile_limit = 64
    return TorchDynamoPlugin(backend="inductor", dynamic=True)


def check_flags_of_task(arguments: TextClassificationArguments, data: TextClassificationData) -> None:
    """Raises UsageError for flags that this kind of labels has no use for."""
    if arguments.load_best_model_at_end:
        check_metric_name(arguments.metric_for_best_model, data.metrics, data.problem_type)
    if arguments.label_smoothing_factor and data.problem_type != "single_label_classification":
        kind = data.problem_type.replace("_", " ")
        raise UsageError(f"--label_smoothing_factor spreads a row's one label; this is {kind}: leave it out")
    if arguments.distill_teacher == "self" and not data.keeps_head:
        warn("--distill_teacher self: the model has no head for these labels yet, so as a teacher it is random")


def make_collator(
    arguments: TextClassificationArguments, accelerator: Accelerator, tokenizer: Any, limit: int
) -> Collator:
    """Returns the collator: batches padded to their longest row, or all to the sequence length."""
    on_tensor_cores = accelerator.device.type == "cuda" and accelerator.mixed_precision != "no"
    length = limit if arguments.pad_to_max_length else None
    return Collator(tokenizer, length=length, multiple=8 if on_tensor_cores else None)


def training_loader(
    arguments: TextClassificationArguments, accelerator: Accelerator, dataset: Any, collator: Collator
) -> tuple[DataLoader[Any], GlobalBatchSampler]:
    """Returns the loader of the training rows, not yet prepared, and its sampler."""
    splits = accelerator.num_processes * accelerator.gradient_accumulation_steps
    lengths = [len(ids) for ids in dataset["input_ids"]]
    sampler = GlobalBatchSampler(lengths, arguments.per_device_train_batch_size, splits, seed=arguments.seed)
    workers, pin = arguments.dataloader_num_workers, accelerator.device.type == "cuda"
    return make_loader(dataset, sampler, collator, workers=workers, pin_memory=pin), sampler


def evaluation_loader(
    arguments: TextClassificationArguments, accelerator: Accelerator, dataset: Any, collator: Collator
) -> DataLoader[Any]:
    """Returns a prepared loader that shows each row once, in batches of like lengths."""
    lengths = [len(ids) for ids in dataset["input_ids"]]
    sampler = GlobalBatchSampler(lengths, arguments.per_device_eval_batch_size, accelerator.num_processes, seed=None)
    loader = make_loader(dataset, sampler, collator, workers=arguments.dataloader_num_workers)
    return accelerator.prepare_data_loader(loader)


def steps_of_run(
    arguments: TextClassificationArguments, recipe: Recipe | None, steps_per_epoch: int
) -> tuple[Schedule, list[str]]:
    """Returns when things happen, in optimizer steps, and lines on flags that the recipe overrules."""
    notices = _overruled_flags(arguments, recipe)
    if recipe is not None and recipe.max_epochs > 0:
        total, epochs = recipe.max_epochs * steps_per_epoch, arguments.num_train_epochs
        if given(arguments, "max_steps") and arguments.max_steps > 0 and arguments.max_steps != total:
            notices.append(
                f"--max_steps {arguments.max_steps} is overruled: the recipe runs {recipe.max_epochs} epochs"
            )
        if given(arguments, "num_train_epochs") and epochs != recipe.max_epochs:
            notices.append(f"--num_train_epochs {epochs:g} is overruled: the recipe runs {recipe.max_epochs}")
    elif arguments.max_steps > 0:
        total = arguments.max_steps
    else:
        total = math.ceil(arguments.num_train_epochs * steps_per_epoch)

    def every(strategy: str, steps: int) -> int:
        return {"no": 0, "steps": steps, "epoch": steps_per_epoch}[strategy]

    evaluate_every = every(arguments.eval_strategy, arguments.eval_steps or arguments.logging_steps)
    save_every = every(arguments.save_strategy, arguments.save_steps)
    return Schedule(total, arguments.logging_steps, evaluate_every, save_every), notices


def _overruled_flags(arguments: TextClassificationArguments, recipe: Recipe | None) -> list[str]:
    """Returns a line for each flag that was given and that the recipe's learning rate or weight decay replaces."""
    lines = []
    # --weight_decay acts on the first parameter group alone: biases and norms, the second one, have none.
    for setting, value, groups in (("lr", "learning_rate", (0, 1)), ("weight_decay", "weight_decay", (0,))):
        modifiers = _modifiers_of(recipe, setting)
        found = {group: [m.span[0] for m in modifiers if m.covers_group(group)] for group in groups}
        starts = {group: min(epochs) for group, epochs in found.items() if epochs}
        if not starts:
            continue
        when = {group: f" from epoch {start:g} on" if start > 0 else "" for group, start in starts.items()}
        if len(starts) == len(groups) and len(set(starts.values())) == 1:
            scope, otherwise = when[groups[0]], "until then"
        else:
            scope = " for " + " and ".join(f"parameter group {group}{text}" for group, text in when.items())
            otherwise = "otherwise"
        because = f"the recipe sets the {value.replace('_', ' ')}"
        if given(arguments, value):
            number = getattr(arguments, value)
            rest = f"; {otherwise} it is {number}" if scope else ""
            lines.append(f"--{value} {number} is overruled{scope}: {because}{rest}")
        for name in ("lr_scheduler_type", "warmup_ratio", "warmup_steps") if setting == "lr" else ():
            if given(arguments, name):
                rest = f", and {otherwise} it is constant" if scope else ""
                lines.append(f"--{name} {getattr(arguments, name)} is overruled: {because}{rest}")
    return lines


def _modifiers_of(recipe: Recipe | None, setting: str) -> list[Modifier]:
    """Returns the recipe's modifiers that write one setting of the optimizer: `lr`, `weight_decay`."""
    return [modifier for modifier in (recipe.modifiers if recipe else []) if modifier.setting == setting]


def make_teacher(
    arguments: TextClassificationArguments, recipe: Recipe | None, accelerator: Accelerator, student: nn.Module
) -> tuple[Teacher | str | None, Any]:
    """Returns the teacher that the recipe's distillation follows, and its tokenizer; None where there is none."""
    following = [modifier for modifier in (recipe.modifiers if recipe else []) if modifier.needs_teacher]
    if arguments.distill_teacher in (None, "disable") or not following:
        return arguments.distill_teacher, None
    teacher, tokenizer = load_teacher(arguments, student)
    teacher.model.to(accelerator.device)
    return teacher, tokenizer


def check_teacher_inputs(
    arguments: TextClassificationArguments, run: RecipeRun, dataset: Any, tokenizers: tuple[Any, Any]
) -> None:
    """Refuses outputs of the teacher that no table holds, where it cannot read the student's token ids.

    Args:
        dataset: the training rows as the student reads them.
        tokenizers: the student's, and the teacher's own or None.

    Raises:
        UsageError: it would be fed ids of another vocabulary, or more tokens than it takes.
    """
    asked = frozenset().union(*(modifier.teacher_outputs for modifier in run.modifiers)) - {"logits"}
    if run.teacher is None or not asked:
        return
    if (limit := _own_limit(arguments, run.teacher, dataset, tokenizers)) is not None:
        raise UsageError(
            f"--distill_teacher {arguments.distill_teacher} reads text through its own tokenizer, up to {limit} "
            f"tokens, and the recipe compares {listed(sorted(asked))}, which needs the same tokens in both models: "
            "take a teacher with the model's tokenizer and length, add --use_teacher_tokenizer, or distil logits only "
            "(distill_output_keys: [logits])"
        )


def _own_limit(
    arguments: TextClassificationArguments, teacher: Teacher, dataset: Any, tokenizers: tuple[Any, Any]
) -> int | None:
    """The tokens that a teacher takes that must read texts through its own tokenizer; None for one that need not: it
    does the same with a text, and takes as many tokens as the longest row has."""
    tokenizer, own_tokenizer = tokenizers
    if own_tokenizer is None:
        return None
    limit = min(arguments.max_seq_length, sequence_limit(own_tokenizer, teacher.model))
    too_long = max(len(ids) for ids in dataset["input_ids"]) > limit
    return limit if too_long or tokenizer_digest(own_tokenizer) != tokenizer_digest(tokenizer) else None


def fill_teacher_table(
    arguments: TextClassificationArguments,
    accelerator: Accelerator,
    teacher: Teacher,
    data: Any,
    dataset: Any,
    tokenizers: tuple[Any, Any],
) -> str:
    """Computes or finds the teacher's logits on the training rows; returns what was done, in words.

    Args:
        dataset: the training rows as the student reads them.
        tokenizers: the student's, and the teacher's own or None. A teacher whose tokenizer does otherwise with a text,
            or that takes fewer tokens than the longest row has, reads the same texts through its own.
    """
    tokenizer, own_tokenizer = tokenizers
    words = "its logits on the training rows"
    if (limit := _own_limit(arguments, teacher, dataset, tokenizers)) is not None:
        tokenizer = own_tokenizer
        words += f", read through its own tokenizer, up to {limit} tokens"
        dataset = tokenize_rows(arguments, accelerator, data, tokenizer, limit, teacher.model)["train"]
    cache = Path(arguments.cache_dir) if arguments.cache_dir else None
    size = arguments.per_device_eval_batch_size
    found = teacher.make_table(accelerator, dataset, tokenizer, batch_size=size, cache=cache)
    words += f": {'found on disk' if found else 'computed once, kept on disk'}"
    return words + _right_on(arguments, teacher, data, dataset)


def _right_on(arguments: TextClassificationArguments, teacher: Teacher, data: Any, dataset: Any) -> str:
    """`; right on 91.2% of them`, and a warning where a guess would be right more often: labels in other order, say."""
    if data.problem_type != "single_label_classification" or teacher.table is None:
        return ""
    labels = torch.as_tensor(dataset["labels"][:], device=teacher.table.device)
    right = float((teacher.table.argmax(1) == labels).float().mean())
    most = float(labels.bincount().max()) / len(labels)
    if right < most:
        warn(
            f"--distill_teacher {arguments.distill_teacher} is right on {right:.1%} of the training rows, and one "
            f"answer for all would be on {most:.1%}: is it a teacher of this task, with its labels in this order?"
        )
    return f"; right on {right:.1%} of them"


def tokenize_rows(
    arguments: TextClassificationArguments,
    accelerator: Accelerator,
    data: TextClassificationData,
    tokenizer: Any,
    limit: int,
    model: nn.Module,
) -> dict[str, Any]:
    """Returns all splits tokenized; one process does the work, the others find it in the cache.

    Raises:
        UsageError: the rows hold tokens that the model, which is to read them, has no embedding for.
    """
    with accelerator.main_process_first():
        found = tokenize_texts(
            data,
            tokenizer,
            limit,
            num_workers=arguments.preprocessing_num_workers,
            overwrite_cache=arguments.overwrite_cache,
        )
    known = cast(Any, model).get_input_embeddings().num_embeddings
    for split, dataset in found.items():
        largest = max((max(ids, default=0) for ids in dataset["input_ids"]), default=0)
        if largest >= known:
            word = tokenizer.convert_ids_to_tokens(largest)
            raise UsageError(
                f"the tokenizer belongs to another model: '{word}', in the {split} rows, is its token {largest}, and "
                f"the model knows {known} tokens. Leave out --tokenizer_name and --use_teacher_tokenizer, or name the "
                "tokenizer that the model was trained with"
            )
    return found


def describe_run(
    arguments: TextClassificationArguments,
    run: RecipeRun,
    data: TextClassificationData,
    fresh: list[str],
    limit: int,
    sampler: GlobalBatchSampler,
    schedule: Schedule,
) -> list[tuple[str, str]]:
    """Returns rows of the start-up table: what is trained, on what, for how long."""
    padded = f"padded to {limit}" if arguments.pad_to_max_length else "batches padded to their longest"
    resumed = f", going on from step {run.progress.step}" if run.progress.step else ""
    splits = ", ".join(f"{len(rows)} {split}" for split, rows in data.splits.items())
    return [
        ("model", str(arguments.model_name_or_path)),
        ("head", describe_head(data.label_names, fresh)),
        ("data", f"{splits}; {data.problem_type.replace('_', ' ')}: {listed(data.label_names)}"),
        ("columns", describe_columns(data)),
        ("lengths", f"up to {limit} tokens; {padded}"),
        ("global batch", f"{sampler.global_batch_size} rows: micro-batches of {sampler.micro_batch_size}"),
        ("steps", f"{schedule.total_steps}, {sampler.steps} an epoch{resumed}"),
    ]


def describe_head(names: list[str], fresh: list[str]) -> str:
    """Returns in words where the model's outputs come from.

    Args:
        names: labels in the order of the outputs.
        fresh: weights that are newly initialized.
    """
    if fresh:
        return f"newly initialized ({len(fresh)} weights)"
    return f"the model's own, its outputs: {listed(names)}"


def describe_columns(data: TextClassificationData) -> str:
    """Returns in words which columns are read."""
    pair = ", a pair" if len(data.text_columns) == 2 else ""
    labels = f"; labels: {data.label_column}" if data.label_column else ""
    return f"text: {', '.join(data.text_columns)}{pair}{labels}"


def base_rate(arguments: TextClassificationArguments, recipe: Recipe | None, total_steps: int) -> Any:
    """Returns the learning rate by progress, as the flags say; constant where the recipe has modifiers for it."""
    if _modifiers_of(recipe, "lr"):
        return lambda progress: arguments.learning_rate
    warmup = arguments.warmup_steps or math.ceil(arguments.warmup_ratio * total_steps)
    return usual_rate(arguments.lr_scheduler_type, arguments.learning_rate, warmup, total_steps)


def identity_of(
    arguments: TextClassificationArguments,
    run: RecipeRun,
    model: nn.Module,
    dataset: Any,
    sampler: GlobalBatchSampler,
    schedule: Schedule,
) -> dict[str, Any]:
    """Returns what makes this run itself: another value of any of these is another run."""
    flags: tuple[str, ...] = ("seed", "learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps")
    flags += ("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "max_seq_length")
    flags += ("label_smoothing_factor",)
    return {
        "model": fingerprint_of_weights(model),
        "data": fingerprint_of_rows(dataset),
        "recipe": run.recipe.resolved() if run.recipe else None,
        "teacher": fingerprint_of_weights(run.teacher.model) if run.teacher else None,
        "global_batch_size": sampler.global_batch_size,
        "total_steps": schedule.total_steps,
        **{flag: getattr(arguments, flag) for flag in flags},
    }


# Entries of a model's configuration that change nothing that it computes, or are told apart elsewhere.
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "problem_type", "initializer_range", "use_cache")


def settings_of(
    arguments: TextClassificationArguments,
    accelerator: Accelerator,
    run: RecipeRun,
    model: nn.Module,
    rows: dict[str, Any],
    schedule: Schedule | None = None,
) -> dict[str, Any]:
    """Returns what is not part of a run's identity and yet changes its result: a finished run with others is another
    result. An unfinished one may go on in another precision, and in nothing else.

    Args:
        rows: tokenized splits.
        schedule: of a run that trains; None for --one_shot.
    """
    head, config = head_of(model), cast(Any, model).config.to_dict()
    settings: dict[str, Any] = {
        "label_names": head.names,
        "problem_type": head.problem_type,
        "precision": {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
        **{
            f"config.{name}": value
            for name, value in config.items()
            if isinstance(value, (bool, int, float, str)) and name not in _NOT_OF_THE_MODEL
        },
    }
    if any(modifier.needs_rows for modifier in run.modifiers):
        settings["pad_to_max_length"] = arguments.pad_to_max_length  # ranges see padding too
    if run.teacher is not None:
        settings["teacher"] = f"{fingerprint_of_model(run.teacher.model)} {run.teacher.order}"
    if schedule is not None:
        settings["nan_loss"] = arguments.nan_loss
        settings["load_best_model_at_end"] = arguments.load_best_model_at_end
    if schedule is not None and arguments.load_best_model_at_end:  # then the evaluations choose the result
        judged = ("metric_for_best_model", "greater_is_better", "best_model_after_epoch")
        settings |= {name: getattr(arguments, name) for name in judged}
        validation = [fingerprint_of_rows(rows[split]) for split in sorted(rows) if split.startswith("validation")]
        settings |= {"steps_between_evaluations": schedule.evaluate_every, "validation_rows": " ".join(validation)}
        settings["steps_between_checkpoints"] = schedule.save_every
    return settings
