"""Structured pruning: attention heads, neurons of the feed-forward and blocks of an encoder, which can be removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparse_accel.errors import UsageError, listed
from sparse_accel.modifiers.base import spans_overlap
from sparse_accel.modifiers.layer_dropping import drop_layers, names_after
from sparse_accel.modifiers.pruning.base import layers_of
from sparse_accel.modifiers.pruning.gradual import GradualPruningModifier
from sparse_accel.modifiers.pruning.schedule import scheduled_sparsity
from sparse_accel.modifiers.pruning.structured_keys import StructuredPruningKeys
from sparse_accel.modifiers.pruning.structured_targets import MultiplyAdds, ShareOfRows, ShareOfUnits, Target, groups

if TYPE_CHECKING:
    import torch

    from sparse_accel.modifiers.state import State
    from sparse_accel.nn.structure_masks import MaskedUnits
    from sparse_accel.nn.structure_scores import TaylorScores
    from sparse_accel.progress import Progress


@dataclass(kw_only=True)
class StructuredPruningModifier(StructuredPruningKeys):
    """Prunes attention heads and neurons of the feed-forward gradually, from `start_epoch` to `end_epoch`.

    A head, or a neuron, goes as a whole: its rows of weights with their biases, and its columns of the next layer. In
    the output folder all of these are 0 and the tensors keep their size; the export removes them, see
    [structure.md](structure.md). Each block keeps at least one head and one neuron. What is pruned does not come back.
    Modifiers that prune single weights of the same layers count sparsity among the weights that are left.

    With the keys of SparseML (`params`, `param_groups`, `mask_type`) it does what SparseML's does: it sets rows or
    columns of single weights to 0, and no biases. The export removes nothing of that.
    """

    acts_at_once: ClassVar[bool] = True
    applied_first: ClassVar[bool] = True  # sparsity of single weights is counted among those that it leaves
    without_gradients: ClassVar[str] = "score to magnitude"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._target: Target | None = None
        self._initial: dict[str, float] = {}  # initial shares, by the target's names; known once pruning begins
        self._multiply_adds = 0  # of the model before layers are dropped
        self._taylor: TaylorScores | None = None
        self._due = False  # whether the masks are to be updated as soon as there are gradients that count

    @property
    def needs_gradients(self) -> bool:  # type: ignore[override]
        """True if units are ranked by gradients."""
        return self.score == "taylor"

    @property
    def drops_layers_at_start(self) -> bool:
        return bool(self.layers)

    # --- before training ----------------------------------------------------------------------------------------------

    def prepare_structure(self, state: State) -> str:
        from sparse_accel.nn.blocks import encoder_blocks
        from sparse_accel.nn.structure_removal import structure_of

        if self._of_rows:
            return ""
        try:
            self._multiply_adds = structure_of(state.model).multiply_adds
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}") from error
        if not self.layers:
            return ""
        prefix, _ = encoder_blocks(state.model)
        return names_after(drop_layers(state, [f"{prefix}.{number}" for number in self.layers], self.name), self.name)

    def attach(self, state: State) -> None:
        try:
            self._target = self._rows(state.model) if self._of_rows else self._heads_and_neurons(state.model)
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}") from error
        self._check_alone(state)
        self._check_start()

    def _check_start(self) -> None:
        """Raises UsageError if more is pruned at the start than at the end."""
        assert self._target is not None
        has_values = not any(layer.weight.is_meta for each in self._units for layer in each.layers)
        if self._of_rows or not has_values:
            return
        final, what = self._target.final(), "is 0 already"
        if isinstance(self.init_sparsity, str):
            initial = self._target.initial()
        else:
            initial, what = dict.fromkeys(final, self.init_sparsity), "is pruned at the start by init_sparsity"
        for name, share in initial.items():
            if share > final[name]:
                raise UsageError(
                    f"{self.name}: {share:.1%} of {name} {what}, more than the {final[name]:.1%} to be pruned at the "
                    "end, but nothing that is pruned comes back: prune more, or less at the start"
                )

    def _rows(self, model: torch.nn.Module) -> Target:
        from sparse_accel.nn.structure_masks import MaskedUnits

        layers: dict[str, list[torch.nn.Module]] = {}
        shares: dict[str, float] = {}
        for share, patterns in self._table.items():
            for name, found in layers_of(model, patterns, self.name).items():
                if shares.setdefault(name, share) != share:
                    raise ValueError(f"final_sparsity names {name} twice, with {shares[name]:g} and {share:g}")
                layers[name] = found
        units = []
        for names in groups(list(layers), self.param_groups or []):
            if len({shares[name] for name in names}) > 1:
                raise ValueError(f"param_groups: {listed(names)} have one mask: give them one final_sparsity")
            members = {name: layers[name] for name in names}
            rows, columns = ({}, members) if self.mask_type == "channel" else (members, {})
            try:
                units.append(MaskedUnits(names[0], 1, rows, columns))
            except ValueError as error:
                raise ValueError(f"param_groups: weights of one mask need as many {self._lines}: {error}") from error
        return ShareOfRows(units, shares)

    def _heads_and_neurons(self, model: torch.nn.Module) -> Target:
        from sparse_accel.nn.structure import encoder_units
        from sparse_accel.nn.structure_masks import masked_units
        from sparse_accel.nn.structure_removal import structure_of

        units = [masked_units(model, each) for each in encoder_units(model) if each.part in self._parts]
        total = structure_of(model).multiply_adds
        if self.final_multiply_adds is None:
            return ShareOfUnits(units, total, self._shares, self.uniform is not False)
        return MultiplyAdds(units, total, self.final_multiply_adds * self._multiply_adds, self.needs_gradients)

    def _check_alone(self, state: State) -> None:
        """Raises UsageError if another of this kind masks the same rows or columns at the same time."""
        for other in state.modifiers:
            if other is self or not isinstance(other, StructuredPruningModifier) or other._target is None:
                continue
            taken = {line for each in other._target.units for line in each.lines}
            shared = [name for each in self._units for name in each.lines if name in taken]
            if shared and spans_overlap(self.span, other.span):
                raise UsageError(
                    f"{self.name}: {shared[0]} are pruned by another {other.name} at the same time: name each part, or "
                    "weight, in one of them, or start one where the other ends"
                )

    @property
    def _units(self) -> list[MaskedUnits]:
        return list(self._target.units) if self._target is not None else []

    def bind(self, state: State) -> None:
        from sparse_accel.distributed.weights import local_part
        from sparse_accel.nn.structure_scores import TaylorScores

        self._state = state
        if goal := (self._target.goal() if self._target else ""):
            state.notices.append(f"{self.name}: {goal}")
        self._say_if_last(state)
        if not self.needs_gradients:
            return
        frozen = [
            name
            for each in self._units
            for name, layers in {**each.rows, **each.columns}.items()
            if not layers[0].weight.requires_grad
        ]
        if frozen:
            raise UsageError(
                f"{self.name}: {frozen[0]} is frozen and has no gradient to score it by: set score to magnitude, or do "
                "not freeze it"
            )
        self._taylor = TaylorScores(self._units, local_part(self._units[0].layers[0].weight).device)

    def _say_if_last(self, state: State) -> None:
        """Adds a notice if another modifier, which counts what is left, is done before the structure is final."""
        own = {id(layer) for each in self._units for layer in each.layers}
        for other in state.modifiers:
            if (
                isinstance(other, GradualPruningModifier)
                and other.span[1] < self.span[1]
                and any(id(layer) in own for layers in other._layers.values() for layer in layers)
            ):
                state.notices.append(
                    f"{other.name} reaches its sparsity at epoch {other.span[1]:g}, but {self.name} removes weights "
                    f"until epoch {self.span[1]:g}: the sparsity of what is left then differs. Let the structure end "
                    "first"
                )

    # --- updates ------------------------------------------------------------------------------------------------------

    def step_begin(self, progress: Progress) -> None:
        if not self.needs_gradients:
            super().step_begin(progress)
            return
        self._progress = progress
        self._due = self._due or self._is_due(progress)

    def grads_ready(self) -> None:
        """Adds the step to the scores, and updates the masks where that is due.

        Not in `step_begin`, as with magnitude: at `start_epoch` 0 there is nothing to rank by before the first step.
        """
        if self._taylor is None or self._progress is None or (self._reached_end() and not self._due):
            return
        self._taylor.add()
        if self._due:
            self._due = False
            self._update_in(self._progress)

    def _update(self, progress: Progress | None) -> None:
        assert self._target is not None
        if not self._initial:
            zeros = self._target.initial() if isinstance(self.init_sparsity, str) else None
            self._initial = zeros or dict.fromkeys(self._target.final(), float(self.init_sparsity))
        fraction = self._fraction(progress)

        def share(name: str, final: float) -> float:
            return scheduled_sparsity(fraction, self._initial[name], final, self.inter_func)

        for each, kept in zip(self._units, self._target.masks(self._scores(), share), strict=True):
            each.change(kept)

    def _scores(self) -> list[torch.Tensor]:
        assert self._target is not None
        if self._taylor is None:
            return self._target.scores()
        found = self._taylor.take()
        if not self._taylor.known:
            raise UsageError(
                f"{self.name}: units are to be pruned now, but no gradient has reached them, so they cannot be ranked. "
                "A loop of your own must call run.grads_ready() in every step"
            )
        return found

    def _remove_masks(self) -> None:
        for each in self._units:
            each.change(each.kept.new_ones(each.count))

    def _reached_end(self) -> bool:
        return super()._reached_end() and not self._due

    def finish(self) -> None:
        """Reaches the final structure, and sets what is pruned to 0 in storage too."""
        super().finish()
        for each in self._units:
            each.clear(each.kept)

    def check_acts_at_once(self) -> None:
        super().check_acts_at_once()
        if self.needs_gradients:
            raise UsageError(
                f"--one_shot: {self.name} with score taylor ranks by the gradients of training: set score to "
                "magnitude, or use --do_train"
            )

    # --- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        import torch

        state = {f"kept:{each.name}": each.kept for each in self._units}
        for name, share in self._initial.items():
            state[f"initial:{name}"] = torch.tensor(share, dtype=torch.float64)
        if self._taylor is not None:
            state |= {f"taylor:{name}": value for name, value in self._taylor.state_dict().items()}
            state["due"] = torch.tensor(self._due)
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        clock = self._state.progress
        self._progress = clock.previous() if clock.step else None

        def of(prefix: str) -> dict[str, torch.Tensor]:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        masks = of("kept:")
        if {name: len(mask) for name, mask in masks.items()} != {each.name: each.count for each in self._units}:
            raise ValueError(f"the masks of {self.name} belong to other units: {listed(masks, 3)}")
        for each in self._units:
            each.set_kept(masks[each.name])
        self._initial = {name: float(share) for name, share in of("initial:").items()}
        if self._taylor is not None:
            self._taylor.load_state_dict(of("taylor:"))
            self._due = bool(state["due"])
