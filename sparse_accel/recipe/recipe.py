"""The recipe as the program uses it: typed modifiers in order, the epochs it asks for, its text."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import Modifier, no_teacher
from sparse_accel.progress import ROUNDING
from sparse_accel.recipe.fields import field_values
from sparse_accel.recipe.writing import write_recipe

AnyModifier = TypeVar("AnyModifier", bound=Modifier)


def is_group(key: object, value: object) -> bool:
    """True for a key that lists modifiers: it contains `modifiers` and holds a list, or nothing yet."""
    return isinstance(key, str) and "modifiers" in key and (value is None or isinstance(value, list))


def is_stage(value: object) -> bool:
    """True for a mapping with modifiers of its own, were they in a list, as they must be, or not."""
    return isinstance(value, dict) and any(
        isinstance(key, str) and "modifiers" in key and not isinstance(entry, str | int | float)
        for key, entry in value.items()
    )


@dataclass
class Recipe:
    """A recipe that was read and found consistent. Two are equal when they say the same, however they were written.

    Attributes:
        content: the recipe's keys in their order: variables with their values, lists of modifiers, stages (mappings).
        text: the recipe as given.
        source: its path, or `<text>`.
        warnings: lines for the user: what probably is not meant.
        notes: lines for the user: what has nothing to act on here.
        modifiers: all modifiers in order of application: end (never last), then start, then name.
    """

    content: dict[str, Any]
    text: str = field(default="", compare=False, repr=False)
    source: str = field(default="<text>", compare=False)
    warnings: list[str] = field(default_factory=list, compare=False, repr=False)
    notes: list[str] = field(default_factory=list, compare=False, repr=False)
    modifiers: list[Modifier] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        self.modifiers = sorted(_modifiers_in(self.content), key=_order)

    @property
    def max_epochs(self) -> int:
        """Epochs that the recipe asks for: its largest start or end, rounded up; 0 when it names none."""
        return max((math.ceil(max(m.start_epoch, m.end_epoch, 0) - ROUNDING) for m in self.modifiers), default=0)

    def select(self, kind: type[AnyModifier]) -> list[AnyModifier]:
        """The modifiers of one class, in order of application."""
        return [modifier for modifier in self.modifiers if isinstance(modifier, kind)]

    def check_teacher(self, teacher: str | None) -> None:
        """Raises UsageError where the recipe distils without a teacher, or there is one and nothing that follows it.

        Args:
            teacher: what --distill_teacher says; None when it is left out.
        """
        following = [modifier for modifier in self.modifiers if modifier.needs_teacher]
        if following and teacher is None:
            raise no_teacher(following[0])
        if not following and teacher not in (None, "disable"):
            raise UsageError(
                "--distill_teacher does nothing: the recipe has no DistillationModifier. Add one to the recipe, or "
                "leave the flag out"
            )

    def timeline(self) -> list[tuple[float, str]]:
        """What happens when: (epoch, event), by epoch."""
        # Of one epoch, what ends first comes last: the end of training closes the table.
        events = [event for modifier in reversed(self.modifiers) for event in modifier.events()]
        return sorted(events, key=lambda event: event[0])

    def resolved(self) -> str:
        """The recipe as YAML with variables evaluated and defaults filled in, which reads back to an equal recipe."""
        return write_recipe(self.content)

    def to_dict(self) -> dict[str, Any]:
        """The recipe in plain dicts, lists and scalars, each modifier as {name: {key: value}}."""
        plain: dict[str, Any] = _plain(self.content)
        return plain


def _order(modifier: Modifier) -> tuple[float, float, str]:
    return (math.inf if modifier.end_epoch == -1 else modifier.end_epoch, modifier.start_epoch, modifier.name)


def _modifiers_in(value: Any) -> Iterator[Modifier]:
    if isinstance(value, Modifier):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _modifiers_in(entry)


def _plain(value: Any) -> Any:
    if isinstance(value, Modifier):
        return {value.name: field_values(value)}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return copy.deepcopy(value)
