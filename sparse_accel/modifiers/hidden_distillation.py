"""Distillation of hidden states and attentions: the student's blocks learn what blocks of the teacher compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sparse_accel.errors import UsageError, listed
from sparse_accel.modifiers.base import FieldError, Modifier, spans_overlap
from sparse_accel.modifiers.layer_distillation import LayerDistillation, Pair

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparse_accel.modifiers.state import State

KINDS = ("hidden_states", "attentions", "embeddings")
# Names of their loss terms.
HIDDEN, ATTENTION, EMBEDDING = (f"{what}_distillation_loss" for what in ("hidden_state", "attention", "embedding"))


@dataclass(kw_only=True)
class HiddenStateDistillationModifier(LayerDistillation):
    """Trains the blocks of the model (the student) to compute what blocks of the teacher compute.

    loss = task loss + gain * (mean squared error of hidden states + that of attentions + that of embeddings), each
    averaged over the compared blocks and over the tokens of a row; padding does not count. Teacher and student may
    differ in depth and width: by default, each block of the student is compared with one of the teacher, evenly spread,
    the last with the last (as in TinyBERT, Jiao et al. 2020, arXiv 1909.10351), and different widths are bridged by a
    learned projection, which is not part of the saved model. It combines with a DistillationModifier.
    `--distill_teacher` names the teacher.
    """

    hidden_states: bool = True
    """true compares the outputs of blocks."""
    attentions: bool = False
    """true compares attention probabilities (heads, tokens, tokens); both models need as many heads, and compute
    attention without a fused kernel (attn_implementation eager), which is slower."""
    embeddings: bool = False
    """true compares the input of the first block, the embedded tokens."""
    layers: list[int] | dict[int, int] | None = None
    """Blocks to compare, from 0; -1 is the last one: a list of the student's blocks, each compared with the teacher's
    at the same relative depth, or a mapping of the student's blocks to the teacher's. null: all blocks of the
    student."""
    tokens: Literal["all", "first"] = "all"
    """all: compare every token; first: only the first one of a row, such as [CLS], which also works for a teacher with
    another tokenizer."""
    project_features: bool | None = None
    """true: hidden states of the student go through a learned projection to the teacher's width; false: never; null:
    only where the widths differ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.hidden_states or self.attentions or self.embeddings):
            raise FieldError("hidden_states", "there is nothing to compare: set hidden_states or attentions to true")
        if self.layers is not None:
            self._check_layers(self.layers)
        if self.project_features is not None and not (self.hidden_states or self.embeddings):
            raise FieldError("project_features", "has no effect on attentions: remove it")

    def _check_layers(self, layers: list[int] | dict[int, int]) -> None:
        if not layers:
            raise FieldError("layers", "must not be empty: name blocks, or leave it out for all of them")
        if len({*layers}) != len(layers):
            raise FieldError("layers", f"names a block twice: {listed(map(str, layers))}")
        if not (self.hidden_states or self.attentions):
            raise FieldError("layers", "has no effect on embeddings: remove it")

    def check_compatible(self, others: Sequence[Modifier]) -> None:
        super().check_compatible(others)
        for other in others:
            if type(other) is type(self) and spans_overlap(self.span, other.span):
                for key in KINDS:
                    if getattr(self, key) and getattr(other, key):
                        raise FieldError(key, "another modifier compares them at the same time; at most one may", other)

    @property
    def teacher_outputs(self) -> frozenset[str]:
        return frozenset(key for key in KINDS if getattr(self, key))

    @property
    def needs_same_tokens(self) -> bool:
        return self.tokens == "all" or self.attentions

    @property
    def what(self) -> str:
        return ", ".join(key.replace("_", " ") for key in KINDS if getattr(self, key))

    # --- the pairs ----------------------------------------------------------------------------------------------------

    def find_pairs(self, state: State) -> list[Pair]:
        from sparse_accel.nn.layer_outputs import LayerOutput, attention_outputs, hidden_state_outputs, trace_calls

        assert state.teacher is not None
        models = {"model": state.model, "teacher": state.teacher.model}
        if self.attentions:
            for whose, model in models.items():
                self._use_eager_attention(whose, model, state.notices)
        layouts = [trace_calls(model) for model in models.values()]
        blocks = [hidden_state_outputs(layout) for layout in layouts]
        for whose, layout, found in zip(models, layouts, blocks, strict=True):
            if not found:
                raise UsageError(
                    f"{self.name}: the blocks of the {whose} ({type(layout.model).__name__}) cannot be found: none of "
                    "its module lists gives hidden states. Use a PerLayerDistillationModifier, which names layers"
                )
        places = self._matched(len(blocks[0]), len(blocks[1]))
        project, pairs = self.project_features, []
        if self.embeddings:
            first = [LayerOutput(found[0].module, part=-1) for found in blocks]
            pairs.append(self.pair(layouts, first[0], first[1], EMBEDDING, project))
        if self.hidden_states:
            pairs += [self.pair(layouts, blocks[0][s], blocks[1][t], HIDDEN, project) for s, t in places]
        if self.attentions:
            heads = [attention_outputs(layout) for layout in layouts]
            for whose, layout, found, probabilities in zip(models, layouts, blocks, heads, strict=True):
                if len(probabilities) != len(found):
                    raise UsageError(
                        f"{self.name}: attentions: the {whose} ({type(layout.model).__name__}) does not give attention "
                        f"probabilities for each of its {len(found)} blocks: set attentions to false"
                    )
            for student, teacher in ((heads[0][s], heads[1][t]) for s, t in places):
                counts = layouts[0].shape_of(student)[1], layouts[1].shape_of(teacher)[1]
                if counts[0] != counts[1]:
                    raise UsageError(
                        f"{self.name}: attentions: {student} of the model has {counts[0]} heads, {teacher} of the "
                        f"teacher {counts[1]}: use a teacher with as many heads, or set attentions to false"
                    )
                pairs.append(self.pair(layouts, student, teacher, ATTENTION, project=False))
        if len(blocks[0]) != len(blocks[1]) or self._widths:
            meets = ", ".join(f"{own} from {other}" for own, other in places)
            widths = next(iter(self._widths.values()), None)
            bridge = "" if widths is None else f"; learned projections {widths[1]} -> {widths[0]}, which are not saved"
            state.notices.append(f"{self.name}: blocks of the model learn from those of the teacher: {meets}{bridge}")
        return pairs

    def _matched(self, student: int, teacher: int) -> list[tuple[int, int]]:
        """Returns the numbers of the blocks that meet, from 0, for numbers of blocks of student and teacher."""
        named = range(student) if self.layers is None else self.layers
        found = []
        for place in named:
            own = self._place(place, student, "model")
            if isinstance(named, dict):
                found.append((own, self._place(named[place], teacher, "teacher")))
            else:
                found.append((own, same_depth(own, student, teacher)))
        if len({own for own, _ in found}) != len(found):
            raise UsageError(
                f"{self.name}: layers: names a block of the model twice: it has {student}, and -1 is the last"
            )
        return found

    def _place(self, number: int, count: int, whose: str) -> int:
        if not -count <= number < count:
            raise UsageError(
                f"{self.name}: layers: the {whose} has no block {number}: its {count} blocks are 0 to {count - 1}"
            )
        return number % count

    def _use_eager_attention(self, whose: str, model: nn.Module, notices: list[str]) -> None:
        """Sets the implementation of attention that returns its probabilities."""
        config: Any = getattr(model, "config", None)
        before = getattr(config, "_attn_implementation", None)
        setter: Any = getattr(model, "set_attn_implementation", None)
        if before == "eager" or setter is None:
            return
        setter("eager")
        notices.append(
            f"{self.name}: the {whose} computes attention by the implementation `eager` instead of `{before}`, because "
            "attentions are compared: this is slower"
        )

    # --- the loss -----------------------------------------------------------------------------------------------------

    def combined(self, distances: Sequence[Tensor]) -> Tensor:
        return super().combined(distances) / len(distances)

    def _selected(self, value: Tensor, pair: Pair, batch: dict[str, Any], prefix: str) -> Tensor:
        import torch

        if self.tokens == "all":
            return value
        mask = batch.get(f"{prefix}attention_mask", batch.get("attention_mask"))
        rows = torch.arange(len(value), device=value.device)
        first = torch.zeros_like(rows) if mask is None else mask.int().argmax(dim=1)  # padding may come first
        return value[rows, :, first] if pair.axes == "attention" else value[rows, first]

    def _counted(self, value: Tensor, pair: Pair, batch: dict[str, Any]) -> Tensor | None:
        if self.tokens == "all":
            return super()._counted(value, pair, batch)
        real, mask = batch.get("row_id"), batch.get("attention_mask")
        counted = None if real is None else (real >= 0).view(-1, *[1] * (value.ndim - 1))
        if pair.axes == "attention" and mask is not None:  # (R, A, T): the first token looks at all
            keys = mask.bool()[:, None, :]
            counted = keys if counted is None else keys & counted
        return counted


def same_depth(block: int, student: int, teacher: int) -> int:
    """Returns the teacher's block at the same relative depth, from 0: the last one for the student's last.

    Args:
        block: of the student, from 0.
        student, teacher: numbers of blocks.
    """
    return max((2 * (block + 1) * teacher + student) // (2 * student), 1) - 1
