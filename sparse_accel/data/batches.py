"""From rows to batches: global batches of rows of similar length, split over processes and micro-batches.

The sampler forms *global* batches, one per optimizer step, and splits each into world size x accumulation steps
micro-batches, in the order in which Accelerate distributes them. So a step sees the same rows at any world size and
number of accumulation steps.
If a global batch has fewer rows than micro-batches, it is padded with fillers: repeated, marked rows of weight 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sparse_accel.data.arrow_columns import largest_in, lengths_of
from sparse_accel.data.loader_workers import begin_worker

# Rows are shuffled, cut into pools of this many global batches, and sorted by length inside each pool. This gives
# batches of similar lengths in random order, as the length-grouped sampler of transformers does.
_BATCHES_PER_POOL = 50
# Columns of a batch that are not inputs of the model: labels, and the numbers of rows, epochs, words and sentences.
_NOT_INPUTS = ("labels", "row_id", "epoch", "words", "sentence", "text_ids", "text_lengths")
# Columns of tokenized rows that no batch needs: what turns the logits of windows into answers.
_NOT_IN_BATCHES = ("offsets", "context_mask", "no_answer", "question_row")
# Beginning of the names of columns that are inputs of a teacher with another tokenizer: teacher_input_ids, ...
TEACHER = "teacher_"
# Column of rows with several texts: the number of tokens of each. The inputs of such a row are in sequence.
TEXT_LENGTHS = "text_lengths"


def inputs_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns of a batch that are inputs of the model."""
    return {name: value for name, value in batch.items() if name not in _NOT_INPUTS and not name.startswith(TEACHER)}


def teacher_inputs_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the inputs of the teacher, by their names in its forward: its own columns, or else the model's."""
    own = {name.removeprefix(TEACHER): value for name, value in batch.items() if name.startswith(TEACHER)}
    return own or inputs_of(batch)


def longest_text(dataset: Any) -> int:
    """Returns the number of tokens of the longest text of tokenized rows."""
    if TEXT_LENGTHS in dataset.column_names:
        return largest_in(dataset, TEXT_LENGTHS)
    return int(lengths_of(dataset).max())


class Rows(Dataset[dict[str, Any]]):
    """A tokenized dataset that adds row numbers and supports fillers.

    Item i is row i, with `row_id` i; item -1 - i is row i as a filler, with `row_id` -1.
    """

    def __init__(self, dataset: Any) -> None:
        left_out = [name for name in getattr(dataset, "column_names", ()) if name in _NOT_IN_BATCHES]
        self.dataset = dataset.remove_columns(left_out) if left_out else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, items: list[int]) -> dict[str, list[Any]]:
        """Returns the columns of these rows; one access to the file behind the dataset per batch."""
        columns: dict[str, list[Any]] = self.dataset[[item if item >= 0 else -1 - item for item in items]]
        return {**columns, "row_id": [max(item, -1) for item in items]}

    def __getitem__(self, item: int) -> dict[str, Any]:
        return {name: column[0] for name, column in self.__getitems__([item]).items()}


class GlobalBatchSampler(Sampler[list[int]]):
    """Yields the micro-batches of each global batch: per accumulation step, one for each process.

    Args:
        lengths: number of tokens of each row, (rows,).
        micro_batch_size: rows per micro-batch.
        splits: micro-batches per global batch: world size x gradient accumulation steps.
        seed: seed of the order, together with the epoch; None sorts the rows by length, longest first (evaluation).
        weights: weight of each row in the loss, (rows,); None: 1 each.

    There is no attribute `batch_size`, because Accelerate would then split the batches again to make them even.

    `epoch` and `first_step` may be set before each pass: a resumed run starts inside an epoch without reading the rows
    it has seen.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
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
        """Returns the number of rows of a complete global batch."""
        return self.micro_batch_size * self.splits

    @property
    def steps(self) -> int:
        """Returns the number of global batches per epoch, including a short last one."""
        return -(-len(self.lengths) // self.global_batch_size)

    def rows_in_step(self, step: int) -> int:
        """Returns the number of real rows (without fillers) in global batch `step` of an epoch."""
        return min(self.global_batch_size, len(self.lengths) - step * self.global_batch_size)

    def weights_of_steps(self) -> list[int]:
        """Returns the total row weight of each global batch of this epoch, at least 1; (steps,)."""
        starts = np.arange(0, len(self.lengths), self.global_batch_size)
        found: list[int] = np.maximum(np.add.reduceat(self.weights[self.order()], starts), 1).tolist()
        return found

    def __len__(self) -> int:
        """Returns the number of micro-batches in a complete epoch, whatever `first_step` is."""
        return self.steps * self.splits

    def order(self) -> np.ndarray:
        """Returns the row numbers in this epoch's order, (rows,); the last global batch is the short one."""
        if self.seed is None:
            return np.argsort(-self.lengths, kind="stable")
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        whole = len(order) // self.global_batch_size * self.global_batch_size
        pool = self.global_batch_size * _BATCHES_PER_POOL
        for start in range(0, whole, pool):
            rows = order[start : min(start + pool, whole)]
            rows[:] = rows[np.argsort(-self.lengths[rows], kind="stable")]
        batches = order[:whole].reshape(-1, self.global_batch_size)
        batches[:] = batches[generator.permutation(len(batches))]
        return order

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        first, self.first_step = self.first_step, 0
        for step in range(first, self.steps):
            rows = order[step * self.global_batch_size : (step + 1) * self.global_batch_size].tolist()
            yield from split_rows(rows, self.splits)


def split_rows(rows: list[int], splits: int) -> list[list[int]]:
    """Returns the rows in `splits` parts of nearly equal size and similar lengths; no part is empty.

    If there are fewer rows than parts, each remaining part is the first row as a filler (-1 - row).
    """
    return [rows[start::splits] or [-1 - rows[0]] for start in range(splits)]


class Collator:
    """Pads the columns of a batch to its longest row and converts them to tensors.

    Args:
        tokenizer: pads ids, masks and token types, on its padding side and with its padding ids.
        length: pad every batch to this many tokens; None: to its longest row.
        multiple: pad to a multiple of this many tokens; 8 suits tensor cores.
        token_columns: columns with one value per token that are not inputs of the model -> their padding value.
        teacher_tokenizer: pads the columns of a teacher that reads the rows by its own tokenizer.
    """

    def __init__(
        self,
        tokenizer: Any,
        length: int | None = None,
        multiple: int | None = None,
        token_columns: Mapping[str, int] | None = None,
        teacher_tokenizer: Any = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self.multiple = multiple
        self.token_columns = dict(token_columns or {})
        self.teacher_tokenizer = teacher_tokenizer
        for each in (tokenizer, teacher_tokenizer) if teacher_tokenizer is not None else (tokenizer,):
            each.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True  # the rows are already tokenized

    def __call__(self, columns: dict[str, list[Any]]) -> dict[str, Tensor]:
        """Returns input_ids and masks (rows, tokens) int64, labels (rows, ...), row_id (rows,) int64; the inputs of a
        teacher with another tokenizer have its own number of tokens. Those of rows with several texts are (rows, texts,
        tokens)."""
        inputs = inputs_of(columns)
        padding = "max_length" if self.length else "longest"
        tensors = self._inputs(self.tokenizer, inputs, columns.get(TEXT_LENGTHS), padding, self.length)
        width = tensors["input_ids"].shape[-1]
        others = {name: column for name, column in columns.items() if name not in inputs and name != TEXT_LENGTHS}
        teachers = {name: others.pop(name) for name in columns if name.startswith(TEACHER)}
        if teachers:
            lengths = teachers.pop(f"{TEACHER}{TEXT_LENGTHS}", None)
            own = self._inputs(self.teacher_tokenizer, teacher_inputs_of(teachers), lengths)
            tensors |= {f"{TEACHER}{name}": value for name, value in own.items()}
        for name in sorted(others):
            column = columns[name]
            if name in self.token_columns:
                column = [self._padded(values, self.token_columns[name], width) for values in column]
            tensors[name] = torch.tensor(column)
        return tensors

    def _inputs(
        self,
        tokenizer: Any,
        columns: dict[str, list[list[int]]],
        text_lengths: list[list[int]] | None,
        padding: str = "longest",
        length: int | None = None,
    ) -> dict[str, Tensor]:
        """Returns a model's inputs as tensors, padded to the longest text."""
        if text_lengths is not None:
            columns = {name: _texts_of(column, text_lengths) for name, column in columns.items()}
        batch = tokenizer.pad(
            columns, padding=padding, max_length=length, pad_to_multiple_of=self.multiple, return_tensors="pt"
        )
        rows = None if text_lengths is None else (len(text_lengths), len(text_lengths[0]))
        return {name: value if rows is None else value.unflatten(0, rows) for name, value in batch.items()}

    def _padded(self, values: list[int], filler: int, width: int) -> list[int]:
        padding = [filler] * (width - len(values))
        return values + padding if self.tokenizer.padding_side == "right" else padding + values


def _texts_of(column: list[list[int]], text_lengths: list[list[int]]) -> list[list[int]]:
    """Returns the values of each text, from those of rows with several texts."""
    found = []
    for values, lengths in zip(column, text_lengths, strict=True):
        ends = np.cumsum(lengths).tolist()
        found += [values[end - length : end] for length, end in zip(lengths, ends, strict=True)]
    return found


def make_loader(
    dataset: Any, sampler: GlobalBatchSampler, collator: Collator, *, workers: int = 0, pin_memory: bool = False
) -> DataLoader[dict[str, Tensor]]:
    """Returns a loader of micro-batches, to be passed to `accelerator.prepare`.

    Args:
        dataset: tokenized rows.
        sampler: its micro-batches.
        collator: pads a micro-batch and converts it to tensors.
        workers: number of loader processes; 0: the rows are read in this one.
        pin_memory: whether batches are put into pinned memory, for faster copies to a GPU.
    """
    # A separate generator, because each new iterator draws a number: the state of the global one must not change.
    return DataLoader(
        Rows(dataset),
        batch_sampler=sampler,
        collate_fn=cast(Any, collator),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=begin_worker,
        generator=torch.Generator(),
    )
