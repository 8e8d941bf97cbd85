"""Digests of weights and rows: equal content gives equal digests on all machines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def fingerprint_of_weights(model: nn.Module) -> str:
    """Returns a digest of all weights, names and shapes: 32 hex digits of a SHA-256."""
    return fingerprint(model.state_dict())


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns a digest of the names, shapes, dtypes and bytes of tensors: 32 hex digits of a SHA-256."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content: Any = tensor.detach().cpu().contiguous().flatten().view(_bytes()).numpy()
        digest.update(content)
    return digest.hexdigest()[:32]


def fingerprint_of_rows(dataset: Any) -> str:
    """Returns a digest of all tokens and labels of a tokenized dataset, in order: 32 hex digits of a SHA-256."""
    digest = hashlib.sha256()
    for name in sorted(dataset.column_names):
        digest.update(name.encode())
        for start in range(0, len(dataset), 10_000):
            digest.update(json.dumps(dataset[start : start + 10_000][name]).encode())
    return digest.hexdigest()[:32]


def _bytes() -> Any:
    import torch

    return torch.uint8
