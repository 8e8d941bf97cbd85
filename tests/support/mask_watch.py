"""What must hold of masks at every single step of a run."""

from __future__ import annotations

import torch
from loop import Session
from torch import Tensor

from sparse_accel.nn.layers import masks, sparse_layers


class Watch:
    """Called after every step: asserts what holds for all masks, and keeps the history of sparsity.

    Attributes:
        masks: those of each step, by weight.
        sparsities: number of masked weights at each step, by weight.
    """

    def __init__(self, tightening: bool = True) -> None:
        self.tightening = tightening
        self.masks: list[dict[str, Tensor]] = []

    def __call__(self, session: Session) -> None:
        for name, layer in sparse_layers(session.model):
            if layer.mask is not None:
                effective = layer.masked_weight()
                assert (effective[~layer.mask] == 0).all(), name
                assert torch.equal(effective[layer.mask], layer.weight[layer.mask]), name
        found = {name: mask.clone() for name, mask in masks(session.model).items()}
        if self.tightening and self.masks:
            for name, mask in found.items():
                assert not (mask & ~self.masks[-1][name]).any(), f"{name} came back"
        self.masks.append(found)

    def dropped(self, name: str) -> list[int]:
        return [int((~found[name]).sum()) for found in self.masks]
