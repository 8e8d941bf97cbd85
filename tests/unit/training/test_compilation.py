"""compile_blocks: one graph for all blocks of a model, whose modules and weights keep their names."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import make_bert
from torch import Tensor, nn

from sparse_accel.distributed.launch import block_lists
from sparse_accel.training.compilation import compile_blocks, is_compiled

IDS = torch.arange(2, 26).view(2, 12)


class Graphs:
    """A backend of torch.compile that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, graph: Any, inputs: list[Tensor]) -> Any:
        self.made += 1
        return graph.forward


@pytest.mark.parametrize("depth", [1, 6])
def test_all_blocks_share_a_graph(depth: int) -> None:
    torch.compiler.reset()
    model = make_bert(num_hidden_layers=depth, dropout=0.0).train()
    names, expected = list(model.state_dict()), model(IDS).logits
    graphs = Graphs()
    compile_blocks(model, graphs)
    assert is_compiled(model) and list(model.state_dict()) == names
    assert torch.equal(model(IDS).logits, expected)
    model(IDS).logits.sum().backward()
    assert graphs.made == 1
    assert not is_compiled(copy.deepcopy(model))  # a copy runs as it is, and can be saved and exported


class Halved(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def test_a_model_without_blocks_is_one() -> None:
    torch.compiler.reset()
    model = Halved(4, 4)
    assert not block_lists(model) and not is_compiled(model)
    graphs = Graphs()
    compile_blocks(model, graphs)
    model(torch.ones(2, 4))
    assert is_compiled(model) and graphs.made == 1
