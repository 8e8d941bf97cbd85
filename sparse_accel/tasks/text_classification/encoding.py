"""Converts texts and labels to inputs of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from sparse_accel.data.tokenizing import model_inputs, tokenize
from sparse_accel.tasks.label_names import MULTI_LABEL
from sparse_accel.tasks.text_classification.data import LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sparse_accel.tasks.text_classification.data import TextClassificationData


def encode(
    rows: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    text_columns: tuple[str, ...],
    label2id: Mapping[str, int],
    problem_type: str,
    length: int,
) -> dict[str, list[Any]]:
    """Returns some rows tokenized, in the same order.

    Args:
        rows: columns with texts and, if the rows have them, labels.
        tokenizer: of the model, or of its teacher.
        text_columns: one column, or two for pairs.
        label2id: name of each label -> number of the output.
        problem_type: as in config.json.
        length: maximum number of tokens of a row, special tokens included; longer rows are truncated.

    Returns:
        input_ids, attention_mask, token_type_ids if the tokenizer returns them, and labels if the rows have them: an id
        (single-label), a float (regression, reranking), or floats of 0 and 1 (multi-label).
    """
    result = model_inputs(tokenizer(*(rows[column] for column in text_columns), truncation=True, max_length=length))
    if LABEL in rows:
        result["labels"] = [label_value(label, label2id, problem_type) for label in rows[LABEL]]
    return result


def label_value(label: Any, label2id: Mapping[str, int], problem_type: str) -> int | float | list[float]:
    """Returns a label as the loss expects it: an id, a float, or one float of 0 or 1 per label."""
    if problem_type == MULTI_LABEL:
        return [float(name in label) for name in label2id]
    return label2id[label] if isinstance(label, str) else float(label)


def tokenize_texts(
    data: TextClassificationData, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, **options: Any
) -> dict[str, Dataset]:
    """Returns every split tokenized.

    Args:
        data: rows and label names.
        tokenizer: of the model, or of its teacher.
        max_seq_length: maximum number of tokens of a row; the limit of the tokenizer applies too.
        options: num_workers and overwrite_cache of `data.tokenizing.tokenize`.
    """
    settings = {
        "text_columns": data.text_columns,
        "label2id": data.label2id,
        "problem_type": data.problem_type,
        "length": min(max_seq_length, tokenizer.model_max_length),
    }
    return tokenize(data.splits, tokenizer, encode, settings, cache_dir=data.cache_dir, **options)
