"""The keys of structured pruning: what they mean, which go together, and how the timeline says them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sparse_accel.errors import listed, nearest
from sparse_accel.modifiers.base import FieldError
from sparse_accel.modifiers.parameter_names import check_patterns
from sparse_accel.modifiers.pruning.base import short
from sparse_accel.modifiers.pruning.schedule import ScheduledPruning, check_fraction
from sparse_accel.modifiers.pruning.structured_targets import WORDS

# The keys of the two forms; the other keys are of both.
_OF_ROWS = ("params", "param_groups", "mask_type")
_OF_UNITS = ("parts", "final_multiply_adds", "layers", "score", "uniform")


@dataclass(kw_only=True)
class StructuredPruningKeys(ScheduledPruning):
    """Base class of StructuredPruningModifier: its keys, in one of two forms."""

    end_epoch: float = -1.0
    """Epoch at which the final structure is reached."""
    init_sparsity: float | str = 0.0
    """Share that is pruned at start_epoch, 0 to 1: of the units, or with final_multiply_adds of the multiply-adds;
    `__FROM_PARAM__`: the share that is 0 then."""
    final_sparsity: float | dict[str, float] | dict[float, list[str]] | None = None
    """Share of the units that is pruned at end_epoch: one number, or {part: number}; below 1. With SparseML's keys, of
    the rows; also {share: [params]}, with `params` left out."""
    update_frequency: float = -1.0
    """Epochs between two updates of the masks; -1: every step."""
    inter_func: str = "cubic"
    """How the pruned share grows from start to end: linear, cubic (fast at first) or inverse_cubic (slow at first)."""
    leave_enabled: bool = True
    """Keep the final masks after end_epoch; false, only with SparseML's keys: pruned rows may grow again."""
    parts: list[str] = field(default_factory=list)
    """What is pruned: attention_heads, ffn_neurons, or both. Left out, they are those that final_sparsity names."""
    final_multiply_adds: float | None = None
    """Instead of final_sparsity: the share of the multiply-adds of the encoder's Linear layers that is left at the end,
    at most, 0 to 1; 1 is the model before `layers` are dropped. Parts and blocks are ranked together, by score per
    multiply-add."""
    layers: list[int] = field(default_factory=list)
    """Numbers of blocks, from 0, that are dropped before anything else, as by LayerPruningModifier."""
    score: Literal["magnitude", "taylor"] | None = None
    """What units are ranked by: magnitude (the default: the L2 norm of all that a unit owns, relative to its block), or
    taylor: how much the loss would change without it, to first order. That is the absolute sum of weight * gradient,
    averaged over the steps since the last update (Molchanov et al. 2019, arXiv 1906.10771)."""
    uniform: bool | None = None
    """true: prune the same number in every block (the default); false: rank the units of all blocks together."""
    params: str | list[str] | None = None
    """SparseML's key: weights whose rows or columns are pruned: names, `re:PATTERN`, or `__ALL_PRUNABLE__` (weights of
    Linear and convolution layers)."""
    param_groups: list[list[str]] | None = None
    """SparseML's key: lists of names; the weights of a list have one mask, by the sum of their norms."""
    mask_type: Literal["filter", "channel"] | None = None
    """SparseML's key: filter prunes rows (the default), channel prunes columns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_schedule()
        own = [key for key in _OF_UNITS if getattr(self, key) not in (None, [])]
        rows = [key for key in _OF_ROWS if getattr(self, key) is not None]
        if isinstance(self.final_sparsity, dict):
            named = any(isinstance(key, str) for key in self.final_sparsity)
            (own if named else rows).append("final_sparsity")
        if own and rows:
            raise FieldError(
                own[0],
                f"prunes heads and neurons, but SparseML's {listed(rows)} prunes rows of weights: use one of the two",
            )
        if not own and not rows:
            raise FieldError(
                "parts",
                "required: [attention_heads, ffn_neurons], or one of them. SparseML's form names weights with params, "
                "and sets their rows to 0",
            )
        self._of_rows = bool(rows)  # SparseML's form
        if self._of_rows:
            self.mask_type = self.mask_type or "filter"
            self._check_rows()
        else:
            self._check_units()

    def _check_rows(self) -> None:
        if self.final_sparsity is None:
            raise FieldError("final_sparsity", "required: the share of rows that is pruned at the end")
        if not isinstance(self.final_sparsity, dict):
            check_fraction("final_sparsity", self.final_sparsity)
            if not self.params:
                raise FieldError("params", "required: name weights, or use __ALL_PRUNABLE__")
            check_patterns("params", self.params)
            return
        if self.params is not None:
            raise FieldError("params", "final_sparsity already names the weights: leave params out")
        if not self.final_sparsity or not all(self.final_sparsity.values()):
            raise FieldError("final_sparsity", "expected a mapping {share: [weights]}: list weights in it")
        for share, patterns in self._table.items():
            check_fraction("final_sparsity", share)
            check_patterns("final_sparsity", patterns)

    def _check_units(self) -> None:
        for part in self._parts:
            if part not in WORDS:
                key = "parts" if self.parts else "final_sparsity"
                raise FieldError(key, f"there is no part '{part}'.{nearest(part, WORDS)} It has: {', '.join(WORDS)}")
        if not self._parts:
            raise FieldError("parts", "required: [attention_heads, ffn_neurons], or one of them")
        if len(set(self._parts)) < len(self._parts):
            raise FieldError("parts", "names a part twice")
        if not self.leave_enabled:
            raise FieldError(
                "leave_enabled", "false: a unit whose weights are all 0 has no gradient and stays 0: leave it out"
            )
        if any(number < 0 for number in self.layers) or len(set(self.layers)) < len(self.layers):
            raise FieldError("layers", f"expected different numbers of blocks, from 0, got {self.layers}")
        if self.final_multiply_adds is not None:
            self._check_multiply_adds(self.final_multiply_adds)
            return
        if self.final_sparsity is None:
            raise FieldError("final_sparsity", "required: the share of units pruned at the end; or final_multiply_adds")
        if isinstance(self.final_sparsity, dict) and set(self.final_sparsity) != set(self._parts):
            raise FieldError("final_sparsity", f"expected a number for each of parts: {', '.join(self._parts)}")
        for part, share in self._shares.items():
            check_fraction("final_sparsity", share)
            if share == 1:
                raise FieldError("final_sparsity", f"1 leaves none of the {WORDS[part]}s, but each block needs one")
            if not isinstance(self.init_sparsity, str) and share < self.init_sparsity:
                raise FieldError(
                    "final_sparsity",
                    f"{share:g} is below init_sparsity {self.init_sparsity:g}, but what is pruned does not come back",
                )

    def _check_multiply_adds(self, left: float) -> None:
        if self.final_sparsity is not None:
            raise FieldError("final_multiply_adds", "says how much is pruned, as final_sparsity does: use one of them")
        if not 0 < left < 1:
            raise FieldError("final_multiply_adds", f"expected a share between 0 and 1, got {left:g}")
        if self.uniform:
            raise FieldError("uniform", "true, but final_multiply_adds ranks all blocks together: leave it out")
        # With dropped layers, the share of the shortened model is not known before there is one.
        if not isinstance(self.init_sparsity, str) and not self.layers and 1 - left < self.init_sparsity:
            raise FieldError(
                "final_multiply_adds",
                f"{left:g} is more than init_sparsity {self.init_sparsity:g} leaves, but nothing pruned comes back",
            )

    @property
    def _parts(self) -> list[str]:
        return self.parts or [str(part) for part in self._shares]

    @property
    def _shares(self) -> dict[str, float]:
        """The final share of each part."""
        final: Any = self.final_sparsity
        return final if isinstance(final, dict) else {} if final is None else dict.fromkeys(self.parts, final)

    @property
    def _table(self) -> dict[float, str | list[str]]:
        """SparseML's form: the weights, by their final share."""
        final: Any = self.final_sparsity
        return final if isinstance(final, dict) else {final: self.params or []}

    def events(self) -> list[tuple[float, str]]:
        events = [(0.0, f"layers dropped: {listed(self.layers)}")] if self.layers else []
        begin = "the current zeros" if isinstance(self.init_sparsity, str) else f"{self.init_sparsity:g}"
        what = f"structured pruning by {self.score or 'magnitude'} from {begin} {self._goal()}, {self._rhythm}"
        end = "final structure reached" + ("" if self.leave_enabled else "; pruned rows may grow again")
        return [*events, (self.span[0], what), (self.end_epoch, end)]

    def _goal(self) -> str:
        if self._of_rows:
            return "to " + " and ".join(
                f"{share:g} of the {self._lines} of {short(names)}" for share, names in self._table.items()
            )
        if self.final_multiply_adds is not None:
            what = " and ".join(f"{WORDS[part]}s" for part in self._parts)
            return f"until {self.final_multiply_adds:g} of the multiply-adds are left ({what})"
        words = "to " + " and ".join(f"{share:g} of the {WORDS[part]}s" for part, share in self._shares.items())
        return words + (" of all blocks together" if self.uniform is False else " of each block")

    @property
    def _lines(self) -> str:
        return "columns" if self.mask_type == "channel" else "rows"

    def at_once(self) -> str:
        return f" ({self._goal()})"

    def phase(self) -> str:
        if self._progress is None or not self._progress.reached(self.start_epoch):
            return ""
        if not self._progress.reached(self.end_epoch):
            return "pruning structure"
        return "structure pruned" if self.leave_enabled else ""
