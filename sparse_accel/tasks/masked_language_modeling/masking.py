"""Which tokens of a row are masked, as a pure function of seed, epoch, row number and position.

There is no generator with a state: the random numbers of a token are outputs of SplitMix64 at its own counter. So any
layout, any number of workers and any restart mask the same tokens. CPU and GPU give the same too: all is int64, but for
the counts, rounded from float64. Positions count only the tokens that may be masked, so other rows, padding and its
side change nothing.

The rules are those of create_pretraining_data.py of BERT (https://github.com/google-research/bert; Devlin et al. 2019,
https://arxiv.org/abs/1810.04805): a fixed number of tokens of each row is chosen. Of these, 80% become the mask token,
10% a random token and 10% stay, decided for each token. The number is a fraction of the tokens that may be masked; the
script counts special tokens too. In transformers' DataCollatorForLanguageModeling the number varies, because each token
is chosen by itself.

The weight of a row in the loss is its `masked_counts`, known from its tokens alone; in batches too. With whole words,
masked tokens can be fewer (or more, if no word is short enough); the mean loss over them then has this same weight.

Shapes: R rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sparse_accel.nn.losses import IGNORED

# The word number of tokens that are never masked: special tokens and padding.
NO_WORD = -1

Counts = TypeVar("Counts", Tensor, np.ndarray)

# Independent random numbers: which units are chosen, what becomes of their tokens, and random tokens.
_CHOICE, _OUTCOME, _REPLACEMENT = range(3)
# Random numbers are below 2**62.
_LAST = 1 << 62
_ROWS_AT_ONCE = 1000


# --- random numbers ---------------------------------------------------------------------------------------------------


def _signed(value: int) -> int:
    """Returns the int64 with the same 64 bits as an unsigned value."""
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FACTORS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def splitmix64(state: Tensor, index: Tensor | int = 0) -> Tensor:
    """Returns output `index` (from 0) of the generator SplitMix64 with an initial state: any int64, equally likely.

    Steele, Lea & Flood 2014, https://doi.org/10.1145/2660193.2660195; https://prng.di.unimi.it/splitmix64.c.

    Args:
        state, index: int64, of shapes that broadcast. The unsigned 64-bit numbers of the paper, as int64 of equal bits.
    """
    value = state + (index + 1) * _GAMMA  # int64 wraps around, as the unsigned arithmetic does
    value = (value ^ _shifted(value, 30)) * _FACTORS[0]
    value = (value ^ _shifted(value, 27)) * _FACTORS[1]
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Returns a logical right shift; that of torch repeats the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _numbers(stream: int, row_id: Tensor, index: Tensor, seed: int, epoch: int | Tensor) -> Tensor:
    """Returns the numbers (R, T), 0 to 2**62 - 1, at (R, T) or (T,) indices of a row's stream."""
    key = torch.zeros_like(row_id)
    for part in (seed, epoch, stream, row_id):
        key = splitmix64(key ^ part)
    return _shifted(splitmix64(key[:, None], index), 2)


# --- how many ---------------------------------------------------------------------------------------------------------


def masked_counts(maskable: Counts, probability: float) -> Counts:
    """Returns the number of tokens to mask, from the number of those that may be: int64, of the same shape and kind.

    It is max(1, round(probability * number)), and 0 for 0. As in Python, halves are rounded to even numbers, and the
    product is a float64.

    Args:
        maskable: integers, of any shape.
        probability: above 0, at most 1.

    Raises:
        ValueError: the probability is not in this range.
    """
    if not 0 < probability <= 1:
        raise ValueError(f"probability must be above 0 and at most 1, got {probability}")
    if isinstance(maskable, np.ndarray):
        return masked_counts(torch.tensor(maskable), probability).numpy()
    return (maskable.double() * probability).round().long().clamp(min=1).where(maskable > 0, 0)


def chosen_counts(
    words: Iterable[Sequence[int]], *, seed: int, epoch: int, probability: float, whole_words: bool
) -> np.ndarray:
    """Returns how many tokens of each row are chosen, (rows,) int64: of rows 0, 1, ... without padding.

    Without whole words it is `masked_counts`, the same in all epochs. With them, it is what `chosen_tokens` gives.

    Args:
        words: word numbers of the tokens of each row; NO_WORD for tokens that are never masked.
        seed, epoch, probability: as for `mask_tokens`.
        whole_words: whether whole words are masked.
    """
    if not whole_words:
        maskable = [sum(word != NO_WORD for word in row) for row in words]
        return masked_counts(np.asarray(maskable, dtype=np.int64), probability)
    counts, rows = [torch.zeros(0, dtype=torch.int64)], iter(words)
    first = 0
    while some := [torch.as_tensor(row, dtype=torch.int64) for row in islice(rows, _ROWS_AT_ONCE)]:
        padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=NO_WORD)
        row_id = torch.arange(first, first + len(some))
        chosen = chosen_tokens(padded != NO_WORD, row_id, seed=seed, epoch=epoch, probability=probability, words=padded)
        counts.append(chosen.sum(dim=1))
        first += len(some)
    return torch.cat(counts).numpy()


# --- which ------------------------------------------------------------------------------------------------------------


def chosen_tokens(
    maskable: Tensor,
    row_id: Tensor,
    *,
    seed: int,
    epoch: int | Tensor,
    probability: float,
    words: Tensor | None = None,
) -> Tensor:
    """Returns which tokens are chosen to be masked, (R, T) bool; arguments as for `mask_tokens`.

    Every token of a row that may be masked has a random number, and the `masked_counts` smallest are chosen. With whole
    words, every word has one, and words are taken in this order; a word that would exceed the count is skipped, as in
    BERT's script. If all words of a row are longer than the count, its first one in this order is taken (none in the
    script).
    """
    counts = masked_counts(maskable.sum(dim=1), probability)
    # The number of the unit that a token belongs to: a token or a word, from 0 in each row.
    units = ((maskable if words is None else _first_of_words(words, maskable)).cumsum(dim=1) - 1).clamp(min=0)
    sizes = torch.zeros_like(units).scatter_add_(1, units, maskable.long())
    numbers = _numbers(_CHOICE, row_id, torch.arange(units.shape[1], device=units.device), seed, epoch)
    order = numbers.masked_fill(sizes == 0, _LAST).argsort(dim=1, stable=True)
    if words is None:
        taken = torch.arange(units.shape[1], device=units.device) < counts[:, None]
    else:
        taken = _first_that_fit(sizes.gather(1, order), counts)
    return torch.zeros_like(taken).scatter(1, order, taken).gather(1, units) & maskable


def _first_of_words(words: Tensor, maskable: Tensor) -> Tensor:
    """Returns which tokens begin a word, (R, T) bool: a run of tokens with one number, all of which may be masked."""
    first = maskable.clone()
    first[:, 1:] &= (words[:, 1:] != words[:, :-1]) | ~maskable[:, :-1]
    return first


def _first_that_fit(sizes: Tensor, counts: Tensor) -> Tensor:
    """Returns which words are taken, (R, T) bool: each in its turn, if it fits into what the ones before it left.

    A pass takes words up to the first one that does not fit. So there are as many passes as different sizes at most.

    Args:
        sizes: (R, T) tokens of each word, in the order of turns; 0 after the last one.
        counts: (R,) tokens to take.
    """
    taken, left = torch.zeros_like(sizes, dtype=torch.bool), counts[:, None]
    while (fit := ~taken & (sizes > 0) & (sizes <= left)).any():
        now = fit & ((sizes * fit).cumsum(dim=1) <= left)
        taken, left = taken | now, left - (sizes * now).sum(dim=1, keepdim=True)
    taken[:, 0] |= (counts > 0) & ~taken.any(dim=1)
    return taken


def mask_tokens(
    input_ids: Tensor,
    maskable: Tensor,
    row_id: Tensor,
    *,
    seed: int,
    epoch: int | Tensor,
    probability: float,
    mask_id: int,
    random_ids: Tensor,
    words: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the rows with masked tokens, (R, T) int64, and their labels, (R, T) int64.

    Labels are the original ids of the tokens that `chosen_tokens` gives, also where these stay, and IGNORED elsewhere.

    Args:
        input_ids: (R, T) int64.
        maskable: (R, T) bool: False for special tokens and padding, which are never masked.
        row_id: (R,) int64, the number of each row; -1 for a filler, whose labels are all IGNORED.
        seed: below 2**63.
        epoch: of all rows, or of each, (R,) int64.
        probability: fraction of the tokens to mask, above 0 and at most 1.
        mask_id: the mask token.
        random_ids: (V,) int64: the tokens that may replace one, equally likely. The original may be drawn too.
        words: (R, T) int64 word numbers, to mask whole words; neighbouring words differ. None: single tokens.

    Raises:
        ValueError: a probability out of its range, or no random_ids.
    """
    if not len(random_ids):
        raise ValueError("random_ids is empty")
    chosen = chosen_tokens(maskable, row_id, seed=seed, epoch=epoch, probability=probability, words=words)
    position = maskable.cumsum(dim=1) - 1
    # Neither 10 nor every V divides 2**62; the remainders' probabilities are wrong by less than 2**-62.
    tenth = _numbers(_OUTCOME, row_id, position, seed, epoch) % 10
    replacement = random_ids[_numbers(_REPLACEMENT, row_id, position, seed, epoch) % len(random_ids)]
    masked = input_ids.masked_fill(chosen & (tenth < 8), mask_id)
    masked = torch.where(chosen & (tenth == 8), replacement, masked)
    return masked, input_ids.masked_fill(~chosen | (row_id < 0)[:, None], IGNORED)
