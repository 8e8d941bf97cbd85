"""Gradual pruning by second-order scores: optimal BERT surgeon (oBERT)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparse_accel.errors import UsageError, nearest
from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.modifiers.pruning.gradual import GradualPruningModifier
from sparse_accel.progress import ROUNDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sparse_accel.modifiers.state import State
    from sparse_accel.nn.fisher import FisherBlocks

# Keys of grad_sampler_kwargs: the type of each, and the smallest value.
_SAMPLER_KEYS: dict[str, tuple[type, int]] = {"batch_size": (int, 1), "drop_last": (bool, 0), "num_workers": (int, 0)}
_SHUFFLED = "the rows of gradient samples are always shuffled: remove it"
# Memory of an update from which the start-up table names it.
_NOTABLE_BYTES = 10**9


@dataclass(kw_only=True)
class OBSPruningModifier(GradualPruningModifier):
    """Prunes the weights whose removal raises the loss least, to second order, and moves the others to make up for it.

    oBERT, Kurtic et al. 2022, arXiv 2203.07259. Each update of the masks computes gradients of `num_grads` batches of
    training rows, without dropout and without changing anything else in the run, and from them the inverse of the
    empirical Fisher matrix in blocks. In your own loop, pass `gradient_loader` to `RecipeRun.bind`.
    """

    global_sparsity: bool = True
    """Rank the weights of all layers together, so that layers differ in sparsity; false: rank per layer."""
    mask_type: str | list[int] = "unstructured"
    """What is pruned as one: unstructured (single weights) or block4 (blocks of 1 x 4; [1, 4] is the same)."""
    update_frequency: float = -1.0
    """Required: epochs between two updates of the masks, above 0."""
    num_grads: int = 1024
    """Number of gradient samples of an update; one sample is the mean gradient of one batch."""
    damp: float = 1e-7
    """Added to the diagonal of the Fisher matrix, above 0; larger values rank more by magnitude."""
    fisher_block_size: int = 1
    """Weights in a block of the Fisher matrix: set 50 (unstructured) or 32 (block4), as published recipes do. At 1,
    SparseML's default, the other weights do not move. An update needs about 5 bytes times this number for each weight,
    spread over the processes."""
    grad_sampler_kwargs: dict[str, Any] | None = None
    """Settings of the loader of gradient samples: batch_size (rows of a sample; otherwise those of a training step),
    drop_last, num_workers."""
    num_recomputations: int = 1
    """Number of rounds of an update: each prunes an equal part, with new gradients."""
    grad_loss: Literal["task", "recipe"] = "task"
    """Loss of the gradients: task (labels only, as in SparseML) or recipe (with the terms of DistillationModifier)."""

    ranking: ClassVar[str] = "second-order scores (OBS)"
    acts_at_once: ClassVar[bool] = True
    samples_gradients: ClassVar[bool] = True
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"update_frequency": ()}  # it must be given: -1 is every step

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.update_frequency <= 0:
            raise FieldError(
                "update_frequency",
                "required: epochs between two updates of the masks, above 0 (each update draws num_grads gradient "
                "samples, so it is not done in every step)",
            )
        for key in ("num_grads", "fisher_block_size", "num_recomputations"):
            if getattr(self, key) < 1:
                raise FieldError(key, f"expected 1 or more, got {getattr(self, key)}")
        if self.damp <= 0:
            raise FieldError("damp", f"expected a number above 0, got {self.damp:g}")
        if self.mask_type == "block4" and self.fisher_block_size % 4:
            below = max(self.fisher_block_size // 4 * 4, 4)
            raise FieldError(
                "fisher_block_size",
                f"mask_type block4 needs a multiple of 4, such as {below} or {below + 4}, got {self.fisher_block_size}",
            )
        if not isinstance(self.init_sparsity, str):
            for final in self.final_sparsity if isinstance(self.final_sparsity, dict) else [self.final_sparsity]:
                if final < self.init_sparsity:
                    raise FieldError(
                        "final_sparsity",
                        f"{final:g} is below init_sparsity {self.init_sparsity:g}, but weights that are pruned have no "
                        "gradient, so none comes back",
                    )
        self._check_sampler()

    def _check_mask_type(self) -> None:
        if self.mask_type == [1, 4]:
            self.mask_type = "block4"
        if self.mask_type not in ("unstructured", "block4"):
            raise FieldError(
                "mask_type",
                "scores exist for single weights (unstructured) and for blocks of 1 x 4 (block4), got "
                f"{self.mask_type!r}: use one of them, or MagnitudePruningModifier",
            )

    def _check_sampler(self) -> None:
        for key, value in (self.grad_sampler_kwargs or {}).items():
            if key in ("shuffle", "sampler", "batch_sampler"):
                raise FieldError("grad_sampler_kwargs", f"'{key}' cannot be set: {_SHUFFLED}")
            if key not in _SAMPLER_KEYS:
                hint = nearest(str(key), _SAMPLER_KEYS)
                raise FieldError(
                    "grad_sampler_kwargs", f"there is no '{key}'.{hint} It has: {', '.join(_SAMPLER_KEYS)}"
                )
            kind, smallest = _SAMPLER_KEYS[key]
            is_kind = type(value) is kind  # a bool is an int to isinstance
            if not is_kind or value < smallest:
                what = "true or false" if kind is bool else f"an integer of {smallest} or more"
                raise FieldError("grad_sampler_kwargs", f"{key}: expected {what}, got {value!r}")

    def check_compatible(self, others: Sequence[Modifier]) -> None:
        super().check_compatible(others)
        added = [other for other in others if type(other).loss_terms is not Modifier.loss_terms]
        if self.grad_loss == "recipe" and not any(other.terms_in_eval for other in added):
            left_out = f" ({added[0].name} adds one only in training mode)" if added else ""
            raise FieldError(
                "grad_loss",
                f"recipe: no modifier adds a term to the loss of gradient samples{left_out}: remove this key, or add a "
                "DistillationModifier",
            )

    def events(self) -> list[tuple[float, str]]:
        (start, what), *rest = super().events()
        samples = f"{self.num_grads} gradient samples per update, Fisher blocks of {self.fisher_block_size}"
        return [(start, f"{what}; {samples}"), *rest]

    # --- before training ----------------------------------------------------------------------------------------------

    def attach(self, state: State) -> None:
        from sparse_accel.nn.masks import sparsity_of

        super().attach(state)
        for name, layers in self._layers.items():
            if isinstance(self.init_sparsity, str) and (found := sparsity_of(layers[0].weight)) > self._final[name]:
                raise UsageError(
                    f"{self.name}: {name} has {found:.1%} zeros, more than its final_sparsity {self._final[name]:g}, "
                    "but no pruned weight comes back: raise final_sparsity, or remove this weight from params"
                )
        self._say_if_done_before(state)

    def _say_if_done_before(self, state: State) -> None:
        """Adds a notice if another modifier ends with at least the final sparsity before this one starts."""
        for other in state.modifiers:
            if not isinstance(other, GradualPruningModifier) or other is self or not other.leave_enabled:
                continue
            if other.span[1] <= self.span[0] and all(
                other._final.get(name, 0.0) >= final for name, final in self._final.items()
            ):
                state.notices.append(
                    f"{self.name} has no effect: {other.name} ends at epoch {other.end_epoch:g} with a sparsity of "
                    f"{min(other._final.values()):g}, and final_sparsity here is {max(self._final.values()):g}. Raise "
                    f"it, or remove {self.name}"
                )

    def _check_shapes(self) -> None:
        super()._check_shapes()
        if self.mask_type == "unstructured":  # the last block is padded
            return
        sizes = {name: layers[0].weight.numel() for name, layers in self._layers.items()}
        for name, size in sizes.items():
            if size % self.fisher_block_size:
                common = math.gcd(*sizes.values())
                fitting = [number for number in range(4, min(common, 512) + 1, 4) if common % number == 0]
                fitting.sort(key=lambda number: abs(number - self.fisher_block_size))
                values = ", ".join(map(str, sorted(fitting[:4])))
                raise UsageError(
                    f"{self.name}: fisher_block_size {self.fisher_block_size} does not divide {name}, which has {size} "
                    "weights; mask_type block4 needs that, so that no group of 4 is in two blocks. Values that divide "
                    f"all weights: {values}"
                )

    def bind(self, state: State) -> None:
        from sparse_accel.distributed.collectives import world_size
        from sparse_accel.nn.fisher import fisher_bytes

        super().bind(state)
        frozen = [name for name, layers in self._layers.items() if not layers[0].weight.requires_grad]
        if frozen:
            raise UsageError(
                f"{self.name}: {frozen[0]} is frozen and has no gradient: remove it from params, or do not freeze it"
            )
        assert state.gradient_samples is not None  # the engine raises an error without them
        size, rows = state.gradient_samples.sizes(self.grad_sampler_kwargs or {})
        if rows is not None and self.num_grads > rows:
            raise UsageError(
                f"{self.name}: num_grads asks for {self.num_grads} gradient samples, but there are only {rows} "
                f"training rows: set num_grads to {rows} or less"
            )
        state.notices.append(f"{self.name}: {self._cost(state, size, rows)}")
        weights = sum(layers[0].weight.numel() for layers in self._layers.values())
        needed = fisher_bytes(weights, self.fisher_block_size) / world_size()
        if needed > _NOTABLE_BYTES:
            state.notices.append(
                f"{self.name}: an update of the masks needs about {needed / 1e9:.1f} GB on each process, on the device "
                "of the model: lower fisher_block_size, or use more processes"
            )

    def _cost(self, state: State, size: int | None, rows: int | None) -> str:
        """Returns the number of rows that all updates process, as text.

        Args:
            size: rows of a gradient sample; None if not known.
            rows: training rows; None if not known.
        """
        updates = self._updates(state.progress.steps_per_epoch) if state.trains else 1
        samples = updates * self.num_recomputations * self.num_grads
        rounds = f" x {self.num_recomputations} rounds" if self.num_recomputations > 1 else ""
        text = f"{updates} update{'s' * (updates > 1)}{rounds} x {self.num_grads} samples"
        if size is None:
            return f"{text} = {samples:,} gradient samples"
        text += f" x {size} rows = {samples * size:,} rows"
        if rows is None:
            return text
        times = [total * size / rows for total in (samples, samples / updates)]
        all_updates, one = (f"{number:.1f}" if number < 10 else f"{number:.0f}" for number in times)
        return f"{text}, {all_updates} times the {rows:,} training rows; each update, {one} times"

    def _updates(self, steps_per_epoch: int) -> int:
        """Returns the number of updates that prune more than the one before, so that they draw samples."""
        start, end, every = self.span[0], self.end_epoch, self.update_frequency
        if all(final == self.init_sparsity for final in self._final.values()):
            return 1
        # Several updates may be due in one step; at the first one, the sparsity may be that which the model has.
        epochs = [start + number * every for number in range(math.ceil((end - start) / every - ROUNDING))]
        steps = {math.ceil(epoch * steps_per_epoch - ROUNDING) for epoch in [*epochs, end]}
        if len(steps) > 1 and (isinstance(self.init_sparsity, str) or self.init_sparsity == 0):
            return len(steps) - 1
        return len(steps)

    # --- updates ------------------------------------------------------------------------------------------------------

    def _prune(self, targets: dict[str, float]) -> None:
        before = {name: self._pruned(name) / max(self._count(name), 1) for name in self._layers}
        for number in range(1, self.num_recomputations):
            part = number / self.num_recomputations
            self._prune_once({name: before[name] + part * (targets[name] - before[name]) for name in targets}, number)
        self._prune_once(targets, self.num_recomputations)

    def _prune_once(self, targets: dict[str, float], number: int) -> None:
        """Prunes to these sparsities, with new gradients; nothing if they are reached already."""
        import torch

        from sparse_accel.distributed.collectives import rank_and_size
        from sparse_accel.distributed.gradients import from_owner, owners
        from sparse_accel.distributed.weights import set_full_weight

        if self._reached(targets):
            return
        fisher = self._draw(number)
        for blocks in fisher.values():
            blocks.invert(self.damp)
        kind = str(self.mask_type)
        old = {name: self._mask(name) for name in targets}
        owner = owners({name: mask.numel() for name, mask in old.items()}, rank_and_size()[1])
        scores = {}
        for name in targets:
            weight = self._full_weight(name).float()
            score = fisher[name].scores(weight, kind) if name in fisher else torch.empty_like(weight)
            scores[name] = from_owner(score, owner[name]).masked_fill_(~old[name], -math.inf)
        for name, mask in self._ranked(scores, targets).items():
            weight = self._full_weight(name).float()
            if name in fisher:
                weight = fisher.pop(name).update(weight, old[name] & ~mask, kind)
            weight = from_owner(weight.contiguous(), owner[name])
            self._copy_mask(name, old[name] & mask)
            set_full_weight(self._layers[name][0].weight, weight)

    def _draw(self, number: int) -> dict[str, FisherBlocks]:
        """Returns the Fisher blocks of the weights that this process owns, from new gradient samples."""
        from sparse_accel.nn.fisher import FisherBlocks

        fisher: dict[str, FisherBlocks] = {}

        def take(name: str, gradient: torch.Tensor) -> None:
            if name not in fisher:
                fisher[name] = FisherBlocks(gradient.numel(), self.fisher_block_size, gradient.device)
            fisher[name].add(gradient)

        assert self._state.gradient_samples is not None
        step = self._state.progress.step
        self._state.gradient_samples.draw(
            {name: layers[0].weight for name, layers in self._layers.items()},
            self.num_grads,
            take,
            options=self.grad_sampler_kwargs or {},
            seed=(step, number),  # a resumed run draws the same
            from_recipe=self.grad_loss == "recipe",
            what=f"{self.name}, update of the masks at step {step}",
        )
        return fisher

    def _groups(self, targets: dict[str, float]) -> list[list[str]]:
        """Returns the names of weights that are ranked together."""
        return [list(targets)] if self.global_sparsity else [[name] for name in targets]

    def _ranked(self, scores: dict[str, torch.Tensor], targets: dict[str, float]) -> dict[str, torch.Tensor]:
        found = {}
        for names in self._groups(targets):
            found.update(self._masks_of({name: scores[name] for name in names}, targets))
        return found

    def _reached(self, targets: dict[str, float]) -> bool:
        unit = 4 if self.mask_type == "block4" else 1
        for names in self._groups(targets):
            sizes = {name: self._count(name) for name in names}
            wanted = sum(targets[name] * size for name, size in sizes.items())
            if round(wanted / unit) > sum(self._pruned(name) for name in names) // unit:
                return False
        return True

    def _mask(self, name: str) -> torch.Tensor:
        mask = self._layers[name][0].mask
        assert mask is not None
        return mask

    def _pruned(self, name: str) -> int:
        pruned, left = ~self._mask(name), self._left(name)
        return int(pruned.sum() if left is None else (pruned & left).sum())
