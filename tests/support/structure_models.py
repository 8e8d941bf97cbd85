"""Models of every architecture whose heads and neurons can be removed, and some of these set to zero by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from tiny import SIZES, VOCABULARY
from torch import nn

from sparse_accel.nn.structure import HEADS, NEURONS, Units, encoder_units

BLOCKS, HEAD_COUNT, NEURON_COUNT = 2, 4, 64  # of SIZES
_DISTILBERT = {"dim": 32, "n_layers": BLOCKS, "n_heads": HEAD_COUNT, "hidden_dim": NEURON_COUNT}
_SETTINGS: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "XLMRoberta": SIZES,
    "Camembert": SIZES,
    "Electra": {**SIZES, "embedding_size": 16},
    "DistilBert": {**_DISTILBERT, "vocab_size": len(VOCABULARY), "max_position_embeddings": 64},
}
KINDS = tuple(_SETTINGS)
# Of the two blocks: another number of heads and of neurons in each, neurons of the first one not a multiple of 4.
GONE: dict[str, Sequence[Sequence[int]]] = {HEADS: ([1], [0, 2, 3]), NEURONS: (range(0, 64, 3), range(32, 64))}


def make(kind: str, head: str = "ForSequenceClassification", seed: int = 0, **settings: Any) -> nn.Module:
    """A model in eval mode, with random weights and biases that are wide enough for its outputs to stand apart."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**_SETTINGS[kind], "initializer_range": 0.2, **settings})
    model: nn.Module = getattr(transformers, f"{kind}{head}")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases: fresh ones are all ones and zeros
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@torch.no_grad()
def set_to_zero(model: nn.Module, gone: Mapping[str, Sequence[Sequence[int]]] = GONE) -> dict[Units, tuple[int, ...]]:
    """Sets units to zero: rows with biases, and columns. Returns them as `zero_units` does.

    Args:
        gone: the numbers of the units, by part and block.
    """
    found = {}
    for units in encoder_units(model):
        numbers = tuple(gone.get(units.part, [()] * 99)[units.block])
        for number in numbers:
            lines = slice(number * units.size, (number + 1) * units.size)
            for name in units.inputs:
                layer: Any = model.get_submodule(name)
                layer.weight[lines], layer.bias[lines] = 0.0, 0.0
            output: Any = model.get_submodule(units.output)
            output.weight[:, lines] = 0.0
        if numbers:
            found[units] = numbers
    return found


def batch(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of 3 to 12 tokens, padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, len(VOCABULARY), (6, 12), generator=generator)
    mask = (torch.arange(12) < torch.tensor([12, 3, 7, 12, 5, 9])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@torch.no_grad()
def output(model: Any) -> torch.Tensor:
    """The first output for `batch`."""
    found: torch.Tensor = model(**batch(model))[0]
    return found
