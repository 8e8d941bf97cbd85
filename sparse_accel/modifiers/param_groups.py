"""Modifiers that write one setting of the optimizer's parameter groups, and the one rule of which of them governs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.progress import ROUNDING

if TYPE_CHECKING:
    from sparse_accel.modifiers.state import State
    from sparse_accel.progress import Progress


@dataclass(kw_only=True)
class ParamGroupModifier(Modifier):
    """Writes `setting` of parameter groups at every step that it governs, as a pure function of the clock."""

    param_groups: list[int] | None = None
    """Indices of the optimizer's parameter groups, from 0; left out: all of them."""

    acts_at_once: ClassVar[bool] = True  # there is nothing to apply without training
    precedence: ClassVar[int] = 0
    """Among modifiers that start together, the one with the highest governs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.param_groups is not None and (not self.param_groups or min(self.param_groups) < 0):
            raise FieldError("param_groups", f"expected indices from 0, none for all, not {self.param_groups}")

    def value(self, progress: Progress) -> float:
        """The setting at a step at or after the modifier's start."""
        raise NotImplementedError

    def covers_group(self, group: int) -> bool:
        return self.param_groups is None or group in self.param_groups

    def check_compatible(self, others: Sequence[Modifier]) -> None:
        super().check_compatible(others)
        for other in others:
            if not isinstance(other, ParamGroupModifier) or other.setting != self.setting or not self.overlaps(other):
                continue
            (start, _), (other_start, other_end) = self.span, other.span
            if other_start + ROUNDING < start < other_end - ROUNDING:
                until = "the end" if other.end_epoch == -1 else f"epoch {other_end:g}"
                message = (
                    f"epoch {start:g} lies within the time of {other.name}, epoch {other_start:g} to {until}, and both "
                    "set the same parameter groups: move one of them"
                )
                raise FieldError("start_epoch", message, other)
            if abs(start - other_start) <= ROUNDING and self.precedence == other.precedence:
                message = f"two modifiers set the same value of the same parameter groups at epoch {start:g}"
                raise FieldError("start_epoch", message, other)

    def overlaps(self, other: ParamGroupModifier) -> bool:
        """True when some parameter group is written by both."""
        if self.param_groups is None or other.param_groups is None:
            return True
        return not set(self.param_groups).isdisjoint(other.param_groups)

    def where(self) -> str:
        """The groups in words, for the timeline; empty for all."""
        return "" if self.param_groups is None else f" (parameter groups {', '.join(map(str, self.param_groups))})"

    def bind(self, state: State) -> None:
        assert state.optimizer is not None
        count = len(state.optimizer.param_groups)
        if self.param_groups is not None and max(self.param_groups) >= count:
            groups = f"{count} parameter groups, counted from 0"
            raise UsageError(f"{self.name}: param_groups {self.param_groups}: the optimizer has {groups}")
        self._rivals = [m for m in state.modifiers if isinstance(m, ParamGroupModifier) and m.setting == self.setting]
        self._optimizer = state.optimizer

    def step_begin(self, progress: Progress) -> None:
        for index, group in enumerate(self._optimizer.param_groups):
            if governing(self._rivals, index, progress) is self:
                group[self.setting] = self.value(progress)


@dataclass(kw_only=True)
class SetOnceModifier(ParamGroupModifier):
    """Writes one value, from its start until another modifier of the same setting starts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end_epoch != -1:
            message = f"{self.name} acts at its start and holds until another takes over: leave end_epoch out"
            raise FieldError("end_epoch", message)

    @property
    def span(self) -> tuple[float, float]:
        start = max(self.start_epoch, 0.0)
        return start, start


def governing(modifiers: Iterable[ParamGroupModifier], group: int, progress: Progress) -> ParamGroupModifier | None:
    """The modifier that sets a parameter group's value at this step: of those that cover it, the last to have started.

    Of two that start together a schedule comes before a single value; recipes in which neither would are refused when
    they are read. None until the first starts. The order of `modifiers` does not matter.
    """
    started = [m for m in modifiers if m.covers_group(group) and progress.reached(m.start_epoch)]
    return max(started, key=lambda modifier: (round(modifier.span[0], 6), modifier.precedence), default=None)
