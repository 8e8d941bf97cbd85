"""Data and metrics of a task: rows with label names, their tokens, and the figures a model is judged by."""

from sparse_accel.tasks.label_names import Head, match_names, taken_by_position
from sparse_accel.tasks.text_classification.data import TextClassificationData, load_text_classification
from sparse_accel.tasks.text_classification.metrics import check_metric_name, compute_metrics, metric_names

__all__ = [
    "Head",
    "TextClassificationData",
    "check_metric_name",
    "compute_metrics",
    "load_text_classification",
    "match_names",
    "metric_names",
    "taken_by_position",
]
