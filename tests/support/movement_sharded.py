"""Movement pruning in two processes under FSDP2, against the same training in one; each process asserts for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from process_group import process_group
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from sparse_accel.distributed.weights import full_from_parts, full_weight, is_sharded, local_part, local_part_of
from sparse_accel.modifiers.pruning.movement import MovementPruningModifier
from sparse_accel.modifiers.state import State
from sparse_accel.progress import Progress
from sparse_accel.training.loop import _are_finite

PROCESSES, STEPS = 2, 8
BROKEN = 3  # the step in which one number of the gradient is NaN


class Training:
    """A Linear of 5 rows, so that parts differ in size; its gradients are given. Masks change in steps 2 to 6."""

    def __init__(self, mesh: Any, straight_through: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.gradients = torch.randn(STEPS, 5, 8, generator=generator)
        self.gradients[BROKEN, 4, 2] = torch.nan  # a row of the second process
        self.model: Any = nn.Sequential(nn.Linear(8, 5, bias=False))
        self.model[0].weight.data = torch.randn(5, 8, generator=generator)
        self.modifier = MovementPruningModifier(
            params=["0.weight"],
            start_epoch=1,
            end_epoch=3,
            init_sparsity=0.3,
            final_sparsity=0.7,
            straight_through=straight_through,
        )
        state: Any = State(self.model, [self.modifier], task=None)  # type: ignore[arg-type]
        state.progress = Progress(0, 2)
        self.modifier.attach(state)
        if mesh is not None:
            fully_shard(self.model[0], mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.state = state
        self.modifier.bind(state)

    @property
    def weight(self) -> Tensor:
        return full_weight(self.model[0].weight)

    def step(self, number: int) -> None:
        self.state.progress = Progress(number, 2)
        self.modifier.step_begin(self.state.progress)
        outputs = self.model(torch.eye(8))
        (outputs.T * self.gradients[number]).sum().backward()
        assert _are_finite(self.model) == (number != BROKEN)  # on both processes, though one has the NaN
        self.modifier.grads_ready()
        if number == BROKEN:
            self.optimizer.zero_grad()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.modifier.step_end(self.state.progress.next())

    def saved(self) -> dict[str, Tensor]:
        found = {name: value.clone() for name, value in self.modifier.state_dict().items()}
        return {**found, "weight": self.weight.clone()}


def check(rank: int, folder: str) -> None:
    with process_group(rank, Path(folder), PROCESSES):
        mesh = init_device_mesh("cpu", (PROCESSES,))
        for straight_through in (False, True):
            check_movement(mesh, straight_through)
        check_parts(mesh)


def check_movement(mesh: Any, straight_through: bool) -> None:
    one, sharded, resumed = (Training(found, straight_through) for found in (None, mesh, mesh))
    rows = sharded.modifier._scores["0.weight"].shape[0]
    assert rows == (3, 2)[dist.get_rank()] and is_sharded(sharded.model[0].weight)
    for number in range(STEPS):
        one.step(number)
        sharded.step(number)
        if number >= 5:
            resumed.step(number)
        first, second = one.saved(), sharded.saved()
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert torch.equal(value, second[name]), (number, name)
        if number == 4:  # every process gives the state to another run
            resumed.state.progress = Progress(5, 2)
            resumed.modifier.load_state_dict({name: v for name, v in second.items() if name != "weight"})
            with torch.no_grad():
                local_part(resumed.model[0].weight).copy_(local_part_of(second["weight"], resumed.model[0].weight))
    for training in (one, sharded, resumed):
        training.modifier.finish()
    expected = one.saved()
    assert int((expected["weight"] == 0).sum()) == round(0.7 * 40)
    for training in (sharded, resumed):
        for name, value in training.saved().items():
            assert torch.equal(value, expected[name]), name


def check_parts(mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    for rows in (1, 2, 5):
        whole = torch.arange(rows * 3.0).view(rows, 3)
        sharded = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)
        assert isinstance(sharded, DTensor)
        mask = whole > 2
        part = local_part_of(mask, sharded)
        assert part.dtype == torch.bool and torch.equal(part, local_part(sharded) > 2)
        assert torch.equal(full_from_parts(part, sharded), mask)
        local_part(sharded).add_(1.0)
        assert torch.equal(sharded.full_tensor(), whole + 1)
        assert local_part_of(whole, whole) is whole and full_from_parts(whole, whole) is whole
