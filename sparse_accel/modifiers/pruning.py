"""Pruning: which weights are held at zero, and from when. Masks are made by pure functions in `sparse_accel.masks`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparse_accel.errors import UsageError, listed
from sparse_accel.modifiers.base import FieldError, Modifier, spans_overlap
from sparse_accel.modifiers.parameter_names import match_parameter_names
from sparse_accel.progress import ROUNDING

if TYPE_CHECKING:
    import torch

    from sparse_accel.layers import SparseLayer
    from sparse_accel.modifiers.state import State
    from sparse_accel.progress import Progress

FROM_PARAM = "__FROM_PARAM__"


def update_due(progress: Progress, start: float, end: float, frequency: float) -> bool:
    """True at the steps that begin with a new mask: at start, each `frequency` epochs from there, and at end.

    Args:
        start, end, frequency: epochs; a frequency of -1 stands for every step.
    """
    start = max(start, 0.0)
    if progress.begins(start) or progress.begins(end):
        return True
    if not progress.reached(start) or progress.reached(end):
        return False
    if frequency <= 0:
        return True
    passed, passed_before = ((clock.epoch - start) / frequency for clock in (progress, progress.previous()))
    return math.floor(passed + ROUNDING) > math.floor(passed_before + ROUNDING)


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

        from sparse_accel.layers import make_sparse, maskable_layers, prunable_names

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
        from sparse_accel.sharding import full_weight

        layer = self._layers[name][0]
        assert layer.mask is not None
        return full_weight(layer.weight).masked_fill(~layer.mask, 0.0)

    def _set_mask(self, name: str, mask: torch.Tensor) -> None:
        """Changes a mask. Weights that it gives back restart at 0, whatever lay under the old one."""
        from sparse_accel.sharding import clear_weight

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

    def _lift_masks(self) -> None:
        """Lets pruned weights grow again."""
        for name, mask in PruningModifier.state_dict(self).items():
            self._set_mask(name, mask.new_ones(mask.shape))

    def finish(self) -> None:
        """Stored weights become what the model computes with, so that any way of saving them writes the zeros."""
        from sparse_accel.sharding import clear_weight

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


@dataclass(kw_only=True)
class MagnitudePruningModifier(PruningModifier):
    """Prunes the smallest weights step by step, from `init_sparsity` at the start to `final_sparsity` at the end.

    Zhu & Gupta 2017, arXiv 1710.01878. Weights are ranked as the model uses them: what is pruned counts as 0, so masks
    only tighten while sparsity grows.
    """

    init_sparsity: float | str = 0.05
    """Sparsity at start_epoch, 0 to 1; `__FROM_PARAM__` takes each weight's own at that moment."""
    final_sparsity: float | dict[float, list[str]] = 0.95
    """Sparsity at end_epoch, 0 to 1; or a table {sparsity: [params]}, with `params` left out."""
    update_frequency: float = -1.0
    """Epochs between two masks; -1 makes a new one at every step."""
    inter_func: str = "cubic"
    """How sparsity grows in between: linear, cubic, inverse_cubic."""
    leave_enabled: bool = True
    """Keep the final mask after end_epoch; otherwise pruned weights may grow again."""
    mask_type: str | list[int] = "unstructured"
    """unstructured; block4 (1 x 4 blocks); N:M (keep N of M neighbours); or [rows, columns] of a block."""
    global_sparsity: bool = False
    """Rank all weights together, so that layers differ in sparsity; otherwise each has the sparsity asked for."""
    phased: bool = False
    """The old tool's alternation of pruned and dense phases; only false is supported."""

    acts_at_once: ClassVar[bool] = True
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"score_type": ("magnitude",)}
    known_later: ClassVar[dict[str, str]] = {"score_type": "weights are ranked by magnitude"}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._final: dict[str, float] = {}  # sparsity to end with, by weight
        self._initial: dict[str, float] = {}  # sparsity to begin with, by weight; known once pruning begins
        self._progress: Progress | None = None
        self._finished = False
        if self.end_epoch < 0:
            raise FieldError("end_epoch", f"{self.name} needs an end_epoch: when final_sparsity is reached")
        if isinstance(self.init_sparsity, str):
            if self.init_sparsity != FROM_PARAM:
                raise FieldError(
                    "init_sparsity", f"init_sparsity is a number or {FROM_PARAM}, not {self.init_sparsity!r}"
                )
        else:
            _check_share("init_sparsity", self.init_sparsity)
        table = isinstance(self.final_sparsity, dict)
        for value in self.final_sparsity if isinstance(self.final_sparsity, dict) else [self.final_sparsity]:
            _check_share("final_sparsity", value)
        if table and self.params not in ("__ALL_PRUNABLE__", []):
            raise FieldError("params", "final_sparsity already names the weights: leave params out")
        if isinstance(self.final_sparsity, dict):
            if not self.final_sparsity or not all(self.final_sparsity.values()):
                raise FieldError(
                    "final_sparsity", "final_sparsity is a table {sparsity: [weights]}: list weights in it"
                )
        else:
            self._check_params()
        if table and self.global_sparsity:
            raise FieldError("global_sparsity", "global_sparsity needs one final_sparsity, not a table")
        if self.inter_func not in ("linear", "cubic", "inverse_cubic"):
            raise FieldError("inter_func", f"inter_func is linear, cubic or inverse_cubic, not {self.inter_func!r}")
        if self.phased:
            raise FieldError("phased", "phased is known, not supported yet: there are no dense phases in between")
        self._check_mask_type()

    def _check_mask_type(self) -> None:
        kind = self.mask_type
        if isinstance(kind, list):
            if len(kind) != 2 or any(size < 1 for size in kind):
                raise FieldError("mask_type", f"a block is [rows, columns], both at least 1, not {kind}")
            return
        group = re.fullmatch(r"(\d+):(\d+)", kind)
        if group:
            kept, size = int(group[1]), int(group[2])
            if not 0 < kept < size:
                raise FieldError("mask_type", f"{kind} keeps {kept} of {size}: N must be at least 1 and below M")
            for value in self.final_sparsity if isinstance(self.final_sparsity, dict) else [self.final_sparsity]:
                if abs(value - (1 - kept / size)) > 1e-6:
                    raise FieldError(
                        "final_sparsity", f"mask_type {kind} has sparsity {1 - kept / size:g}, not {value:g}"
                    )
        elif kind not in ("unstructured", "block4"):
            raise FieldError("mask_type", f"mask_type is unstructured, block4, N:M or [rows, columns], not {kind!r}")

    def events(self) -> list[tuple[float, str]]:
        start = max(self.start_epoch, 0.0)
        every = "every step" if self.update_frequency <= 0 else f"every {self.update_frequency:g} epochs"
        final = self.final_sparsity if isinstance(self.final_sparsity, dict) else f"{self.final_sparsity:g}"
        begin = "its own" if isinstance(self.init_sparsity, str) else f"{self.init_sparsity:g}"
        what = f"{short(self.params)}, {self.mask_type}{', ranked together' if self.global_sparsity else ''}"
        end = "final sparsity reached" + ("" if self.leave_enabled else "; pruned weights may grow again")
        return [
            (start, f"pruning by magnitude from {begin} to {final}, {self.inter_func}, {every} ({what})"),
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

    def _check_shapes(self) -> None:
        """Blocks and groups must divide every weight: found now, not at the epoch in which pruning begins."""
        from sparse_accel.masks import magnitude_mask

        for name, layers in self._layers.items():
            try:
                magnitude_mask(layers[0].weight, self._final[name], self.mask_type)
            except ValueError as error:
                raise UsageError(
                    f"{self.name}: {name}: {error}. Take another mask_type, or leave it out of params"
                ) from error

    def bind(self, state: State) -> None:
        self._state = state

    def step_begin(self, progress: Progress) -> None:
        self._progress = progress
        if update_due(progress, self.start_epoch, self.end_epoch, self.update_frequency):
            if not self._initial:
                self._initial = self._initial_sparsities()
            self._prune(progress)
            if progress.reached(self.end_epoch) and not self.leave_enabled:
                self._lift_masks()

    def finish(self) -> None:
        """The range may end where training ends: the final sparsity is reached all the same."""
        if self._progress is None or not self._progress.reached(self.end_epoch):
            if not self._initial:
                self._initial = self._initial_sparsities()
            self._prune(None)
        self._finished = True
        super().finish()

    def apply_at_once(self, forwards: Callable[[], Iterator[None]]) -> None:
        self.finish()

    def phase(self) -> str:
        if self._progress is None or not self._progress.reached(self.start_epoch):
            return ""
        if not self._progress.reached(self.end_epoch):
            return "pruning"
        return "pruned" if self.leave_enabled else ""

    def settled(self, progress: Progress) -> bool:
        return self._finished or (self._progress is not None and self._progress.reached(self.end_epoch))

    def _initial_sparsities(self) -> dict[str, float]:
        from sparse_accel.masks import sparsity_of

        if isinstance(self.init_sparsity, str):
            return {name: sparsity_of(self._full_weight(name)) for name in self._layers}
        return dict.fromkeys(self._layers, self.init_sparsity)

    def _prune(self, progress: Progress | None) -> None:
        """Sets the masks for this moment; None stands for the end of the range."""
        from sparse_accel.masks import global_magnitude_masks, magnitude_mask, scheduled_sparsity

        fraction = 1.0
        if progress is not None and not progress.reached(self.end_epoch):
            start = max(self.start_epoch, 0.0)
            fraction = (progress.epoch - start) / (self.end_epoch - start)
        targets = {
            name: scheduled_sparsity(fraction, self._initial[name], final, self.inter_func)
            for name, final in self._final.items()
        }
        if ":" in str(self.mask_type):  # N:M has one sparsity: all of it from the first mask on
            targets = dict(self._final)
        if self.global_sparsity:
            weights = {name: self._full_weight(name) for name in self._layers}
            count = sum(weight.numel() for weight in weights.values())
            sparsity = sum(targets[name] * weight.numel() for name, weight in weights.items()) / count
            for name, mask in zip(
                weights, global_magnitude_masks(list(weights.values()), sparsity, self.mask_type), strict=True
            ):
                self._set_mask(name, mask)
            return
        for name, sparsity in targets.items():
            self._set_mask(name, magnitude_mask(self._full_weight(name), sparsity, self.mask_type))

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


def _check_share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise FieldError(key, f"{key} is a share between 0 and 1, not {value:g}")


def short(params: str | list[str]) -> str:
    """The key `params` in a few words, for the timeline."""
    if isinstance(params, str):
        return params
    return params[0] if len(params) == 1 else f"{len(params)} patterns"
