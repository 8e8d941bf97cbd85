"""The part of a run that a modifier can use. The engine (`RecipeRun`) fills it in; a test may create one by hand.

Teacher and task are protocols here, so that modifiers import no module above them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sparse_accel.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sparse_accel.nn.layer_outputs import LayerOutput


class Teacher(Protocol):
    """A frozen model whose outputs the student is trained to match."""

    model: nn.Module

    def outputs(self, batch: dict[str, Any], keys: list[str]) -> dict[str, Tensor]:
        """Returns the outputs named by `keys` for the rows of a batch, without gradients."""

    def watch(self, outputs: Collection[LayerOutput]) -> None:
        """Makes `layer_outputs` return these outputs too."""

    def layer_outputs(self, batch: dict[str, Any]) -> dict[LayerOutput, Tensor]:
        """Returns the outputs of layers for the rows of a batch, by one forward, without gradients."""


class Task(Protocol):
    """What the engine needs from the task that the model is trained for."""

    # The outputs of the model that are its logits.
    logit_keys: ClassVar[tuple[str, ...]]
    # Whether `distance` depends on the temperature.
    uses_temperature: ClassVar[bool]

    @classmethod
    def logits(cls, outputs: Any) -> Tensor:
        """Returns the logits among the outputs of a model: (rows, outputs) or (rows, tokens, outputs)."""

    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        """Returns (rows,) float32: the distance of the student's outputs from the teacher's."""

    def agreement(self, student: Tensor, teacher: Tensor, batch: dict[str, Any]) -> Tensor | None:
        """Returns (rows,) float32: the fraction of decisions that are the teacher's; None if there are none."""


class GradientSamples(Protocol):
    """Gradients of batches of training rows, which leave the training around them as it was."""

    def sizes(self, options: Mapping[str, Any]) -> tuple[int | None, int | None]:
        """Returns the number of rows of a sample, and of the data; None if not known."""

    def draw(
        self,
        weights: Mapping[str, nn.Parameter],
        count: int,
        take: Callable[[str, Tensor], None],
        *,
        options: Mapping[str, Any],
        seed: tuple[int, ...],
        from_recipe: bool,
        what: str,
    ) -> None:
        """Calls `take` with name and gradient of each sample, on the process that owns the weight."""


@dataclass
class State:
    """The state that all modifiers of a run share.

    Attributes:
        model: the plain model; its modules stay the same objects when `accelerator.prepare` wraps it.
        modifiers: all modifiers of the run, in order of application.
        task: the task that the model is trained for.
        teacher: the teacher; None if there is none.
        max_epochs: number of epochs of the recipe; 0 if it sets none.
        trains: False if the recipe is applied at once, without training; set before `bind`.
        notices: lines for the user about parts of the recipe that have no effect on this model; modifiers add to them.
        gives_gradients: whether gradients can be read and changed between backward and step. With DeepSpeed they
            cannot, because it steps inside backward.
        autocast: makes the context in which the model computes, with mixed precision or without; set before `bind`.
        loss_scale: returns the factor of the gradients between backward and step, for tensors that are not in the
            optimizer; 1 except in fp16. Set before `bind`.
        gradient_samples: draws gradients of training rows, for modifiers with `samples_gradients`; set before `bind`.
        forwards: runs so many batches of training rows through the model, with quantizers that observe, and yields
            after each; for modifiers with `calibration_batches`. Set before `bind`.
        optimizer: the prepared optimizer; set before `bind`.
        progress: the clock; set before `bind`.
    """

    model: nn.Module
    modifiers: Sequence[object]
    task: Task
    teacher: Teacher | None = None
    max_epochs: int = 0
    trains: bool = True
    notices: list[str] = field(default_factory=list)
    gives_gradients: bool = True
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    loss_scale: Callable[[], float] = lambda: 1.0
    gradient_samples: GradientSamples | None = None
    forwards: Callable[[int], Iterator[None]] | None = None
    optimizer: torch.optim.Optimizer | None = None
    progress: Progress = field(default_factory=lambda: Progress(step=0, steps_per_epoch=1))
