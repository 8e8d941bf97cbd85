"""Weight decay set by the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparse_accel.modifiers.base import FieldError
from sparse_accel.modifiers.param_groups import SetOnceModifier

if TYPE_CHECKING:
    from sparse_accel.progress import Progress


@dataclass(kw_only=True)
class SetWeightDecayModifier(SetOnceModifier):
    """Sets the weight decay of parameter groups from an epoch on: of all, bias and LayerNorm included, unless listed.

    Before its start the optimizer's own weight decay applies.
    """

    weight_decay: float
    """The optimizer's weight decay, 0 or more."""

    setting: ClassVar[str] = "weight_decay"
    without_effect: ClassVar[dict[str, str]] = {"constant_logging": "the weight decay changes at this epoch only"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_decay < 0:
            raise FieldError("weight_decay", f"weight decay is 0 or more, not {self.weight_decay:g}")

    def value(self, progress: Progress) -> float:
        return self.weight_decay

    def events(self) -> list[tuple[float, str]]:
        return [(self.span[0], f"weight decay {self.weight_decay:g}{self.where() or ' for all parameters'}")]
