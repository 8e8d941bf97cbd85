"""The modifier that sets the weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparse_accel.modifiers.base import FieldError
from sparse_accel.modifiers.param_groups import SetOnceModifier

if TYPE_CHECKING:
    from sparse_accel.progress import Progress


@dataclass(kw_only=True)
class SetWeightDecayModifier(SetOnceModifier):
    """Sets the weight decay from `start_epoch` on, in all parameter groups (bias and LayerNorm too) or in some.

    Before `start_epoch`, the weight decay that the optimizer was created with applies.
    """

    weight_decay: float
    """Weight decay of the optimizer, 0 or more."""

    setting: ClassVar[str] = "weight_decay"
    without_effect: ClassVar[dict[str, str]] = {"constant_logging": "the weight decay changes only at start_epoch"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_decay < 0:
            raise FieldError("weight_decay", f"must be 0 or more, got {self.weight_decay:g}")

    def value(self, progress: Progress) -> float:
        return self.weight_decay

    def events(self) -> list[tuple[float, str]]:
        return [(self.span[0], f"weight decay {self.weight_decay:g}{self.where() or ' for all parameters'}")]
