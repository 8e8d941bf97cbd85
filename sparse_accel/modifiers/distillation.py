"""Distillation: the student learns from a teacher's outputs. The losses are functions in `sparse_accel.nn.losses`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import FieldError, Modifier, spans_overlap

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sparse_accel.modifiers.state import State
    from sparse_accel.progress import Progress


@dataclass(kw_only=True)
class DistillationModifier(Modifier):
    """Trains the model (the student) to match the outputs of a teacher, together with the labels.

    loss = (1 - hardness) * task loss + hardness * distillation loss (Hinton et al. 2015, arXiv 1503.02531). The
    distillation loss is the mean over `distill_output_keys`. `--distill_teacher` names the teacher.

    Several of them may act at the same time if they compare different outputs: the weight of the task loss is then the
    product of their (1 - hardness), and each is logged with the names of its outputs.
    """

    hardness: float = 0.5
    """Weight of the distillation loss, 0 to 1; 1: labels are not used."""
    temperature: float = 2.0
    """Divisor of student and teacher logits, above 0; higher values give softer targets, 1 leaves them unchanged."""
    distill_output_keys: list[str] = field(default_factory=lambda: ["logits"])
    """Names of the model outputs to compare; an empty list: logits. For embeddings, logits are the embeddings."""

    needs_teacher: ClassVar[bool] = True
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"distill_output_keys": (None,), "teacher_input_keys": (None, [])}
    known_later: ClassVar[dict[str, str]] = {"teacher_input_keys": "the teacher gets all inputs of the student"}
    without_effect: ClassVar[dict[str, str]] = {
        "update_frequency": "the loss is added in every step between start_epoch and end_epoch",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.hardness <= 1:
            raise FieldError("hardness", f"expected a fraction between 0 and 1, got {self.hardness:g}")
        if self.temperature <= 0:
            raise FieldError("temperature", f"expected a number above 0, got {self.temperature:g}")
        if self.end_epoch != -1 and self.end_epoch <= self.span[0]:
            raise FieldError(
                "end_epoch", f"must be after epoch {self.span[0]:g}, where this modifier starts, got {self.end_epoch:g}"
            )
        self.distill_output_keys = self.distill_output_keys or ["logits"]
        if twice := [key for key in self.distill_output_keys if self.distill_output_keys.count(key) > 1]:
            raise FieldError("distill_output_keys", f"names '{twice[0]}' twice")
        self._keys, self._active = self.distill_output_keys, False

    def check_compatible(self, others: Sequence[Modifier]) -> None:
        super().check_compatible(others)
        for other in self._at_the_same_time(others):
            if shared := [key for key in self.distill_output_keys if key in other.distill_output_keys]:
                raise FieldError(
                    "distill_output_keys",
                    f"two of this kind act at the same time from epoch {self.span[0]:g}, and both compare "
                    f"'{shared[0]}': at most one may do so at a time",
                    other,
                )

    def _at_the_same_time(self, others: Sequence[object]) -> list[DistillationModifier]:
        """Returns the other modifiers of this kind that act at the same time for a while."""
        kind = [other for other in others if isinstance(other, DistillationModifier) and other is not self]
        return [other for other in kind if spans_overlap(self.span, other.span)]

    def events(self) -> list[tuple[float, str]]:
        what = f"distillation: hardness {self.hardness:g}, temperature {self.temperature:g}"
        # Of a task without logits, such as embeddings, "logits" are its outputs.
        compared = (
            "the task's outputs" if self.distill_output_keys == ["logits"] else ", ".join(self.distill_output_keys)
        )
        events = [(max(self.start_epoch, 0.0), f"{what} ({compared})")]
        if self.end_epoch != -1:
            events.append((self.end_epoch, "distillation ends"))
        return events

    def attach(self, state: State) -> None:
        assert state.teacher is not None  # the engine raises an error without one
        self._state, self._teacher, self._task = state, state.teacher, state.task
        if {*self._keys} == {*self._task.logit_keys}:
            self._keys = ["logits"]  # such as start_logits and end_logits: the table has them
        if self._keys != ["logits"]:  # those, all models of a task here have
            self._check_outputs("model", state.model)
            self._check_outputs("teacher", state.teacher.model)
        if not self._task.uses_temperature and self.temperature != type(self).temperature:
            state.notices.append(f"{self.name}: temperature has no effect on the outputs of this task")
        several = self._at_the_same_time(state.modifiers)
        self._term = "_".join(["distillation_loss", *(self.distill_output_keys if several else [])])

    def _check_outputs(self, whose: str, model: nn.Module) -> None:
        """Raises UsageError if a model that says what its inputs are does not return the outputs to compare."""
        from sparse_accel.nn.layer_outputs import trace_calls

        if getattr(model, "dummy_inputs", None) is None:
            return
        outputs = trace_calls(model).calls[-1].output  # what the model itself returns
        for key in self.distill_output_keys:
            if key not in outputs:
                layers = key in ("hidden_states", "attentions")
                instead = ". A HiddenStateDistillationModifier compares them" if layers else ""
                raise UsageError(
                    f"{self.name}: distill_output_keys: the {whose} has no output '{key}', only "
                    f"{', '.join(outputs)}{instead}"
                )

    def step_begin(self, progress: Progress) -> None:
        ended = self.end_epoch != -1 and progress.reached(self.end_epoch)
        self._active = progress.reached(self.start_epoch) and not ended

    def task_weight(self) -> float:
        return 1 - self.hardness if self._active else 1.0

    def loss_terms(self, batch: dict[str, Any], outputs: Any) -> dict[str, tuple[float, torch.Tensor]]:
        import torch

        if not self._active:
            return {}
        with self._state.autocast():
            teacher = self._teacher.outputs(batch, self._keys)
        distances = [
            self._task.distance(self._output(outputs, key), teacher[key], batch, self.temperature) for key in self._keys
        ]
        terms = {self._term: (self.hardness, torch.stack(distances).sum(dim=0) / len(distances))}
        if "logits" in self._keys:
            agreed = self._task.agreement(self._output(outputs, "logits").detach(), teacher["logits"], batch)
            if agreed is not None:
                terms["teacher_agreement"] = (0.0, agreed)  # logged, but not part of the loss
        return terms

    @property
    def teacher_outputs(self) -> frozenset[str]:
        return frozenset(self._keys)

    def phase(self) -> str:
        return "distilled" if self._active else ""

    def _output(self, outputs: Any, key: str) -> torch.Tensor:
        """Returns an output of the student, or its logits."""
        for name in self._task.logit_keys if key == "logits" else (key,):
            if name not in outputs:
                raise UsageError(
                    f"{self.name}: distill_output_keys: the model has no output '{name}', only {list(outputs)}"
                )
        found: torch.Tensor = self._task.logits(outputs) if key == "logits" else outputs[key]
        return found
