"""Text classification with scores of documents for queries: a reranker, also called a cross-encoder."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from torch import Tensor

from sparse_accel.data.columns import (
    DOCUMENT,
    QUERY,
    SCORE,
    USUAL_LABEL_COLUMNS,
    find_text_columns,
    ranks_documents,
)
from sparse_accel.data.tables import Table
from sparse_accel.errors import UsageError, listed
from sparse_accel.nn.losses import distillation_loss, task_loss
from sparse_accel.tasks.details import Details, ProofWords
from sparse_accel.tasks.label_names import MULTI_LABEL, RERANKING, Head
from sparse_accel.tasks.text_classification.data import LABEL, TextClassificationData
from sparse_accel.tasks.text_classification.label_reading import LabelReader
from sparse_accel.tasks.text_classification.predictions import ranking_table
from sparse_accel.tasks.text_classification.reranking import (
    METRICS,
    RELEVANT,
    are_relevant,
    best_documents,
    check_queries,
    query_numbers,
    ranking_details,
    ranking_metrics,
)
from sparse_accel.tasks.text_classification.score_reading import ScoreReader
from sparse_accel.tasks.text_classification.task import TextClassification

# Sentences without a query of their own are ranked for the sentence before them, so many at a time.
_DOCUMENTS = 4


class Reranker(TextClassification):
    """Predicts how well a document answers a query; metrics and decisions are about the order of a query's documents.

    Its loss is the binary cross-entropy between its one output and the score, 0 to 1, as sentence-transformers'
    CrossEncoder has it by default.

    Attributes:
        highest: the score in the data that its output counts as 1: 1, or the highest grade.
    """

    own_type: ClassVar[str | None] = RERANKING
    label_columns: ClassVar[tuple[str, ...]] = (SCORE, *USUAL_LABEL_COLUMNS)
    label_reader: ClassVar[type[LabelReader]] = ScoreReader
    proof_words: ClassVar[ProofWords] = ProofWords("best documents", "nDCG@10 and MRR@10", "scores")

    def __init__(self, head: Head, data: TextClassificationData | None = None) -> None:
        super().__init__(head, data)
        self.highest = head.highest or 1

    @classmethod
    def columns_of(cls, sentences: list[str]) -> dict[str, list[str]]:
        before = [sentences[row - row % _DOCUMENTS - 1] for row in range(len(sentences))]
        return {QUERY: before, DOCUMENT: sentences}

    # --- rows ---------------------------------------------------------------------------------------------------------

    @classmethod
    def fits(cls, table: Table) -> bool:
        return ranks_documents(table)

    @classmethod
    def find_texts(cls, table: Table, named: Sequence[str] | None, label_column: str | None) -> tuple[str, ...]:
        if named is None and {QUERY, DOCUMENT} <= set(table.column_names):
            named = (QUERY, DOCUMENT)
        columns = find_text_columns(table, named, label_column)
        if len(columns) != 2:
            raise UsageError(
                f"{table.name}: a reranker reads a query and a document, but the text is only '{columns[0]}'; the "
                f"columns are: {listed(table.column_names)}. Name both, for example --input_column_names "
                "query,document, or name another --problem_type."
            )
        return columns

    @classmethod
    def check_rows(cls, table: Table, rows: Dataset, columns: tuple[str, ...], *, evaluated: bool) -> None:
        check_queries(table, columns[0], rows[columns[0]][:], ranked=evaluated)

    @classmethod
    def groups(cls, columns: tuple[str, ...]) -> Callable[[Dataset], Sequence[Hashable]] | None:
        return lambda rows: list(rows[columns[0]][:])

    def queries(self, split: str) -> np.ndarray:
        """Returns the number of each row's query, (rows,) int64; see `query_numbers`."""
        return query_numbers(self.data.splits[split][self.data.text_columns[0]][:])

    def describe_columns(self) -> str:
        query, document = self.data.text_columns
        scores = f", score: {self.data.label_column}" if self.data.label_column else ""
        queries = f"; to evaluate: {words}" if (words := self._describe_queries()) else ""
        return f"query: {query}, document: {document}{scores}{queries}"

    def _describe_queries(self) -> str:
        """Returns how many queries the evaluation has, and how many without a relevant document."""
        splits = [name for name in self.data.splits if name.startswith("validation") and self.data.has_labels(name)]
        words = []
        for split in splits:
            queries, scores = self.queries(split), np.asarray(self.data.splits[split][LABEL][:])
            count = len(np.unique(queries))
            without = count - len(np.unique(queries[are_relevant(scores, self.highest)]))
            found = f"{count} {'query' if count == 1 else 'queries'}"
            words.append(f"{found}, {without} of them without a relevant document" if without else found)
        return "; ".join(words)

    def describe_labels(self) -> str:
        scale = f"grades, divided by {self.highest}" if self.highest > 1 else "scores"
        return f"reranking: {scale}, 0 to 1; relevant: {'1' if self.highest > 1 else f'{RELEVANT:g}'} or more"

    # --- training -----------------------------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        return task_loss(outputs["logits"], batch["labels"][:, None], MULTI_LABEL)

    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        return distillation_loss(student, teacher, temperature, MULTI_LABEL)

    def agreement(self, student: Tensor, teacher: Tensor, batch: dict[str, Any]) -> Tensor | None:
        return None

    # --- evaluation: the documents of each query ----------------------------------------------------------------------

    def decisions(self, logits: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        """Returns the best document of each query, (queries, 1) int64."""
        return best_documents(logits[:, 0], self.queries(split))[:, None]

    def decision_unit(self) -> str:
        return "queries"

    def decision_gaps(self, first: np.ndarray, second: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        queries = self.queries(split)
        one, other = (best_documents(logits[:, 0], queries) for logits in (first, second))
        gaps = [np.abs(logits[one, 0].astype(np.float64) - logits[other, 0]) for logits in (first, second)]
        # Never 0, which says that they are the same.
        return np.where(one == other, 0.0, np.maximum(np.minimum(*gaps), np.finfo(np.float64).tiny))

    def metric_dependencies(self) -> list[Any]:
        return [self.problem_type, self.highest]

    def figure_names(self) -> tuple[str, ...]:
        return METRICS

    def figures(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, float]:
        return ranking_metrics(*self._ranked(logits, rows, split))

    def details(self, logits: np.ndarray, rows: Dataset, split: str) -> Details:
        texts = self.data.splits[split].select_columns(list(self.data.text_columns))
        return ranking_details(*self._ranked(logits, rows, split), texts)

    def support(self, rows: Dataset, split: str) -> int:
        return len(np.unique(self.queries(split)))

    def predictions(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, str]:
        return {"predictions.csv": ranking_table(logits[:, 0], self.queries(split))}

    def _ranked(self, logits: np.ndarray, rows: Dataset, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Returns the arguments of `ranking_metrics`."""
        return logits[:, 0], np.asarray(rows["labels"]), self.queries(split), self.highest
