"""Evaluation: figures and predictions of a model on the splits of its task."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sparse_accel.console import progress_bar, say
from sparse_accel.data.batches import inputs_of
from sparse_accel.distributed.collectives import reduce_sum
from sparse_accel.distributed.launch import precision_name
from sparse_accel.files import write_bytes
from sparse_accel.fingerprints import fingerprint_of_rows
from sparse_accel.models.files import fingerprint_of_model
from sparse_accel.models.loading import load_tokenizer, load_trained
from sparse_accel.run_folder import results
from sparse_accel.tasks.details import Details
from sparse_accel.tasks.label_names import head_in
from sparse_accel.tasks.units import starts_of, unit_numbers
from sparse_accel.training.distillation import rows_for_teacher
from sparse_accel.training.figures import tracker_names
from sparse_accel.training.loaders import TokenizedRows, evaluation_loader, tokenize_rows
from sparse_accel.training.sending import log_details, log_figures
from sparse_accel.training.tracking import start_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset
    from torch.utils.data import DataLoader

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.recipe import Recipe
    from sparse_accel.recipe_run import RecipeRun
    from sparse_accel.tasks import Task


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a model on the validation rows (of MNLI, on both sets).

    Attributes:
        figures: eval_loss (the task loss) and the task's metrics as eval_NAME, with a suffix for a second set.
        details: by split, what lies behind them; only on the main process.
        decisions: by split, the decision of each answer, (answers, n); None if there are none.
        logits: by split, of each unit, (units, outputs); only if the task writes what it says about these rows.
    """

    figures: dict[str, float]
    details: dict[str, Details]
    decisions: dict[str, np.ndarray | None]
    logits: dict[str, np.ndarray] = field(default_factory=dict)


def evaluate_and_predict(
    arguments: TrainingArguments, recipe: Recipe | None, accelerator: Accelerator, kind: type[Task]
) -> None:
    """Measures a trained model as stored in its files (float32, quantizers on), and writes figures and predictions.

    If the folder of a finished run already contains them for the same rows, labels and weights, nothing is measured.

    Args:
        kind: the task class.

    Raises:
        UsageError: the model, its tokenizer or the data cannot be read, or do not fit together.
    """
    model, folder = load_trained(arguments, kind), Path(str(arguments.output_dir))
    tokenizer, weights = load_tokenizer(arguments, kind), fingerprint_of_model(model)
    config: Any = model.config
    with accelerator.main_process_first():
        task = kind.load(arguments, head_in(config, "config.json"))
    of_a_run = arguments.do_train or arguments.one_shot
    if not of_a_run:
        say(accelerator, f"columns: {task.describe_columns()}")
    rows = tokenize_rows(arguments, accelerator, task, tokenizer, model)
    model = model.to(accelerator.device)  # not prepared, so that it keeps the precision of its files
    if arguments.do_eval:
        question = measured_on(weights, task, "validation", rows)
        files = [results.EVAL_RESULTS]
        if task.keeps_evaluated:
            files += prediction_files(task, rows, "validation")
        if not results.is_measured(accelerator, folder, files, question) or not of_a_run:
            count = len(task.data.splits["validation"])
            precise = " (of the saved model, in float32)" if precision_name(accelerator) != "float32" else ""
            say(accelerator, f"evaluation: {task.data.sources['validation']}, {count} {task.row_name}{precise}")
            found = evaluate_splits(arguments, accelerator, model, task, rows)
            for split, logits in found.logits.items():
                write_predictions(accelerator, folder, task, logits, rows.splits[split], split)
            details = details_record(task, rows, found)
            name = str(arguments.model_name_or_path)
            results.write_evaluation(accelerator, folder, name, found.figures, question, details)
            start_trackers(accelerator, arguments, recipe, evaluates_only=True)  # if training has not started them
            log_figures(accelerator, tracker_names(found.figures, "final"))
            log_details(accelerator, found.details, "final")
    if arguments.do_predict:
        question, files = measured_on(weights, task, "test", rows), prediction_files(task, rows, "test")
        if not results.is_measured(accelerator, folder, files, question) or not of_a_run:
            predict_splits(arguments, accelerator, model, task, rows)
            results.record_measured(accelerator, folder, files[0], question)
        else:
            say(accelerator, f"{folder / files[0]} already contains these predictions")


def measured_on(weights: str, task: Task, purpose: str, rows: TokenizedRows) -> str:
    """Returns a digest of everything that figures or predictions depend on.

    Args:
        weights: the digest of the model, from `fingerprint_of_model`.
        purpose: `validation` for figures, `test` for predictions.
    """
    splits = sorted(name for name in rows.splits if name.startswith(purpose))
    parts = {
        "weights": weights,
        "precision": "no",  # always float32; kept so that digests in older folders stay valid
        "labels": [*task.metric_dependencies(), *task.head.names],
        "rows": {split: fingerprint_of_rows(rows.splits[split]) for split in splits},
        # Tokens do not tell all: pairs of texts and their scores, queries, and other right answers are here alone.
        "data": {split: fingerprint_of_rows(task.data.splits[split]) for split in splits},
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def prediction_files(task: Task, rows: TokenizedRows, purpose: str) -> list[str]:
    """Returns the names of the prediction files: those of the task, for each split of a purpose."""
    splits = [split for split in rows.splits if split.startswith(purpose)]
    return [_prediction_file(split, name) for split in splits for name in task.prediction_names()]


def _prediction_file(split: str, name: str) -> str:
    """`test_predictions.csv`; `eval_predictions.json` of the validation rows, as their figures are named."""
    return f"{split.replace('validation', 'eval')}_{name}"


def evaluate_splits(
    arguments: TrainingArguments, accelerator: Accelerator, model: nn.Module, task: Task, rows: TokenizedRows
) -> Evaluation:
    """Evaluates a model on the validation rows, and on MNLI's second set."""
    evaluation = Evaluation({}, {}, {})
    for split in [name for name in rows.splits if name.startswith("validation")]:
        suffix = split.removeprefix("validation").replace("_mismatched", "_mm")
        dataset = rows.splits[split]
        loader = evaluation_loader(arguments, accelerator, dataset, rows.collator)
        logits, loss = predict(accelerator, model, loader, task, dataset)
        found = task.figures(logits, dataset, split)
        if loss is not None:
            found["loss"] = loss
        evaluation.figures.update({f"eval_{name}{suffix}": float(value) for name, value in found.items()})
        evaluation.decisions[split] = task.decisions(logits, dataset, split)
        if task.keeps_evaluated:
            evaluation.logits[split] = logits
        if accelerator.is_main_process:
            evaluation.details[split] = task.details(logits, dataset, split)
    return evaluation


def evaluate_teacher(
    arguments: TrainingArguments, accelerator: Accelerator, run: RecipeRun, rows: TokenizedRows, own_tokenizer: Any
) -> Evaluation | None:
    """Evaluates the run's teacher on the validation rows; None without a teacher or without --do_eval.

    Args:
        rows: tokenized for the student.
        own_tokenizer: the teacher's tokenizer, or None: the student's.
    """
    teacher = run.teacher
    if teacher is None or not arguments.do_eval:
        return None
    rows = rows_for_teacher(arguments, accelerator, run, rows, own_tokenizer)
    return evaluate_splits(arguments, accelerator, teacher.in_order(), run.task, rows)


def agreement(first: Evaluation, second: Evaluation) -> dict[str, float]:
    """Returns the fraction of units for which two models decide the same, as eval_teacher_agreement, by split."""
    figures = {}
    for split, decided in first.decisions.items():
        other = second.decisions[split]
        if decided is not None and other is not None and decided.shape == other.shape:
            suffix = split.removeprefix("validation").replace("_mismatched", "_mm")
            figures[f"eval_teacher_agreement{suffix}"] = float((decided == other).mean())
    return figures


def details_record(task: Task, rows: TokenizedRows, evaluation: Evaluation) -> dict[str, Any]:
    """Returns the content of evaluation.json: of each split, which rows they are, figures and details."""
    record = {}
    for split, details in evaluation.details.items():
        suffix = split.removeprefix("validation").replace("_mismatched", "_mm")
        own = {name.removeprefix("eval_"): value for name, value in evaluation.figures.items()}
        figures = {
            name.removesuffix(suffix): value for name, value in own.items() if name.endswith("_mm") == bool(suffix)
        }
        record[split] = {
            "source": task.data.sources.get(split, split),
            "origin": asdict(task.data.origins[split]),
            "rows": len(task.data.splits[split]),
            "digest": fingerprint_of_rows(task.data.splits[split]),
            "headline": task.headline(),
            "figures": figures,
            **asdict(details),
        }
    return record


def predict_splits(
    arguments: TrainingArguments, accelerator: Accelerator, model: nn.Module, task: Task, rows: TokenizedRows
) -> None:
    """Writes the predictions for each test split, in the files of the task."""
    for split in [name for name in rows.splits if name.startswith("test")]:
        dataset = rows.splits[split]
        dataset = dataset.remove_columns([name for name in dataset.column_names if name == "labels"])
        loader = evaluation_loader(arguments, accelerator, dataset, rows.collator)
        logits, _ = predict(accelerator, model, loader, task, dataset)
        write_predictions(accelerator, Path(str(arguments.output_dir)), task, logits, dataset, split)


def write_predictions(
    accelerator: Accelerator, folder: Path, task: Task, logits: np.ndarray, dataset: Dataset, split: str
) -> None:
    """Writes what a model says about the rows of a split, in the files of the task."""
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in task.predictions(logits, dataset, split).items():
            encoded = content.encode() if isinstance(content, str) else content
            write_bytes(folder / _prediction_file(split, name), encoded)
    path = folder / _prediction_file(split, task.prediction_names()[0])
    say(accelerator, f"{len(task.data.splits[split])} predictions: {path}")


@torch.no_grad()
def predict(
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader[dict[str, Tensor]],
    task: Task,
    dataset: Dataset,
) -> tuple[np.ndarray, float | None]:
    """Returns the logits of all units, (units, outputs) float32 in the order of the rows, and the mean task loss (None
    without labels). The model stays in the mode (train or eval) that it was in.

    Args:
        loader: gives each row of `dataset` once, plus filler rows, which are dropped here; prepared by `accelerator`.
    """
    training = model.training
    model.eval()
    counts = task.unit_counts(dataset)
    starts = starts_of(counts).to(accelerator.device)
    table: Tensor | None = None
    # The sum of the losses of all rows, and of their weights.
    total = torch.zeros(2, device=accelerator.device, dtype=torch.float64)
    labelled = task.is_labelled(dataset)
    with progress_bar(accelerator, len(loader), "evaluate", "batches", leave=False) as bar:
        for batch in loader:
            batch = task.prepare(batch, epoch=0)
            outputs = model(**inputs_of(batch))
            logits, units = task.kept(outputs, batch), task.units(batch)
            if table is None:
                table = torch.zeros(int(counts.sum()), logits.shape[-1], device=logits.device)
            table[unit_numbers(units, batch["row_id"], starts)] = logits[units]
            if labelled:
                weights = task.evaluation_weights(batch)
                total += torch.stack([(task.loss(outputs, batch) * weights).sum().double(), weights.sum().double()])
            bar.update()
    model.train(training)
    assert table is not None
    losses, weight = reduce_sum(total).tolist() if labelled else (0.0, 0.0)
    return reduce_sum(table).cpu().numpy(), losses / max(weight, 1.0) if labelled else None
