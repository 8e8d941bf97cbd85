"""Structure of an encoder that can be pruned and removed: the heads of its attention, the neurons of its feed-forward.

A *unit* is one head or one neuron of one block. It owns rows of some Linear layers, with their biases, and columns of
another: with all of them 0 it adds nothing to the block's output, so a model without it computes the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sparse_accel.errors import with_article
from sparse_accel.nn.blocks import encoder_blocks

HEADS, NEURONS = "attention_heads", "ffn_neurons"
PARTS = (HEADS, NEURONS)


@dataclass(frozen=True)
class Units:
    """The heads, or the neurons, of one block.

    Attributes:
        part: HEADS or NEURONS.
        block: the number of the block, from 0.
        count: how many units there are.
        size: rows (and columns) of a unit: the size of a head, or 1.
        inputs: names of the Linear layers whose rows, with their biases, belong to the units: unit i owns rows
            i * size to (i + 1) * size.
        output: name of the Linear layer whose columns belong to the units. Its bias belongs to none.
    """

    part: str
    block: int
    count: int
    size: int
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class _Layout:
    """Where an architecture keeps these layers, as names inside a block."""

    attention: str  # the module that splits rows into heads
    heads: str  # its attribute: the number of heads
    inputs: tuple[str, str, str]
    output: str
    feed_forward: tuple[str, str]


_BERT = _Layout(
    attention="attention.self",
    heads="num_attention_heads",
    inputs=("attention.self.query", "attention.self.key", "attention.self.value"),
    output="attention.output.dense",
    feed_forward=("intermediate.dense", "output.dense"),
)
_DISTILBERT = _Layout(
    attention="attention",
    heads="n_heads",
    inputs=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    output="attention.out_lin",
    feed_forward=("ffn.lin1", "ffn.lin2"),
)
_LAYOUTS = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
}


def encoder_units(model: nn.Module) -> list[Units]:
    """Returns the heads and the neurons of all blocks of a plain model, heads first in each block.

    Raises:
        ValueError: structure of this architecture cannot be removed.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in _LAYOUTS:
        known = ", ".join(_LAYOUTS)
        raise ValueError(f"heads and neurons of {with_article(kind)} model cannot be removed, only those of {known}")
    layout = _LAYOUTS[kind]
    name, blocks = encoder_blocks(model)
    units = []
    for number, block in enumerate(blocks):

        def full(inner: str, number: int = number) -> str:
            return f"{name}.{number}.{inner}"

        attention: Any = block.get_submodule(layout.attention)
        heads = int(getattr(attention, layout.heads))
        rows, neurons = (_rows(block.get_submodule(inner)) for inner in (layout.inputs[0], layout.feed_forward[0]))
        units.append(
            Units(HEADS, number, heads, rows // heads, tuple(full(n) for n in layout.inputs), full(layout.output))
        )
        first, second = layout.feed_forward
        units.append(Units(NEURONS, number, neurons, 1, (full(first),), full(second)))
    return units


def _rows(linear: Any) -> int:
    return int(linear.out_features)  # not the weight's: ZeRO-3 keeps parts of it elsewhere
