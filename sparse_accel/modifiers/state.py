"""The part of a run that a modifier can use. The engine (`RecipeRun`) fills it in; a test may create one by hand.

Teacher and task are protocols here, so that modifiers import no module above them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sparse_accel.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Teacher(Protocol):
    """A frozen model whose outputs the student is trained to match."""

    def outputs(self, batch: dict[str, Any], keys: list[str]) -> dict[str, Tensor]:
        """Returns the outputs named by `keys` for the rows of a batch, without gradients."""


class Task(Protocol):
    """What the engine needs from the task that the model is trained for."""

    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        """Returns (rows,) float32: the distance of the student's outputs from the teacher's."""


@dataclass
class State:
    """The state that all modifiers of a run share.

    Attributes:
        model: the plain model; its modules stay the same objects when `accelerator.prepare` wraps it.
        modifiers: all modifiers of the run, in order of application.
        task: the task that the model is trained for.
        teacher: the teacher; None if there is none.
        max_epochs: number of epochs of the recipe; 0 if it sets none.
        notices: lines for the user about parts of the recipe that have no effect on this model; modifiers add to them.
        gives_gradients: whether gradients can be read and changed between backward and step. With DeepSpeed they
            cannot, because it steps inside backward.
        optimizer: the prepared optimizer; set before `bind`.
        progress: the clock; set before `bind`.
    """

    model: nn.Module
    modifiers: Sequence[object]
    task: Task
    teacher: Teacher | None = None
    max_epochs: int = 0
    notices: list[str] = field(default_factory=list)
    gives_gradients: bool = True
    optimizer: torch.optim.Optimizer | None = None
    progress: Progress = field(default_factory=lambda: Progress(step=0, steps_per_epoch=1))
