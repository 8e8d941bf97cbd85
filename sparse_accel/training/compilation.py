"""torch.compile, block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sparse_accel.distributed.launch import block_lists


def compile_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles each block of a model, in place, for batches of any shape; a model without blocks as a whole.

    All blocks of an encoder run the same graph, so it is made once, and compiling takes as long for one block as for
    24; with a teacher's hidden states, each block has a graph of its own. What is outside of them, embeddings and head,
    stays as it is. No module is wrapped: weights keep their names.

    Args:
        model: before it is wrapped.
        backend: of torch.compile, by name or as a function.
    """
    # Training and evaluation each need a graph before quantization, in its first step, with moving and with frozen
    # ranges, at worst of each block; above the limits (by default 8), PyTorch would continue without compiling.
    regions = _regions(model)
    torch._dynamo.config.recompile_limit = 64 * len(regions)
    torch._dynamo.config.accumulated_recompile_limit = max(256, 64 * len(regions))
    for block in regions:
        # They differ in length, and the last batch in rows.
        block.compile(backend=backend, dynamic=True)


def is_compiled(model: nn.Module) -> bool:
    """Returns whether `compile_blocks` was called for a model."""
    return any(block._compiled_call_impl is not None for block in _regions(model))


def _regions(model: nn.Module) -> list[nn.Module]:
    return [block for blocks in block_lists(model).values() for block in blocks] or [model]
