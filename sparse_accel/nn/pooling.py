"""Sentence embeddings: from the last hidden states of an encoder's tokens to one vector for each text.

Shapes: R rows, K texts of a row, T tokens, D the width of the model.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

MODES = ("mean", "cls")


@dataclass(frozen=True)
class Pooling:
    """How tokens become an embedding.

    Attributes:
        mode: `mean` of all tokens, special ones too; or `cls`, the first token.
        normalize: whether the embedding has the length 1.
    """

    mode: str
    normalize: bool


def pooled(hidden: Tensor, attention_mask: Tensor, mode: str) -> Tensor:
    """Returns the embedding of each text, (R, D) float32, as sentence-transformers' Pooling does (Reimers and Gurevych
    2019, arXiv 1908.10084).

    Args:
        hidden: (R, T, D), last hidden states.
        attention_mask: (R, T), 0 for padding, on either side.
        mode: one of MODES.
    """
    hidden = hidden.float()
    if mode == "cls":
        first = attention_mask.to(torch.int32).argmax(dim=1)
        return hidden.gather(1, first[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)
    weights = attention_mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def normalized(embeddings: Tensor) -> Tensor:
    """Returns embeddings (..., D) divided by their L2 norm, or by 1e-12 where that is smaller."""
    return F.normalize(embeddings, dim=-1)


@dataclass
class EmbeddingOutput(ModelOutput):
    """What an encoder with pooling returns.

    Attributes:
        sentence_embedding: (R, D) or (R, K, D) float32.
        last_hidden_state: (R, T, D) or (R, K, T, D).
        hidden_states, attentions: as the encoder returns them; of rows of several texts, one row for each text.
    """

    sentence_embedding: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class PooledEncoder(nn.Module):
    """Base class of encoders with pooling: `add_pooling` puts it before the encoder's own class."""

    pooling: Pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> EmbeddingOutput:
        """Returns the embeddings of texts. Rows of several texts, (R, K, T), go through the encoder as (R * K, T)."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        several = input_ids.shape[:-1] if input_ids.ndim > 2 else None
        if several is not None:
            given = {name: _flat(value) for name, value in given.items()}
        outputs = super().forward(**given)
        hidden = outputs["last_hidden_state"]
        embedding = pooled(hidden, given["attention_mask"], self.pooling.mode)
        if self.pooling.normalize:
            embedding = normalized(embedding)
        if several is not None:
            embedding, hidden = embedding.unflatten(0, several), hidden.unflatten(0, several)
        return EmbeddingOutput(embedding, hidden, outputs.get("hidden_states"), outputs.get("attentions"))


def _flat(value: Any) -> Any:
    return value.flatten(0, -2) if isinstance(value, Tensor) and value.ndim > 2 else value


def add_pooling(model: Any, pooling: Pooling) -> Any:
    """Makes an encoder return `sentence_embedding` too, in place, and returns it.

    Only its class changes, as in nn/layers.py, and the new one has the same name: weights and config.json stay as they
    are. BERT's own pooler, a layer on the first token, is no part of an embedding and is left out, because weights
    without a gradient stop DDP.
    """
    if not isinstance(model, PooledEncoder):
        if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
            model.pooler = None  # as with add_pooling_layer=False
        model.__class__ = _with_pooling(type(model))
    model.pooling = pooling
    return model


_POOLED: dict[type, type] = {}


def _with_pooling(encoder: type) -> type:
    if encoder not in _POOLED:
        # transformers knows by these names what a class can return, and writes them to config.json.
        names = {name: getattr(encoder, name) for name in ("__module__", "__qualname__")}
        _POOLED[encoder] = type(encoder.__name__, (PooledEncoder, encoder), names)
    return _POOLED[encoder]
