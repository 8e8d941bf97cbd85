"""Scores of units: how much a model loses without one head, or one neuron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparse_accel.nn.structure_masks import MaskedUnits


def relative_norms(squares: Tensor) -> Tensor:
    """Returns the L2 norm of each unit over the root mean square of all of its layer, so that layers compare.

    Args:
        squares: (units,) float, the sum of squares of all that each unit owns.
    """
    return (squares / squares.mean().clamp(min=torch.finfo(squares.dtype).tiny)).sqrt()


class TaylorScores:
    """The change of the loss without a unit, to first order: |sum of weight * gradient| over all that it owns.

    Molchanov et al. 2019, arXiv 1906.10771; for heads, Michel et al. 2019, arXiv 1905.10650. Scores are means over
    steps.

    Args:
        units: those to score.
        device: that of their weights.
    """

    def __init__(self, units: Sequence[MaskedUnits], device: torch.device) -> None:
        self.units = units
        self._sums = torch.zeros(sum(each.count for each in units), device=device)
        self._steps = torch.zeros((), device=device)
        self._means = torch.zeros_like(self._sums)
        self.known = False  # whether there are means

    @torch.no_grad()
    def add(self) -> None:
        """Adds the gradients of a step; one with NaN or inf does not count. All processes must call it."""
        found = torch.cat([each.gradient_products().abs() for each in self.units])
        usable = found.isfinite().all()
        self._sums += torch.where(usable, found, 0.0)
        self._steps += usable

    def take(self) -> list[Tensor]:
        """Returns the means, (units,) float32 of each of `units`, over the steps since the last call; without any such
        step, those of the last call. They are 0 if there has been no step with gradients at all."""
        if self._steps > 0:
            self._means = self._sums / self._steps
            self.known = True
            self._sums.zero_()
            self._steps.zero_()
        return list(self._means.split([each.count for each in self.units]))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns what a resumed run needs."""
        known = torch.tensor(self.known)
        return {"sums": self._sums, "steps": self._steps, "means": self._means, "known": known}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            ValueError: it is that of other units.
        """
        own = self.state_dict()
        if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
            raise ValueError("the scores belong to other units")
        self._sums.copy_(state["sums"])
        self._steps.copy_(state["steps"])
        self._means = state["means"].to(self._sums.device, copy=True)
        self.known = bool(state["known"])
