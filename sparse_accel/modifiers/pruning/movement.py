"""Gradual pruning by movement: weights that training moves towards zero are pruned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.pruning.base import PruningModifier
from sparse_accel.modifiers.pruning.gradual import GradualPruningModifier
from sparse_accel.progress import ROUNDING

if TYPE_CHECKING:
    import torch

    from sparse_accel.modifiers.state import State
    from sparse_accel.progress import Progress


@dataclass(kw_only=True)
class MovementPruningModifier(GradualPruningModifier):
    """Prunes weights that move towards 0 gradually: `init_sparsity` at `start_epoch`, `final_sparsity` at `end_epoch`.

    Sanh et al. 2020, arXiv 2005.07683: made for fine-tuning, where sizes of weights mostly come from pretraining. In
    every step, from the first one of training on, 0.01 * gradient * weight is subtracted from the score of each weight;
    the lowest scores are pruned. A step updates its masks after its gradients are known. A tensor whose gradient
    contains NaN or inf keeps its scores in that step.
    """

    straight_through: bool = False
    """true, as in the paper: gradients pass the mask, so that pruned weights keep their stored values and are still
    scored, and come back with these values when their scores rise; false, as in SparseML: the score of a pruned weight
    no longer changes, and one that comes back restarts at 0."""

    ranking: ClassVar[str] = "movement"
    needs_gradients: ClassVar[bool] = True
    ranks_zeros_lowest: ClassVar[bool] = False  # scores begin at 0, whatever the weights are

    def __post_init__(self) -> None:
        super().__post_init__()
        # By weight, float32: this process's part, laid out as the weight. Only an update of the masks gathers it.
        self._scores: dict[str, torch.Tensor] = {}
        self._scoring = False  # whether scores are still needed
        self._due = False  # whether the masks are to be updated as soon as there are gradients that count

    def events(self) -> list[tuple[float, str]]:
        (start, text), end = super().events()
        return [(start, f"{text}, straight-through" if self.straight_through else text), end]

    def attach(self, state: State) -> None:
        super().attach(state)
        others = [m for m in state.modifiers if isinstance(m, MovementPruningModifier) and m is not self]
        if shared := [name for name in self._layers if any(name in other._layers for other in others)]:
            raise UsageError(
                f"{self.name}: {shared[0]} is in params of two of this kind, which both score it from the first step "
                "on: remove it from params of one"
            )

    def bind(self, state: State) -> None:
        import torch

        from sparse_accel.distributed.weights import local_part

        super().bind(state)
        for name, layers in self._layers.items():
            weight = layers[0].weight
            if not weight.requires_grad:
                raise UsageError(
                    f"{self.name}: {name} is frozen, so it has no gradient to score it by: remove it from params, or "
                    "do not freeze it"
                )
            self._scores[name] = torch.zeros_like(local_part(weight), dtype=torch.float32)
        self._check_next(state)

    def _check_next(self, state: State) -> None:
        """Raises UsageError if another modifier begins to prune one of these weights in the step at `end_epoch`.

        The other sets its masks before the gradients of that step, and the last update here, after them, replaces them.
        The zeros that a modifier keeps are the same ones, unless this one gives them up then.
        """
        steps = state.progress.steps_per_epoch

        def first_step(epoch: float) -> int:
            return math.ceil(epoch * steps - ROUNDING)

        for other in state.modifiers:
            if not isinstance(other, PruningModifier) or other is self:
                continue
            replaced = not self.leave_enabled or isinstance(other, GradualPruningModifier)
            if not replaced or first_step(other.span[0]) != first_step(self.end_epoch):
                continue
            if shared := [name for name in self._layers if name in other._layers]:
                instead = "" if self.leave_enabled else ", or set leave_enabled to true"
                raise UsageError(
                    f"{self.name}: {shared[0]} is pruned by {other.name} from epoch {other.span[0]:g} on, the step in "
                    f"which this modifier sets its last masks: let {other.name} start at epoch "
                    f"{(first_step(self.end_epoch) + 1) / steps:.8g} or later{instead}"
                )

    def step_begin(self, progress: Progress) -> None:
        self._progress = progress
        self._due = self._due or self._is_due(progress)
        self._set_scoring(self._due or not progress.reached(self.end_epoch))

    def _set_scoring(self, scoring: bool) -> None:
        """Turns scores on or off, together with the gradients of pruned weights that they need."""
        self._scoring = scoring
        for layers in self._layers.values():
            for layer in layers:
                layer.straight_through = scoring and self.straight_through

    def grads_ready(self) -> None:
        """Adds the step to the scores, and updates the masks where that is due.

        Not in `step_begin`, as other modifiers: with `start_epoch` 0 there is nothing to rank by before the first step.
        """
        if not self._scoring:
            return
        self._add_to_scores()
        updated = self._due
        if updated:
            assert self._progress is not None
            self._due = False
            self._update_in(self._progress)
        if updated or self.straight_through:  # otherwise the mask has already cut them off
            self._clear_gradients()

    def _add_to_scores(self) -> None:
        import torch

        from sparse_accel.distributed.collectives import reduce_sum
        from sparse_accel.distributed.weights import is_sharded, local_part
        from sparse_accel.nn.masks import add_movement

        weights = {name: self._layers[name][0].weight for name in self._scores}
        gradients = {name: local_part(weight.grad) for name, weight in weights.items() if weight.grad is not None}
        if not gradients:
            return
        # The sum of numbers that contain NaN or inf is NaN or inf.
        sums = torch.stack([gradient.sum(dtype=torch.float32) for gradient in gradients.values()])
        if any(is_sharded(weight) for weight in weights.values()):
            sums = reduce_sum(sums)  # one process's NaN counts for all parts of the tensor
        with torch.no_grad():
            for (name, gradient), usable in zip(gradients.items(), sums.isfinite(), strict=True):
                add_movement(self._scores[name], gradient, local_part(weights[name]), usable)

    def _clear_gradients(self) -> None:
        """Keeps the gradients of pruned weights from the optimizer."""
        from sparse_accel.distributed.weights import is_sharded, local_part, local_part_of
        from sparse_accel.nn.masks import clear

        for first, *_ in self._layers.values():
            mask = first.mask_in_use()
            assert mask is not None
            if first.weight.grad is None:
                continue
            if is_sharded(first.weight):
                whole = mask.expand(first.whole_shape).contiguous()
                clear(local_part(first.weight.grad), local_part_of(whole, first.weight))
            else:
                first.clear_masked(first.weight.grad)

    def _score(self, name: str) -> torch.Tensor:
        from sparse_accel.distributed.weights import full_from_parts

        return full_from_parts(self._scores[name], self._layers[name][0].weight)

    def _masks_of(self, scores: dict[str, torch.Tensor], targets: dict[str, float]) -> dict[str, torch.Tensor]:
        for name, score in scores.items():
            if targets[name] > 0 and not score.any():
                raise UsageError(
                    f"{self.name}: {name} is to be pruned now, but no gradient has reached it, so its weights cannot "
                    "be ranked. If it is frozen, remove it from params. A loop of your own must call run.grads_ready() "
                    "in every step"
                )
        return super()._masks_of(scores, targets)

    def _set_mask(self, name: str, mask: torch.Tensor) -> None:
        if self.straight_through:
            self._copy_mask(name, mask)
        else:
            super()._set_mask(name, mask)

    def _remove_masks(self) -> None:
        if self.straight_through:
            PruningModifier.finish(self)  # pruned weights restart at 0, not at their stored values
        super()._remove_masks()

    def _reached_end(self) -> bool:
        return super()._reached_end() and not self._due

    def finish(self) -> None:
        super().finish()
        self._set_scoring(False)

    def state_dict(self) -> dict[str, torch.Tensor]:
        import torch

        state = super().state_dict()
        state.update({f"score:{name}": self._score(name) for name in self._scores})
        state["due"] = torch.tensor(self._due)
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        from sparse_accel.distributed.weights import local_part_of

        prefix = "score:"
        scores = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        shapes = {name: layers[0].weight.shape for name, layers in self._layers.items()}
        if "due" not in state or {name: score.shape for name, score in scores.items()} != shapes:
            raise ValueError(f"the scores of {self.name} belong to other weights")
        super().load_state_dict(
            {key: value for key, value in state.items() if key != "due" and not key.startswith(prefix)}
        )
        self._due = bool(state["due"])
        for name, score in scores.items():
            self._scores[name].copy_(local_part_of(score, self._layers[name][0].weight))
