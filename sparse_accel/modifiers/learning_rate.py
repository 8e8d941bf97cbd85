"""Learning-rate schedules: pure functions of the clock, and the modifiers that set the rate in the optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sparse_accel.errors import nearest
from sparse_accel.modifiers.base import FieldError
from sparse_accel.modifiers.param_groups import ParamGroupModifier, SetOnceModifier
from sparse_accel.progress import ROUNDING

if TYPE_CHECKING:
    from sparse_accel.progress import Progress

# --- schedules: each returns the rate of a step; start, end and cycle are in epochs, start is 0 or more -----------


def linear_rate(progress: Progress, start: float, end: float, init: float, final: float) -> float:
    """Returns the linear interpolation from `init` at `start` to `final` at `end`; constant before and after."""
    return init + _fraction(progress, start, end) * (final - init)


def cosine_rate(progress: Progress, start: float, end: float, init: float, final: float) -> float:
    """Returns half a cosine wave from `init` at `start` to `final` at `end` (up or down); constant before and after."""
    return (math.cos(math.pi * _fraction(progress, start, end)) + 1) / 2 * (init - final) + final


def cyclic_linear_rate(progress: Progress, start: float, end: float, init: float, final: float, cycle: float) -> float:
    """Returns the line from `init` at the first step of each cycle to `final` at its last step; `final` after `end`.

    A last cycle that `end` shortens has a steeper line. A cycle of one step has the rate `init`.
    """
    if progress.reached(end):
        return final
    origin, length = start * progress.steps_per_epoch, cycle * progress.steps_per_epoch
    number = max(math.floor((progress.step - origin + ROUNDING) / length), 0)
    first = _first_step(start + number * cycle, progress)
    following = _first_step(min(start + (number + 1) * cycle, end), progress)
    steps = following - first
    return init + (progress.step - first) / (steps - 1) * (final - init) if steps > 1 else init


def step_rate(progress: Progress, start: float, init: float, gamma: float, step_size: float) -> float:
    """Returns `init`, multiplied by `gamma` every `step_size` epochs from `start` on."""
    size = max(round(step_size * progress.steps_per_epoch), 1)
    drops: int = max(progress.step - _first_step(start, progress), 0) // size
    return float(init * gamma**drops)


def multi_step_rate(progress: Progress, init: float, gamma: float, milestones: list[float]) -> float:
    """Returns `init`, multiplied by `gamma` at each milestone (epochs from the start of training)."""
    return float(init * gamma ** sum(progress.reached(milestone) for milestone in milestones))


def cosine_restarts_rate(progress: Progress, start: float, init: float, final: float, cycle: float) -> float:
    """Returns half a cosine wave from `init` to `final` in each cycle (Loshchilov & Hutter 2017, arXiv 1608.03983)."""
    cycles = max(progress.epoch - start, 0.0) / cycle
    fraction = max(cycles - math.floor(cycles + ROUNDING), 0.0)
    return (math.cos(math.pi * fraction) + 1) / 2 * (init - final) + final


def _fraction(progress: Progress, start: float, end: float) -> float:
    return min(max((progress.epoch - start) / (end - start), 0.0), 1.0)


def _first_step(epoch: float, progress: Progress) -> int:
    """Returns the first step that begins at or after an epoch."""
    return math.ceil(epoch * progress.steps_per_epoch - ROUNDING)


# --- modifiers --------------------------------------------------------------------------------------------------------

_EVERY_STEP = "the rate is computed for every step"
_LOGGED = "every log line has the current learning rate"


@dataclass(kw_only=True)
class SetLearningRateModifier(SetOnceModifier):
    """Sets the learning rate at `start_epoch`. It stays until another learning-rate modifier starts."""

    learning_rate: float
    """Learning rate, 0 to 1."""

    setting: ClassVar[str] = "lr"
    without_effect: ClassVar[dict[str, str]] = {"constant_logging": _LOGGED}

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rate("learning_rate", self.learning_rate)

    def value(self, progress: Progress) -> float:
        return self.learning_rate

    def events(self) -> list[tuple[float, str]]:
        return [(self.span[0], f"learning rate {self.learning_rate:g}{self.where()}")]


@dataclass(kw_only=True)
class LearningRateFunctionModifier(ParamGroupModifier):
    """Changes the learning rate from `init_lr` at `start_epoch` to `final_lr` at `end_epoch`, and keeps it there."""

    lr_func: Literal["linear", "cosine", "cyclic_linear"]
    """Shape of the schedule; cyclic_linear repeats the line from init_lr to final_lr in every cycle."""
    init_lr: float
    """Learning rate at start_epoch, 0 to 1."""
    final_lr: float
    """Learning rate at end_epoch, 0 to 1."""
    end_epoch: float = field()
    """Epoch at which final_lr is reached; later than start_epoch."""
    cycle_epochs: float = 1.0
    """Length of a cycle in epochs, above 0; used by cyclic_linear only."""

    setting: ClassVar[str] = "lr"
    precedence: ClassVar[int] = 1
    without_effect: ClassVar[dict[str, str]] = {"update_frequency": _EVERY_STEP, "constant_logging": _LOGGED}

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rate("init_lr", self.init_lr)
        _check_rate("final_lr", self.final_lr)
        if self.end_epoch <= self.span[0]:
            message = f"the schedule must end after epoch {self.span[0]:g}, where it starts, got {self.end_epoch:g}"
            raise FieldError("end_epoch", message)
        if self.cycle_epochs <= 0:
            raise FieldError("cycle_epochs", f"must be above 0, got {self.cycle_epochs:g}")

    def value(self, progress: Progress) -> float:
        start, end = self.span
        if self.lr_func == "cyclic_linear":
            return cyclic_linear_rate(progress, start, end, self.init_lr, self.final_lr, self.cycle_epochs)
        rate = {"linear": linear_rate, "cosine": cosine_rate}[self.lr_func]
        return rate(progress, start, end, self.init_lr, self.final_lr)

    def events(self) -> list[tuple[float, str]]:
        start, end = self.span
        cycles = f" in cycles of {self.cycle_epochs:g} epochs" if self.lr_func == "cyclic_linear" else ""
        way = f"learning rate {self.init_lr:g} -> {self.final_lr:g}, {self.lr_func}{cycles}, until epoch {end:g}"
        return [(start, way + self.where()), (end, f"learning rate {self.final_lr:g}{self.where()}")]


# The keys of lr_kwargs for each class, with their types.
_LR_KWARGS: dict[str, dict[str, str]] = {
    "StepLR": {"gamma": "factor", "step_size": "number of epochs"},
    "MultiStepLR": {"gamma": "factor", "milestones": "list of epochs"},
    "ExponentialLR": {"gamma": "factor"},
    "CosineAnnealingWarmRestarts": {"lr_min": "rate", "cycle_epochs": "number of epochs"},
}


@dataclass(kw_only=True)
class LearningRateModifier(ParamGroupModifier):
    """Follows a PyTorch schedule, named by its class, with lengths in epochs. After `end_epoch` the last rate stays."""

    end_epoch: float = -1.0
    """Epoch at which the schedule stops and the last rate stays; -1: it continues until the end of training."""
    lr_class: Literal["StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingWarmRestarts"]
    """Schedule. StepLR multiplies the rate by gamma every step_size epochs, ExponentialLR every epoch, MultiStepLR at
    each milestone; CosineAnnealingWarmRestarts falls to lr_min in every cycle."""
    lr_kwargs: dict[str, Any] = field(default_factory=dict)
    """Parameters of the schedule. StepLR: gamma, step_size (epochs). MultiStepLR: gamma, milestones (epochs from the
    start of training). ExponentialLR: gamma. CosineAnnealingWarmRestarts: lr_min, cycle_epochs."""
    init_lr: float
    """Learning rate at start_epoch, 0 to 1."""

    setting: ClassVar[str] = "lr"
    precedence: ClassVar[int] = 1
    without_effect: ClassVar[dict[str, str]] = {"update_frequency": _EVERY_STEP, "constant_logging": _LOGGED}

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rate("init_lr", self.init_lr)
        if self.end_epoch != -1 and self.end_epoch <= self.span[0]:
            raise FieldError("end_epoch", f"the schedule must end after epoch {self.span[0]:g}, where it starts")
        self._check_kwargs()

    def _check_kwargs(self) -> None:
        expected = _LR_KWARGS[self.lr_class]
        for key in self.lr_kwargs:
            if key not in expected:
                hint = nearest(str(key), expected)
                raise FieldError("lr_kwargs", f"{self.lr_class} takes {', '.join(expected)}, not '{key}'.{hint}")
        for key, kind in expected.items():
            if key not in self.lr_kwargs:
                raise FieldError("lr_kwargs", f"{self.lr_class} needs {key} ({kind})")
            values = self.lr_kwargs[key]
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise FieldError("lr_kwargs", f"{key}: expected a {kind}, got {values!r}")
                if value <= 0 and kind != "rate":
                    raise FieldError("lr_kwargs", f"{key}: must be above 0, got {value:g}")
                if kind == "rate":
                    _check_rate("lr_kwargs", value, f"{key}: ")
            if isinstance(values, list) != (key == "milestones"):
                raise FieldError("lr_kwargs", f"{key}: expected a {kind}, got {values!r}")
        start, end = self.span
        for milestone in self.lr_kwargs.get("milestones", []):
            if not start < milestone < end:
                raise FieldError("lr_kwargs", f"milestone {milestone:g} is not between start_epoch and end_epoch")

    def value(self, progress: Progress) -> float:
        start, end = self.span
        if progress.reached(end):
            last = max(_first_step(end, progress) - 1, _first_step(start, progress))
            progress = type(progress)(last, progress.steps_per_epoch)
        options = self.lr_kwargs
        match self.lr_class:
            case "StepLR":
                return step_rate(progress, start, self.init_lr, options["gamma"], options["step_size"])
            case "ExponentialLR":
                return step_rate(progress, start, self.init_lr, options["gamma"], 1.0)
            case "MultiStepLR":
                return multi_step_rate(progress, self.init_lr, options["gamma"], options["milestones"])
            case "CosineAnnealingWarmRestarts":
                return cosine_restarts_rate(progress, start, self.init_lr, options["lr_min"], options["cycle_epochs"])

    def events(self) -> list[tuple[float, str]]:
        start, end = self.span
        options = ", ".join(f"{key} {value}" for key, value in self.lr_kwargs.items())
        events = [(start, f"learning rate from {self.init_lr:g}, {self.lr_class} ({options}){self.where()}")]
        if self.end_epoch != -1:
            events.append((end, f"learning rate stays at the last value of {self.lr_class}{self.where()}"))
        return events


def _check_rate(key: str, rate: float, prefix: str = "") -> None:
    if not 0 <= rate <= 1:
        raise FieldError(key, f"{prefix}a learning rate must be between 0 and 1, got {rate:g}")
