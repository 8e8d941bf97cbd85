"""The clock of a run: completed optimizer steps, and the fractional epoch that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Epochs in recipes are decimals (0.1, 8.3), steps are integers: an epoch that is at a step up to rounding is reached at
# that step, not one later, and epochs closer than this are equal.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Progress:
    """Position in training. Every schedule is a pure function of it.

    Attributes:
        step: optimizer steps completed, counted from 0; a step skipped by the fp16 scaler is not counted.
        steps_per_epoch: optimizer steps in one pass over the training set, at least 1.
    """

    step: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Returns completed optimizer steps / steps per epoch."""
        return self.step / self.steps_per_epoch

    def reached(self, epoch: float) -> bool:
        """Returns True from the first step at or after `epoch` on; a negative epoch is reached from the start."""
        return self.step >= epoch * self.steps_per_epoch - ROUNDING

    def begins(self, epoch: float) -> bool:
        """Returns True only at the first step at or after `epoch`."""
        return self.reached(epoch) and (self.step == 0 or not self.previous().reached(epoch))

    def next(self) -> Progress:
        """Returns the position one step later."""
        return replace(self, step=self.step + 1)

    def previous(self) -> Progress:
        """Returns the position one step earlier."""
        return replace(self, step=self.step - 1)
