"""Distillation: the student follows a teacher's outputs. The loss is a pure function in `sparse_accel.nn.losses`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import FieldError, Modifier

if TYPE_CHECKING:
    import torch

    from sparse_accel.modifiers.state import State
    from sparse_accel.progress import Progress


@dataclass(kw_only=True)
class DistillationModifier(Modifier):
    """loss = (1 - hardness) * task loss + hardness * distillation loss, averaged over `distill_output_keys`."""

    hardness: float = 0.5
    """Share of the distillation loss, 0 to 1; at 1 the labels are not used."""
    temperature: float = 2.0
    """Softens both distributions, above 0; 1 leaves them as they are."""
    distill_output_keys: list[str] = field(default_factory=lambda: ["logits"])
    """Outputs of the model to compare; an empty list stands for logits."""

    needs_teacher: ClassVar[bool] = True
    one_at_a_time: ClassVar[bool] = True
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"distill_output_keys": (None,), "teacher_input_keys": (None, [])}
    known_later: ClassVar[dict[str, str]] = {"teacher_input_keys": "the teacher is given all inputs of the student"}
    without_effect: ClassVar[dict[str, str]] = {
        "update_frequency": "the loss takes part in every step between start_epoch and end_epoch",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.hardness <= 1:
            raise FieldError("hardness", f"hardness is a share between 0 and 1, not {self.hardness:g}")
        if self.temperature <= 0:
            raise FieldError("temperature", f"temperature is above 0, not {self.temperature:g}")
        self.distill_output_keys = self.distill_output_keys or ["logits"]
        self._active = False

    def events(self) -> list[tuple[float, str]]:
        what = f"teacher followed: hardness {self.hardness:g}, temperature {self.temperature:g}"
        events = [(max(self.start_epoch, 0.0), f"{what} ({', '.join(self.distill_output_keys)})")]
        if self.end_epoch != -1:
            events.append((self.end_epoch, "teacher no longer followed"))
        return events

    def attach(self, state: State) -> None:
        assert state.teacher is not None  # the engine refuses a run without one
        self._teacher, self._task = state.teacher, state.task

    def step_begin(self, progress: Progress) -> None:
        ended = self.end_epoch != -1 and progress.reached(self.end_epoch)
        self._active = progress.reached(self.start_epoch) and not ended

    def task_weight(self) -> float:
        return 1 - self.hardness if self._active else 1.0

    def loss_terms(self, batch: dict[str, Any], outputs: Any) -> dict[str, tuple[float, torch.Tensor]]:
        import torch

        if not self._active:
            return {}
        teacher = self._teacher.outputs(batch, self.distill_output_keys)
        distances = [
            self._task.distance(_output(outputs, key), teacher[key], batch, self.temperature)
            for key in self.distill_output_keys
        ]
        return {"distillation_loss": (self.hardness, torch.stack(distances).sum(dim=0) / len(distances))}

    @property
    def teacher_outputs(self) -> frozenset[str]:
        return frozenset(self.distill_output_keys)

    def phase(self) -> str:
        return "distilled" if self._active else ""


def _output(outputs: Any, key: str) -> torch.Tensor:
    if key not in outputs:
        raise UsageError(
            f"DistillationModifier: distill_output_keys: the model has no output '{key}', only {list(outputs)}"
        )
    found: torch.Tensor = outputs[key]
    return found
