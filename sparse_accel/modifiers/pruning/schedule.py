"""The schedule of gradual pruning: when masks are updated, and how much is pruned then."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.progress import ROUNDING

if TYPE_CHECKING:
    from sparse_accel.progress import Progress

FROM_PARAM = "__FROM_PARAM__"
# The values of inter_func.
FUNCTIONS = ("linear", "cubic", "inverse_cubic")


class ScheduledPruning(Modifier):
    """Base class of modifiers with the schedule keys: pruning from `start_epoch` to `end_epoch`, by `inter_func`.

    A subclass is a dataclass with the keys below, and has `_update` and `_remove_masks`.
    """

    init_sparsity: float | str
    update_frequency: float
    inter_func: str
    leave_enabled: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self._progress: Progress | None = None
        self._updated_in = -1  # the step of the last update
        self._finished = False

    def _check_schedule(self) -> None:
        """Raises FieldError for a schedule that is wrong for every model."""
        if self.end_epoch < 0:
            raise FieldError("end_epoch", "required: the epoch at which final_sparsity is reached")
        if isinstance(self.init_sparsity, str):
            if self.init_sparsity != FROM_PARAM:
                raise FieldError("init_sparsity", f"expected a number or {FROM_PARAM}, got {self.init_sparsity!r}")
        else:
            check_fraction("init_sparsity", self.init_sparsity)
        if self.inter_func not in FUNCTIONS:
            raise FieldError("inter_func", f"expected linear, cubic or inverse_cubic, got {self.inter_func!r}")
        check_update_frequency(self.update_frequency)

    @property
    def _rhythm(self) -> str:
        """How masks are updated, for the timeline."""
        every = "every step" if self.update_frequency <= 0 else f"every {self.update_frequency:g} epochs"
        return f"{self.inter_func}, {every}"

    def step_begin(self, progress: Progress) -> None:
        self._progress = progress
        if self._is_due(progress):
            self._update_in(progress)

    def _is_due(self, progress: Progress) -> bool:
        """Returns True in the steps of the schedule; only once, if the fp16 scaler has a step repeated."""
        due = update_due(progress, self.start_epoch, self.end_epoch, self.update_frequency)
        return due and self._updated_in != progress.step

    def _update_in(self, progress: Progress) -> None:
        """Updates the masks in a step of the schedule."""
        self._updated_in = progress.step
        self._update(progress)
        if progress.reached(self.end_epoch) and not self.leave_enabled:
            self._remove_masks()

    def _update(self, progress: Progress | None) -> None:
        """Sets the masks for `progress`; None means the end of the range."""
        raise NotImplementedError

    def _remove_masks(self) -> None:
        """Lets what is pruned grow again."""
        raise NotImplementedError

    def _fraction(self, progress: Progress | None) -> float:
        """Returns how much of the range has passed, 0 to 1; None means its end."""
        if progress is None or progress.reached(self.end_epoch):
            return 1.0
        start = max(self.start_epoch, 0.0)
        return (progress.epoch - start) / (self.end_epoch - start)

    def finish(self) -> None:
        """Reaches the final sparsity, also if `end_epoch` is the end of training, where no further step begins."""
        if not self._reached_end():
            self._update(None)
        self._finished = True
        super().finish()

    def apply_at_once(self, forwards: Callable[[], Iterator[None]]) -> None:
        self.finish()

    def structure_final(self, progress: Progress) -> bool:
        return self._finished or self._reached_end()

    def _reached_end(self) -> bool:
        """Returns True once the masks are those of the final sparsity."""
        return self._progress is not None and self._progress.reached(self.end_epoch)


def check_fraction(key: str, value: float) -> None:
    """Raises FieldError for a number that is not from 0 to 1."""
    if not 0 <= value <= 1:
        raise FieldError(key, f"expected a fraction between 0 and 1, got {value:g}")


def check_update_frequency(value: float) -> None:
    """Raises FieldError for a negative number of epochs other than -1."""
    if value < 0 and value != -1:
        raise FieldError("update_frequency", f"expected a number of epochs, or -1 for every step, got {value:g}")


def update_due(progress: Progress, start: float, end: float, frequency: float) -> bool:
    """Returns True at steps that begin with a new mask: at `start`, every `frequency` epochs after it, and at `end`.

    Args:
        start, end, frequency: in epochs; the frequency -1 means every step.
    """
    start = max(start, 0.0)
    if progress.begins(start) or progress.begins(end):
        return True
    if not progress.reached(start) or progress.reached(end):
        return False
    if frequency <= 0:
        return True
    passed, passed_before = ((clock.epoch - start) / frequency for clock in (progress, progress.previous()))
    return math.floor(passed + ROUNDING) > math.floor(passed_before + ROUNDING)


def scheduled_sparsity(fraction: float, initial: float, final: float, function: str) -> float:
    """Returns the sparsity at a `fraction` of the pruning range.

    Args:
        fraction: 0 at its start, 1 at its end; other values are clipped.
        initial, final: sparsity at start and end, 0 to 1.
        function: `linear`; `cubic`, which is eq. 1 of Zhu & Gupta 2017 (arXiv 1710.01878): fast at first, slow near the
            end; or `inverse_cubic`, its mirror: slow at first.
    """
    x = min(max(fraction, 0.0), 1.0)
    if x == 1.0:
        return final  # exactly: the number of pruned weights is rounded from it
    shape = {"linear": x, "cubic": 1 - (1 - x) ** 3, "inverse_cubic": 1 - (1 - x) ** (1 / 3)}[function]
    return initial + shape * (final - initial)
