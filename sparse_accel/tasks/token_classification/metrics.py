"""The figures that token classification is judged by, from the tags of words; counted here, offline.

Entities are counted as conlleval (https://aclanthology.org/W00-0726) and seqeval in its default mode count them: one is
found when its type, its first word and its last word are right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sklearn.metrics import accuracy_score, f1_score

from sparse_accel.tasks.token_classification.tags import PLAIN, Tags, spans

# What seqeval calls the type of tags without one: B, I, O.
_UNTYPED = "_"


def metric_names(scheme: str) -> tuple[str, ...]:
    """Names of the figures that `entity_metrics` returns."""
    return ("accuracy", "f1_macro") if scheme == PLAIN else ("precision", "recall", "f1", "accuracy")


def entity_metrics(true: Sequence[Tags], predicted: Sequence[Tags], scheme: str) -> dict[str, float]:
    """The figures of predicted tags, by name.

    Args:
        true: tags of each sentence, one at least.
        predicted: of the same lengths. Sequences that the scheme does not allow count by what `spans` reads in them.
        scheme: of both, as `find_scheme` gives it.

    Returns:
        `metric_names` -> plain floats from 0 to 1: precision, recall and F1 of all entities together (micro), where one
        without a denominator is 0; accuracy, the share of words whose tag is right, O included; f1_macro, the mean of
        the F1 of all tags that occur in either.

    Raises:
        ValueError: other lengths, no words, or a tag that the scheme does not have.
    """
    true_tags, predicted_tags = _flat(true, predicted)
    figures = {"accuracy": float(accuracy_score(true_tags, predicted_tags))}
    if scheme == PLAIN:
        figures["f1_macro"] = float(f1_score(true_tags, predicted_tags, average="macro", zero_division=0))
    else:
        counts = _counts(true, predicted, scheme)
        right, found, there = (sum(each[place] for each in counts.values()) for place in range(3))
        figures |= {"precision": _share(right, found), "recall": _share(right, there)}
        figures["f1"] = _share(2 * right, found + there)
    return {name: figures[name] for name in metric_names(scheme)}


def f1_by_type(true: Sequence[Tags], predicted: Sequence[Tags], scheme: str) -> dict[str, float]:
    """The F1 of each type of entity that occurs in either, or of each plain tag; by code point.

    Arguments and errors are those of `entity_metrics`. Entities of tags without a type are of the type "_".
    """
    true_tags, predicted_tags = _flat(true, predicted)
    if scheme == PLAIN:
        names = sorted({*true_tags, *predicted_tags})
        figures = f1_score(true_tags, predicted_tags, labels=names, average=None, zero_division=0)
        return dict(zip(names, map(float, figures), strict=True))
    counts = _counts(true, predicted, scheme)
    return {type_ or _UNTYPED: _share(2 * counts[type_][0], sum(counts[type_][1:])) for type_ in sorted(counts)}


def _flat(true: Sequence[Tags], predicted: Sequence[Tags]) -> tuple[list[str], list[str]]:
    """All tags, sentence after sentence."""
    if [len(tags) for tags in true] != [len(tags) for tags in predicted]:
        raise ValueError("true and predicted tags are not of the same lengths")
    flat = [tag for tags in true for tag in tags], [tag for tags in predicted for tag in tags]
    if not flat[0]:
        raise ValueError("no tags")
    return flat


def _counts(true: Sequence[Tags], predicted: Sequence[Tags], scheme: str) -> dict[str, tuple[int, int, int]]:
    """For each type: how many entities were found and are right, were found, and are there."""
    there = {(sentence, *span) for sentence, tags in enumerate(true) for span in spans(tags, scheme)}
    found = {(sentence, *span) for sentence, tags in enumerate(predicted) for span in spans(tags, scheme)}
    right, of_found, of_there = (Counter(type_ for _, type_, _, _ in each) for each in (there & found, found, there))
    return {type_: (right[type_], of_found[type_], of_there[type_]) for type_ in of_found | of_there}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
