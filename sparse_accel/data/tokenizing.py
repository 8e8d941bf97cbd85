"""Tokenizes texts once: the result is cached under a fingerprint of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow
from datasets import Dataset
from pyarrow import compute, types

from sparse_accel.console import note
from sparse_accel.data.arrow_columns import pieces
from sparse_accel.distributed.threads import share
from sparse_accel.errors import first_line
from sparse_accel.files import to_disk, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Outputs of tokenizers that are inputs of models.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# With fewer rows, starting a process costs more time than it saves.
ROWS_PER_PROCESS = 10_000
# The same for processes that nobody asked for: those of other programs are not known.
_ROWS_PER_OWN_PROCESS = 50_000
# Part of every fingerprint; increase it when the same inputs give other tokens than before, or another digest.
_VERSION = "4"


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
        num_workers: number of processes; None: as many as pay, at most one for each CPU. Several threads of one
            process would only share the work inside the tokenizer, which is a third of the time.
        overwrite_cache: whether to tokenize again even if the result is in the cache. A damaged one is made again.
    """
    name = f"{encode.__module__}.{encode.__qualname__}"
    identity = f"{_VERSION} {name} {tokenizer_digest(tokenizer)} {json.dumps(settings, sort_keys=True)}"
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "sparse_accel"
    cache.mkdir(parents=True, exist_ok=True)
    result = {}
    for split, dataset in splits.items():
        least = ROWS_PER_PROCESS if num_workers else _ROWS_PER_OWN_PROCESS
        processes = max(1, min(num_workers or share().cpus, len(dataset) // least))
        fingerprint = hashlib.sha256(f"{digest_of_rows(dataset)} {identity}".encode()).hexdigest()[:32]
        files = _files(cache, fingerprint, processes)
        found = not overwrite_cache and _are_whole(files)
        options = {
            "batched": True,
            "num_proc": processes if processes > 1 else None,
            "remove_columns": dataset.column_names,
            "cache_file_name": str(cache / f"{fingerprint}.arrow"),
            "new_fingerprint": fingerprint,
            "fn_kwargs": {"encode": encode, "tokenizer": tokenizer, "settings": settings},
            "desc": f"tokenizing {split}",
        }
        start = time.perf_counter()
        try:
            result[split] = dataset.map(_encode, load_from_cache_file=found, **options)
        except (OSError, pyarrow.ArrowInvalid) as error:
            if not found:
                raise
            note(f"{options['cache_file_name']} is damaged ({first_line(error)}): {split} is tokenized again")
            found = False
            result[split] = dataset.map(_encode, load_from_cache_file=False, **options)
        if not found and all(file.exists() for file in files):  # of no rows there is none
            _record(files)
        if not found and len(dataset) >= ROWS_PER_PROCESS:
            seconds = time.perf_counter() - start
            speed = f"{len(dataset) / seconds:,.0f} rows/s, {processes} process{'es' * (processes > 1)}"
            note(f"tokenized {len(dataset):,} {split} rows in {seconds:,.0f} s: {speed}")
    return result


def _files(cache: Path, fingerprint: str, processes: int) -> list[Path]:
    """Returns the files that `datasets` writes for a split: one for each process."""
    if processes == 1:
        return [cache / f"{fingerprint}.arrow"]
    return [cache / f"{fingerprint}_{rank:05d}_of_{processes:05d}.arrow" for rank in range(processes)]


def _record(files: list[Path]) -> None:
    """Waits until files are on disk, and writes down beside the first how long each is. `datasets` does not wait: after
    a power loss, a file without such a record may have any length, or end in zeros."""
    for file in files:
        to_disk(file)
    write_json(files[0].with_suffix(".files.json"), {file.name: file.stat().st_size for file in files})


def _are_whole(files: list[Path]) -> bool:
    """Returns whether files are as they were recorded."""
    try:
        recorded = json.loads(files[0].with_suffix(".files.json").read_text(encoding="utf-8"))
        return bool(recorded == {file.name: file.stat().st_size for file in files})
    except (OSError, ValueError):
        return False


def _encode(
    rows: Mapping[str, list[Any]], encode: Callable[..., dict[str, list[Any]]], tokenizer: Any, settings: Any
) -> dict[str, list[Any]]:
    # Several processes, each with several threads, would compete for the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return encode(rows, tokenizer, **settings)


def digest_of_rows(dataset: Dataset) -> str:
    """Returns a SHA-256 of the rows, with sorted columns: the same data gives the same digest on any machine.

    It does not depend on how the rows are divided into files and chunks, or on the width of their types.
    """
    result = hashlib.sha256()
    for column in sorted(dataset.column_names):
        result.update(json.dumps(column).encode())
        for piece in pieces(dataset, column):
            _add_to(result, piece)
    return result.hexdigest()


def _add_to(digest: Any, values: pyarrow.Array) -> None:
    """Adds the values of a column to a digest: how many, which are null, and what the others are."""
    digest.update(f"{len(values)} {values.null_count} ".encode())
    if values.null_count:
        digest.update(np.packbits(values.is_null().to_numpy(zero_copy_only=False)))
        values = values.drop_null()
    kind = values.type
    if types.is_string(kind) or types.is_large_string(kind):
        values = values.cast(pyarrow.large_string())
        _, offsets, content = values.buffers()
        ends = np.frombuffer(offsets, dtype=np.int64)[values.offset : values.offset + len(values) + 1]
        digest.update(b"text")
        digest.update(np.diff(ends))
        digest.update(b"" if content is None else content[int(ends[0]) : int(ends[-1])])
    elif types.is_integer(kind) or types.is_floating(kind):
        digest.update(b"whole" if types.is_integer(kind) else b"decimal")
        digest.update(values.to_numpy().astype(np.int64 if types.is_integer(kind) else np.float64))
    elif types.is_list(kind) or types.is_large_list(kind):
        digest.update(b"list")
        digest.update(compute.list_value_length(values).to_numpy(zero_copy_only=False).astype(np.int64))
        _add_to(digest, values.flatten())
    else:
        digest.update(repr(values.to_pylist()).encode())


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
