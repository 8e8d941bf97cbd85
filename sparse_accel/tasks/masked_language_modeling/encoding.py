"""From texts to rows of tokens: one row per text, or blocks of equal length that texts are packed into."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor

from sparse_accel.data.tokenizing import model_inputs, tokenizer_digest
from sparse_accel.errors import UsageError
from sparse_accel.tasks.masked_language_modeling.masking import NO_WORD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The column of word numbers. It also marks special tokens, by NO_WORD.
WORDS = "words"

# Types of columns that are not int32.
_TYPES = {"attention_mask": "int8", "token_type_ids": "int8"}
# Part of the fingerprint of blocks; increase it when the same tokens give other blocks than before.
_VERSION = "1"


# --- the vocabulary ---------------------------------------------------------------------------------------------------


def mask_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id of the mask token.

    Raises:
        UsageError: the tokenizer has none.
    """
    if tokenizer.mask_token_id is None:
        raise UsageError(
            f"the tokenizer ({type(tokenizer).__name__}) has no mask token: its model was not made for masked language "
            "modelling. Take one such as BERT or RoBERTa, or save the tokenizer with a mask_token."
        )
    return int(tokenizer.mask_token_id)


def random_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Returns the tokens that may replace a masked one, (V,) int64: the whole vocabulary but special tokens, sorted."""
    return torch.tensor(sorted({*tokenizer.get_vocab().values()} - {*tokenizer.all_special_ids}))


def check_splits_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that a tokenizer splits a text into words, for whole-word masking.

    Raises:
        UsageError: it takes a text as a single word (SentencePiece without a split at spaces), or is not a fast one.
    """
    _check_fast(tokenizer)
    if len({*tokenizer(["a b"], add_special_tokens=False).word_ids(0)}) < 2:
        raise UsageError(
            f"the tokenizer ({type(tokenizer).__name__}) does not split texts into words, so whole words cannot be "
            "masked. Mask single tokens instead."
        )


# --- texts to tokens --------------------------------------------------------------------------------------------------


def encode_lines(
    rows: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, column: str, length: int
) -> dict[str, list[Any]]:
    """Returns some texts tokenized, each as a row with special tokens. For `data.tokenizing.tokenize`.

    A text of more than `length` tokens is truncated. A text without tokens, such as an empty line, has no row, as in
    transformers' run_mlm.py --line_by_line.

    Args:
        rows: has the texts in `column`.
        tokenizer: a fast one.
        column: name of the column.
        length: maximum number of tokens of a row, special tokens included.

    Returns:
        input_ids, attention_mask, token_type_ids if the tokenizer returns them: (T,) each, without padding. words: (T,)
        number of the word that a token belongs to, from 0, equal only for tokens of one word; NO_WORD for a special
        token. Tokens that stand for special tokens in a text count as special, [UNK] too: what it was is unknown.

    Raises:
        UsageError: the tokenizer is not a fast one, or `length` leaves no room for text.
    """
    special = length - room_of(tokenizer, length)
    encoded = tokenizer(rows[column], truncation=True, max_length=length, verbose=False)
    return _with_words(encoded, [*model_inputs(encoded)], tokenizer, special)


def encode_texts(
    rows: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, column: str
) -> dict[str, list[Any]]:
    """Returns some texts tokenized without special tokens and in full, for `pack`. For `data.tokenizing.tokenize`.

    Args:
        rows: has the texts in `column`.
        tokenizer: a fast one.
        column: name of the column.

    Returns:
        input_ids and words, as for `encode_lines`; also nothing for a text without tokens.

    Raises:
        UsageError: the tokenizer is not a fast one.
    """
    _check_fast(tokenizer)
    encoded = tokenizer(rows[column], add_special_tokens=False, verbose=False)
    return _with_words(encoded, ["input_ids"], tokenizer, 0)


def _with_words(
    encoded: Any, names: Sequence[str], tokenizer: PreTrainedTokenizerBase, special: int
) -> dict[str, list[Any]]:
    """Returns columns of an encoding, and the words, of texts that have more tokens than the `special` ones around."""
    special_ids = {*tokenizer.all_special_ids}
    rows = [row for row, ids in enumerate(encoded["input_ids"]) if len(ids) > special]
    result: dict[str, list[Any]] = {name: [encoded[name][row] for row in rows] for name in names}
    result[WORDS] = [
        [
            NO_WORD if word is None or token in special_ids else word
            for word, token in zip(encoded.word_ids(row), encoded["input_ids"][row], strict=True)
        ]
        for row in rows
    ]
    return result


def check_maskable(rows: Dataset, source: str) -> None:
    """Checks that rows have a token to mask.

    Args:
        rows: result of `data.tokenizing.tokenize` with `encode_lines` or `encode_texts`.
        source: where they come from, for the message.

    Raises:
        UsageError: there are no rows, or they have special tokens alone.
    """
    if not len(rows):
        raise UsageError(f"{source}: there is no text: all rows are empty. Check the file and the name of the column.")
    if all(word == NO_WORD for batch in rows.select_columns(WORDS).iter(1000) for row in batch[WORDS] for word in row):
        raise UsageError(
            f"{source}: no token can be masked, because all are special tokens such as [UNK]. Check that the model is "
            "one for texts of this language."
        )


def _check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise UsageError(
            f"{type(tokenizer).__name__} cannot map tokens to words: masked language modelling needs a model with a "
            "fast tokenizer (tokenizer.json)"
        )


def room_of(tokenizer: PreTrainedTokenizerBase, length: int) -> int:
    """Returns the number of tokens of a row without its special tokens, at least 1."""
    _check_fast(tokenizer)
    special = tokenizer.num_special_tokens_to_add()
    if length <= special:
        raise UsageError(
            f"a row of {length} tokens has no room for text, because {special} are special tokens. Set "
            f"--max_seq_length to more than {special}."
        )
    return length - special


# --- tokens to blocks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Consecutive tokens of one or more texts.

    Attributes:
        ids: of the tokens, and of the separators between texts.
        words: number of each token's word, from 0; NO_WORD for special tokens and separators. Words of different texts
            have different numbers; a word that the end of the block cuts has a number in both.
    """

    ids: list[int]
    words: list[int]


class Packer:
    """Joins texts, and cuts them into blocks of equal length.

    A separator is put before each text but at the beginning of a block, so the tokens that are not yet in a block are
    all that a packer has to remember. A text without tokens changes nothing.

    Args:
        room: tokens of a block, without the special tokens around it; at least 1.
        separator: id of the token between two texts; None: no token.
        rest: state of an earlier packer, with the same two settings, that this one continues.
    """

    def __init__(self, room: int, separator: int | None, rest: Mapping[str, list[int]] | None = None) -> None:
        if room < 1:
            raise ValueError(f"room must be at least 1, got {room}")
        self.room = room
        self.separator = separator
        self._ids = list(rest["ids"]) if rest else []
        self._words = list(rest["words"]) if rest else []

    @property
    def rest(self) -> dict[str, list[int]]:
        """The tokens that are not yet in a block, and their words; values that JSON can hold."""
        return {"ids": list(self._ids), "words": list(self._words)}

    def feed(self, ids: Sequence[int], words: Sequence[int]) -> list[Block]:
        """Returns the blocks that a text completes, in order.

        Args:
            ids: all tokens of the text, without special tokens around it.
            words: number of each token's word in the text; NO_WORD for a special token.

        Raises:
            ValueError: `ids` and `words` have different lengths.
        """
        if len(ids) != len(words):
            raise ValueError(f"{len(ids)} tokens, but words of {len(words)}")
        if not ids:
            return []
        if self._ids and self.separator is not None:
            self._ids.append(self.separator)
            self._words.append(NO_WORD)
        before = max(self._words, default=NO_WORD) + 1
        self._ids.extend(ids)
        self._words.extend(NO_WORD if word == NO_WORD else before + word for word in words)
        return self._take(len(self._ids) // self.room * self.room)

    def flush(self) -> list[Block]:
        """Returns the last block, which is shorter, and forgets its tokens; an empty list if none are left."""
        return self._take(len(self._ids))

    def _take(self, count: int) -> list[Block]:
        """Returns the first tokens as blocks, and removes them."""
        ids, words = self._ids[:count], self._words[:count]
        del self._ids[:count], self._words[:count]
        places = [slice(begin, begin + self.room) for begin in range(0, count, self.room)]
        return [Block(ids[place], _from_zero(words[place])) for place in places]


def _from_zero(words: list[int]) -> list[int]:
    first = min((word for word in words if word != NO_WORD), default=0)
    return [NO_WORD if word == NO_WORD else word - first for word in words]


def separator_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the token between two texts of a block: [SEP], else the end of a sequence; None if there is neither."""
    for token in (tokenizer.sep_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return None


def pack(
    texts: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterator[dict[str, list[int]]]:
    """Yields the blocks that texts are packed into, as rows of at most `length` tokens.

    Texts are joined in their order, with `separator_id` between them, and cut; each block is put between the special
    tokens of a single text, [CLS] ... [SEP]. So it may begin and end inside a text or a word. This is FULL-SENTENCES of
    RoBERTa (Liu et al. 2019, https://arxiv.org/abs/1907.11692, section 4.2), but cut between tokens, not sentences.

    All blocks but the last one have exactly `length` tokens, and the last one is kept. transformers' run_mlm.py, which
    SparseML follows, puts [CLS] and [SEP] around each text instead, before it joins them, so that a block may begin
    with any token; and it drops what is left over after each 1,000 texts.

    Args:
        texts: rows of `encode_texts`.
        tokenizer: the one that made them.
        length: tokens of a block, special tokens included.

    Returns:
        The columns of `encode_lines`.

    Raises:
        UsageError: the tokenizer is not a fast one, or `length` leaves no room for text.
    """
    packer, around = Packer(room_of(tokenizer, length), separator_id(tokenizer)), special_tokens(tokenizer)
    for text in texts:
        for block in packer.feed(text["input_ids"], text[WORDS]):
            yield row_of(block, around)
    for block in packer.flush():
        yield row_of(block, around)


def pack_dataset(
    texts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    cache_dir: str | None = None,
    overwrite_cache: bool = False,
) -> Dataset:
    """Returns the rows of `pack`, from the cache if possible.

    They are made in one pass over all texts. In Dataset.map, as in run_mlm.py, the rows would depend on its batch size
    and number of processes, because a block cannot have texts of two batches. Tokenization, which takes most of the
    time, is a map with several processes before it.

    Args:
        texts: result of `data.tokenizing.tokenize` with `encode_texts`.
        tokenizer, length: as for `pack`.
        cache_dir, overwrite_cache: as for `data.tokenizing.tokenize`.

    Raises:
        UsageError: as for `pack`.
        ValueError: there are no texts.
    """
    if not len(texts):
        raise ValueError("no texts")
    room_of(tokenizer, length)  # here, because datasets would hide the error inside another one
    names = [*special_tokens(tokenizer), WORDS]
    parts = (_VERSION, texts._fingerprint, tokenizer_digest(tokenizer), separator_id(tokenizer), length, names)
    fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "sparse_accel" / fingerprint
    if overwrite_cache:
        shutil.rmtree(folder, ignore_errors=True)
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # its bar would say that a split named train is generated, whatever the split
    try:
        found = Dataset.from_generator(
            lambda: pack(texts, tokenizer, length),
            features=Features({name: List(Value(_TYPES.get(name, "int32"))) for name in names}),
            cache_dir=str(folder),
            fingerprint=fingerprint,
        )
    finally:
        if shown:
            datasets.enable_progress_bars()
    assert isinstance(found, Dataset)
    return found


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[list[int], int, list[int]]]:
    """Returns for each input of the model its values before a text, for a token of the text, and after it.

    They are those of an example, because the tokenizers of transformers 5 have no function that puts special tokens
    around ids.
    """
    example = tokenizer("a", return_special_tokens_mask=True)
    inside = [place for place, special in enumerate(example["special_tokens_mask"]) if not special]
    first, end = inside[0], inside[-1] + 1
    return {name: (values[:first], values[first], values[end:]) for name, values in model_inputs(example).items()}


def row_of(block: Block, around: Mapping[str, tuple[list[int], int, list[int]]]) -> dict[str, list[int]]:
    """Returns the columns of a block with the special tokens around it, which `special_tokens` gave."""
    row = {name: [*before, *[value] * len(block.ids), *after] for name, (before, value, after) in around.items()}
    before, _, after = around["input_ids"]
    row["input_ids"] = [*before, *block.ids, *after]
    row[WORDS] = [*[NO_WORD] * len(before), *block.words, *[NO_WORD] * len(after)]
    return row
