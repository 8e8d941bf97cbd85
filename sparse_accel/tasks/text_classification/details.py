"""What lies behind the figures of text classification: which labels are mixed up, and which texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from sparse_accel.tasks.details import MOST_CHARACTERS, MOST_MISTAKES, Details
from sparse_accel.tasks.label_names import MULTI_LABEL, REGRESSION


def classification_details(
    logits: np.ndarray, labels: np.ndarray, names: list[str], problem_type: str, texts: Dataset
) -> Details:
    """Returns the details of an evaluation.

    Args:
        logits: (rows, outputs).
        labels: (rows,) class numbers or scores, or (rows, outputs) 0 and 1.
        names: of the outputs.
        problem_type: as in config.json.
        texts: the text columns of the rows.

    Returns:
        The confidence of a wrong answer is its probability; with several labels, that of the label that is most surely
        wrong; for scores, the distance from the true one.
    """
    logits = np.asarray(logits, dtype=np.float64)
    true: np.ndarray
    decided: np.ndarray
    if problem_type == REGRESSION:
        scores, wanted = logits.reshape(len(labels), -1)[:, 0], np.asarray(labels, dtype=np.float64).reshape(-1)
        words = [f"{value:g}" for value in wanted], [f"{value:.3f}" for value in scores]
        mistakes = _mistakes(np.abs(scores - wanted), texts, *words)
        return Details(mistakes=mistakes)
    if problem_type == MULTI_LABEL:
        sure, decided, true = 1 / (1 + np.exp(-np.abs(logits))), logits >= 0, np.asarray(labels) >= 0.5
        wrong = np.where(decided != true, sure, 0.0).max(axis=1)
        return Details(
            labels=names,
            per_label=_per_label(true, decided, names),
            mistakes=_mistakes(wrong, texts, _joined(true, names), _joined(decided, names)),
        )
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    decided = logits.argmax(axis=1)
    sure = shifted.max(axis=1) / shifted.sum(axis=1)
    true = np.asarray(labels).astype(int)
    confusion = confusion_matrix(true, decided, labels=np.arange(len(names)))
    return Details(
        labels=names,
        confusion=confusion.tolist(),
        per_label=_per_label(true, decided, names),
        mistakes=_mistakes(
            np.where(decided != true, sure, 0.0), texts, [names[i] for i in true], [names[i] for i in decided]
        ),
    )


def _per_label(true: np.ndarray, decided: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    numbers = list(range(len(names)))
    columns = precision_recall_fscore_support(true, decided, labels=numbers, average=None, zero_division=0)
    keys = ("precision", "recall", "f1")
    return [
        {"label": name, **{key: float(column[i]) for key, column in zip(keys, columns, strict=False)}}
        | {"support": int(columns[3][i])}
        for i, name in enumerate(names)
    ]


def _mistakes(confidence: np.ndarray, texts: Dataset, true: list[str], decided: list[str]) -> list[dict[str, Any]]:
    """Returns the rows of the highest confidence above 0, in order; of equal ones, the earlier row first."""
    chosen = [int(row) for row in np.argsort(-confidence, kind="stable")[:MOST_MISTAKES] if confidence[row] > 0]
    return [
        {
            "row": row,
            "text": " | ".join(str(text) for text in texts[row].values())[:MOST_CHARACTERS],
            "label": true[row],
            "predicted": decided[row],
            "confidence": float(confidence[row]),
        }
        for row in chosen
    ]


def _joined(chosen: np.ndarray, names: list[str]) -> list[str]:
    return [", ".join(name for name, on in zip(names, row, strict=True) if on) or "-" for row in chosen]
