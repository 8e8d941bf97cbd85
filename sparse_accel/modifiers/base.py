"""What every modifier is: a dataclass of its recipe keys, and hooks at the seven moments of training.

Modifier files import without torch, so that a recipe error prints in milliseconds (a test holds this). Tensor
arithmetic lives in `sparse_accel.nn`; the hooks that need it import it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparse_accel.errors import UsageError, listed
from sparse_accel.progress import ROUNDING

if TYPE_CHECKING:
    from torch import Tensor

    from sparse_accel.modifiers.state import State
    from sparse_accel.progress import Progress


class FieldError(ValueError):
    """A recipe key holds a value that its modifier cannot take, or that another modifier excludes.

    The recipe reader adds file and line (and the line of `other`), and shows it as a usage error.
    """

    def __init__(self, key: str, message: str, other: Modifier | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.other = other


def no_teacher(modifier: Modifier) -> UsageError:
    """The error for a modifier that follows a teacher in a run without one."""
    return UsageError(
        f"the recipe distils ({modifier.name}) and there is no teacher: pass --distill_teacher PATH (a folder or Hub "
        "id of a trained model), --distill_teacher self, or --distill_teacher disable to leave distillation out. In "
        "Python: RecipeRun(recipe, teacher=sparse_accel.Teacher(model)), or teacher='disable'"
    )


def spans_overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """True when two spans of epochs share more than an end point."""
    return max(one[0], other[0]) < min(one[1], other[1]) - ROUNDING


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

    # Recipes of the old tool carry keys that are not fields here. Three tables say what becomes of them; each table of
    # a subclass adds to those of its bases. Anything else that would do nothing is an error.

    # Values at which a key, a field or not, changes nothing: they are read as if the key was left out.
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"constant_logging": (False,), "update_frequency": (-1,)}

    # Keys that have nothing to act on here: accepted at any value, and a line says why.
    without_effect: ClassVar[dict[str, str]] = {
        "constant_logging": "what is logged is chosen by --logging_steps",
        "log_types": "what is logged is chosen by --report_to",
    }

    # Keys that are not supported yet at any other value than a neutral one, with a word on what is.
    known_later: ClassVar[dict[str, str]] = {
        "update_frequency": "nothing is updated between start_epoch and end_epoch",
    }

    # What a modifier needs of its run, or sets in it. Nothing outside of this package asks for a modifier's class.

    # True: it follows a teacher; a run without one leaves it out, or is refused.
    needs_teacher: ClassVar[bool] = False

    # True: what it does depends on rows that the model is shown, padding included; --one_shot then needs some.
    needs_rows: ClassVar[bool] = False

    # True: its `grads_ready` reads gradients: it gets them unscaled, and only in steps that count. A layout that cannot
    # give them (State.gives_gradients) is refused.
    needs_gradients: ClassVar[bool] = False

    # The key of the optimizer's parameter groups that it writes: lr, weight_decay; empty: none.
    setting: ClassVar[str] = ""

    # True: --one_shot can apply it; `apply_at_once` does, or there is nothing to do but in training.
    acts_at_once: ClassVar[bool] = False

    # True: at most one of this kind stands at a recipe's top level, or in one of its stages.
    single: ClassVar[bool] = False

    # True: no two modifiers of this kind may act at the same time, which the recipe reader checks by their epochs.
    one_at_a_time: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.end_epoch != -1 and self.end_epoch < self.start_epoch:
            raise FieldError("end_epoch", f"end_epoch {self.end_epoch} lies before start_epoch {self.start_epoch}")

    @property
    def name(self) -> str:
        return type(self).__name__

    def covers_group(self, group: int) -> bool:
        """Whether it writes `setting` of this parameter group of the optimizer, counted from 0."""
        return False

    @property
    def teacher_outputs(self) -> frozenset[str]:
        """The outputs of the teacher that a modifier which follows one compares."""
        return frozenset()

    @property
    def span(self) -> tuple[float, float]:
        """The epochs between which the modifier acts: the first not negative, the second infinite for no end."""
        return max(self.start_epoch, 0.0), math.inf if self.end_epoch == -1 else self.end_epoch

    def check_compatible(self, others: Sequence[Modifier]) -> None:
        """Raises FieldError when this modifier cannot stand in one recipe with `others`, all its other modifiers."""
        for other in others:
            if self.one_at_a_time and type(other) is type(self) and spans_overlap(self.span, other.span):
                raise FieldError(
                    "start_epoch",
                    f"from epoch {self.span[0]:g} on, two of this kind act at the same time; there can be one",
                    other,
                )

    def events(self) -> list[tuple[float, str]]:
        """The moments of this modifier's timeline, as (epoch, what happens then), for tables and `max_epochs`."""
        return []

    # --- the seven moments, in the order in which training meets them -----------------------------------------------

    def attach(self, state: State) -> None:
        """Before `accelerator.prepare`: the only place where structure may change."""

    def bind(self, state: State) -> None:
        """After `prepare`: whatever needs the optimizer, the device, or the layout."""

    def step_begin(self, progress: Progress) -> None:
        """Before the first forward of an optimizer step."""

    def calibrate(self, forward: Callable[[], None]) -> None:
        """Between step_begin and the step's first forward, in a loop that offers it.

        Args:
            forward: runs all rows of the step under way through the model, without gradients.
        """

    def loss_terms(self, batch: dict[str, Any], outputs: Any) -> Mapping[str, tuple[float, Tensor]]:
        """Each micro-batch: the terms that this modifier adds to the loss, as {name: (weight, value)}.

        The loss is the sum of weight * value over the terms of all modifiers and the task's own, whose weight is the
        product of all `task_weight`. A term whose weight is 0 plays no part, were it infinite.

        Returns:
            values of shape (rows,), or () for one that is not of rows; each is logged under its name.
        """
        return {}

    def task_weight(self) -> float:
        """The fraction of the task's own loss that stays, in the step under way."""
        return 1.0

    def grads_ready(self) -> None:
        """Gradients are complete and not yet clipped. See `needs_gradients`."""

    def step_end(self, progress: Progress) -> None:
        """After an optimizer step that was not skipped; `progress` counts it already."""

    def step_skipped(self) -> None:
        """Instead of step_end, where the step's gradients were not used: what its forward has shown does not count."""

    def finish(self) -> None:
        """End of training."""

    def apply_at_once(self, forwards: Callable[[], Iterator[None]]) -> None:
        """Applies the modifier's final structure without training, after `bind`.

        Args:
            forwards: each step of the iterator that it returns is one forward over a batch of training rows.

        Raises:
            UsageError: it has an effect in training only.
        """
        self.check_acts_at_once()

    def check_acts_at_once(self) -> None:
        """Raises UsageError where `apply_at_once` cannot do what the modifier is for."""
        if not self.acts_at_once:
            raise UsageError(
                f"--one_shot: {self.name} acts in training only: train with it (--do_train), or take it out of the "
                "recipe"
            )

    def structure_final(self, progress: Progress) -> bool:
        """True once this modifier will change the model's structure no more (sparsity final, ranges frozen)."""
        return True

    # --- state and report ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs beyond `progress`; empty for pure functions of the clock."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Puts back what `state_dict` returned. Called after `bind`, with the run's clock put back already.

        Raises:
            ValueError: it is the state of another modifier, or of another model.
        """
        if state:
            raise ValueError(f"{self.name} keeps no state, and found {listed(state)}")

    def phase(self) -> str:
        """A word for the progress bar on what the modifier is doing; empty when there is nothing to say."""
        return ""

    def metrics(self) -> dict[str, float]:
        """Figures to log at this moment, by name."""
        return {}
