"""Converts words and tags to inputs of the model: pieces of words (sub-tokens), some of them with a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparse_accel.data.tokenizing import MODEL_INPUTS
from sparse_accel.tasks.token_classification.data import SENTENCE, TAGS, TOKENS
from sparse_accel.tasks.token_classification.tags import align, inside_labels, split_points

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The value of `words` for a piece that is not the first of a word.
NO_WORD = -1


def encode(
    rows: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    label_names: list[str],
    length: int,
    all_tokens: bool,
    whole_entities: bool,
) -> dict[str, list[Any]]:
    """Returns some sentences tokenized. A sentence longer than `length` is split into several rows, between words.

    Args:
        rows: columns with words, sentence numbers and, if the rows have them, tags.
        tokenizer: of the model, or of its teacher; a fast one.
        label_names: in the order of the model's outputs.
        length: maximum number of tokens of a row, special tokens included.
        all_tokens: whether all pieces of a word have a label, not only the first.
        whole_entities: whether to split before an entity instead of inside it; for training only, because the split
            then depends on the tags.

    Returns:
        input_ids, attention_mask, token_type_ids if the tokenizer returns them; `labels` if there are tags, IGNORED for
        pieces without a label; `words`: for the first piece of a word its number in the sentence, else NO_WORD; and
        `sentence`. A word for which the tokenizer returns nothing has no piece.
    """
    numbers, inside = {name: number for number, name in enumerate(label_names)}, inside_labels(label_names)
    names = [name for name in MODEL_INPUTS if name in tokenizer.model_input_names]
    result: dict[str, list[Any]] = {name: [] for name in (*names, "words", SENTENCE)}
    if TAGS in rows:
        result["labels"] = []
    options: dict[str, Any] = {"is_split_into_words": True, "verbose": False}
    whole = tokenizer(rows[TOKENS], **options)
    for row, words in enumerate(rows[TOKENS]):
        tags = rows[TAGS][row] if TAGS in rows else None
        parts = [(0, len(words))]
        if len(whole["input_ids"][row]) > length:
            pieces = [0] * len(words)
            for word in whole.word_ids(row):
                if word is not None:
                    pieces[word] += 1
            limit = max(length - tokenizer.num_special_tokens_to_add(), 1)
            parts = split_points(pieces, limit, _continues(tags) if whole_entities and tags else None)
        for begin, end in parts:
            if len(parts) == 1 and len(whole["input_ids"][row]) <= length:
                encoded, word_ids = {name: whole[name][row] for name in names}, whole.word_ids(row)
            else:
                part = tokenizer([words[begin:end]], truncation=True, max_length=length, **options)
                encoded, word_ids = {name: part[name][0] for name in names}, part.word_ids(0)
            for name in names:
                result[name].append(encoded[name])
            before = [None, *word_ids[:-1]]
            result["words"].append(
                [NO_WORD if word in (None, last) else begin + word for word, last in zip(word_ids, before, strict=True)]
            )
            result[SENTENCE].append(rows[SENTENCE][row])
            if tags is not None:
                labels = [numbers[tag] for tag in tags[begin:end]]
                result["labels"].append(align(word_ids, labels, all_tokens=all_tokens, inside=inside))
    return result


def _continues(tags: list[str]) -> list[bool]:
    """Returns for each word whether it continues the entity of the previous word."""
    return [tag[:2] in ("I-", "E-", "I_", "E_") or tag in ("I", "E") for tag in tags]
