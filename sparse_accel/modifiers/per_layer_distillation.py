"""Distillation of named layers: SparseML's PerLayerDistillationModifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparse_accel.errors import UsageError, listed
from sparse_accel.modifiers.base import FieldError, Modifier, spans_overlap
from sparse_accel.modifiers.layer_distillation import LayerDistillation, Pair
from sparse_accel.modifiers.parameter_names import check_patterns

if TYPE_CHECKING:
    from torch import nn

    from sparse_accel.modifiers.state import State
    from sparse_accel.nn.layer_outputs import Layout

TERM = "per_layer_distillation_loss"


@dataclass(kw_only=True)
class PerLayerDistillationModifier(LayerDistillation):
    """Trains layers of the model (the student) to compute what layers of a teacher compute.

    loss = task loss + gain * the sum over the layers of the mean squared error of their outputs; padding does not
    count. Of a layer that returns a tuple, the first element is compared. `--distill_teacher` names the teacher. For
    blocks of models that differ in depth, HiddenStateDistillationModifier is simpler.
    """

    gain: float = 1.5
    """Weight of the loss, above 0."""
    project_features: bool = True
    """true: outputs of each layer of the student go through a learned projection to the teacher's width, even if the
    widths are equal; false: never, so the widths must be equal."""
    student_layer_names: str | list[str] | None = None
    """Layers of the model, in order: names or `re:PATTERN`; null: those of teacher_layer_names, or, if both are null,
    all Linear and Conv2d layers in the order of the modules."""
    teacher_layer_names: str | list[str] | None = None
    """Layers of the teacher, in the same order, as many; null: those of student_layer_names."""

    without_effect: ClassVar[dict[str, str]] = {
        "update_frequency": "the loss is added in every step between start_epoch and end_epoch",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("student_layer_names", "teacher_layer_names"):
            names = getattr(self, key)
            if names is not None and not names:
                raise FieldError(key, "must not be empty: name layers, or leave it out")
            if isinstance(names, list) and (twice := [name for name in names if names.count(name) > 1]):
                raise FieldError(key, f"names {twice[0]} twice")
            check_patterns(key, names or [])
        plain = [names for names in self._names if not any(name.startswith("re:") for name in names)]
        if len(plain) == 2 and len(plain[0]) != len(plain[1]):
            raise FieldError(
                "teacher_layer_names", f"names {len(plain[1])} layers, student_layer_names {len(plain[0])}"
            )
        self._term = TERM

    @property
    def _names(self) -> list[list[str]]:
        """The keys student_layer_names and teacher_layer_names as lists, without those that are left out."""
        given = [names for names in (self.student_layer_names, self.teacher_layer_names) if names is not None]
        return [[names] if isinstance(names, str) else names for names in given]

    def check_compatible(self, others: Sequence[Modifier]) -> None:
        super().check_compatible(others)
        for other in others:
            if not isinstance(other, PerLayerDistillationModifier) or not spans_overlap(self.span, other.span):
                continue
            if not (self._names and other._names):
                raise FieldError(
                    "student_layer_names",
                    "another modifier of this kind acts at the same time: name the layers of both, so that no layer is "
                    "compared twice",
                    other,
                )

    @property
    def needs_gradients(self) -> bool:  # type: ignore[override]
        """True if it has projections, which is known before the models are."""
        return self.project_features

    @property
    def teacher_outputs(self) -> frozenset[str]:
        return frozenset({"outputs of layers"})

    @property
    def needs_same_tokens(self) -> bool:
        return any(pair.axes in ("tokens", "attention") for pair in self._pairs)

    @property
    def what(self) -> str:
        return "layers"

    # --- the pairs ----------------------------------------------------------------------------------------------------

    def find_pairs(self, state: State) -> list[Pair]:
        from sparse_accel.nn.layer_outputs import LayerOutput, trace_calls

        assert state.teacher is not None
        layouts = trace_calls(state.model), trace_calls(state.teacher.model)
        students = self._layers(
            state.model, layouts[0], self.student_layer_names or self.teacher_layer_names, "student"
        )
        teachers = self._layers(
            state.teacher.model, layouts[1], self.teacher_layer_names or self.student_layer_names, "teacher"
        )
        if len(students) != len(teachers):
            raise UsageError(
                f"{self.name}: the model has {len(students)} layers to compare, the teacher {len(teachers)}, but they "
                "are compared in pairs: name the same number of both in student_layer_names and teacher_layer_names, "
                "or use a HiddenStateDistillationModifier, which spreads the blocks of models of other depths"
            )
        before = [other for other in state.modifiers[: state.modifiers.index(self)] if isinstance(other, type(self))]
        same_time = [other for other in before if spans_overlap(self.span, other.span)]
        self._term = f"{TERM}_{len(same_time) + 1}" if same_time else TERM
        pairs = []
        for student, teacher in zip(students, teachers, strict=True):
            calls = len(layouts[0].calls_of(student)), len(layouts[1].calls_of(teacher))
            if calls[0] != calls[1]:
                raise UsageError(
                    f"{self.name}: {student} runs {calls[0]} times in a forward of the model, {teacher} {calls[1]} "
                    "times in one of the teacher: they cannot be compared"
                )
            for call in range(calls[0]):
                outputs = LayerOutput(student, call), LayerOutput(teacher, call)
                pairs.append(self.pair(layouts, *outputs, self._term, self.project_features))
        return pairs

    def _layers(self, model: nn.Module, layout: Layout, names: str | list[str] | None, whose: str) -> list[str]:
        """Returns the names of the layers to compare, in order.

        Args:
            names: as in the recipe; None: all Linear and Conv2d layers.
            whose: student or teacher.
        """
        from sparse_accel.modifiers.parameter_names import match_parameter_names
        from sparse_accel.nn.layers import plain_class_name

        used = {call.module for call in layout.calls}
        if names is None:
            kinds = {name: plain_class_name(module) for name, module in model.named_modules()}
            return [name for name, kind in kinds.items() if kind in ("Linear", "Conv2d") and name in used]
        key = f"{whose}_layer_names"
        known = [name for name, _ in model.named_modules() if name]
        kind = f"layer of the {'model' if whose == 'student' else 'teacher'}"
        found: list[str] = []
        for pattern in [names] if isinstance(names, str) else names:
            try:
                found += match_parameter_names(pattern, known, key=key, kind=kind)
            except UsageError as error:
                raise UsageError(f"{self.name}: {error}") from None
        if twice := [name for name in found if found.count(name) > 1]:
            raise UsageError(f"{self.name}: {key} matches {twice[0]} twice")
        if unused := [name for name in found if name not in used]:
            raise UsageError(
                f"{self.name}: {key}: {listed(unused, 3)} of the {kind.rsplit(' ', 1)[1]} does not run in a forward: "
                "leave it out"
            )
        return found
