"""The base class of all modifiers: a dataclass of recipe keys, with hooks for the seven moments of training.

Modifier files do not import torch at the top, so that recipe errors print in milliseconds (a test checks this). Tensor
arithmetic is in `sparse_accel.nn`; the hooks that need it import it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sparse_accel.errors import UsageError, listed
from sparse_accel.progress import ROUNDING

if TYPE_CHECKING:
    from torch import Tensor

    from sparse_accel.modifiers.state import State
    from sparse_accel.progress import Progress


class FieldError(ValueError):
    """A recipe key has a value that its modifier does not accept, or that conflicts with another modifier.

    The recipe reader turns it into a RecipeError with the modifier, the key, file and line (and the line of `other`).

    Attributes:
        key: the recipe key.
        message: what is wrong with it.
        other: the modifier that it conflicts with; None if there is none.
        entry: the keys that lead to the wrong entry of the value, if that is a mapping, from the outside.
    """

    def __init__(self, key: str, message: str, other: Modifier | None = None, entry: Sequence[object] = ()) -> None:
        super().__init__(f"{key}: {message}")
        self.key, self.message = key, message
        self.other, self.entry = other, tuple(entry)


def no_teacher(modifier: Modifier) -> UsageError:
    """Returns the error for a modifier that needs a teacher in a run without one."""
    return UsageError(
        f"the recipe uses distillation ({modifier.name}), but there is no teacher: pass --distill_teacher PATH (a "
        "folder or Hub id of a trained model), --distill_teacher self, or --distill_teacher disable to turn it off. In "
        "Python: RecipeRun(recipe, teacher=sparse_accel.Teacher(model)), or teacher='disable'"
    )


def spans_overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Returns True if two spans of epochs share more than an end point."""
    return max(one[0], other[0]) < min(one[1], other[1]) - ROUNDING


@dataclass(kw_only=True)
class Modifier:
    """Base class of all modifiers. Hooks do nothing unless a subclass overrides them.

    The fields of a subclass are its recipe keys. The docstring below a field says what it does and its unit, and is
    printed in docs/modifiers.md. `__post_init__` raises FieldError for a value that is wrong for every model.
    """

    start_epoch: float = -1.0
    """Epoch at which the modifier starts; -1: at the start of training."""
    end_epoch: float = -1.0
    """Epoch at which the modifier stops; -1: never."""

    # File and line of the recipe, as `recipe.yaml:12`, for messages; empty: it was made in Python. Not a recipe key.
    place: str = field(default="", init=False, repr=False, compare=False)

    # SparseML recipes contain keys that are not fields here. Three tables say how each is handled; the table of a
    # subclass extends those of its base classes. Every other unknown key is an error.

    # Values at which a key (a field or not) changes nothing: the same as leaving the key out.
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"constant_logging": (False,), "update_frequency": (-1,)}

    # Keys that are accepted with any value and have no effect; the user gets a line with the reason.
    without_effect: ClassVar[dict[str, str]] = {
        "constant_logging": "use --logging_steps to set how often values are logged",
        "log_types": "use --report_to to choose where values are logged",
    }

    # Keys that are supported at their neutral values only, each with what is supported instead.
    known_later: ClassVar[dict[str, str]] = {
        "update_frequency": "this modifier does nothing between its start and its end",
    }

    # What a modifier needs from its run, or sets in it. Code outside this package checks these, never a class.

    # True: it needs a teacher. A run without one is an error; with the teacher "disable" the modifier is left out.
    needs_teacher: ClassVar[bool] = False

    # True: its result depends on the rows that the model processes, padding included; --one_shot then needs rows.
    needs_rows: ClassVar[bool] = False

    # True: its `grads_ready` reads gradients. They are unscaled, and skipped steps are left out. A layout that cannot
    # provide them (State.gives_gradients) is an error.
    needs_gradients: ClassVar[bool] = False

    # What to change in its keys so that it needs no gradients, for the message under DeepSpeed; empty: nothing helps.
    without_gradients: ClassVar[str] = ""

    # True: it draws gradient samples (State.gradient_samples) in `step_begin`, after the other modifiers, and in
    # `finish`. A run without a loader for them, or a layout that cannot provide gradients, is an error.
    samples_gradients: ClassVar[bool] = False

    # False: its `loss_terms` need a forward in training mode, so gradient samples, drawn in eval mode, leave them out.
    terms_in_eval: ClassVar[bool] = True

    # The key of the optimizer's parameter groups that it sets: lr or weight_decay; empty: none.
    setting: ClassVar[str] = ""

    # True: its hooks are called before those of the other modifiers, whatever the order of the recipe.
    applied_first: ClassVar[bool] = False

    # True: allowed with --one_shot: `apply_at_once` applies it, or it affects only training and is ignored there.
    acts_at_once: ClassVar[bool] = False

    # True: at most one of this kind is allowed at the top level of a recipe, and in each of its stages.
    single: ClassVar[bool] = False

    # True: two modifiers of this kind must not act at the same time; the recipe reader compares their epochs.
    one_at_a_time: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.end_epoch != -1 and self.end_epoch < self.start_epoch:
            raise FieldError("end_epoch", f"{self.end_epoch} is before start_epoch {self.start_epoch}")

    @property
    def name(self) -> str:
        """The name of the class, as in a recipe."""
        return type(self).__name__

    def covers_group(self, group: int) -> bool:
        """Returns True if it sets `setting` of this parameter group of the optimizer, an index from 0."""
        return False

    @property
    def teacher_outputs(self) -> frozenset[str]:
        """Names of the teacher outputs that it needs; empty if it needs no teacher."""
        return frozenset()

    @property
    def needs_same_tokens(self) -> bool:
        """True if it compares outputs token by token: the teacher must then read the model's tokens, not its own."""
        return bool(self.teacher_outputs - {"logits"})

    @property
    def calibration_batches(self) -> int | None:
        """Number of batches of training rows that it runs through the model where it starts, with `State.forwards`;
        None: it runs none."""
        return None

    @property
    def span(self) -> tuple[float, float]:
        """The epochs (start, end) between which it acts: start is 0 or more, end is infinite if it never stops."""
        return max(self.start_epoch, 0.0), math.inf if self.end_epoch == -1 else self.end_epoch

    @property
    def drops_layers_at_start(self) -> bool:
        """True if it removes blocks in `prepare_structure`. Their names are those of the whole model, so at most one of
        a recipe may."""
        return False

    def check_compatible(self, others: Sequence[Modifier]) -> None:
        """Checks this modifier against `others`, all other modifiers of its recipe.

        Raises:
            FieldError: it conflicts with one of them.
        """
        for other in others:
            if self.drops_layers_at_start and other.drops_layers_at_start:
                raise FieldError("layers", "two modifiers drop layers at the start: name all of them in one", other)
            if self.one_at_a_time and type(other) is type(self) and spans_overlap(self.span, other.span):
                raise FieldError(
                    "start_epoch",
                    f"two of this kind act at the same time from epoch {self.span[0]:g}; at most one may",
                    other,
                )

    def events(self) -> list[tuple[float, str]]:
        """Returns the timeline of this modifier as (epoch, what happens then), for tables and warnings."""
        return []

    # --- the seven moments, in the order of training ------------------------------------------------------------------

    def prepare_structure(self, state: State) -> str:
        """Called for all modifiers before the first `attach`: the only place where modules may be removed.

        Returns:
            what was removed, as text: names in recipes are those of the model without it. Empty if nothing was.

        Raises:
            UsageError: the recipe does not fit this model.
        """
        return ""

    def attach(self, state: State) -> None:
        """Called before `accelerator.prepare`: the only place where the model's structure may change.

        Raises:
            UsageError: the recipe does not fit this model.
        """

    def bind(self, state: State) -> None:
        """Called after `prepare`, for work that needs the optimizer, the device or the distributed layout.

        Raises:
            UsageError: the optimizer or the layout does not support it.
        """

    def step_begin(self, progress: Progress) -> None:
        """Called before the first forward of an optimizer step."""

    def calibrate(self, forward: Callable[[], None]) -> None:
        """Called between step_begin and the first forward of the step, by loops that support it.

        Args:
            forward: runs all rows of the current step through the model, without gradients.
        """

    def step_batches(self, batches: Sequence[dict[str, Any]]) -> None:
        """Called between step_begin and the first forward of the step, by loops that have all its rows then.

        Args:
            batches: the micro-batches of the step on this process, at least one; as many on every process.
        """

    def loss_terms(self, batch: dict[str, Any], outputs: Any) -> Mapping[str, tuple[float, Tensor]]:
        """Returns the terms that this modifier adds to the loss of a micro-batch, as {name: (weight, value)}.

        The loss is the sum of weight * value over the terms of all modifiers and the task loss, whose weight is the
        product of all `task_weight`. A term with weight 0 is left out, even if its value is infinite.

        Args:
            batch: the micro-batch.
            outputs: what the model returned for it.

        Returns:
            values of shape (rows,), or () for a value that is not per row; each is logged under its name.
        """
        return {}

    def task_weight(self) -> float:
        """Returns the weight of the task loss in the current step, 0 to 1."""
        return 1.0

    def grads_ready(self) -> None:
        """Called when gradients are complete and not yet clipped. See `needs_gradients`."""

    def step_end(self, progress: Progress) -> None:
        """Called after an optimizer step that was not skipped; `progress` already counts it."""

    def step_skipped(self) -> None:
        """Called instead of step_end if the gradients were not used: observations of this step must be dropped."""

    def finish(self) -> None:
        """Called at the end of training."""

    def apply_at_once(self, forwards: Callable[[], Iterator[None]]) -> None:
        """Applies the modifier's final structure without training. Called after `bind`.

        Args:
            forwards: returns an iterator; each of its steps is one forward over a batch of training rows.

        Raises:
            UsageError: it works only in training.
        """
        self.check_acts_at_once()

    @property
    def changes_at_once(self) -> bool:
        """True if `apply_at_once` of this modifier changes the model."""
        return type(self).apply_at_once is not Modifier.apply_at_once

    def at_once(self) -> str:
        """Returns what `apply_at_once` reaches, to be printed after the name, such as ` (to 0.9)`; empty: nothing."""
        return ""

    def check_acts_at_once(self) -> None:
        """Raises UsageError if this modifier works only in training."""
        if not self.acts_at_once:
            raise UsageError(
                f"--one_shot: {self.name} works only in training: use --do_train, or remove it from the recipe"
            )

    def structure_final(self, progress: Progress) -> bool:
        """Returns True once this modifier no longer changes the structure (sparsity final, ranges frozen)."""
        return True

    # --- state and report ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the tensors that a resumed run needs in addition to `progress`; empty if it needs none."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` returned. Called after `bind`, when the run's clock is already restored.

        Raises:
            ValueError: the state belongs to another modifier or another model.
        """
        if state:
            raise ValueError(f"{self.name} has no state, got {listed(state)}")

    def phase(self) -> str:
        """Returns what the modifier is doing, for the progress bar; empty if nothing."""
        return ""

    def metrics(self) -> dict[str, float]:
        """Returns the values to log now, by name."""
        return {}


def check_gradients(modifiers: Sequence[Modifier], given: bool) -> None:
    """Raises UsageError if a modifier needs gradients and the layout does not provide them.

    Args:
        given: what `distributed.launch.gives_gradients` returned.
    """
    needing = [modifier for modifier in modifiers if modifier.needs_gradients or modifier.samples_gradients]
    if needing and not given:
        instead = f", or set {needing[0].without_gradients}" if needing[0].without_gradients else ""
        raise UsageError(
            f"{needing[0].name} needs gradients, but DeepSpeed does not provide them, because it steps inside "
            f"backward: train with accelerate_configs/ddp.yaml or fsdp2.yaml{instead}"
        )
