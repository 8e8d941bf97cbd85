"""Figures and predictions of a model on the splits of a data set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sparse_accel.console import progress_bar, say
from sparse_accel.distributed.collectives import reduce_sum
from sparse_accel.files import write_text
from sparse_accel.fingerprints import fingerprint_of_rows
from sparse_accel.nn.losses import task_loss
from sparse_accel.tasks import compute_metrics
from sparse_accel.tasks.text_classification.predictions import prediction_table
from sparse_accel.training.loaders import evaluation_loader
from sparse_accel.training.loop import inputs_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from sparse_accel.cli.text_classification import TextClassificationArguments
    from sparse_accel.data.batches import Collator
    from sparse_accel.tasks import TextClassificationData


def measured_on(weights: str, data: TextClassificationData, purpose: str, rows: dict[str, Any]) -> str:
    """Returns a digest of everything that figures or predictions depend on.

    Args:
        weights: the model's, by `fingerprint_of_model`.
        data: its label names, metrics and problem type count.
        purpose: `validation`: figures; `test`: predictions.
        rows: the tokenized splits, by name.
    """
    splits = sorted(name for name in rows if name.startswith(purpose))
    parts = {
        "weights": weights,
        "precision": "no",  # always float32; older folders tell by this entry
        "labels": [data.problem_type, data.metrics, data.positive, *data.label_names],
        "rows": {split: fingerprint_of_rows(rows[split]) for split in splits},
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def prediction_files(rows: dict[str, Any]) -> list[str]:
    """Returns the names of the files that predictions are written to: one for each test split."""
    return [f"{split}_predictions.csv" for split in rows if split.startswith("test")]


def evaluate_splits(
    arguments: TextClassificationArguments,
    accelerator: Accelerator,
    model: nn.Module,
    data: TextClassificationData,
    rows: dict[str, Any],
    collator: Collator,
) -> dict[str, float]:
    """Returns eval_loss (the task loss) and the task's metrics on the validation rows; MNLI's second set as well."""
    figures: dict[str, float] = {}
    for split in [name for name in rows if name.startswith("validation")]:
        suffix = split.removeprefix("validation").replace("_mismatched", "_mm")
        loader = evaluation_loader(arguments, accelerator, rows[split], collator)
        logits, loss = predict(accelerator, model, loader, len(rows[split]), data.problem_type)
        labels = np.asarray(rows[split]["labels"])
        found = compute_metrics(data.metrics, data.problem_type, logits, labels, data.positive)
        if loss is not None:
            found["loss"] = loss
        figures.update({f"eval_{name}{suffix}": float(value) for name, value in found.items()})
    return figures


def write_predictions(
    arguments: TextClassificationArguments,
    accelerator: Accelerator,
    model: nn.Module,
    data: TextClassificationData,
    rows: dict[str, Any],
    collator: Collator,
) -> None:
    """Writes test_predictions.csv, one a test split: row, predicted label by name, probability of each label."""
    for split in [name for name in rows if name.startswith("test")]:
        dataset = rows[split].remove_columns([name for name in rows[split].column_names if name == "labels"])
        loader = evaluation_loader(arguments, accelerator, dataset, collator)
        logits, _ = predict(accelerator, model, loader, len(dataset), data.problem_type)
        path = Path(str(arguments.output_dir)) / f"{split}_predictions.csv"
        if accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, prediction_table(logits, data.label_names, data.problem_type))
        say(accelerator, f"{len(dataset)} predictions: {path}")


@torch.no_grad()
def predict(
    accelerator: Accelerator, model: nn.Module, loader: DataLoader[dict[str, Tensor]], rows: int, problem_type: str
) -> tuple[np.ndarray, float | None]:
    """Returns logits (rows, labels) float32 in the order of the rows, and the mean task loss where there are labels.

    Args:
        loader: each row once (fillers aside), prepared by `accelerator`; fillers are dropped here.
    """
    model.eval()
    table: Tensor | None = None
    total = torch.zeros((), device=accelerator.device, dtype=torch.float64)
    labelled = False
    with progress_bar(accelerator, len(loader), "evaluate", "batches", leave=False) as bar:
        for batch in loader:
            outputs = model(**inputs_of(batch))
            logits = outputs["logits"].float()
            real = batch["row_id"] >= 0
            if table is None:
                table = torch.zeros(rows, logits.shape[1], device=logits.device)
            table[batch["row_id"][real]] = logits[real]
            if "labels" in batch:
                labelled = True
                total += (task_loss(logits, batch["labels"], problem_type) * real).sum().double()
            bar.update()
    assert table is not None
    loss = float(reduce_sum(total)) / rows if labelled else None
    return reduce_sum(table).cpu().numpy(), loss
