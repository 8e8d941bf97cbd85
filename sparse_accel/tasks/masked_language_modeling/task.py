"""Masked language modelling as a task: the model fills in tokens that are masked. It makes starts to transfer from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from sparse_accel.cli.masked_language_modeling import MaskedLanguageModelingArguments
from sparse_accel.cli.training import TrainingArguments
from sparse_accel.data.tokenizing import tokenize
from sparse_accel.errors import listed
from sparse_accel.nn.losses import IGNORED, masked_token_distillation_loss, masked_token_loss
from sparse_accel.tasks.base import Task
from sparse_accel.tasks.details import ProofWords
from sparse_accel.tasks.label_names import Head
from sparse_accel.tasks.masked_language_modeling.data import TextData, load_masked_language_modeling
from sparse_accel.tasks.masked_language_modeling.encoding import (
    WORDS,
    check_maskable,
    check_splits_words,
    encode_lines,
    encode_texts,
    mask_token_id,
    pack_dataset,
    random_ids,
)
from sparse_accel.tasks.masked_language_modeling.masking import NO_WORD, chosen_counts, mask_tokens, masked_counts
from sparse_accel.tasks.masked_language_modeling.metrics import METRICS, masked_token_metrics
from sparse_accel.tasks.masked_language_modeling.streaming import TEXT, row_maker

if TYPE_CHECKING:
    from sparse_accel.data.streams.order import RowMaker


class MaskedLanguageModeling(Task):
    """Fills in masked tokens. Rows are texts, or blocks of equal length that texts are packed into.

    Each epoch masks other tokens; evaluations always mask the same ones. The loss is a mean over masked tokens,
    which is also what is evaluated. An output has a logit for each token of the vocabulary, so an evaluation keeps two
    numbers of it: its loss, and the most likely token.

    Attributes:
        seed, probability, whole_words, line_by_line: --seed, --mlm_probability, --whole_word_mask, --line_by_line.
    """

    name: ClassVar[str] = "masked_language_modeling"
    arguments: ClassVar[type[TrainingArguments]] = MaskedLanguageModelingArguments
    text_flag: ClassVar[str] = "text_column_name"
    architecture: ClassVar[str] = "ForMaskedLM"
    purpose: ClassVar[str] = "fill in masked tokens"
    unit: ClassVar[str] = "masked tokens"
    row_name: ClassVar[str] = "texts"
    token_columns: ClassVar[Mapping[str, int]] = {WORDS: NO_WORD}
    keeps_table: ClassVar[bool] = False
    compares_tokens: ClassVar[bool] = True
    has_few_logits: ClassVar[bool] = False
    proof_words: ClassVar[ProofWords] = ProofWords("most likely tokens", "perplexity and accuracy", "masked tokens")

    def __init__(self, head: Head, data: TextData | None = None) -> None:
        super().__init__(head, data)
        self.seed, self.probability, self.whole_words, self.line_by_line = 0, 0.15, False, False
        self._mask_id, self._random_ids = 0, torch.zeros(1, dtype=torch.int64)

    @classmethod
    def load(cls, arguments: MaskedLanguageModelingArguments, head: Head | None) -> MaskedLanguageModeling:
        task = cls(Head([]), load_masked_language_modeling(arguments))
        task.seed, task.probability = arguments.seed, arguments.mlm_probability
        task.whole_words, task.line_by_line = arguments.whole_word_mask, arguments.line_by_line
        return task

    @classmethod
    def of_sentences(cls, head: Head, sentences: list[str]) -> MaskedLanguageModeling:
        return cls(Head([]), TextData({"test": Dataset.from_dict({TEXT: sentences})}, {"test": "sentences"}, []))

    @classmethod
    def has_labels(cls, file: str) -> bool:
        return True

    @property
    def data(self) -> TextData:
        assert isinstance(self.rows, TextData)
        return self.rows

    def configure(self, config: Any) -> None:
        """A language model has no labels."""

    @classmethod
    def export_obstacle(cls, model: Any) -> str:
        layers = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
        if any(layer.out_features == model.config.vocab_size for layer in layers):
            return ""
        return (
            "it multiplies with the weight of its embeddings, without an output layer that has this weight, and this "
            "cannot be exported yet (in DeBERTa: `legacy: false` in config.json)"
        )

    def tokenize(self, tokenizer: Any, length: int, **options: Any) -> dict[str, Dataset]:
        self._mask_id, self._random_ids = mask_token_id(tokenizer), random_ids(tokenizer)
        if self.whole_words:
            check_splits_words(tokenizer)
        splits, cache = self.data.splits, self.data.cache_dir
        encode = encode_lines if self.line_by_line else encode_texts
        settings = {"column": TEXT, **({"length": length} if self.line_by_line else {})}
        found = tokenize(splits, tokenizer, encode, settings, cache_dir=cache, **options)
        for split, rows in found.items():
            check_maskable(rows, self.data.sources[split])
        if self.line_by_line:
            return found
        again = bool(options.get("overwrite_cache"))
        return {
            split: pack_dataset(rows, tokenizer, length, cache_dir=cache, overwrite_cache=again)
            for split, rows in found.items()
        }

    def row_maker(self, tokenizer: Any, length: int) -> Callable[[], RowMaker]:
        return row_maker(tokenizer, length, self.line_by_line)

    def describe_columns(self) -> str:
        return listed(self.data.columns)

    def describe_parts(self, counts: Mapping[str, tuple[int, int]]) -> str:
        if self.line_by_line or not counts:
            return ""
        return "; packed: " + ", ".join(f"{texts} {split} in {rows} rows" for split, (texts, rows) in counts.items())

    def describe_labels(self) -> str:
        return f"{100 * self.probability:g}% of the tokens masked{', whole words' if self.whole_words else ''}"

    # --- training -----------------------------------------------------------------------------------------------------

    def is_labelled(self, rows: Dataset) -> bool:
        return True

    def training_settings(self) -> dict[str, Any]:
        found = {"mlm_probability": self.probability, "whole_word_mask": self.whole_words}
        if self.data.stream is None:  # else the rows show the others
            return found
        return {**found, "line_by_line": self.line_by_line, "text_column_name": self.data.columns[0]}

    def prepare(self, batch: dict[str, Tensor], epoch: int) -> dict[str, Tensor]:
        words = batch[WORDS]
        self._random_ids = self._random_ids.to(words.device)  # once, not in each step
        input_ids, labels = mask_tokens(
            batch["input_ids"],
            words != NO_WORD,
            batch["row_id"],
            seed=self.seed,
            epoch=batch.get("epoch", epoch),  # the rows of a stream know theirs
            probability=self.probability,
            mask_id=self._mask_id,
            random_ids=self._random_ids,
            words=words if self.whole_words else None,
        )
        return {**batch, "input_ids": input_ids, "labels": labels}

    def row_weights(self, rows: Dataset) -> np.ndarray:
        maskable = [sum(word != NO_WORD for word in words) for words in rows[WORDS]]
        return masked_counts(np.asarray(maskable, dtype=np.int64), self.probability)

    def weights(self, batch: dict[str, Tensor]) -> Tensor:
        counts = masked_counts((batch[WORDS] != NO_WORD).sum(dim=1), self.probability)
        return (counts * (batch["row_id"] >= 0)).float()

    def evaluation_weights(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns the number of masked tokens, so that the perplexity is exp of the loss with whole words too."""
        return self.units(batch).sum(dim=1).float()

    def loss(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        return masked_token_loss(outputs["logits"], batch["labels"])

    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        """Masked tokens are compared; in a loop of one's own, whose rows are not made here, all, as in SparseML."""
        return masked_token_distillation_loss(student, teacher, _compared(student, batch), temperature)

    def agreement(self, student: Tensor, teacher: Tensor, batch: dict[str, Any]) -> Tensor | None:
        compared = _compared(student, batch)
        same = (student.argmax(dim=-1) == teacher.argmax(dim=-1)) & compared
        return same.sum(dim=1) / compared.sum(dim=1).clamp(min=1)

    def mean(self, values: Tensor, batch: dict[str, Any]) -> Tensor:
        if WORDS not in batch:
            return values.mean()
        counts = (batch["labels"] != IGNORED).sum(dim=1)
        return (values * counts).sum() / counts.sum().clamp(min=1)

    def labelled(self, batch: dict[str, Tensor]) -> Tensor:
        return self.units(batch)

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def unit_counts(self, rows: Dataset) -> np.ndarray:
        return chosen_counts(
            rows[WORDS], seed=self.seed, epoch=0, probability=self.probability, whole_words=self.whole_words
        )

    def units(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["labels"] != IGNORED

    def kept(self, outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        """Returns the loss and the most likely token of each masked token, (R, T, 3), with the true token; else 0."""
        masked = self.units(batch)
        logits, labels = outputs["logits"][masked].float(), batch["labels"][masked]
        loss = F.cross_entropy(logits, labels, reduction="none")
        found = loss.new_zeros(*masked.shape, 3)
        found[masked] = torch.stack([loss, logits.argmax(dim=-1).float(), labels.float()], dim=-1)
        return found

    def decisions(self, logits: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        return logits[:, 1:2]

    def metric_dependencies(self) -> list[Any]:
        return [self.seed, self.probability, self.whole_words]

    def figure_names(self) -> tuple[str, ...]:
        return METRICS

    def has_figures(self, rows: Dataset, split: str) -> bool:
        return True

    def figures(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, float]:
        return masked_token_metrics(logits[:, 0], logits[:, 1] == logits[:, 2])

    def support(self, rows: Dataset, split: str) -> int:
        return int(self.unit_counts(rows).sum())

    def predictions(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, str]:
        raise NotImplementedError("a language model has no predictions: its flags refuse --do_predict")


def _compared(logits: Tensor, batch: dict[str, Any]) -> Tensor:
    """Returns which tokens of a batch are compared with the teacher's, (R, T) bool."""
    if WORDS in batch:
        masked: Tensor = batch["labels"] != IGNORED
        return masked
    mask = batch.get("attention_mask")
    return torch.ones_like(logits[..., 0], dtype=torch.bool) if mask is None else mask.bool()
