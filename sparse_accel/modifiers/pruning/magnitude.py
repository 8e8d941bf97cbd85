"""Gradual pruning by magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparse_accel.modifiers.base import FieldError
from sparse_accel.modifiers.pruning.gradual import GradualPruningModifier

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class MagnitudePruningModifier(GradualPruningModifier):
    """Prunes the smallest weights gradually: `init_sparsity` at `start_epoch`, `final_sparsity` at `end_epoch`.

    Zhu & Gupta 2017, arXiv 1710.01878. Weights are ranked by the values that the model uses: pruned weights count as 0,
    so they stay pruned while sparsity grows.
    """

    phased: bool = False
    """Alternate between pruned and dense phases, as in SparseML; only false is supported."""

    ranking: ClassVar[str] = "magnitude"
    acts_at_once: ClassVar[bool] = True
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"score_type": ("magnitude",)}
    known_later: ClassVar[dict[str, str]] = {
        "score_type": "weights are ranked by magnitude; by movement, with MovementPruningModifier"
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phased:
            raise FieldError("phased", "not supported yet: there are no dense phases in between")

    def _score(self, name: str) -> torch.Tensor:
        from sparse_accel.nn.masks import magnitude

        return magnitude(self._full_weight(name))


@dataclass(kw_only=True)
class GlobalMagnitudePruningModifier(MagnitudePruningModifier):
    """`MagnitudePruningModifier` that ranks the weights of all layers together unless `global_sparsity` is false."""

    global_sparsity: bool = True
    """Rank the weights of all layers together, so that layers differ in sparsity; false: rank per layer."""
