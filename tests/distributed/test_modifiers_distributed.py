"""The table of all modifiers drives training under every layout: what two processes train, one process trains too.

One launch a layout takes all cases, in modifiers_program.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from layouts import LAYOUTS, run_program_under
from modifier_table import CASES, EPOCHS, STEPS, Case
from modifiers_program import Record, train_all
from places import SUPPORT
from torch import Tensor

pytestmark = pytest.mark.slow

NO_DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
MARKED = [pytest.param(layout, marks=NO_DEEPSPEED if "deepspeed" in layout else ()) for layout in LAYOUTS]

Records: TypeAlias = dict[str, Record]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """What one process trains, with two micro-batches a step."""
    return train_all(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Records, ...]]:
    """Gives what each of two processes saw under a layout, launched once."""
    found: dict[str, tuple[Records, ...] | str] = {}  # a string: how the launch failed, which is not tried again

    def seen(layout: str) -> tuple[Records, ...]:
        if layout not in found:
            found[layout] = launch(layout, tmp_path_factory.mktemp(layout))
        answer = found[layout]
        assert not isinstance(answer, str), answer
        return answer

    return seen


def launch(layout: str, folder: Path) -> tuple[Records, ...] | str:
    done = run_program_under(layout, SUPPORT / "modifiers_program.py", str(folder), timeout=600)
    if done.code:
        return f"{layout}: {done.all}"
    loaded: list[dict[str, Any]] = [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]
    return tuple({which: Record(**entries) for which, entries in records.items()} for records in loaded)


@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize("layout", MARKED)
def test_two_processes_train_what_one_trains(
    one: Records, two: Callable[[str], tuple[Records, ...]], layout: str, which: str
) -> None:
    case = CASES[which][1]
    first, second = (records[which] for records in two(layout))
    refused = next((words for start, words in case.refused.items() if layout.startswith(start)), "")
    assert bool(first.refused) == bool(refused) and refused in first.refused and first.refused == second.refused
    if not refused:
        assert_one_run(first, second)
        assert_near(one[which], first, case)


def assert_one_run(first: Record, second: Record) -> None:
    """Both processes logged the same and hold the same masks and ranges, to the bit, after every step."""
    assert first.trace == second.trace
    for steps, others in ((first.masks, second.masks), (first.ranges, second.ranges)):
        assert len(steps) == EPOCHS * STEPS
        assert not different(steps, others)


def assert_near(one: Record, two: Record, case: Case) -> None:
    """Two processes trained what one did: DDP to the bit, here; the others sum in another order.

    Before quantization that moves losses by 1e-7. A weight whose gradient is nothing but such sums (the bias of
    attention's keys, which cancels out) goes its own way, for Adam makes steps of any gradient: 1e-5 of steps of 1e-2.
    With quantization, a value may be rounded to the next integer, as in test_layouts.py, whose bounds these are.
    """
    is_float = case.float_steps == EPOCHS * STEPS
    assert [entry["rates"] for entry in two.trace] == [entry["rates"] for entry in one.trace]
    assert [entry.keys() for entry in two.trace] == [entry.keys() for entry in one.trace]
    for number, (mine, other) in enumerate(zip(one.trace, two.trace, strict=True)):
        losses = [name for name in mine if "loss" in name]  # the terms of it, too
        within = 1e-6 if number < case.float_steps else 5e-3
        assert {name: other[name] for name in losses} == pytest.approx({n: mine[n] for n in losses}, rel=0, abs=within)

    assert not different(one.masks, two.masks)
    masks = two.masks[-1]
    pruned = sum(int((~mask).sum()) for mask in masks.values()) / max(sum(mask.numel() for mask in masks.values()), 1)
    assert pruned == pytest.approx(case.pruned, abs=1e-3)
    assert not [name for name, mask in masks.items() if two.weights[name][~mask].any()]

    for my_ranges, other_ranges in zip(one.ranges, two.ranges, strict=True):
        assert my_ranges.keys() == other_ranges.keys()
        for name, found in my_ranges.items():
            (minimum, maximum), others = found[:2], other_ranges[name][:2]
            assert bool(((others - found[:2]).abs() <= 0.02 * (maximum - minimum)).all()), name

    assert one.weights.keys() == two.weights.keys()
    within = 1e-4 if is_float else 5e-3
    far = {name: (one.weights[name] - weight).abs() >= within for name, weight in two.weights.items()}
    assert sum(int(each.sum()) for each in far.values()) <= case.ties * sum(each.numel() for each in far.values())
    for name, each in far.items():  # the largest of its row, where that is positive: see `Case.ties`
        assert not (each & (one.weights[name] <= 0)).any() and not (each.sum(-1) > 1).any(), name


def different(steps: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> set[str]:
    """Returns the names of tensors that differ by a bit after any step, or that one side lacks."""
    found: set[str] = set()
    for mine, other in zip(steps, others, strict=True):
        found |= mine.keys() ^ other.keys()
        found |= {name for name in mine.keys() & other.keys() if not torch.equal(mine[name], other[name])}
    return found
