"""Sets parameters to given values: once, or gradually from one value to another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.modifiers.parameter_names import check_patterns, match_parameter_names
from sparse_accel.modifiers.pruning.base import short
from sparse_accel.modifiers.pruning.schedule import check_update_frequency, scheduled_sparsity, update_due

if TYPE_CHECKING:
    from torch import Tensor

    from sparse_accel.modifiers.state import State
    from sparse_accel.progress import Progress


# The largest float32.
LARGEST = (2 - 2**-23) * 2.0**127


@dataclass(kw_only=True)
class _ParamModifier(Modifier):
    """Base class of both: finds the parameters and writes them, whatever layout holds them."""

    params: str | list[str]
    """Parameter names, `re:PATTERN`, `__ALL__`, or `__ALL_PRUNABLE__` (weights of Linear and convolution layers)."""
    params_strict: bool = True
    """true: a name or pattern that matches nothing is an error; false: it is ignored."""

    acts_at_once: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.params:
            raise FieldError("params", "must not be empty: name parameters, such as classifier.bias")
        check_patterns("params", self.params)

    def _attach(self, state: State, shape: tuple[int, ...], key: str) -> None:
        """Finds the parameters, which must have this shape, that of the value of `key`."""
        from sparse_accel.nn.layers import prunable_names

        parameters = dict(state.model.named_parameters())
        strict = self.params_strict
        self._names = match_parameter_names(self.params, parameters, prunable_names(state.model), strict=strict)
        for name in self._names:
            if tuple(parameters[name].shape) != shape:
                raise UsageError(
                    f"{self.name}: {key} is {_described(shape)}, but {name} is "
                    f"{_described(tuple(parameters[name].shape))}: give a value for each of its entries"
                )
        for other in state.modifiers:
            if other is self or not isinstance(other, _ParamModifier) or not _meet(self.span, other.span):
                continue
            if shared := [name for name in self._names if name in getattr(other, "_names", ())]:
                raise UsageError(
                    f"{self.name}: {shared[0]} is set by {other.name} at the same time: remove it from params of one"
                )
        if not self._names:
            state.notices.append(f"{self.name} has no effect: params match no parameter of this model")

    def bind(self, state: State) -> None:
        self._state = state

    def _write(self, value: Tensor) -> None:
        from sparse_accel.distributed.weights import set_full_weight

        parameters = dict(self._state.model.named_parameters())  # by name each time: FSDP2 replaces the objects
        for name in self._names:
            set_full_weight(parameters[name], value.to(parameters[name].device))

    def _has_begun(self, epoch: float) -> bool:
        """Whether a step began at or after `epoch`."""
        clock = self._state.progress
        return clock.step > 0 and clock.previous().reached(epoch)


@dataclass(kw_only=True)
class SetParamModifier(_ParamModifier):
    """Sets parameters to a value, once, before the optimizer step at `start_epoch`. The optimizer then trains them on.

    Pruned entries of a weight stay zero, whatever their value. TrainableParamsModifier holds a parameter at its value.
    """

    start_epoch: float = 0.0
    """Epoch at which the parameters are set; -1: at the start of training."""
    end_epoch: float = -1.0
    """Must be left out: the value is set once."""
    val: float | list[Any]
    """The value: nested lists of numbers of the parameter's shape; a number only for a parameter without axes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end_epoch != -1:
            raise FieldError("end_epoch", "the value is set once, at start_epoch: leave end_epoch out")
        self._shape = _shape_of("val", self.val)

    @property
    def span(self) -> tuple[float, float]:
        return max(self.start_epoch, 0.0), max(self.start_epoch, 0.0)

    def events(self) -> list[tuple[float, str]]:
        return [(self.span[0], f"parameters set: {short(self.params)}")]

    def attach(self, state: State) -> None:
        self._attach(state, self._shape, "val")

    def step_begin(self, progress: Progress) -> None:
        if progress.begins(self.start_epoch):
            self._write(_tensor(self.val))

    def finish(self) -> None:
        """Sets the value also if `start_epoch` is the end of training, where no further step begins."""
        if not self._has_begun(self.start_epoch):
            self._write(_tensor(self.val))

    def apply_at_once(self, forwards: Callable[[], Iterator[None]]) -> None:
        self._write(_tensor(self.val))


@dataclass(kw_only=True)
class GradualParamModifier(_ParamModifier):
    """Moves parameters from `init_val` at `start_epoch` to `final_val` at `end_epoch`, in updates.

    Between two updates and after the last one, the optimizer trains the parameters on; TrainableParamsModifier holds
    them at their values. Pruned entries of a weight stay zero.
    """

    start_epoch: float = -1.0
    """Epoch at which the parameters are set to init_val; -1: at the start of training."""
    end_epoch: float = -1.0
    """Epoch at which the parameters are set to final_val."""
    init_val: float | list[Any]
    """The value at start_epoch: nested lists of numbers of the parameter's shape; a number only for a parameter without
    axes."""
    final_val: float | list[Any]
    """The value at end_epoch, of the same shape."""
    update_frequency: float = -1.0
    """Epochs between two updates; -1: every step."""
    inter_func: str = "linear"
    """How the value moves: linear, cubic (fast at first) or inverse_cubic (slow at first)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end_epoch < 0 or self.end_epoch <= self.start_epoch:
            raise FieldError("end_epoch", f"must be after start_epoch {self.start_epoch:g}, got {self.end_epoch:g}")
        if self.inter_func not in ("linear", "cubic", "inverse_cubic"):
            raise FieldError("inter_func", f"expected linear, cubic or inverse_cubic, got {self.inter_func!r}")
        check_update_frequency(self.update_frequency)
        self._shape = _shape_of("init_val", self.init_val)
        if (final := _shape_of("final_val", self.final_val)) != self._shape:
            raise FieldError("final_val", f"is {_described(final)}, but init_val is {_described(self._shape)}")

    def events(self) -> list[tuple[float, str]]:
        every = "every step" if self.update_frequency <= 0 else f"every {self.update_frequency:g} epochs"
        what = f"parameters move from init_val to final_val, {self.inter_func}, {every}: {short(self.params)}"
        return [(self.span[0], what), (self.end_epoch, f"parameters reach final_val: {short(self.params)}")]

    def attach(self, state: State) -> None:
        self._attach(state, self._shape, "init_val")

    def step_begin(self, progress: Progress) -> None:
        if update_due(progress, self.start_epoch, self.end_epoch, self.update_frequency):
            start = self.span[0]
            self._move(1.0 if progress.reached(self.end_epoch) else (progress.epoch - start) / (self.end_epoch - start))

    def finish(self) -> None:
        """Reaches `final_val` also if `end_epoch` is the end of training, where no further step begins."""
        if not self._has_begun(self.end_epoch):
            self._move(1.0)

    def apply_at_once(self, forwards: Callable[[], Iterator[None]]) -> None:
        self._move(1.0)

    def _move(self, fraction: float) -> None:
        """Sets the value for a fraction of the range, 0 to 1."""
        initial, final = _tensor(self.init_val), _tensor(self.final_val)
        way = scheduled_sparsity(fraction, 0.0, 1.0, self.inter_func)
        self._write(final if way == 1 else initial + way * (final - initial))

    def phase(self) -> str:
        clock = self._state.progress
        return "parameters move" if clock.reached(self.start_epoch) and not clock.reached(self.end_epoch) else ""


def _meet(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two closed spans of epochs have a point in common, but for the end of one that the other begins at."""
    first, second = sorted((one, other))
    return first[0] == second[0] or second[0] < first[1]


def _shape_of(key: str, value: Any) -> tuple[int, ...]:
    """Returns the shape of nested lists of numbers, () for a number.

    Raises:
        FieldError: there is something else in it, or rows differ in length.
    """
    if isinstance(value, list | tuple):
        shapes = {_shape_of(key, entry) for entry in value}
        if len(shapes) != 1:
            raise FieldError(key, "must not contain an empty list" if not value else "its rows differ in length")
        return (len(value), *shapes.pop())
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FieldError(key, f"expected numbers, got {value!r}")
    if abs(value) > LARGEST:
        raise FieldError(key, f"{value!r} is too large for float32, whose largest number is {LARGEST:.4g}")
    return ()


def _described(shape: Sequence[int]) -> str:
    """Returns a shape as text: `a number`, `a list of 3`, `3 x 4`."""
    return " x ".join(map(str, shape)) if len(shape) > 1 else f"a list of {shape[0]}" if shape else "a number"


def _tensor(value: float | list[Any]) -> Tensor:
    import torch

    return torch.tensor(value, dtype=torch.float32)
