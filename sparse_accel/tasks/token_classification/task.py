"""Token classification as a task: one answer per word, such as its entity or its part of speech."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoConfig

from sparse_accel.cli.token_classification import TokenClassificationArguments
from sparse_accel.cli.training import TrainingArguments
from sparse_accel.data.tokenizing import tokenize
from sparse_accel.errors import UsageError, listed
from sparse_accel.nn.losses import IGNORED, token_distillation_loss, token_loss
from sparse_accel.tasks.base import Task
from sparse_accel.tasks.details import Details
from sparse_accel.tasks.label_names import Head
from sparse_accel.tasks.token_classification.data import (
    SENTENCE,
    TAGS,
    TOKENS,
    TokenClassificationData,
    has_tags,
    load_token_classification,
)
from sparse_accel.tasks.token_classification.details import tag_details
from sparse_accel.tasks.token_classification.encoding import NO_WORD, encode
from sparse_accel.tasks.token_classification.metrics import entity_metrics, f1_by_type, metric_names
from sparse_accel.tasks.token_classification.tags import OUTSIDE, PLAIN, find_scheme

# Models with byte-level tokenizers; the list of the transformers example run_ner.py.
_BYTE_LEVEL = ("bloom", "gpt2", "roberta", "deberta", "longformer", "modernbert")


class TokenClassification(Task):
    """Predicts one label per word. The loss is a mean over the labelled tokens of a global batch; metrics count words.

    Attributes:
        scheme: scheme of the tags, which decides the metrics: PLAIN, IOB2, ...
        all_tokens: --label_all_tokens.
        by_type: --return_entity_level_metrics.
    """

    name: ClassVar[str] = "token_classification"
    arguments: ClassVar[type[TrainingArguments]] = TokenClassificationArguments
    text_flag: ClassVar[str] = "text_column_name"
    architecture: ClassVar[str] = "ForTokenClassification"
    purpose: ClassVar[str] = "classify words"
    unit: ClassVar[str] = "words"
    token_columns: ClassVar[Mapping[str, int]] = {"labels": IGNORED, "words": NO_WORD}
    compares_tokens: ClassVar[bool] = True

    def __init__(self, head: Head, data: TokenClassificationData | None = None) -> None:
        super().__init__(head, data)
        self.scheme = data.scheme if data else find_scheme([head.names], lambda *_: "the model's config.json")
        self.all_tokens = self.by_type = False

    @classmethod
    def load(cls, arguments: TokenClassificationArguments, head: Head | None) -> TokenClassification:
        data = load_token_classification(arguments, head)
        task = cls(Head(data.label_names), data)
        task.all_tokens, task.by_type = arguments.label_all_tokens, arguments.return_entity_level_metrics
        return task

    @classmethod
    def of_sentences(cls, head: Head, sentences: list[str]) -> TokenClassification:
        words = [sentence.split() for sentence in sentences]
        data = TokenClassificationData(
            splits={"test": Dataset.from_dict({TOKENS: words, SENTENCE: list(range(len(words)))})},
            sources={"test": "sentences"},
            label_names=head.names,
            token_column=TOKENS,
            tag_column=None,
            scheme=cls(head).scheme,
        )
        return cls(head, data)

    @classmethod
    def has_labels(cls, file: str) -> bool:
        return has_tags(file)

    @classmethod
    def tokenizer_options(cls, address: str, **source: Any) -> dict[str, Any]:
        # Byte-level tokenizers accept single words only with this option, which puts a space before each, as in a text.
        kind = getattr(AutoConfig.from_pretrained(address, **source), "model_type", "")
        return {"add_prefix_space": True} if kind in _BYTE_LEVEL else {}

    @property
    def data(self) -> TokenClassificationData:
        assert isinstance(self.rows, TokenClassificationData)
        return self.rows

    def tokenize(self, tokenizer: Any, length: int, **options: Any) -> dict[str, Dataset]:
        if not tokenizer.is_fast:
            raise UsageError(
                f"{type(tokenizer).__name__} cannot map pieces to words: token classification needs a model with a "
                "fast tokenizer (tokenizer.json)"
            )
        settings = {"label_names": self.head.names, "length": min(length, tokenizer.model_max_length)}
        found: dict[str, Dataset] = {}
        for split, rows in self.data.splits.items():
            own = {"all_tokens": self.all_tokens, "whole_entities": split == "train"}
            found |= tokenize(
                {split: rows}, tokenizer, encode, settings | own, cache_dir=self.data.cache_dir, **options
            )
        return found

    def describe_columns(self) -> str:
        tags = f"; tags: {self.data.tag_column}, {self.data.scheme}" if self.data.tag_column else ""
        return f"tokens: {self.data.token_column}{tags}"

    def describe_labels(self) -> str:
        return (
            f"labels of {'all pieces' if self.all_tokens else 'the first piece'} of a word: {listed(self.head.names)}"
        )

    # --- training -----------------------------------------------------------------------------------------------------

    def row_weights(self, rows: Dataset) -> np.ndarray:
        return np.asarray([sum(label != IGNORED for label in labels) for labels in rows["labels"]], dtype=np.int64)

    def weights(self, batch: dict[str, Tensor]) -> Tensor:
        return self.labelled(batch).sum(dim=1).float()

    def loss(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        return token_loss(outputs["logits"], batch["labels"], label_smoothing)

    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        return token_distillation_loss(student, teacher, batch["labels"] != IGNORED, temperature)

    def agreement(self, student: Tensor, teacher: Tensor, batch: dict[str, Any]) -> Tensor | None:
        labelled = batch["labels"] != IGNORED
        same = (student.argmax(dim=-1) == teacher.argmax(dim=-1)) & labelled
        return same.sum(dim=1) / labelled.sum(dim=1).clamp(min=1)

    def mean(self, values: Tensor, batch: dict[str, Any]) -> Tensor:
        counts = (batch["labels"] != IGNORED).sum(dim=1)
        return (values * counts).sum() / counts.sum().clamp(min=1)

    def labelled(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["labels"] != IGNORED) & (batch["row_id"] >= 0)[:, None]

    def class_labels(self, rows: Dataset) -> np.ndarray | None:
        return np.asarray([label for labels in rows["labels"] for label in labels if label != IGNORED])

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def unit_counts(self, rows: Dataset) -> np.ndarray:
        return np.asarray([sum(word != NO_WORD for word in words) for words in rows["words"]], dtype=np.int64)

    def units(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["words"] != NO_WORD) & (batch["row_id"] >= 0)[:, None]

    def decisions(self, logits: np.ndarray, rows: Dataset, split: str) -> np.ndarray | None:
        return logits.argmax(axis=1, keepdims=True)

    def metric_dependencies(self) -> list[Any]:
        return [self.scheme, self.by_type]

    def figure_names(self) -> tuple[str, ...]:
        names = metric_names(self.scheme)
        if self.by_type and self.scheme != PLAIN:
            types = sorted({name[2:] or "_" for name in self.head.names if name != OUTSIDE})
            names += tuple(f"f1_{type_}" for type_ in types)
        return names

    def figures(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, float]:
        true = self.data.splits[split][TAGS][:]
        predicted = [tags for tags, _ in self._predicted(logits, rows, split)]
        found = entity_metrics(true, predicted, self.scheme)
        if self.by_type and self.scheme != PLAIN:
            by_type = f1_by_type(true, predicted, self.scheme)
            found |= {name: by_type.get(name.removeprefix("f1_"), 0.0) for name in self.figure_names()[len(found) :]}
        return found

    def headline(self) -> str:
        return "f1" if "f1" in self.figure_names() else "f1_macro"

    def details(self, logits: np.ndarray, rows: Dataset, split: str) -> Details:
        true, sentences = self.data.splits[split][TAGS][:], self.data.splits[split][TOKENS][:]
        predicted = self._predicted(logits, rows, split)
        return tag_details(true, predicted, sentences, self.head.names, self.scheme)

    def support(self, rows: Dataset, split: str) -> int:
        tags = self.data.splits[split][TAGS][:]
        return max(sum(tag != OUTSIDE for each in tags for tag in each), 1)

    def predictions(self, logits: np.ndarray, rows: Dataset, split: str) -> dict[str, str]:
        """Returns a CSV with the columns row, word (both from 0), token, label, and the probability of that label."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["row", "word", "token", "label", "probability"])
        sentences = self.data.splits[split][TOKENS][:]
        for row, (tags, probabilities) in enumerate(self._predicted(logits, rows, split)):
            for word, (token, tag, value) in enumerate(zip(sentences[row], tags, probabilities, strict=True)):
                writer.writerow([row, word, token, tag, f"{value:.6f}"])
        return {"predictions.csv": text.getvalue()}

    def _predicted(self, logits: np.ndarray, rows: Dataset, split: str) -> list[tuple[list[str], list[float]]]:
        """Returns the tags and their probabilities of each sentence, word by word; O for a word without pieces."""
        probabilities = torch.from_numpy(logits).float().softmax(dim=1).numpy()
        chosen = probabilities.argmax(axis=1)
        nothing = OUTSIDE if OUTSIDE in self.head.names else self.head.names[0]
        found = [([nothing] * len(tokens), [0.0] * len(tokens)) for tokens in self.data.splits[split][TOKENS]]
        unit = 0
        for sentence, words in zip(rows[SENTENCE], rows["words"], strict=True):
            for word in words:
                if word != NO_WORD:
                    found[sentence][0][word] = self.head.names[chosen[unit]]
                    found[sentence][1][word] = float(probabilities[unit, chosen[unit]])
                    unit += 1
        return found
