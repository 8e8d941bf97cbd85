"""`num_calibration_steps`: the batches that quantization ranges start from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loop import Session, start
from schemes import IGNORE, attach, recipe
from tiny import make_bert
from torch import Tensor, nn

from sparse_accel.errors import UsageError
from sparse_accel.nn.layers import quantizers


def shown_to(session: Session) -> list[tuple[int, bool, Tensor]]:
    """Notes the step, the mode of the model and the ids of each forward."""
    found: list[tuple[int, bool, Tensor]] = []

    def note(model: nn.Module, _: Any, inputs: dict[str, Tensor]) -> None:
        found.append((session.run.progress.step, model.training, inputs["input_ids"]))

    session.model.register_forward_pre_hook(note, with_kwargs=True)
    return found


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_ranges_start_from_as_many_batches_as_asked(epoch: int, accumulation: int) -> None:
    """Five batches of a loader of three: each row is shown, whole batches in eval mode, before the first step."""
    keys = f"start_epoch: {epoch}, disable_quantization_observer_epoch: {epoch}, num_calibration_steps: 5, {IGNORE}"
    session = start(recipe(keys), accumulation=accumulation)
    forwards = shown_to(session)
    layer: Any = session.model.get_submodule("classifier")
    seen: list[tuple[float, float]] = []
    layer.register_forward_pre_hook(
        lambda module, inputs: seen.append((float(inputs[0].detach().min()), float(inputs[0].detach().max())))
    )
    session.train()
    calibrations = [at for at, (_, training, _) in enumerate(forwards) if not training]
    assert len(calibrations) == 5 * accumulation and {forwards[at][0] for at in calibrations} == {3 * epoch}
    low, high = 0.0, 0.0
    for number in range(5):
        each = [seen[at] for at in calibrations[number * accumulation : (number + 1) * accumulation]]
        lowest, highest = min(pair[0] for pair in each), max(pair[1] for pair in each)
        low, high = (low + 0.01 * (lowest - low), high + 0.01 * (highest - high)) if number else (lowest, highest)
    quantizer = layer.input_quantizer  # frozen since: the first step moved nothing
    assert (float(quantizer.minimum), float(quantizer.maximum)) == pytest.approx((low, high))


def test_ranges_do_not_depend_on_how_rows_are_split() -> None:
    """The first batch is not rounded: its first part would set ranges that the second part is rounded with."""
    keys = f"disable_quantization_observer_epoch: 0, num_calibration_steps: 1, {IGNORE}"
    whole, halves = (
        start(recipe(keys, 1), model=make_bert(dropout=0.0), accumulation=parts).train() for parts in (1, 2)
    )
    for (name, one), other in zip(quantizers(whole.model).items(), quantizers(halves.model).values(), strict=True):
        ranges = torch.cat([one.minimum, one.maximum]), torch.cat([other.minimum, other.maximum])
        torch.testing.assert_close(*ranges, rtol=1e-5, atol=1e-6, msg=name)


def test_without_a_freeze_the_first_step_moves_these_ranges() -> None:
    session = start(recipe(f"num_calibration_steps: 2, {IGNORE}", 1))
    history: list[float] = []

    def look(session: Session) -> None:
        layer: Any = session.model.get_submodule("classifier")
        history.append(float(layer.input_quantizer.maximum))

    session.train(look)
    assert len(set(history)) == 3
    frozen = start(recipe(f"num_calibration_steps: 2, disable_quantization_observer_epoch: 0, {IGNORE}", 1)).train()
    layer: Any = frozen.model.get_submodule("classifier")
    start_of_it = float(layer.input_quantizer.maximum)
    assert 0 < abs(history[0] - start_of_it) < 0.05 * abs(start_of_it)  # by a hundredth of the difference


def test_at_once_they_are_as_many_too() -> None:
    session = start(recipe(f"num_calibration_steps: 4, {IGNORE}"))
    forwards = shown_to(session)
    session.model.eval()
    session.run.apply_at_once(lambda: iter(()))
    assert len(forwards) == 4 and all(quantizer.ready for quantizer in quantizers(session.model).values())


def test_a_loop_without_rows_is_told_to_pass_them() -> None:
    model = make_bert()
    run = attach(model, "num_calibration_steps: 4")
    with pytest.raises(UsageError, match=r"QuantizationModifier: num_calibration_steps: .*pass gradient_loader"):
        run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.1), steps_per_epoch=3)
