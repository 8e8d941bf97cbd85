"""--one_shot: apply a recipe's final structure to a model at once, without training.

Weights are pruned to their final sparsity, by magnitude or with gradients of training rows; observers take ranges from
forward passes over training rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed

from sparse_accel.console import say, warn
from sparse_accel.data.batches import inputs_of
from sparse_accel.distributed.weights import plain_model
from sparse_accel.errors import NoLabels, UsageError
from sparse_accel.fingerprints import fingerprint_of_rows, fingerprint_of_weights
from sparse_accel.models.loading import default_head, head_of, load_model, load_tokenizer
from sparse_accel.models.sparsity import sparsity_report
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.run_folder import ownership, results
from sparse_accel.run_folder.environment import record_environment
from sparse_accel.run_folder.trainer_state import History
from sparse_accel.training.figures import sparsity_figures
from sparse_accel.training.identity import settings_of
from sparse_accel.training.loaders import gradient_loader, tokenize_rows, training_loader
from sparse_accel.training.sending import log_figures
from sparse_accel.training.start_table import describe_head, start_table
from sparse_accel.training.tracking import start_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe import Recipe
    from sparse_accel.tasks import Task

# Number of batches of training rows to calibrate the quantization ranges with.
CALIBRATION_BATCHES = 32


def apply_at_once(
    arguments: TrainingArguments, recipe: Recipe | None, accelerator: Accelerator, kind: type[Task]
) -> bool:
    """Applies the recipe to the model and fills the output folder. Returns False if the folder contains this result.

    Labels and head are the model's own, so the training rows need no labels, except for pruning with their gradients.

    Args:
        kind: the task class.

    Raises:
        UsageError: the recipe quantizes and there are no training rows; a modifier cannot act without training; or the
            model, the data or the output folder cannot be used.
    """
    has_rows = any((arguments.train_file, *(getattr(arguments, name) for name in arguments.sources)))
    run = RecipeRun(recipe, teacher="disable")
    for modifier in run.modifiers:
        modifier.check_acts_at_once()
    if any(modifier.needs_rows for modifier in run.modifiers) and not has_rows:
        raise UsageError("--one_shot: the recipe quantizes and needs training rows for the ranges: add --train_file")
    sampling = [modifier.name for modifier in run.modifiers if modifier.samples_gradients]
    if sampling and not has_rows:
        raise UsageError(
            f"--one_shot: {sampling[0]} needs training rows with labels for its gradients: add --train_file"
        )
    arguments.labels_at_once = bool(sampling)
    output_dir = Path(str(arguments.output_dir))
    set_seed(arguments.seed)  # for a newly initialized head
    if has_rows:
        with accelerator.main_process_first():
            try:
                task = kind.load(arguments, default_head(arguments))
            except NoLabels as error:
                needs = f" ({sampling[0]} needs labels, also with --one_shot)" if sampling else ""
                raise NoLabels(f"{error}{needs}") from error
        run = RecipeRun(recipe, task=task, teacher="disable")  # of these rows: it knows how they are masked
    model, fresh = load_model(arguments, kind)
    tokenizer = load_tokenizer(arguments, kind)
    run.attach(model)
    identity: dict[str, Any] = {
        "one_shot": True,
        "model": fingerprint_of_weights(model),
        "recipe": run.recipe.resolved() if run.recipe else None,
    }
    about = [("model", f"{arguments.model_name_or_path}, changed without training")]
    if fresh:
        warn(f"{arguments.model_name_or_path} has no fine-tuned head: its outputs are random, before and after")
        about.append(("head", describe_head(head_of(model).names, fresh)))
    if has_rows:
        if "train" not in task.data.splits:
            raise UsageError("--one_shot needs training rows for the ranges, but the data has none: add --train_file")
        rows = tokenize_rows(arguments, accelerator, task, tokenizer, model)
        loader, sampler = training_loader(arguments, accelerator, task, rows)
        gradients = gradient_loader(arguments, rows, sampler)
        identity["data"] = fingerprint_of_rows(rows.splits["train"])
        identity |= {"seed": arguments.seed, "global_batch_size": sampler.global_batch_size, **task.training_settings()}
        about.append(("columns", task.describe_columns()))
        if any(modifier.needs_rows for modifier in run.modifiers):
            asked = next((each.calibration_batches for each in run.modifiers if each.calibration_batches), None)
            count = f"{asked}" if asked else f"up to {CALIBRATION_BATCHES}"
            about.append(("ranges", f"from {count} batches of the training rows"))
    settings = settings_of(arguments, accelerator, run, model, {})
    if ownership.acquire(accelerator, arguments, run, identity, settings) == "show":
        return False
    results.record_arguments(accelerator, output_dir, arguments)
    record_environment(accelerator, output_dir)
    start_trackers(accelerator, arguments, recipe)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model = accelerator.prepare_model(model)
    run.state.trains = False
    run.bind(
        accelerator,
        model,
        optimizer,
        steps_per_epoch=1,
        gradient_loader=gradients if has_rows else None,
        rows_per_forward=arguments.per_device_train_batch_size,
    )
    say(accelerator, start_table(accelerator, run, [*about, ("output", str(output_dir))], trains=False))

    @torch.no_grad()
    def forwards() -> Iterator[None]:
        for batch in islice(accelerator.prepare_data_loader(loader), CALIBRATION_BATCHES):
            model(**inputs_of(run.task.prepare(batch, epoch=0)))
            yield

    model.eval()
    run.apply_at_once(forwards)
    log_figures(accelerator, sparsity_figures(sparsity_report(plain_model(accelerator, model))))
    results.write_final(output_dir, accelerator, model, tokenizer, run, History(), seconds=0.0)
    return True
