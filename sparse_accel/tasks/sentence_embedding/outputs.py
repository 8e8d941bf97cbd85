"""What lies behind the figures of embeddings, and the files of --do_predict."""

from __future__ import annotations

import csv
import io

import numpy as np
from numpy.typing import NDArray

from sparse_accel.tasks.details import MOST_CHARACTERS, MOST_MISTAKES, Details
from sparse_accel.tasks.sentence_embedding.metrics import nearest, unit_length
from sparse_accel.tasks.sentence_embedding.pairs import Pairs

_COSINES, _EMBEDDINGS = "cosines.csv", "embeddings.npy"


def embedding_details(embeddings: NDArray[np.float64], pairs: Pairs, max_score: float) -> Details:
    """Returns the pairs whose cosine is farthest from their score; without scores, the queries whose nearest text is
    not relevant, those with the highest cosine first.

    Args:
        embeddings: (texts, D), of unit length.
        max_score: the score that corresponds to a cosine of 1.
    """
    if pairs.scores is not None:
        cosines = pairs.cosines(embeddings)
        wrong = np.abs(cosines - pairs.scores / max_score)
        mistakes = [
            _mistake(row, " | ".join(_texts(pairs, row)), f"{pairs.scores[row]:g}", f"{cosines[row]:.3f}", wrong[row])
            for row in np.argsort(-wrong, kind="stable")[:MOST_MISTAKES].tolist()
        ]
        return Details(mistakes=mistakes)
    rows = {
        int(first): row for row, (first, _) in reversed(list(enumerate(pairs.numbers))) if int(first) in pairs.relevant
    }
    queries = np.asarray(list(rows), dtype=np.intp)
    if not len(queries):
        return Details()
    found = nearest(embeddings, queries)
    cosines = (embeddings[queries] * embeddings[found]).sum(axis=1)
    missed = [
        (-cosine, rows[query], near)
        for query, near, cosine in zip(queries.tolist(), found.tolist(), cosines.tolist(), strict=True)
        if near not in pairs.relevant[query]
    ]
    mistakes = []
    for negative, row, near in sorted(missed)[:MOST_MISTAKES]:
        text, label = _texts(pairs, row)
        mistakes.append(_mistake(row, text, label, pairs.texts[near], -negative))
    return Details(mistakes=mistakes)


def _texts(pairs: Pairs, row: int) -> list[str]:
    return [pairs.texts[number] for number in pairs.numbers[row].tolist()]


def _mistake(row: int, text: str, label: str, predicted: str, confidence: float) -> dict[str, object]:
    words = {"text": text, "label": label, "predicted": predicted}
    return {
        "row": row,
        **{key: value[:MOST_CHARACTERS] for key, value in words.items()},
        "confidence": float(confidence),
    }


def prediction_name(pairs: Pairs | None) -> str:
    """Returns the name of the file of predictions: of pairs or, for None, of texts."""
    return _EMBEDDINGS if pairs is None else _COSINES


def embedding_predictions(embeddings: NDArray[np.floating], pairs: Pairs | None) -> dict[str, str | bytes]:
    """Returns the file of predictions: the cosine of each pair as CSV, or the embeddings of texts as a float32 array.

    Args:
        embeddings: (texts, D).
        pairs: of the rows; None for texts.
    """
    if pairs is None:
        content = io.BytesIO()
        np.save(content, np.asarray(embeddings, dtype=np.float32))
        return {_EMBEDDINGS: content.getvalue()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "cosine"])
    writer.writerows([row, f"{value:.6f}"] for row, value in enumerate(pairs.cosines(unit_length(embeddings))))
    return {_COSINES: text.getvalue()}
