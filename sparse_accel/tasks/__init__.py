"""Data and metrics of a task: rows with label names, their tokens, and the figures a model is judged by."""

from sparse_accel.tasks.labels import Head, match_names, taken_by_position
from sparse_accel.tasks.metrics import check_metric_name, compute_metrics, metric_names
from sparse_accel.tasks.preprocessing import tokenize
from sparse_accel.tasks.text_classification import TextClassificationData, load_text_classification

__all__ = [
    "Head",
    "TextClassificationData",
    "check_metric_name",
    "compute_metrics",
    "load_text_classification",
    "match_names",
    "metric_names",
    "taken_by_position",
    "tokenize",
]
