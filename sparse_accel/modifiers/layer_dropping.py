"""Layer dropping: blocks of the encoder that are left out, from the start or from an epoch on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparse_accel.errors import UsageError, listed, nearest
from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.modifiers.parameter_names import check_patterns, match_parameter_names

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparse_accel.modifiers.state import State
    from sparse_accel.progress import Progress


@dataclass(kw_only=True)
class LayerPruningModifier(Modifier):
    """Drops blocks of the encoder, such as bert.encoder.layer.2: the output is a model with fewer layers.

    With a `start_epoch` of 0 or less, the blocks are removed before anything else: the model trains with fewer layers,
    and all other names of the recipe are those of the shortened model, where later blocks have moved up. From a later
    epoch on, the blocks are skipped: hidden states pass unchanged, nothing is computed. Models that are saved from then
    on do not contain them, later blocks move up there, and config.json has the new number of layers.

    In an own loop, `run.finish()` removes skipped blocks; save a model before it with `models.files.save_model`. A
    global sparsity counts the weights of blocks that are dropped later.
    """

    end_epoch: float = -1.0
    """Must be left out: a dropped layer does not come back."""
    layers: list[str] | str
    """Names of blocks of the encoder, or `re:PATTERN`; at least one block must stay."""

    acts_at_once: ClassVar[bool] = True
    without_effect: ClassVar[dict[str, str]] = {"update_frequency": "layers are dropped once, at start_epoch"}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._blocks: dict[str, nn.Module] = {}  # those that are dropped after the start, by name
        self._removed = 0  # how many were removed at the start
        self._skips = False
        if self.end_epoch != -1:
            raise FieldError("end_epoch", "a dropped layer does not come back: leave end_epoch out")
        if not all(self._patterns) or not self._patterns:
            raise FieldError("layers", "must not be empty: name layers, such as bert.encoder.layer.2")
        for pattern in self._patterns:
            if pattern.startswith("__"):
                raise FieldError(
                    "layers",
                    f"{pattern} would drop every layer, but one must stay: name layers, such as bert.encoder.layer.2",
                )
        check_patterns("layers", self.layers)

    @property
    def _patterns(self) -> list[str]:
        return [self.layers] if isinstance(self.layers, str) else self.layers

    @property
    def drops_layers_at_start(self) -> bool:
        return self.start_epoch <= 0

    def events(self) -> list[tuple[float, str]]:
        return [(self.span[0], f"layers dropped: {listed(self._patterns, 4)}")]

    def prepare_structure(self, state: State) -> str:
        if not self.drops_layers_at_start:
            return ""
        found = drop_layers(state, self._patterns, self.name)
        self._removed = len(found)
        return names_after(found, self.name)

    def attach(self, state: State) -> None:
        from sparse_accel.nn.blocks import make_skippable

        if self.drops_layers_at_start:
            return
        others = [each for each in state.modifiers if isinstance(each, LayerPruningModifier) and each is not self]
        taken = {name for other in others for name in other._blocks}
        try:
            blocks = make_skippable(state.model)
        except ValueError as error:
            raise _refused(self._patterns, self.name, error) from error
        found = _find(state, self._patterns, taken, self.name)
        self._blocks = {name: blocks[index] for name, index in found.items()}
        left = len(blocks) - len(taken) - len(found)
        state.notices.append(
            f"{self.name}: {listed(found, 4)} dropped from epoch {self.start_epoch:g}: {left} of {len(blocks)} stay"
        )

    def step_begin(self, progress: Progress) -> None:
        self._skip(progress.reached(self.start_epoch))

    def bind(self, state: State) -> None:
        self._state = state

    def finish(self) -> None:
        """Drops the layers also if `start_epoch` is the end of training. The engine then removes them."""
        self._skip(True)

    def apply_at_once(self, forwards: Callable[[], Iterator[None]]) -> None:
        self._skip(True)

    def _skip(self, skipped: bool) -> None:
        from sparse_accel.nn.blocks import skip

        self._skips = skipped
        for block in self._blocks.values():
            skip(block, skipped)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        clock = self._state.progress
        self._skip(clock.step > 0 and clock.previous().reached(self.start_epoch))  # as in the step before

    def phase(self) -> str:
        dropped = self._removed or (len(self._blocks) if self._skips else 0)
        return f"{dropped} layer{'s' * (dropped > 1)} dropped" if dropped else ""

    def structure_final(self, progress: Progress) -> bool:
        return self.drops_layers_at_start or self._skips


# --- which layers -----------------------------------------------------------------------------------------------------


def drop_layers(state: State, patterns: Sequence[str], modifier: str) -> dict[str, int]:
    """Removes blocks of the model, adds a notice, and returns what their indices were, by name.

    Args:
        patterns: names of blocks, or `re:PATTERN`.
        modifier: its name, for messages.

    Raises:
        UsageError: a name is not that of a block, or these blocks cannot be dropped.
    """
    from sparse_accel.nn.blocks import encoder_blocks, remove_blocks

    found = _find(state, patterns, set(), modifier)
    remove_blocks(state.model, list(found.values()))
    left = len(encoder_blocks(state.model)[1])
    state.notices.append(f"{modifier}: {listed(found, 4)} removed: {left} of {left + len(found)} stay")
    return found


def names_after(found: Mapping[str, int], modifier: str) -> str:
    """Returns what names of layers mean once `drop_layers` has removed some, for messages."""
    return (
        f"{modifier} removed {listed(found, 4)} before: later layers have moved up, and names are those of the "
        "shortened model"
    )


def _find(state: State, patterns: Sequence[str], taken: set[str], modifier: str) -> dict[str, int]:
    """Returns the indices of the blocks to drop, by name.

    Args:
        taken: names of blocks that other modifiers drop.

    Raises:
        UsageError: see `drop_layers`.
    """
    from sparse_accel.nn.blocks import check_removable, encoder_blocks

    try:
        prefix, blocks = encoder_blocks(state.model)
    except ValueError as error:
        raise _refused(patterns, modifier, error) from error
    names = [f"{prefix}.{index}" for index in range(len(blocks))]
    for pattern in patterns:
        if not match_parameter_names(pattern, names, (), strict=False):
            raise UsageError(
                f"{modifier}: layers: '{pattern}' is not a layer that can be dropped.{nearest(pattern, names)} "
                f"These are: {names[0]} to {names[-1]}"
            )
    matched = set(match_parameter_names(list(patterns), names, (), strict=False))
    found = {name: index for index, name in enumerate(names) if name in matched}
    if twice := taken.intersection(found):
        raise UsageError(f"{modifier}: layers: two modifiers drop {min(twice)}: remove it from one")
    if len(found) + len(taken) == len(names):
        raise UsageError(f"{modifier}: layers: all {len(names)} layers would be dropped, but one must stay")
    try:
        check_removable(state.model, [index for index, name in enumerate(names) if name in taken | found.keys()])
    except ValueError as error:
        raise _refused(patterns, modifier, error) from error
    return found


def _refused(patterns: Sequence[str], modifier: str, error: ValueError) -> UsageError:
    return UsageError(f"{modifier}: layers ({listed(patterns, 4)}) cannot be dropped: {error}")
