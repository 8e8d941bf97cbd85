"""Predictions as a CSV table."""

from __future__ import annotations

import csv
import io

import numpy as np

from sparse_accel.tasks.text_classification.reranking import probabilities as sigmoid
from sparse_accel.tasks.text_classification.reranking import ranks


def ranking_table(logits: np.ndarray, queries: np.ndarray) -> str:
    """Returns the predictions of a reranker as CSV: row, query (its number), score and rank among its documents.

    Args:
        logits: (rows,).
        queries: (rows,) from `query_numbers`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "query", "score", "rank"])
    columns = zip(queries, sigmoid(logits), ranks(logits, queries), strict=True)
    writer.writerows([row, query, f"{score:.6f}", rank] for row, (query, score, rank) in enumerate(columns))
    return text.getvalue()


def prediction_table(logits: np.ndarray, label_names: list[str], problem_type: str) -> str:
    """Returns predictions as CSV: row, label and the probability of each label; regression: row and score.

    Args:
        logits: (rows, labels).
        label_names: in the order of the outputs.
        problem_type: as in config.json. Multi-label: the labels with a probability of at least 0.5, joined by `;`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if problem_type == "regression":
        writer.writerow(["row", "score"])
        writer.writerows([row, f"{value:.6f}"] for row, value in enumerate(logits[:, 0]))
        return text.getvalue()
    writer.writerow(["row", "label", *(f"probability_{name}" for name in label_names)])
    several = problem_type == "multi_label_classification"
    probabilities = sigmoid(logits) if several else _softmax(logits)
    for row, (scores, values) in enumerate(zip(logits, probabilities, strict=True)):
        chosen = [name for name, score in zip(label_names, scores, strict=True) if score >= 0]
        label = ";".join(chosen) if several else label_names[int(scores.argmax())]
        writer.writerow([row, label, *(f"{value:.6f}" for value in values)])
    return text.getvalue()


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
