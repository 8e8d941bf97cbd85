"""Sentence embeddings as a task: vectors that follow a teacher's, or that pairs of texts teach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from sparse_accel.cli.sentence_embedding import SentenceEmbeddingArguments
from sparse_accel.cli.training import TrainingArguments
from sparse_accel.data.tokenizing import tokenize
from sparse_accel.distributed.collectives import gather_rows, largest, rank_and_size
from sparse_accel.errors import UsageError
from sparse_accel.nn.embedding_losses import embedding_distance, in_batch_loss, not_negatives, score_loss
from sparse_accel.nn.pooling import Pooling, add_pooling
from sparse_accel.tasks.base import Task
from sparse_accel.tasks.details import Details, ProofWords
from sparse_accel.tasks.label_names import Head
from sparse_accel.tasks.sentence_embedding.checks import check_training
from sparse_accel.tasks.sentence_embedding.data import TEXTS, EmbeddingData, has_pairs, load_sentence_embedding
from sparse_accel.tasks.sentence_embedding.encoding import TEXT_IDS, check_words, encode
from sparse_accel.tasks.sentence_embedding.folder import (
    SETTINGS,
    EmbeddingSettings,
    sentence_transformers_files,
    settings_at,
    settings_in,
    settings_of_run,
    warn_of_settings,
)
from sparse_accel.tasks.sentence_embedding.metrics import (
    CORRELATIONS,
    RETRIEVAL,
    correlations,
    nearest,
    retrieval,
    unit_length,
)
from sparse_accel.tasks.sentence_embedding.outputs import embedding_details, embedding_predictions, prediction_name
from sparse_accel.tasks.sentence_embedding.pairs import Pairs, pairs_of

# Texts whose nearest other text is compared between two runs, at most: there are as many cosines as texts for each.
_MOST_DECISIONS = 2000
_DEFAULT = EmbeddingSettings(Pooling("mean", normalize=True))


class SentenceEmbedding(Task):
    """Turns texts into vectors whose cosines say how near the texts are.

    Rows for training are texts (R, T), or pairs and triples (R, K, T); there, the loss of pairs needs all rows of the
    global batch, on all processes. Rows for evaluation are the distinct texts of a split, each once, and figures are
    about its pairs.

    Attributes:
        settings: pooling, normalization and longest text, of the model that is trained or used.
        embedding_loss, scale, relevant_score: --embedding_loss, --similarity_scale, --relevant_score.
    """

    name: ClassVar[str] = "sentence_embedding"
    arguments: ClassVar[type[TrainingArguments]] = SentenceEmbeddingArguments
    text_flag: ClassVar[str] = "input_column_names"
    architecture: ClassVar[str] = ""
    purpose: ClassVar[str] = "turn texts into embeddings"
    unit: ClassVar[str] = "texts"
    logit_keys: ClassVar[tuple[str, ...]] = ("sentence_embedding",)
    uses_temperature: ClassVar[bool] = False
    table_on_disk: ClassVar[bool] = True
    are_vectors: ClassVar[bool] = True
    proof_words: ClassVar[ProofWords] = ProofWords("nearest texts", "similarity and retrieval", "pairs")

    def __init__(self, head: Head, data: EmbeddingData | None = None) -> None:
        super().__init__(Head([]), data)
        self.settings, self.embedding_loss, self.scale = _DEFAULT, "cosine", 20.0
        self.relevant_score: float | None = None

    @classmethod
    def load(cls, arguments: SentenceEmbeddingArguments, head: Head | None) -> SentenceEmbedding:
        settings = settings_of_run(arguments)
        if not (arguments.do_train or arguments.one_shot):
            warn_of_settings(arguments)
        task = cls(Head([]), load_sentence_embedding(arguments))
        task.settings, task.embedding_loss, task.scale = settings, arguments.embedding_loss, arguments.similarity_scale
        task.relevant_score = arguments.relevant_score
        return task

    @classmethod
    def of_sentences(cls, head: Head, sentences: list[str]) -> SentenceEmbedding:
        rows = Dataset.from_dict({TEXTS[0]: sentences})
        return cls(head, EmbeddingData(splits={"test": rows}, sources={"test": "sentences"}, label_names=[]))

    @classmethod
    def has_labels(cls, file: str) -> bool:
        return has_pairs(file)

    @property
    def data(self) -> EmbeddingData:
        assert isinstance(self.rows, EmbeddingData)
        return self.rows

    # --- the model ----------------------------------------------------------------------------------------------------

    @classmethod
    def is_for(cls, names: Sequence[str], config: Any) -> bool:
        """Whether config.json has the entry of this task, and the model is an encoder without a head."""
        return getattr(config, SETTINGS, None) is not None and all(name.endswith("Model") for name in names)

    def configure(self, config: Any) -> None:
        setattr(config, SETTINGS, self.settings.to_dict())

    @classmethod
    def configure_untrained(cls, config: Any, names: list[str], arguments: Any) -> None:
        setattr(config, SETTINGS, settings_of_run(arguments).to_dict())
        warn_of_settings(arguments)

    @classmethod
    def complete(cls, model: Any, address: str, **source: Any) -> Any:
        settings = settings_at(address, model.config, **source)
        if settings is None:
            raise UsageError(
                "nothing in this folder says how tokens become an embedding: there is neither modules.json of "
                f"sentence-transformers nor '{SETTINGS}' in config.json. Train it for this task first"
            )
        setattr(model.config, SETTINGS, settings.to_dict())
        model.config.architectures = [type(model).__name__]  # of the encoder, also if the file has a head
        return add_pooling(model, settings.pooling)

    @classmethod
    def extra_files(cls, model: Any, tokenizer: Any) -> dict[str, Any]:
        return sentence_transformers_files(model, tokenizer)

    def check_teacher(self, name: str, student: Any, teacher: Any) -> None:
        own, other = (int(model.config.hidden_size) for model in (student, teacher))
        if own != other:
            raise UsageError(
                f"--distill_teacher {name} has embeddings of width {other}, the model of width {own}: use a teacher or "
                "a model of the same width (hidden_size in config.json)"
            )
        found = settings_in(teacher.config, f"--distill_teacher {name}")
        assert found is not None
        lengths = found.pooling.normalize, self.settings.pooling.normalize
        if self.embedding_loss == "mse" and lengths[0] != lengths[1]:
            words = ["are normalized" if each else "are not normalized" for each in lengths]
            raise UsageError(
                f"--embedding_loss mse: the teacher's embeddings {words[0]}, the model's {words[1]}, so their scales "
                f"differ: use --embedding_loss cosine, or --normalize {str(lengths[0]).lower()} with a model that has "
                "no pooling yet"
            )

    # --- rows ---------------------------------------------------------------------------------------------------------

    def tokenize(self, tokenizer: Any, length: int, **options: Any) -> dict[str, Dataset]:
        texts = {split: self._rows(split) for split in self.data.splits}
        longest = [length, tokenizer.model_max_length, self.settings.max_seq_length or length]
        settings = {"length": min(longest), "max_score": self.data.max_score}
        found = tokenize(texts, tokenizer, encode, settings, cache_dir=self.data.cache_dir, **options)
        for split, rows in texts.items():
            check_words(found[split], rows, tokenizer, self.data.sources[split])
        return found

    def _rows(self, split: str) -> Dataset:
        """Returns the rows to tokenize: those of a training split, else its distinct texts."""
        if split == "train" or self.data.width(split) == 1:
            return self.data.splits[split]
        return Dataset.from_dict({TEXTS[0]: self._pairs[split].texts})

    @cached_property
    def _pairs(self) -> dict[str, Pairs]:
        """By split for evaluation or prediction, its pairs."""
        wide = (split for split in self.data.splits if split != "train" and self.data.width(split) > 1)
        return {split: pairs_of(self.data.splits[split], self._least_relevant()) for split in wide}

    def _least_relevant(self) -> float:
        return 0.8 * self.data.max_score if self.relevant_score is None else self.relevant_score

    def describe_columns(self) -> str:
        found = {split: ", ".join(columns) for split, columns in self.data.columns.items()}
        words = next(iter(found.values()))
        if len(set(found.values())) > 1:
            words = "; ".join(f"{split}: {names}" for split, names in found.items())
        scores = f"; scores: {self.data.score_column}, 0 to {self.data.max_score:g}" if self.data.score_column else ""
        return words + scores

    def describe_parts(self, counts: Mapping[str, tuple[int, int]]) -> str:
        found = (
            f"{self._pairs[split].count} {split} with {n} texts"
            for split, (_, n) in counts.items()
            if split in self._pairs
        )
        return f"; pairs: {words}" if (words := ", ".join(found)) else ""

    def describe_labels(self) -> str:
        pooling = self.settings.pooling
        made = f"{pooling.mode} of tokens" if pooling.mode == "mean" else "first token"
        made += ", normalized" if pooling.normalize else ""
        if "train" not in self.data.splits:
            return made
        if self.data.width("train") == 1:
            return f"{made}; from a teacher alone"
        return f"{made}; {'scores of pairs' if self.data.has_scores('train') else 'negatives from the batch'}"

    def check_flags(self, arguments: TrainingArguments) -> None:
        if arguments.load_best_model_at_end and arguments.metric_for_best_model.removeprefix("eval_") == "loss":
            raise UsageError(
                "--load_best_model_at_end: an evaluation of embeddings has no loss: name one of "
                f"{', '.join(self.figure_names())} with --metric_for_best_model."
            )
        super().check_flags(arguments)
        if "train" in self.data.splits:
            check_training(arguments, self.data)

    # --- training -----------------------------------------------------------------------------------------------------

    def is_labelled(self, rows: Dataset) -> bool:
        return False

    def training_settings(self) -> dict[str, Any]:
        return {
            **self.settings.to_dict(),
            "embedding_loss": self.embedding_loss,
            "similarity_scale": self.scale,
        }

    def row_weights(self, rows: Dataset) -> np.ndarray:
        return np.ones(len(rows), dtype=np.int64)

    def weights(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["row_id"] >= 0).float()

    def loss(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        """Returns the loss of each row: of texts 0, because a teacher alone teaches; of scored pairs the squared
        difference of cosine and score; of pairs and triples the cross-entropy among the texts of all processes."""
        embeddings = self.logits(outputs).float()
        if embeddings.ndim == 2:
            return 0.0 * embeddings.sum(dim=-1)
        if "labels" in batch:
            return score_loss(embeddings[:, 0], embeddings[:, 1], batch["labels"])
        return self._loss_in_batch(embeddings, batch)

    def _loss_in_batch(self, embeddings: Tensor, batch: dict[str, Tensor]) -> Tensor:
        ids, rows = batch[TEXT_IDS], largest(len(embeddings))
        others, rank = embeddings.shape[1] - 1, rank_and_size()[0]
        candidates = gather_rows(embeddings[:, 1:].contiguous(), rows).flatten(0, 2)
        # Fillers and missing rows have no candidates: their mark is 0.
        marks = (batch["row_id"] >= 0).long()[:, None]
        found = gather_rows(torch.cat([ids, marks], dim=1), rows).flatten(0, 1)
        all_ids, real = found[:, 1:-1], found[:, -1:] > 0
        anchors = torch.cat([found[:, :1], all_ids[:, 1:]], dim=1)  # of the rows of positives
        left_out = not_negatives(ids[:, 0], ids[:, 1], all_ids.flatten(), anchors.flatten())
        left_out |= ~real.expand(-1, others).flatten()
        own = (rank * rows + torch.arange(len(ids), device=ids.device)) * others
        left_out = left_out.scatter(1, own[:, None], False)
        return in_batch_loss(embeddings[:, 0], candidates, own, left_out, self.scale)

    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        """Returns the distance of embeddings; `temperature` has no effect."""
        return embedding_distance(student, teacher, self.embedding_loss)

    def labelled(self, batch: dict[str, Tensor]) -> Tensor:
        real = batch["row_id"] >= 0
        shape = batch["input_ids"].shape[:-1]
        return real if len(shape) == 1 else real[:, None].expand(shape)

    def labelled_counts(self, rows: Dataset) -> np.ndarray:
        width = len(rows[0][TEXT_IDS]) if TEXT_IDS in rows.column_names else 1
        return np.full(len(rows), width, dtype=np.int64)

    # --- evaluation: the distinct texts of a split, and its pairs -----------------------------------------------------

    def unit_counts(self, rows: Dataset) -> np.ndarray:
        return np.ones(len(rows), dtype=np.int64)

    def units(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["row_id"] >= 0

    def decisions(self, logits: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        """Returns the nearest other text of each of at most 2,000 texts, (D, 1) int64; None for a single text."""
        if len(logits) < 2:
            return None
        return nearest(unit_length(logits), _compared(len(logits)))[:, None]

    def decision_gaps(self, first: np.ndarray, second: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        if len(first) < 2:
            return None
        texts = _compared(len(first))
        both = [unit_length(logits) for logits in (first, second)]
        one, other = (nearest(found, texts) for found in both)
        gaps = [np.abs((found[texts] * (found[one] - found[other])).sum(axis=1)) for found in both]
        smallest: float = np.finfo(np.float64).tiny  # never 0, which says that they are the same
        return np.where(one == other, 0.0, np.maximum(np.minimum(*gaps), smallest))

    def metric_dependencies(self) -> list[Any]:
        return [self.data.max_score, self._least_relevant()] if self.rows else []

    def figure_names(self) -> tuple[str, ...]:
        if self.rows is None:
            return (*CORRELATIONS, *RETRIEVAL)
        pairs = [found for split, found in self._pairs.items() if split.startswith("validation")]
        scored = not pairs or any(found.scores is not None for found in pairs)
        ranked = not pairs or any(found.relevant for found in pairs)
        return (*(CORRELATIONS if scored else ()), *(RETRIEVAL if ranked else ()))

    def has_figures(self, rows: Dataset, split: str) -> bool:
        pairs = self._pairs.get(split)
        return pairs is not None and (pairs.scores is not None or bool(pairs.relevant))

    def figures(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, float]:
        found, embeddings = self._pairs[split], unit_length(logits)
        if broken := int((~np.isfinite(logits)).any(axis=1).sum()):
            raise UsageError(
                f"the embeddings of {broken} of {len(logits)} texts contain NaN or inf, so there are no cosines: use "
                "an earlier checkpoint, or train with a lower learning rate."
            )
        figures = {} if found.scores is None else correlations(found.cosines(embeddings), found.scores)
        return {**figures, **(retrieval(embeddings, found.relevant) if found.relevant else {})}

    def details(self, logits: np.ndarray, rows: Dataset, split: str) -> Details:
        return embedding_details(unit_length(logits), self._pairs[split], self.data.max_score)

    def support(self, rows: Dataset, split: str) -> int:
        return len(self.data.splits[split])

    def prediction_names(self) -> tuple[str, ...]:
        return (prediction_name(self._pairs.get("test")),)

    def predictions(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, str | bytes]:
        return embedding_predictions(logits, self._pairs.get(split))


def _compared(texts: int) -> np.ndarray:
    """Returns the numbers of at most 2,000 texts, evenly spread."""
    return np.unique(np.linspace(0, texts - 1, min(texts, _MOST_DECISIONS)).astype(np.intp))
