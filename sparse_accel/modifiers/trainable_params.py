"""Freezes parameters, or trains them, between two epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.modifiers.parameter_names import match_parameter_names

if TYPE_CHECKING:
    import torch

    from sparse_accel.modifiers.state import State
    from sparse_accel.progress import Progress


@dataclass(kw_only=True)
class TrainableParamsModifier(Modifier):
    """Freezes parameters, or trains them, from `start_epoch` to `end_epoch`; at other epochs nothing is changed.

    A parameter that never trains has `requires_grad` False from the start, so it needs no gradient. One that trains in
    some epochs has True in all, because distributed wrappers fix the set of gradients when they are created. While it
    is frozen, its gradient is dropped before the optimizer step; an optimizer does not change a parameter without a
    gradient, not even by weight decay or momentum.

    If several modifiers name one parameter, the one that started last decides; of those that start together, the one
    that is applied last. Example: freeze `__ALL__`, then train `re:classifier`.
    """

    end_epoch: float = -1.0
    """Epoch from which the parameters are as before start_epoch; -1: never."""
    params: str | list[str]
    """Parameter names, `re:PATTERN`, `__ALL__`, or `__ALL_PRUNABLE__` (weights of Linear and convolution layers)."""
    trainable: bool
    """true trains the parameters, false freezes them."""
    params_strict: bool = True
    """true: a name or pattern that matches nothing is an error; false: it is ignored."""

    acts_at_once: ClassVar[bool] = True  # there is nothing to apply without training

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.params:
            raise FieldError("params", "must not be empty: name parameters, or use __ALL__")

    def events(self) -> list[tuple[float, str]]:
        start, end = self.span
        which = self.params if isinstance(self.params, str) else ", ".join(self.params)
        events = [(start, f"{'trained' if self.trainable else 'frozen'}: {which}")]
        if self.end_epoch != -1:
            events.append((end, f"as before epoch {start:g}: {which}"))
        return events

    def attach(self, state: State) -> None:
        from sparse_accel.nn.layers import prunable_names

        parameters = dict(state.model.named_parameters())
        strict = self.params_strict
        self._names = set(match_parameter_names(self.params, parameters, prunable_names(state.model), strict=strict))
        self._part_time: list[str] = []
        self._all = [modifier for modifier in state.modifiers if isinstance(modifier, TrainableParamsModifier)]
        if self is self._all[-1]:  # the last one sets requires_grad for all of them
            self._set_requires_grad(parameters, state.max_epochs)

    def _set_requires_grad(self, parameters: dict[str, torch.nn.Parameter], max_epochs: int) -> None:
        spans = [modifier.span for modifier in self._all]
        changes = {0.0, *(epoch for span in spans for epoch in span if 0 < epoch < (max_epochs or float("inf")))}
        self._original = {name: parameter.requires_grad for name, parameter in parameters.items()}
        for name in set().union(*(modifier._names for modifier in self._all)):
            answers = set()
            for epoch in changes:
                active = [modifier for modifier in self._all if modifier.span[0] <= epoch < modifier.span[1]]
                answers.add(self._trains(name, active))
            parameters[name].requires_grad_(True in answers)
            if len(answers) == 2:
                self._part_time.append(name)
        if not any(parameter.requires_grad for parameter in parameters.values()):
            raise UsageError(f"{self.name}: every parameter is frozen in all epochs: nothing is left to train")

    def _trains(self, name: str, active: Sequence[TrainableParamsModifier]) -> bool:
        """Returns True if a parameter trains while the modifiers `active` act; they are in order of application."""
        naming = [modifier for modifier in reversed(active) if name in modifier._names]
        last = max(
            naming, key=lambda modifier: modifier.span[0], default=None
        )  # of equal starts, max returns the first
        return self._original[name] if last is None else last.trainable

    def bind(self, state: State) -> None:
        if self._part_time and not state.gives_gradients:
            raise UsageError(
                f"{self.name}: DeepSpeed cannot freeze a parameter for part of the training: leave start_epoch and "
                "end_epoch out, or train without DeepSpeed"
            )
        self._model = state.model

    def step_begin(self, progress: Progress) -> None:
        self._progress = progress

    def grads_ready(self) -> None:
        if not self._part_time:
            return
        clock = self._progress
        active = [m for m in self._all if clock.reached(m.start_epoch) and not clock.reached(m.span[1])]
        parameters = dict(self._model.named_parameters())  # by name each time: FSDP2 replaces the objects
        for name in self._part_time:
            if not self._trains(name, active):
                parameters[name].grad = None
