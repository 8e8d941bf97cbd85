"""Metrics of token classification from the tags of words, with seqeval and scikit-learn, offline.

Entities are counted as in conlleval (https://aclanthology.org/W00-0726): an entity is correct if its type, its first
word and its last word are correct.
"""

from __future__ import annotations

from collections.abc import Sequence

import seqeval.metrics
from sklearn.metrics import accuracy_score, f1_score

from sparse_accel.tasks.token_classification.tags import OUTSIDE, PLAIN, Tags, spans

# The name of seqeval for the type of tags without a type: B, I, O.
_UNTYPED = "_"
_NOTHING = {"precision": 0.0, "recall": 0.0, "f1-score": 0.0}


def metric_names(scheme: str) -> tuple[str, ...]:
    """Returns the names of the metrics that `entity_metrics` returns."""
    return ("accuracy", "f1_macro") if scheme == PLAIN else ("precision", "recall", "f1", "accuracy")


def entity_metrics(true: Sequence[Tags], predicted: Sequence[Tags], scheme: str) -> dict[str, float]:
    """Returns the metrics of predicted tags, by name.

    Args:
        true: tags of each sentence; at least one tag in all.
        predicted: tags of the same lengths. Sequences that break the rules of the scheme are read as in `spans`.
        scheme: scheme of both, from `find_scheme`.

    Returns:
        `metric_names` -> Python floats from 0 to 1: precision, recall and F1 over all entities (micro), 0 if the
        denominator is 0; accuracy, the fraction of words with the correct tag, O included; f1_macro, the mean F1 over
        all tags that occur in either.

    Raises:
        ValueError: different lengths, no words, or a tag that is not in the scheme.
    """
    true_tags, predicted_tags = _flat(true, predicted)
    figures = {"accuracy": float(accuracy_score(true_tags, predicted_tags))}
    if scheme == PLAIN:
        figures["f1_macro"] = float(f1_score(true_tags, predicted_tags, average="macro", zero_division=0))
    else:
        found = entity_report(true, predicted, scheme).get("micro avg", _NOTHING)
        figures |= {"precision": found["precision"], "recall": found["recall"], "f1": found["f1-score"]}
    return {name: figures[name] for name in metric_names(scheme)}


def f1_by_type(true: Sequence[Tags], predicted: Sequence[Tags], scheme: str) -> dict[str, float]:
    """Returns the F1 of each entity type that occurs in either, or of each plain tag; sorted by code point.

    Arguments and errors as for `entity_metrics`. Entities without a type have the type "_".
    """
    true_tags, predicted_tags = _flat(true, predicted)
    if scheme == PLAIN:
        names = sorted({*true_tags, *predicted_tags})
        figures = f1_score(true_tags, predicted_tags, labels=names, average=None, zero_division=0)
        return dict(zip(names, map(float, figures), strict=True))
    report = entity_report(true, predicted, scheme)
    return {type_: report[type_]["f1-score"] for type_ in sorted(report) if not type_.endswith(" avg")}


def _flat(true: Sequence[Tags], predicted: Sequence[Tags]) -> tuple[list[str], list[str]]:
    """Returns all tags in the order of the sentences, checked."""
    if [len(tags) for tags in true] != [len(tags) for tags in predicted]:
        raise ValueError("true and predicted tags have different lengths")
    flat = [tag for tags in true for tag in tags], [tag for tags in predicted for tag in tags]
    if not flat[0]:
        raise ValueError("no tags")
    return flat


def entity_report(true: Sequence[Tags], predicted: Sequence[Tags], scheme: str) -> dict[str, dict[str, float]]:
    """Returns the report of seqeval, with tags converted to IOB2: metrics by type, and averages; empty: no entities."""
    both = [[_as_iob2(tags, scheme) for tags in side] for side in (true, predicted)]
    if all(tag == OUTSIDE for side in both for tags in side for tag in tags):
        return {}
    found = seqeval.metrics.classification_report(*both, output_dict=True, zero_division=0)
    return {name: {key: float(value) for key, value in figures.items()} for name, figures in found.items()}


def _as_iob2(tags: Tags, scheme: str) -> list[str]:
    result = [OUTSIDE] * len(tags)
    for type_, begin, end in spans(tags, scheme):
        result[begin:end] = [f"{'I' if word > begin else 'B'}-{type_ or _UNTYPED}" for word in range(begin, end)]
    return result
