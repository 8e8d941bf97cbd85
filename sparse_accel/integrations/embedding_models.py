"""Sentence transformers: the Hugging Face model inside one, and loading one with its quantizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from sparse_accel.errors import UsageError
from sparse_accel.models.files import quantizer_file, read_quantizers


def encoder_of(model: nn.Module) -> Any:
    """Returns the Hugging Face model that a recipe acts on: the model, or the transformer of a SentenceTransformer.

    Raises:
        UsageError: a sequence of modules does not have exactly one transformer.
    """
    if not isinstance(model, nn.Sequential):
        return model
    found = [module.auto_model for module in model if hasattr(module, "auto_model")]
    if len(found) != 1:
        raise UsageError(
            f"{type(model).__name__} has {len(found)} transformers among its modules, but a recipe acts on one: its "
            "names are those of one Hugging Face model"
        )
    return found[0]


def load_sentence_transformer(folder: str | Path, **options: Any) -> Any:
    """Returns a SentenceTransformer as it was trained, in eval mode, with quantizers on.

    `SentenceTransformer(folder)` itself loads the float weights: other embeddings, if the recipe quantized.

    Args:
        folder: written by a Trainer with a recipe, or the Hub id of such a folder.
        options: passed to `SentenceTransformer`.

    Raises:
        UsageError: quantization.json does not match the model.
    """
    from sentence_transformers import SentenceTransformer  # an optional extra

    model = SentenceTransformer(str(folder), **options)
    source = {"revision": options.get("revision"), "cache_dir": options.get("cache_folder")}
    path = quantizer_file(str(folder), **{name: value for name, value in source.items() if value})
    if path is not None:
        read_quantizers(path, encoder_of(model))
        model.to(model.device)  # the quantizers too
    return model.eval()
