"""Blocks of an encoder that are dropped: skipped while a model trains, and taken out of it for good when it is saved.

A skipped block passes its hidden states on and computes nothing. Its modules and weights stay in the model, because
optimizers, DDP, FSDP2 and ZeRO do not accept that weights disappear; they get gradients of zero. `remove_skipped` takes
the blocks out of the list, moves the later ones up, and corrects the configuration: what is saved then is an ordinary
model with fewer blocks (Sajjad et al. 2020, arXiv 2004.03844; Fan et al. 2019, arXiv 1909.11556).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparse_accel.distributed.launch import block_lists
from sparse_accel.errors import with_article


class SkippableBlock(nn.Module):
    """A mixin for the class of a block; `make_skippable` puts it in front of it.

    Attributes:
        skipped: whether the block passes its hidden states on unchanged.
        others: how many more values it returns in a tuple after the hidden states; None if it returns a tensor.
    """

    skipped: bool
    others: int | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.skipped:
            return super().forward(*args, **kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        if torch.is_grad_enabled():
            hidden = _PassedOn.apply(hidden, *(p for p in self.parameters() if p.requires_grad))
        return hidden if self.others is None else (hidden, *[None] * self.others)


class _PassedOn(torch.autograd.Function):
    """Returns its first argument, and gives the others gradients of zero: DDP and FSDP2 wait for one of each weight."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*gradients, *(torch.zeros_like(weight) for weight in ctx.saved_tensors))


@functools.cache
def _skippable_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Returns the class with the mixin. Its name stays, because FSDP finds the blocks to wrap by it."""
    return type(kind.__name__, (SkippableBlock, kind), {"__module__": kind.__module__})


# --- the list of blocks -----------------------------------------------------------------------------------------------


def encoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Returns the name and the list of a model's blocks: the one whose length is the configuration's number of layers.

    Raises:
        ValueError: there is no such list, or more than one.
    """
    config: Any = getattr(model, "config", None)
    depth = getattr(config, "num_hidden_layers", None)
    kind = getattr(config, "model_type", type(model).__name__)
    lists = block_lists(model)
    found = [(name, blocks) for name, blocks in lists.items() if len(blocks) == depth]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise ValueError(f"this {kind} has several lists of blocks ({', '.join(name for name, _ in found)})")
    shared = f": its {depth} layers share the weights of {len(next(iter(lists.values())))}" if lists and depth else ""
    raise ValueError(f"this {kind} has no list with a block for each layer{shared}")


def make_skippable(model: nn.Module) -> nn.ModuleList:
    """Makes all blocks of a plain model skippable, in place, and returns their list; none is skipped yet.

    All, so that they have one class. What a block returns is found by a forward over one short row.

    Raises:
        ValueError: the model has no such blocks, or they return more than hidden states.
    """
    blocks = encoder_blocks(model)[1]
    if all(isinstance(block, SkippableBlock) for block in blocks):
        return blocks
    returned: list[Any] = []
    hooks = [block.register_forward_hook(lambda module, args, output: returned.append(output)) for block in blocks]
    try:
        _trial(model)
    finally:
        for hook in hooks:
            hook.remove()
    if len(returned) != len(blocks):
        raise ValueError(f"this model calls its {len(blocks)} blocks {len(returned)} times")
    for block, output in zip(blocks, returned, strict=True):
        others = output[1:] if isinstance(output, tuple) else ()
        hidden = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, Tensor) or any(value is not None for value in others):
            raise ValueError(f"{with_article(type(block).__name__)} returns more than hidden states")
        block.__class__ = _skippable_class(cast(Any, type(block)))
        skippable = cast(SkippableBlock, block)
        skippable.skipped, skippable.others = False, len(others) if isinstance(output, tuple) else None
    return blocks


def skip(block: nn.Module, skipped: bool = True) -> None:
    """Switches a skippable block off, or on again.

    ZeRO-3 has only parts of the weights at that place, so that they cannot get gradients of zero. It would use their
    last gradients in the norm of all, unless it sees them as frozen.
    """
    cast(SkippableBlock, block).skipped = skipped
    if skipped:
        for parameter in block.parameters():
            if hasattr(parameter, "ds_id"):
                parameter.requires_grad_(False)


@torch.no_grad()
def _trial(model: nn.Module) -> Tensor:
    """Returns the first output for one row of four tokens, in eval mode."""
    device = next(model.parameters()).device
    ids = torch.full((1, 4), 2, device=device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        found: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return found


# --- removal ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Removed:
    """A block that was taken out of a list, with its entries in the configuration's lists by layer."""

    blocks: nn.ModuleList
    index: int
    block: nn.Module
    entries: dict[str, Any]


# Where a model keeps the blocks that `remove_skipped` took out, in that order.
_KEPT = "_removed_blocks"
# The lists of a configuration that have an entry for each layer.
_BY_LAYER = ("layer_types", "mlp_layer_types")


def remove_blocks(model: nn.Module, indices: Sequence[int]) -> None:
    """Takes blocks out of a plain model for good and corrects its configuration. Later blocks move up.

    Raises:
        ValueError: the model has no such blocks.
    """
    _take_out(model, encoder_blocks(model)[1], indices)


def check_removable(model: nn.Module, indices: Sequence[int]) -> None:
    """Checks that a plain model without these blocks is one that its configuration can describe. Changes nothing.

    Blocks that are skippable are also checked to give the same output skipped and removed. They differ where a model
    treats a block by its position.

    Raises:
        ValueError: it is not.
    """
    name, blocks = encoder_blocks(model)
    gone = [blocks[index] for index in indices]
    skippable = all(isinstance(block, SkippableBlock) for block in gone)
    outputs = []
    if skippable:
        for block in gone:
            skip(block)
        outputs.append(_trial(model))
        for block in gone:
            skip(block, False)
    removed = _take_out(model, blocks, indices)
    try:
        if skippable:
            outputs.append(_trial(model))
        fits = _fits_configuration(model, name)
    finally:
        _put_back(model, removed)
    if not fits or (skippable and not torch.equal(*outputs)):
        raise ValueError("this model treats one of these blocks differently from the others, by its position")


def _fits_configuration(model: nn.Module, blocks: str) -> bool:
    """Whether a new model with this configuration has the same weights in its list of blocks, given by name."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        fresh = type(model)(copy.deepcopy(cast(Any, model).config))
    own, other = (
        {key: value.shape for key, value in each.state_dict().items() if key.startswith(f"{blocks}.")}
        for each in (model, fresh)
    )
    return own == other


def remove_skipped(model: nn.Module) -> None:
    """Takes the skipped blocks out of a model, which may be wrapped, after its last step. Nothing, if there is none.

    The model keeps them aside, for `with_skipped`.
    """
    model.__dict__.setdefault(_KEPT, []).extend(_take_out_skipped(model))


@contextmanager
def without_skipped(model: nn.Module) -> Iterator[None]:
    """Inside the block the model has no skipped blocks: its names, weights and configuration are those to save."""
    removed = _take_out_skipped(model)
    try:
        yield
    finally:
        _put_back(model, removed)


@contextmanager
def with_skipped(model: nn.Module) -> Iterator[None]:
    """Inside the block the model has all blocks that it was trained with: its names are those of the optimizer."""
    kept: list[_Removed] = model.__dict__.pop(_KEPT, [])
    _put_back(model, kept)
    try:
        yield
    finally:
        if kept:
            remove_skipped(model)


def _take_out_skipped(model: nn.Module) -> list[_Removed]:
    for blocks in block_lists(model).values():
        if indices := [number for number, block in enumerate(blocks) if getattr(block, "skipped", False)]:
            return _take_out(model, blocks, indices)
    return []


def _take_out(model: nn.Module, blocks: nn.ModuleList, indices: Iterable[int]) -> list[_Removed]:
    config, removed = cast(Any, model).config, []
    for index in sorted(indices, reverse=True):
        by_layer = {key: getattr(config, key) for key in _BY_LAYER if getattr(config, key, None) is not None}
        entries = {key: values[index] for key, values in by_layer.items()}
        removed.append(_Removed(blocks, index, blocks[index], entries))
        del blocks[index]  # the later ones are renumbered
        _set_depth(config, len(blocks), {key: [*v[:index], *v[index + 1 :]] for key, v in by_layer.items()})
    return removed


def _put_back(model: nn.Module, removed: Sequence[_Removed]) -> None:
    config = getattr(model, "config", None)
    for entry in reversed(removed):
        entry.blocks.insert(entry.index, entry.block)
        lists = {key: list(getattr(config, key)) for key in entry.entries}
        for key, value in entry.entries.items():
            lists[key].insert(entry.index, value)
        _set_depth(config, len(entry.blocks), lists)


def _set_depth(config: Any, depth: int, lists: dict[str, list[Any]]) -> None:
    config.num_hidden_layers = depth  # stored under the architecture's own key, such as n_layers
    for key, values in lists.items():
        setattr(config, key, values)
