"""Caches of tokenized rows, which all processes of a run read."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from tiny import make_bert, make_tokenizer

from sparse_accel.training.loaders import tokenize_rows


@pytest.mark.parametrize("main", [True, False])
def test_only_the_main_process_deletes_what_is_there(main: bool) -> None:
    """The others read at the same time what it has written."""
    asked: list[bool] = []

    def tokenize(tokenizer: Any, limit: int, *, num_workers: int | None, overwrite_cache: bool) -> dict[str, Dataset]:
        asked.append(overwrite_cache)
        return {"train": Dataset.from_dict({"input_ids": [[2, 5, 3]]})}

    class Process:
        is_main_process, mixed_precision = main, "no"
        device = SimpleNamespace(type="cpu")

        def main_process_first(self) -> Any:
            return nullcontext()

    flags: Any = SimpleNamespace(
        max_seq_length=16, preprocessing_num_workers=None, overwrite_cache=True, pad_to_max_length=False
    )
    task: Any = SimpleNamespace(tokenize=tokenize, token_columns={}, data=SimpleNamespace(stream=None))
    process: Any = Process()
    tokenize_rows(flags, process, task, make_tokenizer(), make_bert())
    assert asked == [main]
