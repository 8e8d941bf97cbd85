"""What every modifier is: a dataclass of its recipe keys, and hooks at the seven moments of training.

Modifier files import without torch, so that a recipe error prints in milliseconds (a test holds this). Tensor
arithmetic lives in modules beside this package (masks, fake_quantize, losses); the hooks that need it import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

    from sparse_accel.progress import Progress
    from sparse_accel.recipe_run import RecipeRun


class FieldError(ValueError):
    """A recipe key holds a value that its modifier cannot take.

    The recipe reader adds file and line, and shows it as a usage error.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(kw_only=True)
class Modifier:
    """Base of all modifiers. Every hook does nothing unless a modifier says otherwise.

    A subclass's fields are exactly the recipe's keys, each with a docstring of unit and meaning; `__post_init__` raises
    FieldError for a value that can be seen to be wrong without a model.
    """

    start_epoch: float = -1.0
    """Epoch at which the modifier begins to act; -1 acts from the start."""
    end_epoch: float = -1.0
    """Epoch at which the modifier stops acting; -1 never stops."""

    # Keys that recipes of the old tool carry and that have nothing to act on here: accepted at any value, and a line
    # says why. Anything else that would do nothing is an error.
    without_effect: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        if self.end_epoch != -1 and self.end_epoch < self.start_epoch:
            raise FieldError("end_epoch", f"end_epoch {self.end_epoch} lies before start_epoch {self.start_epoch}")

    @property
    def name(self) -> str:
        return type(self).__name__

    def events(self) -> list[tuple[float, str]]:
        """The moments of this modifier's timeline, as (epoch, what happens then), for tables and `max_epochs`."""
        return []

    # --- the seven moments, in the order in which training meets them -----------------------------------------------

    def attach(self, model: torch.nn.Module, run: RecipeRun) -> None:
        """Before `accelerator.prepare`: the only place where structure may change."""

    def bind(self, run: RecipeRun) -> None:
        """After `prepare`: whatever needs the wrapped model, the optimizer or the device."""

    def step_begin(self, progress: Progress) -> None:
        """Before the first forward of an optimizer step."""

    def loss(self, loss: torch.Tensor, batch: dict[str, Any], outputs: Any) -> torch.Tensor:
        """Each micro-batch: takes the loss so far, one value a row (rows,) or their mean (), returns the loss to go on
        with, of the same shape."""
        return loss

    def grads_ready(self) -> None:
        """Gradients are complete and not yet clipped."""

    def step_end(self, progress: Progress) -> None:
        """After an optimizer step that was not skipped; `progress` counts it already."""

    def finish(self) -> None:
        """End of training."""

    # --- state and report ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors that a resumed run needs beyond `progress`; empty for pure functions of the clock."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Puts back what `state_dict` returned. Called after `bind`."""

    def metrics(self) -> dict[str, float]:
        """Figures to log at this moment, by name."""
        return {}
