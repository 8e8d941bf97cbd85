"""The base class of pruning modifiers: finds layers by the names of their weights, and keeps masks as state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparse_accel.errors import UsageError, listed
from sparse_accel.modifiers.base import FieldError, Modifier, spans_overlap
from sparse_accel.modifiers.parameter_names import check_patterns, match_parameter_names

if TYPE_CHECKING:
    import torch

    from sparse_accel.modifiers.state import State
    from sparse_accel.nn.layers import SparseLayer


@dataclass(kw_only=True)
class PruningModifier(Modifier):
    """Base class of constant and gradual pruning. Its state is the masks of its layers."""

    params: str | list[str] = "__ALL_PRUNABLE__"
    """Weights to prune: names, `re:PATTERN`, or `__ALL_PRUNABLE__` (weights of Linear and convolution layers)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._layers: dict[str, list[SparseLayer]] = {}  # by the name of the weight; several layers if it is tied

    def _check_params(self) -> None:
        if not self.params:
            raise FieldError(
                "params", "must not be empty: name weights, or leave it out for all Linear and convolution layers"
            )
        check_patterns("params", self.params)

    def _attach_layers(self, model: torch.nn.Module, patterns: str | list[str]) -> list[str]:
        """Gives the layers that match `patterns` a mask that keeps all weights; returns the names of their weights."""
        import torch

        from sparse_accel.nn.layers import make_sparse

        found = layers_of(model, patterns, self.name)
        for name, modules in found.items():
            layers = [make_sparse(module) for module in modules]
            for layer in layers:
                if layer.mask is None:
                    layer.mask = torch.ones_like(layer.weight, dtype=torch.bool)
            self._layers[name] = layers
        return list(found)

    def _check_alone(self, state: State) -> None:
        """Raises UsageError if two modifiers set the mask of one weight at the same time."""
        for other in state.modifiers:
            if other is self or not isinstance(other, PruningModifier) or not spans_overlap(self.span, other.span):
                continue
            shared = [name for name in self._layers if name in other._layers]
            if shared:
                raise UsageError(
                    f"{self.name}: {shared[0]} is pruned by {other.name} at the same time: remove it from params of "
                    "one, or start one where the other ends"
                )

    def _full_weight(self, name: str) -> torch.Tensor:
        """Returns the complete effective weight, also if it is sharded."""
        from sparse_accel.distributed.weights import full_weight

        layer = self._layers[name][0]
        mask = layer.mask_in_use()
        assert mask is not None
        return full_weight(layer.weight).masked_fill(~mask, 0.0)

    def _left(self, name: str) -> torch.Tensor | None:
        """Returns which weights are in rows and columns that structured pruning has left, bool, broadcastable to the
        weight's shape; None: all. Sparsity is counted among these, and only these are ranked."""
        return self._layers[name][0].units_in_use()

    def _count(self, name: str) -> int:
        """Returns the number of weights that sparsity is counted among."""
        layer, left = self._layers[name][0], self._left(name)
        assert layer.mask is not None
        return layer.mask.numel() if left is None else int(left.expand(layer.mask.shape).sum())

    def _set_mask(self, name: str, mask: torch.Tensor) -> None:
        """Changes a mask. Weights that are no longer pruned restart at 0, whatever the old mask covered."""
        from sparse_accel.distributed.weights import clear_weight

        layer = self._layers[name][0]
        assert layer.mask is not None
        given_back = mask & ~layer.mask
        if given_back.any():
            clear_weight(layer.weight, ~given_back)
        self._copy_mask(name, mask)

    def _copy_mask(self, name: str, mask: torch.Tensor) -> None:
        for layer in self._layers[name]:
            assert layer.mask is not None
            layer.mask.copy_(mask)  # in place, for compiled graphs and other references to it

    def _remove_masks(self) -> None:
        """Lets pruned weights grow again."""
        for name, mask in PruningModifier.state_dict(self).items():
            self._set_mask(name, mask.new_ones(mask.shape))

    def finish(self) -> None:
        """Sets pruned weights to 0 in storage too, so that every way of saving the model writes zeros."""
        from sparse_accel.distributed.weights import clear_weight

        for layers in self._layers.values():
            assert layers[0].mask is not None
            clear_weight(layers[0].weight, layers[0].mask)

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {}
        for name, layers in self._layers.items():
            assert layers[0].mask is not None
            state[name] = layers[0].mask
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        own = {name: mask.shape for name, mask in PruningModifier.state_dict(self).items()}
        if {name: mask.shape for name, mask in state.items()} != own:
            raise ValueError(f"the masks of {self.name} belong to other weights: {listed(state, 3)}")
        for name, mask in state.items():
            self._copy_mask(name, mask)


def layers_of(model: torch.nn.Module, patterns: str | list[str], modifier: str) -> dict[str, list[torch.nn.Module]]:
    """Returns the layers whose weights match `patterns`, by the name of the weight; several if it is tied.

    Args:
        modifier: its name, for messages.

    Raises:
        UsageError: a pattern matches nothing, or what cannot have a mask.
    """
    from sparse_accel.nn.layers import maskable_layers, prunable_names

    found = maskable_layers(model)
    every_name = [name for name, _ in model.named_parameters()]
    names = match_parameter_names(patterns, every_name, prunable_names(model))
    refused = [name for name in names if name not in found]
    if refused:
        raise UsageError(
            f"{modifier}: {refused[0]} cannot be pruned: only weights of Linear, Embedding and convolution layers "
            f"can ({len(refused)} of {len(names)} names in params are others). Use __ALL_PRUNABLE__, or a pattern "
            "such as re:.*encoder.*dense.weight"
        )
    return {name: found[name] for name in names}


def short(params: str | list[str]) -> str:
    """Returns `params` as a short text for the timeline."""
    if isinstance(params, str):
        return params
    return params[0] if len(params) == 1 else f"{len(params)} patterns"
