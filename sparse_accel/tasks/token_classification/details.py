"""What lies behind the figures of token classification: tags and entities by type, and the surest wrong words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from sparse_accel.tasks.details import MOST_CHARACTERS, MOST_MISTAKES, Details
from sparse_accel.tasks.token_classification.metrics import entity_report
from sparse_accel.tasks.token_classification.tags import PLAIN, Tags


def tag_details(
    true: Sequence[Tags],
    predicted: Sequence[tuple[Tags, Sequence[float]]],
    sentences: Sequence[Sequence[str]],
    names: list[str],
    scheme: str,
) -> Details:
    """Returns the details of an evaluation; all arguments have one entry per sentence, of one entry per word.

    Args:
        true: tags.
        predicted: tags, and the probability of each.
        sentences: words.
        names: all tags of the model.
        scheme: of the tags; plain tags are counted by tag, others by entity.
    """
    true_tags = [tag for tags in true for tag in tags]
    decided = [tag for tags, _ in predicted for tag in tags]
    labels = [*names, *sorted(set(true_tags) - set(names))]
    confusion = confusion_matrix(true_tags, decided, labels=labels).tolist()
    if scheme == PLAIN:
        columns = precision_recall_fscore_support(true_tags, decided, labels=labels, average=None, zero_division=0)
        entries = [(label, [float(column[i]) for column in columns]) for i, label in enumerate(labels)]
    else:
        report = entity_report(true, [tags for tags, _ in predicted], scheme)
        keys = ("precision", "recall", "f1-score", "support")
        entries = [(name, [entry[key] for key in keys]) for name, entry in report.items() if not name.endswith(" avg")]
    per_label: list[dict[str, Any]] = [
        {"label": label, "precision": precision, "recall": recall, "f1": f1, "support": int(support)}
        for label, (precision, recall, f1, support) in entries
    ]
    wrong = [
        (-sure, row, word)
        for row, (tags, (chosen, probabilities)) in enumerate(zip(true, predicted, strict=True))
        for word, (tag, other, sure) in enumerate(zip(tags, chosen, probabilities, strict=True))
        if tag != other
    ]
    mistakes = [
        {
            "row": row,
            "text": _around(sentences[row], word),
            "label": true[row][word],
            "predicted": predicted[row][0][word],
            "confidence": float(-negative),
        }
        for negative, row, word in sorted(wrong)[:MOST_MISTAKES]
    ]
    return Details(labels, confusion, per_label, mistakes)


def _around(words: Sequence[str], position: int) -> str:
    """Returns the words around one, which is in brackets."""
    begin = max(position - 12, 0)
    marked = [*words[begin:position], f"[{words[position]}]", *words[position + 1 : position + 13]]
    return " ".join(marked)[:MOST_CHARACTERS]
