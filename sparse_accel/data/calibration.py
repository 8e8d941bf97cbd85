"""Forwards over batches of training rows that quantization ranges start from, the same in every layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.data.batches import inputs_of
from sparse_accel.data.gradient_batches import GradientBatches, rows_of_parts
from sparse_accel.distributed.collectives import rank_and_size
from sparse_accel.distributed.gradients import undisturbed
from sparse_accel.distributed.weights import reshard
from sparse_accel.nn.layers import quantizers


@torch.no_grad()
def calibration_forwards(
    model: nn.Module,
    plain: nn.Module,
    loader: Any,
    count: int,
    *,
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    rows_per_forward: int | None,
    seed: int,
) -> Iterator[None]:
    """Runs batches through the model in eval mode, but with quantizers that observe, and yields after each.

    Every process reads every batch and runs its part of the rows. Modes of modules and random generators are afterwards
    as before.

    Args:
        model: as `prepare` returned it.
        plain: the model inside it.
        loader: of the training rows, as it was before `prepare`; it is read again from its beginning if it is short.
        count: number of batches.
        prepare: makes of a batch of the loader what the model gets.
        rows_per_forward: at most so many rows go through the model at once; None: a process's share of a batch.
        seed: of the order of the rows.

    Raises:
        UsageError: the loader cannot be used, or has no rows.
    """
    device = next(plain.parameters()).device
    rank, processes = rank_and_size()
    endless = closing(GradientBatches(loader).endless({}, seed))  # type: ignore[type-var]
    with undisturbed(plain), endless as batches:
        for quantizer in quantizers(plain).values():
            quantizer.train()
        for batch in islice(batches, count):
            whole = prepare({name: value.to(device) for name, value in batch.items()})
            rows = len(next(iter(whole.values())))
            for part in rows_of_parts(rows, processes, rows_per_forward)[rank::processes]:
                own = {name: value[part] for name, value in whole.items()}
                if not len(next(iter(own.values()))):  # more processes than rows, and FSDP2 needs a forward of each
                    own = {name: value[:1] for name, value in whole.items()}
                model(**(inputs_of(own) if "row_id" in own else own))
            yield
    reshard(model)
