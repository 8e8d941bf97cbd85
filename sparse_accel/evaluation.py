"""Figures and predictions of a model on the splits of a data set."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from sparse_accel.console import say
from sparse_accel.files import write_text
from sparse_accel.fingerprints import fingerprint_of_rows
from sparse_accel.tasks import compute_metrics
from sparse_accel.training_loop import predict
from sparse_accel.training_setup import evaluation_loader

if TYPE_CHECKING:
    from accelerate import Accelerator

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


def prediction_table(logits: np.ndarray, label_names: list[str], problem_type: str) -> str:
    """Returns predictions as CSV. Regression: one `score`. Multi-label: the labels at or above 0.5, joined by `;`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if problem_type == "regression":
        writer.writerow(["row", "score"])
        writer.writerows([row, f"{value:.6f}"] for row, value in enumerate(logits[:, 0]))
        return text.getvalue()
    writer.writerow(["row", "label", *(f"probability_{name}" for name in label_names)])
    several = problem_type == "multi_label_classification"
    shares = 1 / (1 + np.exp(-logits)) if several else _softmax(logits)
    for row, share in enumerate(shares):
        chosen = [name for name, value in zip(label_names, share, strict=True) if value >= 0.5]
        label = ";".join(chosen) if several else label_names[int(share.argmax())]
        writer.writerow([row, label, *(f"{value:.6f}" for value in share)])
    return text.getvalue()


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return shares
