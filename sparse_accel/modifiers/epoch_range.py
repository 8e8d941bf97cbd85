"""The number of epochs that a recipe trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.progress import ROUNDING


@dataclass(kw_only=True)
class EpochRangeModifier(Modifier):
    """Sets the number of epochs. No other modifier of the recipe may start or end later."""

    start_epoch: float = -1.0
    """Has no effect: training starts at epoch 0."""
    end_epoch: float = field()
    """Epoch at which training ends, above 0; rounded up to a full epoch."""

    single: ClassVar[bool] = True
    acts_at_once: ClassVar[bool] = True  # there is nothing to apply without training

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end_epoch <= 0:
            raise FieldError("end_epoch", f"must be above 0, got {self.end_epoch:g}")

    def check_compatible(self, others: Sequence[Modifier]) -> None:
        end = max(other.end_epoch for other in [self, *others] if isinstance(other, EpochRangeModifier))
        for other in others:
            for key in ("start_epoch", "end_epoch"):
                epoch = getattr(other, key)
                if epoch > end + ROUNDING:
                    raise FieldError(
                        "end_epoch",
                        f"training ends at epoch {math.ceil(end - ROUNDING)}, but {other.name} has {key} {epoch:g}, "
                        f"above this end_epoch of {end:g}: raise end_epoch to {math.ceil(epoch)} or more, or lower "
                        f"that {key}",
                        other,
                    )
