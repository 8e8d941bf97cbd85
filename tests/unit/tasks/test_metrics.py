"""Metrics against values worked out by hand, and against scikit-learn and scipy."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from sparse_accel.cli.text_classification import GLUE_TASKS
from sparse_accel.cli.training import greater_is_better
from sparse_accel.errors import UsageError
from sparse_accel.tasks.base import check_metric_name
from sparse_accel.tasks.text_classification.glue import GLUE
from sparse_accel.tasks.text_classification.metrics import compute_metrics, metric_names
from sparse_accel.tasks.text_classification.predictions import prediction_table

SINGLE, REGRESSION, MULTI = "single_label_classification", "regression", "multi_label_classification"

# Predictions 1 1 0 0 1 against labels 1 0 0 1 1: 2 true positives, 1 false positive, 1 false negative, 1 true negative.
BINARY = np.array([[0.0, 2], [-1, 1], [3, 0], [0.5, 0], [0, 9]])
BINARY_LABELS = np.array([1, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ("sst2", {"accuracy": 3 / 5}),
        ("mnli", {"accuracy": 3 / 5}),
        ("mrpc", {"accuracy": 3 / 5, "f1": 2 / 3, "combined_score": (3 / 5 + 2 / 3) / 2}),
        ("qqp", {"accuracy": 3 / 5, "f1": 2 / 3, "combined_score": (3 / 5 + 2 / 3) / 2}),
        # (TP * TN - FP * FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)) = (2 - 1) / sqrt(3 * 3 * 2 * 2)
        ("cola", {"matthews_correlation": 1 / 6}),
        # F1 of label 0: 1 / (1 + (1 + 1) / 2) = 1/2
        ("default", {"accuracy": 3 / 5, "f1_macro": (2 / 3 + 1 / 2) / 2}),
    ],
)
def test_single_label_by_hand(metrics: str, expected: dict[str, float]) -> None:
    assert compute_metrics(metrics, SINGLE, BINARY, BINARY_LABELS) == pytest.approx(expected)


def test_regression_by_hand() -> None:
    predictions, labels = np.array([[1.0], [2], [4]]), np.array([1.0, 3, 2])
    # Deviations (-4/3, -1/3, 5/3) and (-1, 1, 0): covariance sum 1, variance sums 42/9 and 2. Ranks 1 2 3 and 1 3 2.
    pearson = 1 / math.sqrt(42 / 9 * 2)
    default = compute_metrics("default", REGRESSION, predictions, labels)
    assert default == pytest.approx({"mse": 5 / 3, "mae": 1.0, "pearson": pearson, "spearmanr": 0.5})
    glue = compute_metrics("stsb", REGRESSION, predictions, labels)
    assert glue == pytest.approx({"pearson": pearson, "spearmanr": 0.5, "combined_score": (pearson + 0.5) / 2})


@pytest.mark.parametrize(
    ("metrics", "problem_type"),
    [
        *(("default", kind) for kind in (SINGLE, MULTI, REGRESSION)),
        ("cola", SINGLE),
        ("mrpc", SINGLE),
        ("stsb", REGRESSION),
    ],
)
def test_which_figures_are_better_when_higher(metrics: str, problem_type: str) -> None:
    labels: Any = {SINGLE: np.array([0, 1, 1]), MULTI: np.eye(2), REGRESSION: np.array([1.0, 2, 4])}[problem_type]
    logits = (
        labels[:, None] if problem_type == REGRESSION else (labels if labels.ndim == 2 else np.eye(2)[labels]) - 0.5
    )
    good, bad = (compute_metrics(metrics, problem_type, sign * logits, labels) for sign in (1, -1))
    assert {name: greater_is_better(f"eval_{name}") for name in good} == {name: good[name] > bad[name] for name in good}


def test_multi_label_by_hand() -> None:
    # Predicted {0}, {0, 1}, {}; true {0}, {1}, {2}: 2 true positives, 1 false positive, 1 false negative.
    logits = np.array([[1.0, -1, -1], [1, 1, -1], [-1, -1, -1]])
    labels = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    expected = {"f1_micro": 2 / 3, "f1_macro": (2 / 3 + 1 + 0) / 3, "subset_accuracy": 1 / 3}
    assert compute_metrics("default", MULTI, logits, labels) == pytest.approx(expected)


def test_multi_label_predictions_and_figures_draw_the_line_alike() -> None:
    """A logit of 0 is a probability of 0.5, and chosen by both; far below 0 nothing overflows."""
    logits = np.array([[0.0, -1e-17, -1000.0]])
    assert compute_metrics("default", MULTI, logits, np.array([[1.0, 0, 0]]))["subset_accuracy"] == 1
    table = prediction_table(logits, ["a", "b", "c"], MULTI)
    assert table.splitlines()[1] == "0,a,0.500000,0.500000,0.000000"


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(st.data())
def test_single_label_agrees_with_scikit_learn(data: st.DataObject) -> None:
    rows = data.draw(st.integers(2, 30))
    logits = data.draw(arrays.arrays(np.float64, (rows, 3), elements=st.floats(-5, 5)))
    labels = data.draw(arrays.arrays(np.int64, rows, elements=st.integers(0, 2)))
    predictions = logits.argmax(axis=1)
    figures = compute_metrics("default", SINGLE, logits, labels)
    assert figures["accuracy"] == pytest.approx((predictions == labels).mean())
    assert figures["f1_macro"] == pytest.approx(f1_score(labels, predictions, average="macro", zero_division=0))
    cola = compute_metrics("cola", SINGLE, logits[:, :2], labels % 2)["matthews_correlation"]
    assert cola == pytest.approx(matthews_corrcoef(labels % 2, logits[:, :2].argmax(axis=1)))


def test_regression_agrees_with_scipy() -> None:
    random = np.random.default_rng(0)
    predictions, labels = random.normal(size=50), random.normal(size=50)
    figures = compute_metrics("stsb", REGRESSION, predictions[:, None], labels)
    assert figures["pearson"] == pytest.approx(pearsonr(predictions, labels).statistic)
    assert figures["spearmanr"] == pytest.approx(spearmanr(predictions, labels).statistic)


@pytest.mark.parametrize("predictions", [np.ones((4, 1)), np.ones((1, 1))])
def test_a_correlation_that_is_undefined_is_zero_and_valid_json(predictions: Any) -> None:
    figures = compute_metrics("stsb", REGRESSION, predictions, np.arange(len(predictions)))
    assert json.dumps(figures, allow_nan=False) == '{"pearson": 0.0, "spearmanr": 0.0, "combined_score": 0.0}'


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_names_are_those_of_the_figures(task: str) -> None:
    problem_type = GLUE[task].problem_type
    logits, labels = (BINARY[:, :1], BINARY_LABELS) if problem_type == REGRESSION else (BINARY, BINARY_LABELS)
    figures = compute_metrics(task, problem_type, logits, labels)
    assert tuple(figures) == metric_names(task, problem_type)
    assert all(type(figure) is float for figure in figures.values())


def test_half_precision_logits_are_taken() -> None:
    assert compute_metrics("sst2", SINGLE, BINARY.astype(np.float16), BINARY_LABELS)["accuracy"] == pytest.approx(0.6)


def test_metric_that_the_task_does_not_have() -> None:
    check_metric_name("eval_accuracy", metric_names("sst2", SINGLE))
    check_metric_name("loss", metric_names("cola", SINGLE))
    with pytest.raises(
        UsageError, match=r"no 'acuracy'\. Did you mean 'accuracy'\? It has: loss, accuracy, f1_macro\."
    ):
        check_metric_name("acuracy", metric_names("default", SINGLE))
