"""Modifiers that set one value in the optimizer's parameter groups, and the rule that decides which of them applies."""

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
    """Sets `setting` of parameter groups at every step in which it applies, as a pure function of the clock."""

    param_groups: list[int] | None = None
    """Indices of the optimizer's parameter groups, from 0; left out: all groups."""

    acts_at_once: ClassVar[bool] = True  # there is nothing to apply without training
    precedence: ClassVar[int] = 0
    """Of modifiers that start together, the one with the highest value applies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.param_groups is not None and (not self.param_groups or min(self.param_groups) < 0):
            raise FieldError("param_groups", f"expected indices from 0, got {self.param_groups}; leave it out for all")

    def value(self, progress: Progress) -> float:
        """Returns the setting for a step at or after the modifier's start."""
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
                    f"at epoch {start:g}, {other.name} (epoch {other_start:g} to {until}) already sets the same "
                    "parameter groups: move one of them"
                )
                raise FieldError("start_epoch", message, other)
            if abs(start - other_start) <= ROUNDING and self.precedence == other.precedence:
                message = (
                    f"two modifiers set {self.setting} of the same parameter groups at epoch {start:g}: remove one"
                )
                raise FieldError("start_epoch", message, other)

    def overlaps(self, other: ParamGroupModifier) -> bool:
        """Returns True if both set at least one common parameter group."""
        if self.param_groups is None or other.param_groups is None:
            return True
        return not set(self.param_groups).isdisjoint(other.param_groups)

    def is_covered_by(self, other: ParamGroupModifier) -> bool:
        """Returns True if `other` sets all parameter groups that this one sets."""
        if self.param_groups is None or other.param_groups is None:
            return other.param_groups is None
        return set(self.param_groups) <= set(other.param_groups)

    def where(self) -> str:
        """Returns the parameter groups as text for the timeline; empty for all."""
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
            if active_modifier(self._rivals, index, progress) is self:
                group[self.setting] = self.value(progress)


@dataclass(kw_only=True)
class SetOnceModifier(ParamGroupModifier):
    """Sets one value, from its start until another modifier of the same setting starts."""

    end_epoch: float = -1.0
    """The value stays until another modifier changes it: leave it out, or give the start_epoch of the next one."""

    def check_compatible(self, others: Sequence[Modifier]) -> None:
        super().check_compatible(others)
        if self.end_epoch == -1:
            return
        rivals = [m for m in others if isinstance(m, ParamGroupModifier) and m.setting == self.setting]
        later = [m for m in rivals if self.overlaps(m) and m.span[0] > self.span[0] + ROUNDING]
        following = [m for m in later if self.is_covered_by(m) and abs(m.span[0] - self.end_epoch) <= ROUNDING]
        if not following or min(m.span[0] for m in later) < self.end_epoch - ROUNDING:
            message = (
                "the value stays until another modifier changes it: leave end_epoch out, or give the start_epoch of "
                f"the next modifier that sets {self.setting} of these parameter groups"
            )
            raise FieldError("end_epoch", message)

    @property
    def span(self) -> tuple[float, float]:
        start = max(self.start_epoch, 0.0)
        return start, start


def active_modifier(
    modifiers: Iterable[ParamGroupModifier], group: int, progress: Progress
) -> ParamGroupModifier | None:
    """Returns the modifier that sets the value of a parameter group at this step; None before the first one starts.

    Of the modifiers that cover the group, the last to start applies. Of two that start together, a schedule has
    precedence over a single value; a recipe with two of the same precedence is an error when it is read. The order of
    `modifiers` does not matter.
    """
    started = [m for m in modifiers if m.covers_group(group) and progress.reached(m.start_epoch)]
    return max(started, key=lambda modifier: (round(modifier.span[0], 6), modifier.precedence), default=None)
