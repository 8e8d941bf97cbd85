"""Words and their tags as the model takes them: pieces of words (sub-tokens), some of them with a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparse_accel.data.tokenizing import MODEL_INPUTS
from sparse_accel.tasks.token_classification.data import SENTENCE, TAGS, TOKENS
from sparse_accel.tasks.token_classification.tags import align, inside_labels, split_points

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What `words` holds for a piece that begins no word.
NO_WORD = -1


def encode(
    rows: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    label_names: list[str],
    length: int,
    all_tokens: bool,
    whole_entities: bool,
) -> dict[str, list[Any]]:
    """Tokenizes some sentences. One that is longer than `length` becomes several rows, parted between words.

    Args:
        rows: columns of words, tags where there are any, and sentence numbers.
        label_names: in the order of the model's outputs.
        length: most tokens of a row, special tokens included.
        all_tokens: whether the pieces of a word after its first have a label as well.
        whole_entities: whether a part ends before an entity rather than inside of it; for training only, since parts
            then depend on the tags.

    Returns:
        input_ids, attention_mask, token_type_ids where the tokenizer makes them; `labels` where there are tags, IGNORED
        for pieces without one; `words`: the number of the word in its sentence that a piece begins, else NO_WORD; and
        `sentence`. A word of which the tokenizer makes nothing has no piece.
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
    """Whether each word goes on with the entity of the word before."""
    return [tag[:2] in ("I-", "E-", "I_", "E_") or tag in ("I", "E") for tag in tags]
