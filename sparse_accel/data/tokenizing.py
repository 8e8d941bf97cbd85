"""Tokenizes texts once: the result is cached under a fingerprint of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from datasets import Dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Outputs of tokenizers that are inputs of models.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# With fewer rows, starting a process costs more time than it saves.
ROWS_PER_PROCESS = 10_000
# Part of every fingerprint; increase it when the same inputs give other tokens than before.
_VERSION = "2"


def tokenize(
    splits: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[..., dict[str, list[Any]]],
    settings: Mapping[str, Any],
    *,
    cache_dir: str | None = None,
    num_workers: int | None = None,
    overwrite_cache: bool = False,
) -> dict[str, Dataset]:
    """Returns every split tokenized, from the cache if possible. The columns of `encode` replace all columns.

    Args:
        splits: rows by the name of their split.
        tokenizer: of the model, or of its teacher.
        encode: a module-level function, called as encode(columns of some rows, tokenizer, **settings); returns columns.
        settings: everything else that the result depends on; values that JSON can hold.
        cache_dir: folder for the result; None: the Hugging Face cache.
        num_workers: number of processes; None: one.
        overwrite_cache: whether to tokenize again even if the result is in the cache.
    """
    name = f"{encode.__module__}.{encode.__qualname__}"
    identity = f"{_VERSION} {name} {tokenizer_digest(tokenizer)} {json.dumps(settings, sort_keys=True)}"
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "sparse_accel"
    cache.mkdir(parents=True, exist_ok=True)
    result = {}
    for split, dataset in splits.items():
        processes = max(1, min(num_workers or 1, len(dataset) // ROWS_PER_PROCESS))
        fingerprint = hashlib.sha256(f"{digest_of_rows(dataset)} {identity}".encode()).hexdigest()[:32]
        result[split] = dataset.map(
            _encode,
            batched=True,
            num_proc=processes if processes > 1 else None,
            remove_columns=dataset.column_names,
            load_from_cache_file=not overwrite_cache,
            cache_file_name=str(cache / f"{fingerprint}.arrow"),
            new_fingerprint=fingerprint,
            fn_kwargs={"encode": encode, "tokenizer": tokenizer, "settings": settings},
            desc=f"tokenizing {split}",
        )
    return result


def _encode(
    rows: Mapping[str, list[Any]], encode: Callable[..., dict[str, list[Any]]], tokenizer: Any, settings: Any
) -> dict[str, list[Any]]:
    # Several processes, each with several threads, would compete for the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return encode(rows, tokenizer, **settings)


def digest_of_rows(dataset: Dataset) -> str:
    """Returns a SHA-256 of the rows, with sorted columns: the same data gives the same digest on any machine."""
    result = hashlib.sha256()
    columns = sorted(dataset.column_names)
    for batch in dataset.with_format(None).select_columns(columns).iter(batch_size=1000):
        result.update(repr([(column, batch[column]) for column in columns]).encode())
    return result.hexdigest()


def model_inputs(encoded: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Returns the outputs of a tokenizer that are inputs of a model."""
    return {name: encoded[name] for name in MODEL_INPUTS if name in encoded}


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a SHA-256 of what a tokenizer does to text; neither its folder nor earlier calls change it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        # Left over from the last call; every call sets them again.
        content.pop("truncation", None)
        content.pop("padding", None)
    else:
        content = {
            "vocabulary": tokenizer.get_vocab(),
            "settings": {k: str(v) for k, v in tokenizer.init_kwargs.items()},
        }
    content["class"] = type(tokenizer).__name__
    content["inputs"] = list(tokenizer.model_input_names)
    content["sides"] = [tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
