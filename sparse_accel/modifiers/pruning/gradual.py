"""Gradual pruning: sparsity grows by a schedule, and each update drops the weights with the lowest scores.

The base class of all gradual pruning; a subclass gives the scores. Masks are made from scores by a pure function in
`sparse_accel.nn.masks`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import FieldError
from sparse_accel.modifiers.parameter_names import check_patterns
from sparse_accel.modifiers.pruning.base import PruningModifier, short
from sparse_accel.modifiers.pruning.schedule import FROM_PARAM, ScheduledPruning, check_fraction, scheduled_sparsity

if TYPE_CHECKING:
    import torch

    from sparse_accel.modifiers.state import State
    from sparse_accel.progress import Progress

# Fraction of zeros from which a weight counts as sparse.
_SPARSE = 0.1


@dataclass(kw_only=True)
class GradualPruningModifier(ScheduledPruning, PruningModifier):
    """Base class of gradual pruning: `init_sparsity` at `start_epoch`, `final_sparsity` at `end_epoch`."""

    end_epoch: float = -1.0
    """Epoch at which final_sparsity is reached."""

    init_sparsity: float | str = 0.05
    """Fraction of zeros at start_epoch, 0 to 1; `__FROM_PARAM__`: the sparsity that each weight has then."""
    final_sparsity: float | dict[float, list[str]] = 0.95
    """Fraction of zeros at end_epoch, 0 to 1; or a mapping {sparsity: [params]}, with `params` left out."""
    update_frequency: float = -1.0
    """Epochs between two updates of the masks; -1: every step."""
    inter_func: str = "cubic"
    """How sparsity grows from start to end: linear, cubic (fast at first) or inverse_cubic (slow at first)."""
    leave_enabled: bool = True
    """Keep the final masks after end_epoch; false: pruned weights may grow again."""
    mask_type: str | list[int] = "unstructured"
    """What is pruned as one: unstructured (single weights), block4 (blocks of 1 x 4), [rows, columns] (blocks of this
    size) or N:M (N of every M neighbours in a row are kept)."""
    global_sparsity: bool = False
    """Rank the weights of all layers together, so that layers differ in sparsity; false: rank per layer."""
    # What weights are ranked by, for the timeline.
    ranking: ClassVar[str]
    # True: weights that are 0 rank lowest, so with `__FROM_PARAM__` a sparse model keeps its zeros.
    ranks_zeros_lowest: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._final: dict[str, float] = {}  # final sparsity, by weight
        self._initial: dict[str, float] = {}  # initial sparsity, by weight; known once pruning begins
        self._check_schedule()
        table = isinstance(self.final_sparsity, dict)
        for value in self.final_sparsity if isinstance(self.final_sparsity, dict) else [self.final_sparsity]:
            check_fraction("final_sparsity", value)
        if table and self.params not in ("__ALL_PRUNABLE__", []):
            raise FieldError("params", "final_sparsity already names the weights: leave params out")
        if isinstance(self.final_sparsity, dict):
            if not self.final_sparsity or not all(self.final_sparsity.values()):
                raise FieldError("final_sparsity", "expected a mapping {sparsity: [weights]}: list weights in it")
            for patterns in self.final_sparsity.values():
                check_patterns("final_sparsity", patterns)
        else:
            self._check_params()
        if isinstance(self.final_sparsity, dict) and self.global_sparsity and len(self.final_sparsity) > 1:
            raise FieldError("global_sparsity", "needs one final_sparsity, but this mapping has several")
        self._check_mask_type()

    def _check_mask_type(self) -> None:
        kind = self.mask_type
        if isinstance(kind, list):
            if len(kind) != 2 or any(size < 1 for size in kind):
                raise FieldError("mask_type", f"expected [rows, columns], both at least 1, got {kind}")
            return
        group = re.fullmatch(r"(\d{1,9}):(\d{1,9})", kind)
        if group:
            kept, size = int(group[1]), int(group[2])
            if not 0 < kept < size:
                raise FieldError("mask_type", f"in N:M, N must be at least 1 and below M, got {kind}")
            for value in self.final_sparsity if isinstance(self.final_sparsity, dict) else [self.final_sparsity]:
                if abs(value - (1 - kept / size)) > 1e-6:
                    raise FieldError(
                        "final_sparsity", f"mask_type {kind} has sparsity {1 - kept / size:g}, not {value:g}"
                    )
        elif kind not in ("unstructured", "block4"):
            raise FieldError("mask_type", f"expected unstructured, block4, N:M or [rows, columns], got {kind!r}")

    def events(self) -> list[tuple[float, str]]:
        start = max(self.start_epoch, 0.0)
        final = self.final_sparsity if isinstance(self.final_sparsity, dict) else f"{self.final_sparsity:g}"
        begin = "the current sparsity" if isinstance(self.init_sparsity, str) else f"{self.init_sparsity:g}"
        what = f"{short(self.params)}, {self.mask_type}{', global' if self.global_sparsity else ''}"
        end = "final sparsity reached" + ("" if self.leave_enabled else "; pruned weights may grow again")
        return [
            (start, f"pruning by {self.ranking} from {begin} to {final}, {self._rhythm} ({what})"),
            (self.end_epoch, end),
        ]

    def attach(self, state: State) -> None:
        table = self.final_sparsity if isinstance(self.final_sparsity, dict) else {self.final_sparsity: self.params}
        for sparsity, patterns in table.items():
            for name in self._attach_layers(state.model, patterns):
                if self._final.setdefault(name, sparsity) != sparsity:
                    raise UsageError(
                        f"{self.name}: final_sparsity names {name} twice, with {self._final[name]} and {sparsity}"
                    )
        self._check_alone(state)
        self._check_shapes()
        self._say_if_zeros_grow(state)

    def _say_if_zeros_grow(self, state: State) -> None:
        """Adds a notice if the model has more zeros than the first masks will have."""
        if isinstance(self.init_sparsity, str) or any(layers[0].weight.is_meta for layers in self._layers.values()):
            return
        of_groups = ":" in str(self.mask_type)  # N:M has its only sparsity from the first mask on
        zeros = all_weights = count = 0
        for names in [list(self._layers)] if self.global_sparsity else [[name] for name in self._layers]:
            weights = [self._layers[name][0].weight for name in names]
            own = sum(int((weight == 0).sum()) for weight in weights)
            size = sum(weight.numel() for weight in weights)
            first = self._final[names[0]] if of_groups else self.init_sparsity
            if own > max(first, _SPARSE) * size:
                zeros, all_weights, count = zeros + own, all_weights + size, count + len(names)
        if not count:
            return
        which = "the weights" if count == len(self._layers) else f"{count} of the {len(self._layers)} weights"
        more_than = "those of its mask_type" if of_groups else f"init_sparsity {self.init_sparsity:g}"
        ways = ["use a ConstantPruningModifier"]
        if self.ranks_zeros_lowest and not of_groups:
            above = max(self._final.values()) < zeros / all_weights
            raised = f" and a final_sparsity of {zeros / all_weights:.3g} or more" if above else ""
            # Until it starts, nothing else keeps zeros.
            until = f", with a ConstantPruningModifier until epoch {self.start_epoch:g}" if self.start_epoch > 0 else ""
            ways.insert(0, f"set init_sparsity: {FROM_PARAM}{raised}{until}")
        state.notices.append(
            f"{self.name}: {which} of params are {zeros / all_weights:.1%} zero at the start, more than {more_than}: "
            f"the zeros above it may grow again. To keep them, {', or '.join(ways)}"
        )

    def _check_shapes(self) -> None:
        """Checks that blocks and groups divide every weight, before training instead of when pruning begins."""
        from sparse_accel.nn.masks import magnitude_mask

        for name, layers in self._layers.items():
            try:
                magnitude_mask(layers[0].weight, self._final[name], self.mask_type)
            except ValueError as error:
                raise UsageError(
                    f"{self.name}: {name}: {error}. Use another mask_type, or remove this weight from params"
                ) from error

    def bind(self, state: State) -> None:
        self._state = state

    def at_once(self) -> str:
        final = self.final_sparsity if isinstance(self.final_sparsity, dict) else [self.final_sparsity]
        return f" (to {', '.join(f'{sparsity:g}' for sparsity in final)})"

    def phase(self) -> str:
        if self._progress is None or not self._progress.reached(self.start_epoch):
            return ""
        if not self._progress.reached(self.end_epoch):
            return "pruning"
        return "pruned" if self.leave_enabled else ""

    def _left(self, name: str) -> torch.Tensor | None:
        """As in the base class; of a block that is left in part, all weights count."""
        from sparse_accel.nn.masks import whole_blocks

        left = super()._left(name)
        return left if left is None else whole_blocks(left, self._layers[name][0].whole_shape, self.mask_type)

    def _weights_left(self, name: str) -> torch.Tensor:
        """Returns the effective weights that sparsity is counted among, of any shape."""
        weight, left = self._full_weight(name), self._left(name)
        return weight if left is None else weight[left.expand(weight.shape)]

    def _initial_sparsities(self) -> dict[str, float]:
        from sparse_accel.nn.masks import sparsity_of

        if isinstance(self.init_sparsity, str):
            return {name: sparsity_of(self._weights_left(name)) for name in self._layers}
        return dict.fromkeys(self._layers, self.init_sparsity)

    def _update(self, progress: Progress | None) -> None:
        """Sets the masks for `progress`; None means the end of the range."""
        if not self._initial:
            self._initial = self._initial_sparsities()
        fraction = self._fraction(progress)
        targets = {
            name: scheduled_sparsity(fraction, self._initial[name], final, self.inter_func)
            for name, final in self._final.items()
        }
        if ":" in str(self.mask_type):  # N:M has only one sparsity, from the first mask on
            targets = dict(self._final)
        self._prune(targets)

    def _remove_masks(self) -> None:
        PruningModifier._remove_masks(self)

    def _prune(self, targets: dict[str, float]) -> None:
        """Sets the masks to these sparsities, by weight."""
        if not self.global_sparsity:
            for name in targets:
                self._set_masks({name: self._score(name)}, targets)
        else:
            self._set_masks({name: self._score(name) for name in targets}, targets)

    def _set_masks(self, scores: dict[str, torch.Tensor], targets: dict[str, float]) -> None:
        """Sets the masks of the weights in `scores`, with one ranking; their mean sparsity is that of their targets."""
        for name, mask in self._masks_of(scores, targets).items():
            self._set_mask(name, mask)

    def _masks_of(self, scores: dict[str, torch.Tensor], targets: dict[str, float]) -> dict[str, torch.Tensor]:
        from sparse_accel.nn.masks import masks_of_scores

        counts = {name: self._count(name) for name in scores}
        sparsity = sum(targets[name] * count for name, count in counts.items()) / max(sum(counts.values()), 1)
        if len({targets[name] for name in scores}) == 1:  # exactly: the number of pruned weights is rounded from it
            sparsity = targets[next(iter(scores))]
        left = [self._left(name) for name in scores]
        return dict(zip(scores, masks_of_scores(list(scores.values()), sparsity, self.mask_type, left), strict=True))

    def _score(self, name: str) -> torch.Tensor:
        """Returns the complete scores of a weight, float32 of its shape, on every process; the lowest are pruned."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, torch.Tensor]:
        import torch

        state = super().state_dict()
        state.update(
            {
                f"initial_sparsity:{name}": torch.tensor(value, dtype=torch.float64)
                for name, value in self._initial.items()
            }
        )
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        clock = self._state.progress
        self._progress = clock.previous() if clock.step else None
        prefix = "initial_sparsity:"
        self._initial = {n.removeprefix(prefix): float(v) for n, v in state.items() if n.startswith(prefix)}
        super().load_state_dict({name: mask for name, mask in state.items() if not name.startswith(prefix)})
