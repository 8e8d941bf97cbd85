"""What a modifier may see of its run. The engine (`RecipeRun`) fills it in; a test may make one by hand.

Teacher and task are protocols here, so that a modifier names no module above it.
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
    """A frozen model whose outputs a student can follow."""

    def outputs(self, batch: dict[str, Any], keys: list[str]) -> dict[str, Tensor]:
        """Returns the outputs named by `keys` for the rows of a batch, without gradient."""


class Task(Protocol):
    """What the engine must know of the task that the model is trained for."""

    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        """Returns (rows,) float32: how far the student's outputs are from the teacher's."""


@dataclass
class State:
    """One for all modifiers of a run.

    Attributes:
        model: the plain model; its modules stay the same objects when `accelerator.prepare` wraps it.
        modifiers: all of the run, in order of application; a modifier looks for those of its own family.
        task: what the outputs mean.
        teacher: None where there is none.
        max_epochs: epochs that the recipe asks for; 0 when it names none.
        notices: lines for the user on what the recipe asks for and this model has no use for; modifiers add theirs.
        gives_gradients: whether the layout lets gradients be read and changed between backward and step. DeepSpeed,
            which steps inside of backward, does not.
        optimizer: the prepared one; from `bind` on.
        progress: the clock; from `bind` on.
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
