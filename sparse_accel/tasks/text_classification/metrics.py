"""Metrics of text classification from the outputs on labelled rows, with scikit-learn and scipy, offline.

GLUE tasks have their official metrics (https://arxiv.org/abs/1804.07461); for two, `combined_score` is their mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from sparse_accel.tasks.label_names import MULTI_LABEL, REGRESSION

_GLUE_METRICS = {
    "cola": ("matthews_correlation",),
    "mrpc": ("accuracy", "f1", "combined_score"),
    "qqp": ("accuracy", "f1", "combined_score"),
    "stsb": ("pearson", "spearmanr", "combined_score"),
}
_REGRESSION_METRICS = ("mse", "mae", "pearson", "spearmanr")
_MULTI_LABEL_METRICS = ("f1_micro", "f1_macro", "subset_accuracy")
_SINGLE_LABEL_METRICS = ("accuracy", "f1_macro")


def metric_names(metrics: str, problem_type: str) -> tuple[str, ...]:
    """Returns the names of the metrics that `compute_metrics` returns.

    Args:
        metrics: a GLUE task, or "default".
        problem_type: as in config.json; it selects the default metrics.
    """
    if metrics in _GLUE_METRICS:
        return _GLUE_METRICS[metrics]
    if metrics != "default":
        return ("accuracy",)
    defaults = {REGRESSION: _REGRESSION_METRICS, MULTI_LABEL: _MULTI_LABEL_METRICS}
    return defaults.get(problem_type, _SINGLE_LABEL_METRICS)


def compute_metrics(
    metrics: str, problem_type: str, logits: NDArray[np.floating], labels: NDArray[Any], positive: int = 1
) -> dict[str, float]:
    """Returns the metrics of a metric set, by name.

    Args:
        metrics: a GLUE task, or "default".
        problem_type: as in config.json.
        logits: outputs of the model, (rows, labels); regression: (rows, 1) or (rows,).
        labels: label ids, (rows,); regression: numbers, (rows,); multi-label: 0 or 1, (rows, labels).
        positive: number of the output for a GLUE task's label 1, whose F1 is computed.

    Returns:
        `metric_names` -> Python floats. A correlation with a constant column is undefined, and given as 0.
    """
    names = metric_names(metrics, problem_type)
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if problem_type == REGRESSION:
        figures = _regression(logits.reshape(len(labels)), labels.astype(np.float64))
    elif problem_type == MULTI_LABEL:
        # A logit of at least 0 is a probability of at least 0.5; predictions use the same rule.
        figures = _multi_label(logits >= 0, labels > 0.5)
    else:
        figures = _single_label(logits.argmax(axis=-1), labels, names, positive)
    if "combined_score" in names:
        figures["combined_score"] = sum(figures[name] for name in names[:2]) / 2
    return {name: float(figures[name]) for name in names}


def _single_label(
    predictions: NDArray[np.intp], labels: NDArray[Any], names: tuple[str, ...], positive: int
) -> dict[str, float]:
    figures: dict[str, Callable[[], float]] = {
        "accuracy": lambda: accuracy_score(labels, predictions),
        # Only over the labels that occur in the rows or in the predictions; others have no F1.
        "f1_macro": lambda: f1_score(labels, predictions, average="macro", zero_division=0),
        # Of the task's label 1: paraphrase (MRPC), duplicate (QQP).
        "f1": lambda: f1_score(labels, predictions, labels=[positive], average="macro", zero_division=0),
        "matthews_correlation": lambda: matthews_corrcoef(labels, predictions),
    }
    return {name: figure() for name, figure in figures.items() if name in names}


def _multi_label(predictions: NDArray[np.bool_], labels: NDArray[np.bool_]) -> dict[str, float]:
    return {
        "f1_micro": f1_score(labels, predictions, average="micro", zero_division=0),
        "f1_macro": f1_score(labels, predictions, average="macro", zero_division=0),
        "subset_accuracy": accuracy_score(labels, predictions),
    }


def _regression(predictions: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    varied = len(labels) > 1 and np.ptp(predictions) > 0 and np.ptp(labels) > 0
    return {
        "mse": float(np.mean((predictions - labels) ** 2)),
        "mae": float(np.mean(np.abs(predictions - labels))),
        "pearson": pearsonr(predictions, labels).statistic if varied else 0.0,
        "spearmanr": spearmanr(predictions, labels).statistic if varied else 0.0,
    }
