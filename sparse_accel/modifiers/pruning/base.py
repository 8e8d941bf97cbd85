"""What all pruning shares: layers found by their weights' names, their masks, and masks as state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparse_accel.errors import UsageError, listed
from sparse_accel.modifiers.base import FieldError, Modifier, spans_overlap
from sparse_accel.modifiers.parameter_names import match_parameter_names

if TYPE_CHECKING:
    import torch

    from sparse_accel.modifiers.state import State
    from sparse_accel.nn.layers import SparseLayer


@dataclass(kw_only=True)
class PruningModifier(Modifier):
    """What constant and gradual pruning share: layers found by their weights' names, and their masks as state."""

    params: str | list[str] = "__ALL_PRUNABLE__"
    """Weights to prune: `__ALL_PRUNABLE__` (Linear and convolution weights), names, or `re:PATTERN`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._layers: dict[str, list[SparseLayer]] = {}  # by the weight's name; several where a weight is tied

    def _check_params(self) -> None:
        if not self.params:
            raise FieldError("params", "params is empty: name weights, or leave it out for all Linear and convolutions")

    def _attach_layers(self, model: torch.nn.Module, patterns: str | list[str]) -> list[str]:
        """Gives the layers that `patterns` name a mask that keeps everything; returns their weights' names."""
        import torch

        from sparse_accel.nn.layers import make_sparse, maskable_layers, prunable_names

        found = maskable_layers(model)
        every_name = [name for name, _ in model.named_parameters()]
        names = match_parameter_names(patterns, every_name, prunable_names(model))
        refused = [name for name in names if name not in found]
        if refused:
            raise UsageError(
                f"{self.name}: {refused[0]} cannot be pruned: only weights of Linear, Embedding and convolution layers "
                f"have masks ({len(refused)} of the {len(names)} names that params matches are something else). "
                f"Use __ALL_PRUNABLE__, or a pattern such as re:.*encoder.*dense.weight"
            )
        for name in names:
            layers = [make_sparse(module) for module in found[name]]
            for layer in layers:
                if layer.mask is None:
                    layer.mask = torch.ones_like(layer.weight, dtype=torch.bool)
            self._layers[name] = layers
        return names

    def _check_alone(self, state: State) -> None:
        """Raises UsageError where two modifiers would set one weight's mask at the same time."""
        for other in state.modifiers:
            if other is self or not isinstance(other, PruningModifier) or not spans_overlap(self.span, other.span):
                continue
            shared = [name for name in self._layers if name in other._layers]
            if shared:
                raise UsageError(
                    f"{self.name}: {shared[0]} is pruned by {other.name} at the same time: leave it out of the params "
                    "of one, or let one start where the other ends"
                )

    def _full_weight(self, name: str) -> torch.Tensor:
        """The whole effective weight, also where it is sharded."""
        from sparse_accel.distributed.weights import full_weight

        layer = self._layers[name][0]
        assert layer.mask is not None
        return full_weight(layer.weight).masked_fill(~layer.mask, 0.0)

    def _set_mask(self, name: str, mask: torch.Tensor) -> None:
        """Changes a mask. Weights that it gives back restart at 0, whatever lay under the old one."""
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
            layer.mask.copy_(mask)  # in place: compiled graphs and other references go on seeing it

    def _remove_masks(self) -> None:
        """Lets pruned weights grow again."""
        for name, mask in PruningModifier.state_dict(self).items():
            self._set_mask(name, mask.new_ones(mask.shape))

    def finish(self) -> None:
        """Stored weights become what the model computes with, so that any way of saving them writes the zeros."""
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
            raise ValueError(f"the masks of {self.name} are of other weights: {listed(state, 3)}")
        for name, mask in state.items():
            self._copy_mask(name, mask)


def short(params: str | list[str]) -> str:
    """The key `params` in a few words, for the timeline."""
    if isinstance(params, str):
        return params
    return params[0] if len(params) == 1 else f"{len(params)} patterns"
