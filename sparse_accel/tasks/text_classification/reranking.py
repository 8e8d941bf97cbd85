"""Rerankers: scores of documents for queries, from the columns of a file to the metrics of their order.

Rows belong to one query if its text is the same. A score is from 0 to 1, or a whole grade (0, 1, 2, ...), which is
divided by the highest grade: the model is trained to give it as a probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_accel.data.tables import Table
from sparse_accel.errors import UsageError, shown
from sparse_accel.tasks.details import MOST_CHARACTERS, MOST_MISTAKES, Details
from sparse_accel.tasks.ranking import ndcg_at, reciprocal_rank_at
from sparse_accel.tasks.text_classification.labels import LabelColumn

METRICS = ("ndcg_at_10", "mrr_at_10")
_FIRST = 10  # documents of a query that count
# The lowest score of a relevant document. Of grades, it is 1, as in trec_eval.
RELEVANT = 0.5
_SCALES = "a score is from 0 to 1, or all scores are whole grades (0, 1, 2, ...)"


# --- scores of the data -----------------------------------------------------------------------------------------------


def highest_score(labels: LabelColumn) -> int:
    """Returns what the scores of a column are counted to: 1, or the highest grade.

    Raises:
        UsageError: a score is missing, not a number, below 0, or neither from 0 to 1 nor a whole grade.
    """
    numbers = [_number(labels, label) for label in range(len(labels.values))]
    highest = max(numbers, default=0.0)
    if highest <= 1:
        return 1
    label = next((label for label, number in enumerate(numbers) if number > 1 and not number.is_integer()), None)
    fraction = next((label for label, number in enumerate(numbers) if not number.is_integer()), None)
    if label is None and fraction is not None:
        label = next(label for label, number in enumerate(numbers) if number > 1)
    if label is not None:
        other = ""
        if fraction is not None and fraction != label:
            other = f" {numbers[fraction]:g} in row {labels.row(fraction) + 1} is no grade."
        raise UsageError(
            f"{labels.place(label)}: the score is {numbers[label]:g}, but {_SCALES}.{other} Divide all scores by the "
            "highest possible one."
        )
    return int(highest)


def read_scores(labels: LabelColumn, highest: int, known_from: str) -> list[float]:
    """Returns each of the different scores, divided by the highest possible one: 0 to 1.

    Args:
        labels: of the source.
        highest: 1, or the highest grade.
        known_from: what the highest one comes from, for messages.

    Raises:
        UsageError: a score is missing, not a number, or not on this scale.
    """
    numbers = [_number(labels, label) for label in range(len(labels.values))]
    for label, number in enumerate(numbers):
        if number > highest or (highest > 1 and not number.is_integer()):
            scale = f"whole grades from 0 to {highest}" if highest > 1 else "from 0 to 1"
            remedy = "Use the same scale" if highest > 1 else "Divide the scores by the highest possible one"
            raise UsageError(
                f"{labels.place(label)}: the score is {number:g}, but the scores of {known_from} are {scale}. "
                f"{remedy}, or correct this row."
            )
    return [number / highest for number in numbers]


def _number(labels: LabelColumn, label: int) -> float:
    number = labels.number(label, "a reranker")
    if number < 0:
        raise UsageError(f"{labels.place(label)}: the score is {number:g}, but {_SCALES}. Correct this row.")
    return number


def are_relevant(scores: NDArray[Any], highest: int) -> NDArray[np.bool_]:
    """Returns which documents are relevant, (rows,): a score of at least 0.5, or a grade of at least 1.

    Args:
        scores: as from `read_scores`, (rows,).
        highest: 1, or the highest grade.
    """
    found: NDArray[np.bool_] = scores >= RELEVANT if highest == 1 else scores > 0
    return found


# --- queries ----------------------------------------------------------------------------------------------------------


def query_numbers(texts: Sequence[str]) -> NDArray[np.int64]:
    """Returns the number of each row's query, (rows,), from 0 in the order in which they first occur."""
    numbers: dict[str, int] = {}
    return np.asarray([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)


def check_queries(table: Table, column: str, texts: Sequence[str], *, ranked: bool) -> None:
    """Checks the queries of a table.

    Args:
        column: of the queries.
        texts: the same, row by row.
        ranked: whether documents are ranked there, so that a query needs two of them.

    Raises:
        UsageError: a query has no text, or only one document.
    """
    empty = next((row for row, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise UsageError(f"{table.place(empty, column)} has no text: fix or delete this row.")
    numbers = query_numbers(texts)
    alone = np.flatnonzero(np.bincount(numbers) == 1) if ranked and len(numbers) else np.zeros(0, dtype=np.int64)
    if len(alone):
        row = int(np.flatnonzero(numbers == alone[0])[0])
        others = f" So have {len(alone) - 1} other queries." if len(alone) > 1 else ""
        raise UsageError(
            f"{table.place(row, column)}: the query {shown(texts[row])} has one document, so there is nothing to rank."
            f"{others} Rows with the same text are one query: add its other documents, or delete the row."
        )


def _rows_of(queries: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """Returns the rows of each query, in order."""
    order = np.argsort(queries, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(queries[order])) + 1)


# --- what a model says about them -------------------------------------------------------------------------------------


def ranking_metrics(
    logits: NDArray[Any], scores: NDArray[Any], queries: NDArray[np.int64], highest: int
) -> dict[str, float]:
    """Returns the means over queries of nDCG@10 and of the reciprocal rank of the first relevant document (MRR@10).

    The gain of a document is its score (linear, as in trec_eval and scikit-learn), so nDCG does not depend on what
    grades are divided by. A query without a relevant document counts as 0, as in scikit-learn's `ndcg_score` and in the
    evaluator of sentence-transformers.

    Args:
        logits: (rows,) of the model.
        scores: (rows,) as from `read_scores`.
        queries: (rows,) from `query_numbers`.
        highest: 1, or the highest grade.

    Raises:
        UsageError: an output is not a number.
    """
    if broken := int(np.isnan(logits).sum()):
        raise UsageError(
            f"the model's output is not a number (NaN) for {broken} of {len(logits)} rows, so they have no order: use "
            "an earlier checkpoint, or train with a lower learning rate."
        )
    relevant, rows = are_relevant(scores, highest), _rows_of(queries)
    return {
        "ndcg_at_10": float(np.mean([ndcg_at(logits[own], scores[own], _FIRST) for own in rows])),
        "mrr_at_10": float(np.mean([reciprocal_rank_at(logits[own], relevant[own], _FIRST) for own in rows])),
    }


def best_documents(logits: NDArray[Any], queries: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the row of each query's document with the highest score, (queries,); of equal ones, the first."""
    return np.asarray([own[logits[own].argmax()] for own in _rows_of(queries)], dtype=np.int64)


def ranks(logits: NDArray[Any], queries: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the place of each row's document among those of its query, (rows,), from 1: one more than the number of
    documents with a higher score."""
    places = np.zeros(len(logits), dtype=np.int64)
    for own in _rows_of(queries):
        ascending = np.sort(logits[own])
        places[own] = 1 + len(own) - np.searchsorted(ascending, logits[own], side="right")
    return places


def probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the sigmoid: what sentence-transformers' CrossEncoder gives as scores."""
    found: NDArray[np.float64] = (1 + np.tanh(np.asarray(logits, dtype=np.float64) / 2)) / 2  # tanh: no overflow
    return found


def ranking_details(
    logits: NDArray[Any], scores: NDArray[Any], queries: NDArray[np.int64], highest: int, texts: Any
) -> Details:
    """Returns the queries whose best document is not relevant although they have one that is; the surest first.

    Args:
        logits, scores, queries, highest: as for `ranking_metrics`.
        texts: the columns of queries and documents.
    """
    relevant, sure = are_relevant(scores, highest), probabilities(logits)
    found = relevant[[own[relevant[own].argmax()] for own in _rows_of(queries)]]
    wrong = [row for row, has in zip(best_documents(logits, queries), found, strict=True) if has and not relevant[row]]
    return Details(
        mistakes=[
            {
                "row": int(row),
                "text": " | ".join(str(text) for text in texts[int(row)].values())[:MOST_CHARACTERS],
                "label": f"{scores[row] * highest:g}",
                "predicted": f"{sure[row]:.3f}, first of its query",
                "confidence": float(sure[row]),
            }
            for row in sorted(wrong, key=lambda row: -sure[row])[:MOST_MISTAKES]
        ]
    )
