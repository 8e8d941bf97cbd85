"""Converts rows of texts to inputs of the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from sparse_accel.data.batches import TEXT_LENGTHS
from sparse_accel.data.tokenizing import model_inputs
from sparse_accel.errors import UsageError, shown
from sparse_accel.tasks.sentence_embedding.data import SCORE, TEXTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The column with a number for each text of a row: equal texts have equal ones.
TEXT_IDS = "text_ids"


def encode(
    rows: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, length: int, max_score: float
) -> dict[str, list[Any]]:
    """Returns some rows tokenized, in the same order.

    Args:
        rows: one to three columns of TEXTS and, if the rows have them, scores.
        tokenizer: of the model, or of its teacher.
        length: maximum number of tokens of a text, special tokens included; longer ones are truncated.
        max_score: the score that becomes the label 1.

    Returns:
        The model's inputs; of rows of several texts, those of all texts in sequence, with TEXT_LENGTHS, the number of
        tokens of each, and TEXT_IDS. Of scored pairs, labels: the scores as floats from 0 to 1.
    """
    columns = [name for name in TEXTS if name in rows]
    parts = [model_inputs(tokenizer(rows[name], truncation=True, max_length=length)) for name in columns]
    if len(parts) == 1:
        return parts[0]
    found: dict[str, list[Any]] = {
        name: [list(chain(*texts)) for texts in zip(*(part[name] for part in parts), strict=True)] for name in parts[0]
    }
    lengths = zip(*(part["input_ids"] for part in parts), strict=True)
    found[TEXT_LENGTHS] = [[len(ids) for ids in texts] for texts in lengths]
    found[TEXT_IDS] = [
        [text_id(text) for text in texts] for texts in zip(*(rows[name] for name in columns), strict=True)
    ]
    if SCORE in rows:
        found["labels"] = [score / max_score for score in rows[SCORE]]
    return found


def text_id(text: str) -> int:
    """Returns a number of a text, 0 to 2^63 - 1, the same on any machine: different texts share one with a chance of
    2^-63."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def check_words(rows: Dataset, texts: Dataset, tokenizer: Any, source: str) -> None:
    """Checks that each text has a token that is not a special one.

    Args:
        rows: tokenized.
        texts: the same rows with their columns of TEXTS.
        source: where they come from, for messages.

    Raises:
        UsageError: a text has none.
    """
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if TEXT_LENGTHS in rows.column_names:
        lengths = np.asarray(rows[TEXT_LENGTHS][:])
    else:
        lengths = np.asarray([[len(ids)] for ids in rows["input_ids"]])
    empty = np.argwhere(lengths <= special)
    if len(empty):
        row, place = map(int, empty[0])
        text = texts[row][TEXTS[place]]
        raise UsageError(
            f"{source}: the text {shown(text)} has no words: the tokenizer makes no token of it. Fix or delete its row."
        )
