"""Models of a few thousand weights, a vocabulary of 30 words, and rows to train them on. Nothing is downloaded."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD = ["good", "great", "fine", "nice", "lovely"]
BAD = ["bad", "awful", "poor", "terrible", "boring"]
PLAIN = ["film", "movie", "plot", "actor", "scene", "the", "a", "is", "was", "very", "not", "and", "but", "it", "this"]
VOCABULARY = [*SPECIAL, *GOOD, *BAD, *PLAIN]

SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@functools.cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, with BERT's special tokens."""
    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **special, **{"model_input_names": inputs, "model_max_length": 64}
    )


def make_bert(*, sparsity: float = 0.0, dropout: float = 0.1, seed: int = 0, **settings: Any) -> nn.Module:
    """A BERT with two blocks of width 32.

    Args:
        sparsity: share of each Linear weight of its blocks that is exactly 0.
        dropout: of hidden states and attention.
        settings: for BertConfig, such as num_labels.
    """
    torch.manual_seed(seed)
    rates: dict[str, Any] = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model: nn.Module = BertForSequenceClassification(BertConfig(**{**SIZES, **rates, **settings}))
    make_encoder_sparse(model, sparsity)
    return model


def make_distilbert(blocks: int = 2) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "dim": 32,
        "n_layers": blocks,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 64,
    }
    model: nn.Module = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=len(VOCABULARY), **sizes))
    return model


def make_roberta(blocks: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = RobertaForSequenceClassification(RobertaConfig(**{**SIZES, "num_hidden_layers": blocks}))
    return model


def make_albert() -> nn.Module:
    """An ALBERT whose two blocks are one and the same."""
    torch.manual_seed(0)
    model: nn.Module = AlbertForSequenceClassification(AlbertConfig(**SIZES, embedding_size=16))
    return model


@torch.no_grad()
def make_encoder_sparse(model: nn.Module, sparsity: float) -> None:
    for name, parameter in model.named_parameters():
        if ".layer." in name and parameter.ndim == 2:
            dropped = parameter.abs().flatten().argsort()[: round(sparsity * parameter.numel())]
            parameter.view(-1)[dropped] = 0.0


def make_texts(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Sentences of 3 to 14 words and their labels; two words of each say which label it is."""
    random = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(count):
        label = int(random.integers(2))
        words = [*random.choice(PLAIN, random.integers(1, 13)), *random.choice(GOOD if label else BAD, 2)]
        random.shuffle(words)
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


@functools.cache
def make_rows(count: int, seed: int = 0) -> Dataset:
    """The same, tokenized, as the training script hands them on."""
    texts, labels = make_texts(count, seed)
    return Dataset.from_dict({**make_tokenizer()(texts), "labels": labels})
