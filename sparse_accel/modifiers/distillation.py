"""Distillation: the student follows a teacher's outputs. The loss is a pure function in `sparse_accel.losses`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import FieldError, Modifier

if TYPE_CHECKING:
    import torch

    from sparse_accel.progress import Progress
    from sparse_accel.recipe import Recipe
    from sparse_accel.recipe_run import RecipeRun

_NO_TEACHER = (
    "the recipe distils (DistillationModifier) and there is no teacher: pass --distill_teacher PATH (a folder or Hub "
    "id of a trained model), --distill_teacher self, or --distill_teacher disable to leave distillation out. In "
    "Python: RecipeRun(recipe, teacher=sparse_accel.Teacher(model)), or teacher='disable'"
)


@dataclass(kw_only=True)
class DistillationModifier(Modifier):
    """loss = (1 - hardness) * task loss + hardness * distillation loss, averaged over `distill_output_keys`."""

    hardness: float = 0.5
    """Share of the distillation loss, 0 to 1; at 1 the labels are not used."""
    temperature: float = 2.0
    """Softens both distributions, above 0; 1 leaves them as they are."""
    distill_output_keys: list[str] = field(default_factory=lambda: ["logits"])
    """Outputs of the model to compare; an empty list stands for logits."""

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

    def attach(self, model: torch.nn.Module, run: RecipeRun) -> None:
        if run.teacher is None:
            raise UsageError(_NO_TEACHER)

    def bind(self, run: RecipeRun) -> None:
        self._run = run

    def step_begin(self, progress: Progress) -> None:
        ended = self.end_epoch != -1 and progress.reached(self.end_epoch)
        self._active = progress.reached(self.start_epoch) and not ended

    def loss(self, loss: torch.Tensor, batch: dict[str, Any], outputs: Any) -> torch.Tensor:
        from sparse_accel.losses import distillation_loss, mixed_loss

        if not self._active:
            return loss
        assert self._run.teacher is not None
        teacher = self._run.teacher.outputs(batch, self.distill_output_keys)
        rows = sum(
            distillation_loss(_output(outputs, key), teacher[key], self.temperature, self._run.problem_type)
            for key in self.distill_output_keys
        ) / len(self.distill_output_keys)
        distillation = rows if loss.ndim else rows.mean()  # type: ignore[union-attr]
        self._run.loss_parts["distillation_loss"] = distillation.detach()  # type: ignore[union-attr]
        return mixed_loss(loss, distillation, self.hardness)  # type: ignore[arg-type]

    def phase(self) -> str:
        return "distilled" if self._active else ""


def check_teacher(recipe: Recipe | None, teacher: str | None) -> None:
    """Raises UsageError where a recipe distils without a teacher, or there is a teacher and no recipe that distils.

    Args:
        teacher: what --distill_teacher says; None when it is left out.
    """
    distils = recipe is not None and bool(recipe.select(DistillationModifier))
    if distils and teacher is None:
        raise UsageError(_NO_TEACHER)
    if not distils and teacher not in (None, "disable"):
        raise UsageError(
            "--distill_teacher does nothing: the recipe has no DistillationModifier. Add one to the recipe, or leave "
            "the flag out"
        )


def _output(outputs: Any, key: str) -> torch.Tensor:
    if key not in outputs:
        raise UsageError(
            f"DistillationModifier: distill_output_keys: the model has no output '{key}', only {list(outputs)}"
        )
    found: torch.Tensor = outputs[key]
    return found
