"""Batches of training rows for gradient samples, in an order of their own that training does not notice."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderStateMixin
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from sparse_accel.errors import UsageError


class GradientBatches:
    """Batches of the rows of a loader, the same on all processes, without end: new epochs in a new order.

    Args:
        loader: a plain DataLoader over all training rows, as it was before `accelerator.prepare`. It is not iterated
            itself, and neither are its samplers.

    Raises:
        UsageError: it is another kind of loader.
    """

    def __init__(self, loader: Any) -> None:
        if isinstance(loader, DataLoaderStateMixin):
            raise UsageError(
                "gradient_loader: this loader was prepared by Accelerate, and each process reads only its part of the "
                "rows: pass the loader as it was before accelerator.prepare"
            )
        if not isinstance(loader, DataLoader):
            raise UsageError(f"gradient_loader: expected a torch DataLoader, got {type(loader).__name__}")
        if isinstance(loader.sampler, DistributedSampler):
            raise UsageError(
                "gradient_loader: its DistributedSampler gives each process other rows, but a gradient sample needs "
                "the same batch on all processes: pass a loader without it"
            )
        self.loader = loader
        self.streamed = isinstance(loader.dataset, IterableDataset)
        # A stream whose rows make batches of any size, read by this process.
        self.gives_rows = bool(getattr(loader.dataset, "gives_rows", False))
        # The batch sampler is the user's own, if it is not the one that DataLoader makes of a batch size.
        self.own_batches = not self.streamed and type(loader.batch_sampler) is not BatchSampler

    @property
    def rows(self) -> int | None:
        """Number of rows of the data; None if it is not known."""
        dataset = self.loader.dataset
        return len(dataset) if isinstance(dataset, Sized) and not self.streamed else None

    def batch_size(self, options: Mapping[str, Any]) -> int | None:
        """Returns the number of rows of a batch; None if it is not known.

        Args:
            options: that replace those of the loader: batch_size, drop_last, num_workers.

        Raises:
            UsageError: the loader does not allow one of them.
        """
        fixed = [name for name in ("batch_size", "drop_last") if name in options]
        if fixed and ((self.streamed and not self.gives_rows) or self.own_batches or self.loader.batch_size is None):
            why = "streams its rows" if self.streamed else "makes its batches by its own batch sampler"
            raise UsageError(
                f"grad_sampler_kwargs: {fixed[0]} cannot be changed, because gradient_loader {why}: remove it, or pass "
                "a loader with that setting"
            )
        size: int | None = options.get("batch_size", self.loader.batch_size)
        dropped = options.get("drop_last", self.loader.drop_last)
        if dropped and size is not None and self.rows is not None and self.rows < size:
            raise UsageError(
                f"grad_sampler_kwargs: the data has {self.rows} rows, so with drop_last there is no batch of {size}"
            )
        return size

    def endless(self, options: Mapping[str, Any], *seed: int) -> Iterator[dict[str, Tensor]]:
        """Yields batches. Their order depends only on the seed, and on torch's generator if a sampler uses that.

        Args:
            options: as for `batch_size`.
            seed: numbers that tell this iteration from others.
        """
        for epoch in itertools.count():
            count = 0
            for batch in self._epoch(options, [*seed, epoch]):
                yield _checked(batch)
                count += 1
            if not count:
                raise UsageError("gradient_loader gives no batch: it has no rows")

    def _epoch(self, options: Mapping[str, Any], seed: list[int]) -> DataLoader[Any]:
        loader, number = self.loader, int(np.random.default_rng(seed).integers(2**31))
        torch.manual_seed(number)  # for collators that draw, such as those that mask tokens, and for some samplers
        settings: dict[str, Any] = {
            "collate_fn": loader.collate_fn,
            "num_workers": 0 if self.gives_rows else options.get("num_workers", loader.num_workers),
            "pin_memory": loader.pin_memory,
            "worker_init_fn": loader.worker_init_fn,
            "generator": torch.Generator().manual_seed(number),
        }
        if self.own_batches and loader.batch_sampler is not None:
            return DataLoader(loader.dataset, batch_sampler=self._order(loader.batch_sampler, number), **settings)
        if loader.batch_size is not None:  # otherwise, each item of the dataset is a batch
            settings["drop_last"] = options.get("drop_last", loader.drop_last)
        if not self.streamed:
            settings["sampler"] = self._order(loader.sampler, number)
        return DataLoader(loader.dataset, batch_size=options.get("batch_size", loader.batch_size), **settings)

    def _order(self, sampler: Any, seed: int) -> Any:
        """Returns the rows in a new order, or a copy of a sampler that chooses rows in its own way."""
        if type(sampler) in (RandomSampler, SequentialSampler):
            return _InOrder(np.random.default_rng(seed).permutation(len(sampler.data_source)))
        own = copy.deepcopy(sampler, {id(self.loader.dataset): self.loader.dataset})  # all but the rows
        if getattr(own, "generator", None) is not None:
            own.generator = torch.Generator().manual_seed(seed)
        if hasattr(own, "set_epoch"):
            own.set_epoch(seed)
        return own


class _InOrder(Sampler[int]):
    """Row numbers in an order, as an array: those of millions of rows would take gigabytes as objects."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return map(int, self.rows)


def _checked(batch: Any) -> dict[str, Tensor]:
    if not isinstance(batch, Mapping) or not all(isinstance(value, Tensor) for value in batch.values()):
        raise UsageError(
            f"gradient_loader: expected batches that are dicts of tensors, got {type(batch).__name__}: each process "
            "takes its part of the rows of every tensor"
        )
    if len({len(value) if value.ndim else -1 for value in batch.values()}) != 1:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
        raise UsageError(f"gradient_loader: the tensors of a batch have different numbers of rows: {shapes}")
    return dict(batch)


def rows_of_parts(rows: int, processes: int, most: int | None) -> list[slice]:
    """Returns the rows of each part of a batch: equally many parts for each process, of at most `most` rows.

    Process r takes the parts r, r + processes, r + 2 * processes, ... So the parts depend on the number of processes
    only through that, and two processes compute what one computes with two micro-batches.
    A part may be empty if there are more processes than rows.
    """
    share = -(-rows // processes)
    parts = processes * (1 if most is None else -(-share // most))
    return [slice(start, None, parts) for start in range(parts)]
