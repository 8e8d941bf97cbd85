"""Texts into tokens, once: the result is kept under a fingerprint of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from datasets import Dataset

from sparse_accel.tasks.labels import MULTI_LABEL
from sparse_accel.tasks.text_classification import LABEL, TextClassificationData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Below this many rows a process costs more to start than it saves.
ROWS_PER_PROCESS = 10_000
# Part of every fingerprint; to be raised when the same inputs come to give other tokens.
_VERSION = "1"


def tokenize(
    data: TextClassificationData,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    pad_to_max_length: bool = False,
    num_workers: int | None = None,
    overwrite_cache: bool = False,
) -> dict[str, Dataset]:
    """Tokenizes every split. Rows keep their order: row i of the result is row i of the split.

    Args:
        data: rows and label names.
        tokenizer: of the model, or of its teacher.
        max_seq_length: tokens kept of a row, special tokens included; never more than the tokenizer's model takes.
        pad_to_max_length: whether rows are padded to max_seq_length; otherwise they have their own lengths.
        num_workers: processes.
        overwrite_cache: whether to tokenize again although the result is at hand.

    Returns:
        Datasets with input_ids, attention_mask, token_type_ids where the tokenizer makes them, and labels where the
        split has them: an id (single-label), a float (regression), or floats of 0 and 1 (multi-label).
    """
    settings = {
        "text_columns": data.text_columns,
        "label2id": data.label2id,
        "problem_type": data.problem_type,
        "length": min(max_seq_length, tokenizer.model_max_length),
        "padding": "max_length" if pad_to_max_length else False,
    }
    identity = f"{_VERSION} {tokenizer_digest(tokenizer)} {json.dumps(settings, sort_keys=True)}"
    cache = Path(data.cache_dir or datasets.config.HF_DATASETS_CACHE) / "sparse_accel"
    cache.mkdir(parents=True, exist_ok=True)
    result = {}
    for split, dataset in data.splits.items():
        processes = max(1, min(num_workers or 1, len(dataset) // ROWS_PER_PROCESS))
        fingerprint = hashlib.sha256(f"{data.digest(split)} {identity}".encode()).hexdigest()[:32]
        result[split] = dataset.map(
            _tokenize_batch,
            batched=True,
            num_proc=processes if processes > 1 else None,
            remove_columns=dataset.column_names,
            load_from_cache_file=not overwrite_cache,
            cache_file_name=str(cache / f"{fingerprint}.arrow"),
            new_fingerprint=fingerprint,
            fn_kwargs={"tokenizer": tokenizer, **settings},
            desc=f"tokenizing {split}",
        )
    return result


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A SHA-256 of what a tokenizer does to text, whatever folder it came from and whatever it was used for before."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        # What the last call left behind; every call sets them anew.
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


def _tokenize_batch(
    rows: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    text_columns: tuple[str, ...],
    label2id: Mapping[str, int],
    problem_type: str,
    length: int,
    padding: str | bool,
) -> dict[str, list[Any]]:
    # Processes beside each other, each with threads of its own, would fight for the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    encoded = tokenizer(*(rows[column] for column in text_columns), truncation=True, max_length=length, padding=padding)
    result: dict[str, list[Any]] = {
        name: encoded[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded
    }
    if LABEL in rows:
        result["labels"] = [label_value(label, label2id, problem_type) for label in rows[LABEL]]
    return result


def label_value(label: Any, label2id: Mapping[str, int], problem_type: str) -> int | float | list[float]:
    """A label as the model's loss takes it: an id, a float, or a float of 0 or 1 for each label."""
    if problem_type == MULTI_LABEL:
        return [float(name in label) for name in label2id]
    return label2id[label] if isinstance(label, str) else float(label)
