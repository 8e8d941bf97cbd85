"""Constant pruning: a sparse model keeps its zeros while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparse_accel.console import warn
from sparse_accel.errors import listed
from sparse_accel.modifiers.parameter_names import ALL_PRUNABLE
from sparse_accel.modifiers.pruning.base import PruningModifier, short

if TYPE_CHECKING:
    import torch

    from sparse_accel.modifiers.state import State
    from sparse_accel.progress import Progress

# A model with a smaller fraction of zeros does not count as sparse.
SPARSE = 0.05


@dataclass(kw_only=True)
class ConstantPruningModifier(PruningModifier):
    """Keeps a sparse model sparse: weights that are zero at `start_epoch` stay zero.

    The zeros are recorded once, at `start_epoch`. A weight that becomes 0 later may change again. If there are no zeros
    to keep, a warning is printed: before training if the modifier acts from the start, otherwise at `start_epoch`.
    """

    end_epoch: float = -1.0
    """Epoch from which pruned weights may grow again; -1: never."""

    acts_at_once: ClassVar[bool] = True
    without_effect: ClassVar[dict[str, str]] = {
        "update_frequency": "the mask is set once and applied in every forward",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_params()
        self._active = False

    def events(self) -> list[tuple[float, str]]:
        events = [(max(self.start_epoch, 0.0), f"pruned weights are kept at zero ({short(self.params)})")]
        if self.end_epoch != -1:
            events.append((self.end_epoch, "pruned weights may grow again"))
        return events

    def attach(self, state: State) -> None:
        self._attach_layers(state.model, self.params)
        self._check_alone(state)
        if self.start_epoch <= 0:
            self._warn_where_dense({name: _zeros(self._full_weight(name)) for name in self._layers})

    def step_begin(self, progress: Progress) -> None:
        ended = self.end_epoch != -1 and progress.reached(self.end_epoch)
        self._active = progress.reached(self.start_epoch) and not ended
        if self._active and progress.begins(self.start_epoch):
            self._record_masks()
        elif ended and progress.begins(self.end_epoch):
            self._remove_masks()

    def _record_masks(self) -> None:
        from sparse_accel.nn.masks import constant_mask

        zeros = {}
        for name in self._layers:
            weight = self._full_weight(name)
            zeros[name] = _zeros(weight)
            self._set_mask(name, constant_mask(weight))
        if self.start_epoch > 0:  # otherwise `attach` has warned
            self._warn_where_dense(zeros)

    def _warn_where_dense(self, counts: dict[str, tuple[int, int]]) -> None:
        """Warns if all layers, or some of them, have no zeros to keep.

        Args:
            counts: (zeros, elements) of each weight, by name.
        """
        zeros, numbers = (sum(column) for column in zip(*counts.values(), strict=True))
        sparsity = zeros / max(numbers, 1)
        when = f" at epoch {self.start_epoch:g}" if self.start_epoch > 0 else ""
        if sparsity < SPARSE:
            warn(
                f"{self.name}: only {sparsity:.1%} of the {numbers:,} weights in the {len(counts)} layers of params "
                f"are zero{when}. This modifier keeps zeros and does not prune, so the model stays dense: start from a "
                "sparse model, or prune with MagnitudePruningModifier (also called GMPruningModifier)"
            )
            return
        dense = [name for name, (count, _) in counts.items() if count == 0 and self._should_be_sparse(name)]
        if dense:
            warn(
                f"{self.name}: {len(dense)} of the {len(counts)} layers of params have no zeros{when} and stay dense, "
                f"but {sparsity:.1%} of all these weights are zero: {listed(dense, 3)}. Check that all weights of the "
                "model were loaded, or remove these layers from params"
            )

    def _should_be_sparse(self, name: str) -> bool:
        """Returns False for a head or pooler in __ALL_PRUNABLE__: a newly initialized one is always dense."""
        from sparse_accel.nn.layers import is_encoder_linear

        if self.params not in (ALL_PRUNABLE, [ALL_PRUNABLE]):
            return True
        return is_encoder_linear(name.removesuffix(".weight"), self._layers[name][0])

    def apply_at_once(self, forwards: Callable[[], Iterator[None]]) -> None:
        self._record_masks()
        self.finish()

    def phase(self) -> str:
        return "pruned" if self._active else ""

    def structure_final(self, progress: Progress) -> bool:
        return progress.step > 0 and progress.previous().reached(self.start_epoch)  # step_begin sets the masks


def _zeros(weight: torch.Tensor) -> tuple[int, int]:
    """Returns (zeros, elements) of a tensor."""
    return int((weight == 0).sum()), weight.numel()
