"""The recipe as the program uses it: typed modifiers in order, number of epochs, text."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import Modifier, no_teacher
from sparse_accel.progress import ROUNDING
from sparse_accel.recipe.fields import field_values
from sparse_accel.recipe.writing import write_recipe

AnyModifier = TypeVar("AnyModifier", bound=Modifier)


def is_group(key: object, value: object) -> bool:
    """Returns True for a key that lists modifiers: its name contains `modifiers`, its value is a list or empty."""
    return isinstance(key, str) and "modifiers" in key and (value is None or isinstance(value, list))


def is_stage(value: object) -> bool:
    """Returns True for a mapping with a `modifiers` key, whether its value is a list (as it must be) or not."""
    return isinstance(value, dict) and any(
        isinstance(key, str) and "modifiers" in key and not isinstance(entry, str | int | float)
        for key, entry in value.items()
    )


@dataclass
class Recipe:
    """A recipe that was read and checked. Two are equal if their contents are, however they were written.

    Attributes:
        content: the recipe's keys in order: variables with their values, lists of modifiers, stages (mappings).
        text: the recipe as given.
        source: its path, or `<text>`.
        warnings: lines for the user about what is probably a mistake.
        notes: lines for the user about keys that have no effect.
        modifiers: all modifiers in order of application: by end (no end is last), then start, then name.
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
        """Number of epochs: the largest start or end of a modifier, rounded up; 0 if none is set."""
        return max((math.ceil(max(m.start_epoch, m.end_epoch, 0) - ROUNDING) for m in self.modifiers), default=0)

    def select(self, kind: type[AnyModifier]) -> list[AnyModifier]:
        """Returns the modifiers of one class, in order of application."""
        return [modifier for modifier in self.modifiers if isinstance(modifier, kind)]

    def check_teacher(self, teacher: str | None) -> None:
        """Checks --distill_teacher against the recipe.

        Args:
            teacher: value of --distill_teacher; None if it was left out.

        Raises:
            UsageError: distillation without a teacher, or a teacher without distillation.
        """
        following = [modifier for modifier in self.modifiers if modifier.needs_teacher]
        if following and teacher is None:
            raise no_teacher(following[0])
        if not following and teacher not in (None, "disable"):
            raise UsageError(
                "--distill_teacher has no effect: the recipe has no DistillationModifier or other "
                "distillation. Add one, or remove the flag"
            )

    def without_teacher(self) -> Recipe:
        """Returns the recipe without the modifiers that need a teacher, as --distill_teacher disable applies it."""
        return replace(self, content=_without_teacher(self.content))

    def timeline(self) -> list[tuple[float, str]]:
        """Returns all events as (epoch, what happens), sorted by epoch."""
        return timeline_of(self.modifiers, self.max_epochs)

    def resolved(self) -> str:
        """Returns the recipe as YAML, with variables and defaults filled in; reading it gives an equal recipe."""
        return write_recipe(self.content)

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain dicts, lists and scalars, each modifier as {name: {key: value}}."""
        plain: dict[str, Any] = _plain(self.content)
        return plain


def timeline_of(modifiers: Sequence[Modifier], max_epochs: int) -> list[tuple[float, str]]:
    """Returns the events of modifiers, and the end of training, as (epoch, what happens), sorted by epoch.

    Within an epoch, what ends comes before what begins, as in a learning rate that takes over from another.

    Args:
        modifiers: in order of application. Within an epoch their events come in reverse order.
        max_epochs: number of epochs; 0 if the recipe does not set it.
    """
    events = [
        (epoch, number == 0, text)  # the first event of a modifier is its start
        for modifier in reversed(modifiers)
        for number, (epoch, text) in enumerate(modifier.events())
    ]
    timeline = [(epoch, text) for epoch, _, text in sorted(events, key=lambda event: event[:2])]
    return sorted(
        [*timeline, *([(float(max_epochs), "training ends")] if max_epochs else [])], key=lambda each: each[0]
    )


def _order(modifier: Modifier) -> tuple[float, float, str]:
    return (math.inf if modifier.end_epoch == -1 else modifier.end_epoch, modifier.start_epoch, modifier.name)


def _modifiers_in(value: Any) -> Iterator[Modifier]:
    if isinstance(value, Modifier):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _modifiers_in(entry)


def _without_teacher(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_teacher(entry) for key, entry in value.items()}
        emptied = [key for key in kept if not kept[key] and value[key]]
        emptied += [key for key in kept if is_stage(value[key]) and not is_stage(kept[key])]
        return {key: entry for key, entry in kept.items() if key not in emptied}
    if isinstance(value, list):
        return [_without_teacher(entry) for entry in value if not (isinstance(entry, Modifier) and entry.needs_teacher)]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Modifier):
        return {value.name: field_values(value)}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return copy.deepcopy(value)
