"""The one clock: completed optimizer steps and the fractional epoch that they amount to."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Epochs in recipes are decimal fractions (0.1, 8.3) and steps are whole: an epoch that falls on a step up to rounding
# is reached at that step, not one later, and epochs nearer than this are one moment.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Progress:
    """How far training has come. Every schedule is a pure function of this.

    Attributes:
        step: optimizer steps completed, counted from 0; a step skipped by the fp16 scaler is not counted.
        steps_per_epoch: optimizer steps in one pass over the training set, at least 1.
    """

    step: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Completed optimizer steps / steps per epoch."""
        return self.step / self.steps_per_epoch

    def reached(self, epoch: float) -> bool:
        """True from the first step that begins at or after `epoch`; a negative epoch is reached from the start."""
        return self.step >= epoch * self.steps_per_epoch - ROUNDING

    def begins(self, epoch: float) -> bool:
        """True at the one step that is the first at or after `epoch`."""
        return self.reached(epoch) and (self.step == 0 or not self.previous().reached(epoch))

    def next(self) -> Progress:
        return replace(self, step=self.step + 1)

    def previous(self) -> Progress:
        return replace(self, step=self.step - 1)
