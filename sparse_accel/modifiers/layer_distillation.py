"""What distillation of hidden states, of attentions and of named layers have in common: outputs of layers are compared.

The distance is a function in `sparse_accel.nn.losses`; outputs are kept by `sparse_accel.nn.layer_outputs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import FieldError, Modifier, spans_overlap

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sparse_accel.modifiers.state import State
    from sparse_accel.nn.layer_outputs import Axes, LayerOutput, Layout
    from sparse_accel.progress import Progress


@dataclass(frozen=True)
class Pair:
    """An output of the student and the one of the teacher that it is compared with.

    Attributes:
        student, teacher: where they are.
        term: name of the loss term that the pair is part of.
        axes: what the axes of both after the rows are.
        projection: name of the projection of the student's output; empty: it is compared as it is.
    """

    student: LayerOutput
    teacher: LayerOutput
    term: str
    axes: Axes
    projection: str = ""


@dataclass(kw_only=True)
class LayerDistillation(Modifier):
    """Base class: pairs of outputs of layers, their distance, and projections. A subclass finds the pairs."""

    gain: float = 1.0
    """Weight of the loss, above 0."""
    normalize: bool = True
    """true divides the squared error of each layer by the mean square of the teacher's output (over all rows of the
    step), so that layers with large outputs do not dominate. With gradient accumulation this takes one more forward of
    the teacher for each further micro-batch."""
    epsilon: float = 1e-6
    """Added to that mean square, above 0."""

    needs_teacher: ClassVar[bool] = True
    terms_in_eval: ClassVar[bool] = False  # outputs of layers are recorded in training mode
    without_gradients: ClassVar[str] = "project_features to false, for a teacher of the model's widths"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gain <= 0:
            raise FieldError("gain", f"expected a number above 0, got {self.gain:g}")
        if self.epsilon <= 0:
            raise FieldError("epsilon", f"expected a number above 0, got {self.epsilon:g}")
        if self.span[1] <= self.span[0]:
            raise FieldError("end_epoch", f"must be after epoch {self.span[0]:g}, where this modifier starts")
        self._active = False
        self._pairs: list[Pair] = []
        self._widths: dict[str, tuple[int, int]] = {}

    @property
    def needs_gradients(self) -> bool:  # type: ignore[override]
        """True if it has projections: it trains them itself, from gradients averaged over processes."""
        return bool(self._widths)

    @property
    def what(self) -> str:
        """What is compared, for the timeline and the progress bar."""
        raise NotImplementedError

    def events(self) -> list[tuple[float, str]]:
        start, end = self.span
        events = [(start, f"distillation of {self.what}: gain {self.gain:g}")]
        if self.end_epoch != -1:
            events.append((end, f"distillation of {self.what} ends"))
        return events

    def phase(self) -> str:
        return f"{self.what} distilled" if self._active else ""

    # --- the pairs ----------------------------------------------------------------------------------------------------

    def find_pairs(self, state: State) -> list[Pair]:
        """Returns what is compared. Sets `_widths`, (teacher width, student width) by the name of the projection.

        Raises:
            UsageError: the models do not have what the recipe names.
        """
        raise NotImplementedError

    def attach(self, state: State) -> None:
        from sparse_accel.nn.layer_outputs import Recorder
        from sparse_accel.nn.projections import Projections

        assert state.teacher is not None  # the engine raises an error without one
        self._state, self._teacher = state, state.teacher
        self._pairs = self.find_pairs(state)
        self._check_alone(state)
        self._recorder = Recorder(state.model, [pair.student for pair in self._pairs], training=True)
        state.teacher.watch([pair.teacher for pair in self._pairs])
        self._projections = Projections(self._widths)

    def bind(self, state: State) -> None:
        self._projections.to(next(state.model.parameters()).device)

    def pair(
        self, layouts: Sequence[Layout], student: LayerOutput, teacher: LayerOutput, term: str, project: bool | None
    ) -> Pair:
        """Returns a pair, with a projection if asked.

        Args:
            layouts: of student and teacher.
            project: whether the student's output is projected; None: only where the widths differ.

        Raises:
            UsageError: the two cannot be compared.
        """
        outputs = (student, teacher)
        try:
            shapes = [layout.shape_of(output) for layout, output in zip(layouts, outputs, strict=True)]
            axes = [layout.axes_of(output) for layout, output in zip(layouts, outputs, strict=True)]
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}") from None
        place = 1 if axes[0] == "channels" else -1
        widths = shapes[1][place], shapes[0][place]
        others = [[size for number, size in enumerate(s) if number not in (0, place % len(s))] for s in shapes]
        if axes[0] != axes[1] or others[0] != others[1]:
            raise UsageError(
                f"{self.name}: {student} of the model and {teacher} of the teacher cannot be compared: for "
                f"{layouts[0].rows} rows of {layouts[0].tokens} tokens, their shapes are {shapes[0]} and {shapes[1]}"
            )
        if not (widths[0] != widths[1] if project is None else project):
            if widths[0] != widths[1]:
                raise UsageError(
                    f"{self.name}: project_features is false, but {student} of the model has width {widths[1]}, and "
                    f"{teacher} of the teacher {widths[0]}: remove project_features, or use a teacher of equal width"
                )
            return Pair(student, teacher, term, axes[0])
        if axes[0] == "attention":
            raise UsageError(f"{self.name}: {student} returns attention of tokens: set project_features to false")
        self._widths[str(student)] = widths
        return Pair(student, teacher, term, axes[0], projection=str(student))

    def _check_alone(self, state: State) -> None:
        """Raises UsageError if an earlier modifier of this kind compares the same outputs at the same time."""
        for other in state.modifiers[: state.modifiers.index(self)]:
            if type(other) is type(self) and spans_overlap(self.span, other.span):
                assert isinstance(other, LayerDistillation)
                known = {pair.student for pair in other._pairs}
                if shared := [pair.student for pair in self._pairs if pair.student in known]:
                    raise UsageError(
                        f"{self.name}: two modifiers compare {shared[0]} of the model at the same time: leave it "
                        "out of one, or start one where the other ends"
                    )

    # --- the loss -----------------------------------------------------------------------------------------------------

    def step_begin(self, progress: Progress) -> None:
        start, end = self.span
        self._active = progress.reached(start) and not progress.reached(end)
        self._mean_squares: Tensor | None = None
        if self._active:
            self._recorder.start()
        else:
            self._recorder.stop()

    def step_batches(self, batches: Sequence[dict[str, Any]]) -> None:
        if self._active and self.normalize:
            self._mean_squares = self._mean_squares_of(batches)

    def loss_terms(self, batch: dict[str, Any], outputs: Any) -> dict[str, tuple[float, Tensor]]:
        from sparse_accel.nn.losses import layer_distance

        if not self._active:
            return {}
        students, teachers = self._recorder.take(), self._teacher_outputs(batch)
        rows, texts = _by_text(batch)
        squares = self._mean_squares
        if self.normalize and squares is None:  # a loop that does not say what comes in this step
            squares = self._mean_squares_of([batch])
        found: dict[str, list[Tensor]] = {}
        for number, pair in enumerate(self._pairs):
            if pair.student not in students:  # in a block that was dropped
                continue
            student, teacher = students[pair.student], teachers[pair.teacher]
            if pair.projection:
                teacher = _channels_last(teacher, pair)
                with self._state.autocast():
                    student = self._projections(pair.projection, _channels_last(student, pair))
            student = self._selected(student, pair, rows, "")
            teacher = self._selected(teacher, pair, rows, "teacher_")
            square = None if squares is None else squares[number]
            distance = layer_distance(student, teacher, self._counted(teacher, pair, rows), square, self.epsilon)
            found.setdefault(pair.term, []).append(distance.view(-1, texts).mean(dim=1))
        return {name: (self.gain, self.combined(distances)) for name, distances in found.items()}

    def combined(self, distances: Sequence[Tensor]) -> Tensor:
        """Returns one distance, (R,), from those of the pairs of a term."""
        import torch

        return torch.stack(list(distances)).sum(dim=0)

    def _teacher_outputs(self, batch: dict[str, Any]) -> dict[LayerOutput, Tensor]:
        with self._state.autocast():
            return self._teacher.layer_outputs(batch)

    def _mean_squares_of(self, batches: Sequence[dict[str, Any]]) -> Tensor:
        """Returns the mean squares of the teacher's outputs, (pairs,) float32, over these batches of all processes."""
        import torch

        from sparse_accel.distributed.collectives import reduce_sum
        from sparse_accel.nn.losses import square_sum

        total: Any = 0
        for batch in reversed(batches):  # the first one last: the teacher keeps it for its loss
            teachers, (rows, _) = self._teacher_outputs(batch), _by_text(batch)
            values = [self._selected(teachers[pair.teacher], pair, rows, "teacher_") for pair in self._pairs]
            counted = [self._counted(value, pair, rows) for value, pair in zip(values, self._pairs, strict=True)]
            total = total + torch.stack([square_sum(*each) for each in zip(values, counted, strict=True)])
        total = reduce_sum(total)
        return (total[:, 0] / total[:, 1].clamp(min=1)).float()

    def _selected(self, value: Tensor, pair: Pair, batch: dict[str, Any], prefix: str) -> Tensor:
        """Returns the part of an output that is compared; all of it, here.

        Args:
            prefix: of the columns of the model's inputs.
        """
        return value

    def _counted(self, value: Tensor, pair: Pair, batch: dict[str, Any]) -> Tensor | None:
        """Returns what counts of an output, as `layer_distance` takes it: tokens, not padding, of real rows."""
        real, mask = batch.get("row_id"), batch.get("attention_mask")
        counted = None if real is None else (real >= 0).view(-1, *[1] * (value.ndim - 1))
        if mask is not None and pair.axes in ("tokens", "attention"):
            tokens = mask.bool()
            tokens = (
                tokens[:, None, :, None] & tokens[:, None, None, :]
                if pair.axes == "attention"
                else tokens.view(*tokens.shape, *[1] * (value.ndim - 2))
            )
            counted = tokens if counted is None else tokens & counted
        return counted

    # --- the projections ----------------------------------------------------------------------------------------------

    def grads_ready(self) -> None:
        self._projections.average_gradients(self._state.loss_scale())

    def step_end(self, progress: Progress) -> None:
        if self._active:
            assert self._state.optimizer is not None
            self._projections.step(float(self._state.optimizer.param_groups[0]["lr"]))

    def step_skipped(self) -> None:
        self._projections.drop_gradients()

    def finish(self) -> None:
        self._recorder.stop()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._projections.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self._projections.load_state_dict(state)


def _by_text(batch: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Returns a batch as layers see it, and the number K of texts of a row.

    Rows of several texts, (R, K, T), go through a model as (R * K, T); so are row numbers and attention masks then.
    """
    ids = batch.get("input_ids")
    if ids is None or ids.ndim != 3:
        return batch, 1
    found = {name: value.flatten(0, 1) for name, value in batch.items() if name.endswith("attention_mask")}
    if "row_id" in batch:
        found["row_id"] = batch["row_id"].repeat_interleave(ids.shape[1])
    return {**batch, **found}, ids.shape[1]


def _channels_last(value: Tensor, pair: Pair) -> Tensor:
    return value.movedim(1, -1) if pair.axes == "channels" else value
