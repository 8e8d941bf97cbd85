"""Predictions as a table."""

from __future__ import annotations

import csv
import io

import numpy as np


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
