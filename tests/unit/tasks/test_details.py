"""What lies behind the figures of an evaluation: confusion, figures per label, the most confident mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from sparse_accel.tasks.details import MOST_CHARACTERS, MOST_MISTAKES
from sparse_accel.tasks.label_names import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from sparse_accel.tasks.text_classification.details import classification_details
from sparse_accel.tasks.token_classification.details import tag_details


def texts(count: int) -> Dataset:
    return Dataset.from_dict({"text": [f"row {number}" for number in range(count)]})


def test_single_label_by_hand() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    found = classification_details(logits, np.array([0, 0, 0, 1]), ["no", "yes"], SINGLE_LABEL, texts(4))
    assert found.confusion == [[2, 1], [0, 1]] and found.labels == ["no", "yes"]
    assert found.per_label[0] == {"label": "no", "precision": 1.0, "recall": 2 / 3, "f1": 0.8, "support": 3}
    assert found.per_label[1] == {
        "label": "yes",
        "precision": 0.5,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
        "support": 1,
    }
    (mistake,) = found.mistakes
    assert mistake == {
        "row": 1,
        "text": "row 1",
        "label": "no",
        "predicted": "yes",
        "confidence": pytest.approx(1 / (1 + np.exp(-3.0))),
    }


@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(st.floats(-5, 5), min_size=3, max_size=3)), min_size=1, max_size=60)
)
@settings(max_examples=50, deadline=None)
def test_single_label_agrees_with_the_accuracy(rows: list[tuple[int, list[float]]]) -> None:
    labels, logits = np.array([label for label, _ in rows]), np.array([row for _, row in rows])
    found = classification_details(logits, labels, ["a", "b", "c"], SINGLE_LABEL, texts(len(rows)))
    confusion = np.array(found.confusion)
    assert confusion.sum() == len(rows)
    assert confusion.trace() / len(rows) == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert len(found.mistakes) == min(len(rows) - confusion.trace(), MOST_MISTAKES)
    sure = [entry["confidence"] for entry in found.mistakes]
    assert sure == sorted(sure, reverse=True) and all(1 / 3 - 1e-9 <= value <= 1 for value in sure)
    assert all(entry["label"] != entry["predicted"] for entry in found.mistakes)


def test_several_labels() -> None:
    logits = np.array([[3.0, -3.0], [2.0, 2.0], [-1.0, -1.0]])
    labels = np.array([[1, 0], [1, 0], [0, 0]])
    found = classification_details(logits, labels, ["x", "y"], MULTI_LABEL, texts(3))
    assert found.confusion is None and [entry["support"] for entry in found.per_label] == [2, 0]
    assert [(entry["row"], entry["label"], entry["predicted"]) for entry in found.mistakes] == [(1, "x", "x, y")]


def test_scores() -> None:
    found = classification_details(np.array([[1.0], [2.5]]), np.array([1.0, 5.0]), ["score"], REGRESSION, texts(2))
    assert found.confusion is None and found.per_label == []
    assert [(entry["row"], entry["label"], entry["predicted"]) for entry in found.mistakes] == [(1, "5", "2.500")]


def test_texts_are_shortened_and_pairs_joined() -> None:
    rows = Dataset.from_dict({"one": ["a" * 1000], "other": ["b"]})
    found = classification_details(np.array([[1.0, 0.0]]), np.array([1]), ["n", "y"], SINGLE_LABEL, rows)
    assert found.mistakes[0]["text"] == "a" * MOST_CHARACTERS
    short = Dataset.from_dict({"one": ["a"], "other": ["b"]})
    found = classification_details(np.array([[1.0, 0.0]]), np.array([1]), ["n", "y"], SINGLE_LABEL, short)
    assert found.mistakes[0]["text"] == "a | b"


def test_entities() -> None:
    true = [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]
    predicted = [(["B-PER", "I-PER", "O"], [0.9, 0.8, 0.7]), (["B-PER", "B-LOC"], [0.6, 0.9])]
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    found = tag_details(true, predicted, [["Ann", "Lee", "ran"], ["In", "Rome"]], names, "IOB2")
    by_type = {entry["label"]: entry for entry in found.per_label}
    assert by_type["PER"] == {"label": "PER", "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert by_type["LOC"]["f1"] == 1.0
    assert np.array(found.confusion).sum() == 5 and found.labels == names
    assert found.mistakes == [
        {"row": 1, "text": "[In] Rome", "label": "O", "predicted": "B-PER", "confidence": pytest.approx(0.6)}
    ]


def test_plain_tags() -> None:
    found = tag_details([["N", "V"]], [(["N", "N"], [0.9, 0.7])], [["dogs", "run"]], ["N", "V"], "plain")
    assert [entry["label"] for entry in found.per_label] == ["N", "V"] and found.confusion == [[1, 0], [1, 0]]
