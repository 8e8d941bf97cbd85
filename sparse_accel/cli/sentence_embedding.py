"""Flags of scripts/sentence_embedding.py. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sparse_accel.cli.data import Data
from sparse_accel.cli.parser import flag
from sparse_accel.cli.refused import REFUSED
from sparse_accel.cli.training import TrainingArguments
from sparse_accel.errors import UsageError

_NO_CLASSES = "texts and pairs have no classes; name a column of scores with --label_column_name."
_NAME_COLUMNS = "name the columns with --input_column_names."
# The value of --label_column_name for pairs without scores.
NO_SCORES = "none"


@dataclass(kw_only=True)
class EmbeddingRows(Data):
    """Data: dataset_name, or files: of texts, pairs, triples or scored pairs; txt with one text per line."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet")
    read_here: ClassVar[tuple[str, ...]] = (".txt", ".csv", ".tsv")

    train_file: str | None = flag(
        None,
        "training rows: a txt file with a text per line, or a csv, tsv, json, jsonl or parquet file of texts, pairs, "
        "triples or scored pairs",
        path=True,
    )
    validation_file: str | None = flag(
        None, "rows for --do_eval: pairs, with or without scores, also if the training rows are texts", path=True
    )
    test_file: str | None = flag(None, "rows for --do_predict: texts or pairs", path=True)
    input_column_names: tuple[str, ...] | None = flag(
        None,
        "one column of texts, two of pairs, or three of triples: `anchor,positive,negative`",
        default_text="detected by common names, else the only one or two text columns",
    )
    label_column_name: str | None = flag(
        None,
        "column with the scores of pairs; `none`: pairs without scores",
        default_text="score, similarity_score, label, labels",
    )
    max_score: float | None = flag(
        None, "the highest possible score of a pair; the lowest is 0", above=0, default_text="1 or 5, as scores reach"
    )
    relevant_score: float | None = flag(
        None,
        "evaluation: the second text of a pair with at least this score is relevant for its first one",
        above=0,
        default_text="0.8 of max_score: 4 of 5",
    )


@dataclass(kw_only=True)
class Embeddings:
    """Embeddings."""

    pooling: str | None = flag(
        None,
        "how tokens become an embedding: the mean of all, or the first",
        choices=("mean", "cls"),
        default_text="that of the model; mean for an encoder without one",
    )
    normalize: bool | None = flag(
        None, "whether embeddings have the length 1", default_text="as the model's; true for an encoder without pooling"
    )
    embedding_loss: str = flag(
        "cosine",
        "distance from the teacher's embeddings: 1 - cosine, or mean squared error",
        choices=("cosine", "mse"),
    )
    similarity_scale: float = flag(
        20.0, "factor of the cosines in the softmax over the positives and negatives of a batch", above=0
    )


@dataclass(kw_only=True)
class SentenceEmbeddingArguments(EmbeddingRows, Embeddings, TrainingArguments):
    """Arguments of scripts/sentence_embedding.py, checked."""

    refused: ClassVar[Mapping[str, str]] = REFUSED | {
        "text_column_name": _NAME_COLUMNS,
        "text_column_names": _NAME_COLUMNS,
        "task": "this script has one task; name the data with --dataset_name or files.",
        "task_name": "this script has one task; name the data with --dataset_name or files.",
        "do_regression": _NO_CLASSES,
        "problem_type": _NO_CLASSES,
        "pooling_mode": "use --pooling mean or --pooling cls.",
        "scale": "use --similarity_scale.",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.new_head:
            raise UsageError("--new_head: an embedding has no head; remove it.")
        if self.label_smoothing_factor:
            raise UsageError("--label_smoothing_factor is for classes; remove it.")
        if self.relevant_score is not None and self.max_score is not None and self.relevant_score > self.max_score:
            raise UsageError(
                f"--relevant_score {self.relevant_score:g} is above --max_score {self.max_score:g}: no pair reaches it."
            )

    def warnings(self) -> list[str]:
        """Returns one line per flag that has no effect, or an unexpected one."""
        lines = [line for line in super().warnings() if "label names" not in line]
        if self.train_file and not (self.do_train or self.one_shot or self.validation_ratio):
            lines.append("--train_file is not used without --do_train or --one_shot.")
        if self.embedding_loss != "cosine" and self.distill_teacher in (None, "disable"):
            lines.append("--embedding_loss has no effect without --distill_teacher.")
        return lines
