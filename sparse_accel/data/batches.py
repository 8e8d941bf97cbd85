"""From rows to batches: global batches of like lengths, split over processes and micro-batches.

The sampler forms *global* batches, one an optimizer step, and splits each into world size x accumulation micro-batches,
in the order in which Accelerate deals them out. So a step sees the same rows at any world size and accumulation.
A global batch that is too short for the split is filled up with repeated rows that are marked and weigh nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

# Rows are shuffled, cut into pools of this many global batches, and sorted by length inside each pool: batches of like
# lengths, in random order. As transformers' length-grouped sampler has it.
_BATCHES_PER_POOL = 50
# Columns of a batch that are not for the model: what it should say, and which rows and words these are.
_NOT_INPUTS = ("labels", "row_id", "words", "sentence")


def inputs_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the model takes of a batch."""
    return {name: value for name, value in batch.items() if name not in _NOT_INPUTS}


class Rows(Dataset[dict[str, Any]]):
    """A tokenized dataset that numbers its rows and knows fillers.

    Item i is row i, with `row_id` i; item -1 - i is row i as a filler, with `row_id` -1.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, items: list[int]) -> dict[str, list[Any]]:
        """Returns the columns of these rows: one access to the file behind the dataset for a whole batch."""
        columns: dict[str, list[Any]] = self.dataset[[item if item >= 0 else -1 - item for item in items]]
        return {**columns, "row_id": [max(item, -1) for item in items]}

    def __getitem__(self, item: int) -> dict[str, Any]:
        return {name: column[0] for name, column in self.__getitems__([item]).items()}


class GlobalBatchSampler(Sampler[list[int]]):
    """Yields the micro-batches of each global batch: for each accumulation step, one for each process.

    Args:
        lengths: tokens of each row, (rows,).
        micro_batch_size: rows of a micro-batch.
        splits: micro-batches of a global batch: world size x gradient accumulation steps.
        seed: with the epoch it decides the order; None keeps the rows sorted by length, longest first (evaluation).
        weights: what each row counts in the loss, (rows,); None: 1 each.

    It has no `batch_size` on purpose: Accelerate would take its batches apart to make them even.

    `epoch` and `first_step` may be set before each pass: a resumed run starts inside an epoch without reading the rows
    it has seen.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        micro_batch_size: int,
        splits: int,
        seed: int | None,
        weights: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.weights = np.ones(len(self.lengths), dtype=np.int64) if weights is None else np.asarray(weights)
        self.micro_batch_size = micro_batch_size
        self.splits = splits
        self.seed = seed
        self.epoch = 0
        self.first_step = 0

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.splits

    @property
    def steps(self) -> int:
        """Global batches in a pass over the rows, the short last one included."""
        return -(-len(self.lengths) // self.global_batch_size)

    def rows_in_step(self, step: int) -> int:
        """Real rows in global batch `step` of an epoch."""
        return min(self.global_batch_size, len(self.lengths) - step * self.global_batch_size)

    def weights_of_steps(self) -> list[int]:
        """What the rows of each global batch of this epoch weigh together, at least 1; (steps,)."""
        weights, size = self.weights[self.order()], self.global_batch_size
        return [max(int(weights[start : start + size].sum()), 1) for start in range(0, len(weights), size)]

    def __len__(self) -> int:
        """Micro-batches in a whole pass, wherever the next one starts."""
        return self.steps * self.splits

    def order(self) -> np.ndarray:
        """Returns the row numbers in this epoch's order, (rows,); the last global batch is the short one."""
        if self.seed is None:
            return np.argsort(-self.lengths, kind="stable")
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        whole = len(order) // self.global_batch_size * self.global_batch_size
        pool = self.global_batch_size * _BATCHES_PER_POOL
        batches: list[np.ndarray] = []
        for start in range(0, whole, pool):
            rows = order[start : min(start + pool, whole)]
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
            batches += np.split(rows, len(rows) // self.global_batch_size)
        shuffled = [batches[position] for position in generator.permutation(len(batches))]
        return np.concatenate([*shuffled, order[whole:]])

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        first, self.first_step = self.first_step, 0
        for step in range(first, self.steps):
            rows = order[step * self.global_batch_size : (step + 1) * self.global_batch_size].tolist()
            yield from split_rows(rows, self.splits)


def split_rows(rows: list[int], splits: int) -> list[list[int]]:
    """Deals rows out into `splits` parts of nearly equal size and like lengths; no part is empty.

    Where there are fewer rows than parts, the first row fills the rest, marked as a filler (-1 - row).
    """
    return [rows[start::splits] or [-1 - rows[0]] for start in range(splits)]


class Collator:
    """Pads the columns of a batch to its longest row and makes tensors of them.

    Args:
        tokenizer: pads ids, masks and token types on its own side and with its own ids.
        length: pad every batch to this many tokens instead.
        multiple: pad to a multiple of this many tokens: 8 suits tensor cores.
        token_columns: columns beside the model's inputs that have one value a token, and what these are padded with.
    """

    def __init__(
        self,
        tokenizer: Any,
        length: int | None = None,
        multiple: int | None = None,
        token_columns: Mapping[str, int] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self.multiple = multiple
        self.token_columns = dict(token_columns or {})
        tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True  # tokenized once, long before padding

    def __call__(self, columns: dict[str, list[Any]]) -> dict[str, Tensor]:
        """Returns input_ids and masks (rows, tokens) int64, labels (rows, ...), row_id (rows,) int64."""
        inputs = inputs_of(columns)
        padding = "max_length" if self.length else "longest"
        batch = self.tokenizer.pad(
            inputs, padding=padding, max_length=self.length, pad_to_multiple_of=self.multiple, return_tensors="pt"
        )
        tensors: dict[str, Tensor] = dict(batch)
        width = tensors["input_ids"].shape[1]
        for name in sorted(columns.keys() - inputs.keys()):
            column = columns[name]
            if name in self.token_columns:
                column = [self._padded(values, self.token_columns[name], width) for values in column]
            tensors[name] = torch.tensor(column)
        return tensors

    def _padded(self, values: list[int], filler: int, width: int) -> list[int]:
        padding = [filler] * (width - len(values))
        return values + padding if self.tokenizer.padding_side == "right" else padding + values


def make_loader(
    dataset: Any, sampler: GlobalBatchSampler, collator: Collator, *, workers: int = 0, pin_memory: bool = False
) -> DataLoader[dict[str, Tensor]]:
    """Returns a loader of micro-batches, to be given to `accelerator.prepare`."""
    # A generator of its own: a fresh iterator draws a number from it, and the global one stays where it is.
    return DataLoader(
        Rows(dataset),
        batch_sampler=sampler,
        collate_fn=cast(Any, collator),
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
