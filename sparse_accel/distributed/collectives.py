"""Communication between the processes of a run, for any layout. All processes must call these in the same order."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from sparse_accel.errors import UsageError

# How long processes wait while one of them works alone, such as tokenizing a large dataset for all.
LONGEST_WAIT = timedelta(hours=2)
_SECONDS_AT_EXIT = 0.2


def world_size() -> int:
    """Returns the number of processes of the run; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank_and_size() -> tuple[int, int]:
    """Returns this process's rank and the number of processes; (0, 1) without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if world_size() > 1 else (0, 1)


def wait_at_exit() -> None:
    """Makes Python wait a moment before it ends, in a process of several.

    A thread of gloo may still hold the last tensor of a collective operation. If it gives it back while Python takes
    itself apart, the process aborts (PyTorch issue 38228). `main.run_main` ends a program before that; a program of
    the user's own cannot be ended so, because its exit code is not known.
    """
    if world_size() > 1:
        _register_wait()


@cache
def _register_wait() -> None:
    atexit.register(time.sleep, _SECONDS_AT_EXIT)


def open_store() -> Any:
    """Returns a separate connection to the launcher's store; None for one process, or without MASTER_ADDR and _PORT."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if world_size() == 1 or not address or not port:
        return None
    store = TCPStore(address, int(port), is_master=False, timeout=timedelta(seconds=30))
    return PrefixStore("sparse_accel", store)


def by_main_process(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """Runs `action` on the main process only and returns its result on all processes.

    Raises:
        Exception: what `action` raised, on the main process.
        UsageError: with the same message, on the others.
    """
    if accelerator.num_processes == 1:
        return action()
    answer: list[Any] = [None, None]
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            answer[0] = action()
        except Exception as raised:
            error = raised
            answer[1] = str(raised) if isinstance(raised, UsageError) else f"{type(raised).__name__}: {raised}"
    broadcast_object_list(answer)
    if error is not None:
        raise error
    if answer[1] is not None:
        raise UsageError(answer[1])
    return answer[0]


def reduce_extrema(minimum: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the smallest minimum and the largest maximum over all processes, by one all-reduce.

    Args:
        minimum, maximum: of the same shape, float32, on the process's device.
    """
    if world_size() == 1:
        return minimum, maximum
    both = torch.stack([-minimum, maximum])
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return -both[0], both[1]


def reduce_sum(values: Tensor) -> Tensor:
    """Returns the sum of a tensor over all processes; `values` itself is not changed."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_rows(values: Tensor, rows: int) -> Tensor:
    """Returns the rows of all processes, (world size, rows, ...), the same on all of them. Gradients go back to each
    process's own rows, from the losses of all processes.

    Args:
        values: (at most `rows`, ...); missing rows are 0 in the result.
        rows: the largest number of rows that a process has.
    """
    padded = torch.cat([values, values.new_zeros(rows - len(values), *values.shape[1:])])
    if world_size() == 1:
        return padded[None]
    found: Tensor = _GatherRows.apply(padded)
    return found


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return reduce_sum(gradients[0].contiguous())[dist.get_rank()]


def largest(number: int) -> int:
    """Returns the largest number over all processes. It uses the CPUs (gloo), so it does not wait for a GPU."""
    if world_size() == 1:
        return number
    numbers = torch.tensor([number])
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=_cpu_group())
    return int(numbers)


def total(number: int) -> int:
    """Returns the sum of a number over all processes. It uses the CPUs (gloo), so it does not wait for a GPU."""
    if world_size() == 1:
        return number
    numbers = torch.tensor([number])
    dist.all_reduce(numbers, group=_cpu_group())
    return int(numbers)


@cache
def _cpu_group() -> Any:
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
