"""Learning rate and weight decay: the old tool's traces, the schedules' properties, and which modifier governs."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import golden

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import FieldError, Modifier
from sparse_accel.modifiers.learning_rate import (
    LearningRateFunctionModifier,
    LearningRateModifier,
    SetLearningRateModifier,
    cosine_rate,
    cosine_restarts_rate,
    cyclic_linear_rate,
    linear_rate,
    multi_step_rate,
    step_rate,
)
from sparse_accel.modifiers.weight_decay import SetWeightDecayModifier
from sparse_accel.progress import Progress
from sparse_accel.recipe import load_recipe

GOLDEN = golden("learning_rate")["cases"]


def trace(
    modifiers: list[Modifier],
    epochs: int,
    steps_per_epoch: int = 4,
    *,
    base: float = 5e-5,
    decay: tuple[float, ...] = (0, 0),
) -> dict[str, list[list[float]]]:
    """Rates and weight decays by group and step, as the modifiers write them into an optimizer's groups."""
    groups: list[dict[str, float]] = [{"lr": base, "weight_decay": value} for value in decay]
    run: Any = SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups), modifiers=modifiers)
    for modifier in modifiers:
        modifier.bind(run)
    rates: list[list[float]] = [[] for _ in groups]
    decays: list[list[float]] = [[] for _ in groups]
    for step in range(epochs * steps_per_epoch):
        for group in groups:
            group["lr"] = base
        for modifier in modifiers:
            modifier.step_begin(Progress(step, steps_per_epoch))
        for index, group in enumerate(groups):
            rates[index].append(group["lr"])
            decays[index].append(group["weight_decay"])
    return {"lr": rates, "weight_decay": decays}


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_old_tool(name: str) -> None:
    case = GOLDEN[name]
    recipe = load_recipe(case["recipe"])
    assert recipe.max_epochs == case["epochs"]
    decay = (case["wd_g0"][0] if "wd_ep1" in name else 0.0, 0.0)
    ours = trace(recipe.modifiers, case["epochs"], case["steps_per_epoch"], base=case["hf_initial_lr"], decay=decay)
    assert ours["lr"][0] == pytest.approx(case["lr_g0"], rel=1e-12)
    assert ours["lr"][1] == pytest.approx(case["lr_g1"], rel=1e-12)
    assert ours["weight_decay"] == [case["wd_g0"], case["wd_g1"]]


# --- properties -------------------------------------------------------------------------------------------------------

rates = st.floats(0, 1)
clocks = st.integers(1, 50)


@given(init=rates, final=rates, start=st.integers(0, 5), length=st.integers(1, 10), per_epoch=clocks, data=st.data())
def test_linear_and_cosine_stay_between_their_ends_and_meet_them(
    init: float, final: float, start: int, length: int, per_epoch: int, data: st.DataObject
) -> None:
    end = start + length
    step = data.draw(st.integers(0, (end + 2) * per_epoch))
    for rate in (linear_rate, cosine_rate):
        assert rate(Progress(start * per_epoch, per_epoch), start, end, init, final) == pytest.approx(init)
        assert rate(Progress(end * per_epoch, per_epoch), start, end, init, final) == pytest.approx(final)
        value = rate(Progress(step, per_epoch), start, end, init, final)
        assert min(init, final) - 1e-12 <= value <= max(init, final) + 1e-12
        following = rate(Progress(step + 1, per_epoch), start, end, init, final)
        assert (following - value) * (final - init) >= -1e-12  # never away from the final rate


def test_over_the_whole_run_the_last_step_is_one_step_short_of_final() -> None:
    assert linear_rate(Progress(51, 4), 0, 13, 1.0, 0.0) == pytest.approx(1 / 52)


@settings(max_examples=200)
@given(
    start=st.floats(0, 3), length=st.floats(0.1, 6), cycle=st.floats(0.05, 3), per_epoch=clocks, init=rates, final=rates
)
def test_every_cycle_runs_from_init_to_final(
    start: float, length: float, cycle: float, per_epoch: int, init: float, final: float
) -> None:
    end = start + length
    clock = [Progress(step, per_epoch) for step in range(int((end + 1) * per_epoch) + 1)]
    acting = [progress for progress in clock if progress.reached(start) and not progress.reached(end)]
    values = [cyclic_linear_rate(progress, start, end, init, final, cycle) for progress in acting]
    assert all(min(init, final) - 1e-9 <= value <= max(init, final) + 1e-9 for value in values)
    if acting:
        assert values[0] == pytest.approx(init)
        number = [int((progress.step + 1e-6 - start * per_epoch) / (cycle * per_epoch)) for progress in acting]
        for _, members in itertools.groupby(zip(number, values, strict=True), key=lambda pair: pair[0]):
            cycle_values = [value for _, value in members]
            assert cycle_values[0] == pytest.approx(init)
            assert cycle_values[-1] == pytest.approx(final if len(cycle_values) > 1 else init)
    assert cyclic_linear_rate(Progress(10**6, per_epoch), start, end, init, final, cycle) == final


@given(per_epoch=clocks, init=rates, gamma=st.floats(0, 1), size=st.integers(1, 4), drops=st.integers(0, 6))
def test_steps_fall_at_their_epochs(per_epoch: int, init: float, gamma: float, size: int, drops: int) -> None:
    first = Progress(drops * size * per_epoch, per_epoch)
    assert step_rate(first, 0, init, gamma, size) == pytest.approx(init * gamma**drops)
    assert multi_step_rate(first, init, gamma, [size * (n + 1) for n in range(drops)]) == pytest.approx(
        init * gamma**drops
    )
    if drops:
        before = Progress(first.step - 1, per_epoch)
        assert step_rate(before, 0, init, gamma, size) == pytest.approx(init * gamma ** (drops - 1))


@given(per_epoch=clocks, init=rates, low=rates, cycle=st.integers(1, 5), number=st.integers(0, 9))
def test_cosine_restarts_at_every_cycle(per_epoch: int, init: float, low: float, cycle: int, number: int) -> None:
    assert cosine_restarts_rate(Progress(number * cycle * per_epoch, per_epoch), 0, init, low, cycle) == pytest.approx(
        init
    )


# --- which modifier governs -------------------------------------------------------------------------------------------


def test_the_last_to_have_started_governs_each_group_whatever_the_order() -> None:
    modifiers: list[Modifier] = [
        SetLearningRateModifier(start_epoch=0, learning_rate=0.5),
        LearningRateFunctionModifier(start_epoch=1, end_epoch=2, lr_func="linear", init_lr=0.4, final_lr=0.2),
        SetLearningRateModifier(start_epoch=3, learning_rate=0.1, param_groups=[1]),
    ]
    for order in itertools.permutations(modifiers):
        first, second = trace(list(order), 4, 2)["lr"]
        assert first == pytest.approx([0.5, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2, 0.2])
        assert second == pytest.approx([0.5, 0.5, 0.4, 0.3, 0.2, 0.2, 0.1, 0.1])


@pytest.mark.parametrize("turn", [False, True])
def test_a_schedule_comes_before_a_single_value_that_starts_with_it(turn: bool) -> None:
    modifiers: list[Modifier] = [
        SetLearningRateModifier(learning_rate=0.5),
        LearningRateFunctionModifier(start_epoch=0, end_epoch=2, lr_func="linear", init_lr=0.4, final_lr=0.0),
    ]
    for modifier in modifiers:
        modifier.check_compatible([other for other in modifiers if other is not modifier])
    assert trace(modifiers[::-1] if turn else modifiers, 1, 2)["lr"][0] == pytest.approx([0.4, 0.3])


def test_before_the_first_start_the_base_rate_applies() -> None:
    assert trace([SetLearningRateModifier(start_epoch=1.5, learning_rate=0.1)], 2, 2)["lr"][0] == [5e-5] * 3 + [0.1]


def test_a_stepping_schedule_holds_the_rate_of_its_last_step() -> None:
    modifier = LearningRateModifier(
        start_epoch=0, end_epoch=2, lr_class="ExponentialLR", lr_kwargs={"gamma": 0.5}, init_lr=0.8
    )
    assert trace([modifier], 4, 1)["lr"][0] == pytest.approx([0.8, 0.4, 0.4, 0.4])


def test_of_two_weight_decays_the_later_governs() -> None:
    modifiers: list[Modifier] = [
        SetWeightDecayModifier(start_epoch=1, weight_decay=0.2),
        SetWeightDecayModifier(weight_decay=0.1, end_epoch=1),  # says the same as leaving end_epoch out
    ]
    assert trace(modifiers, 2, 1, decay=(0.7, 0.0))["weight_decay"] == [[0.1, 0.2], [0.1, 0.2]]


def test_a_parameter_group_that_the_optimizer_lacks_is_an_error() -> None:
    with pytest.raises(UsageError, match="2 parameter groups"):
        trace([SetLearningRateModifier(learning_rate=0.1, param_groups=[2])], 1)


SET = {"learning_rate": 0.1}
LINE = {"lr_func": "linear", "init_lr": 0.1, "final_lr": 0.0, "end_epoch": 2.0}
STEP = {"lr_class": "StepLR", "init_lr": 0.1, "lr_kwargs": {"gamma": 0.1, "step_size": 1}}


@pytest.mark.parametrize(
    ("kind", "values", "key", "part"),
    [
        (SetLearningRateModifier, {"learning_rate": 1.5}, "learning_rate", "between 0 and 1"),
        (SetLearningRateModifier, SET | {"param_groups": []}, "param_groups", "indices from 0"),
        (SetLearningRateModifier, SET | {"param_groups": [-1]}, "param_groups", "indices from 0"),
        (LearningRateFunctionModifier, LINE | {"init_lr": -1.0}, "init_lr", "between 0 and 1"),
        (LearningRateFunctionModifier, LINE | {"end_epoch": -1.0}, "end_epoch", "must end after"),
        (LearningRateFunctionModifier, LINE | {"start_epoch": 2.0}, "end_epoch", "must end after"),
        (LearningRateFunctionModifier, LINE | {"cycle_epochs": 0.0}, "cycle_epochs", "above 0, got 0"),
        (LearningRateModifier, STEP | {"lr_kwargs": {"gama": 1, "step_size": 1}}, "lr_kwargs", "Did you mean 'gamma'?"),
        (LearningRateModifier, STEP | {"lr_kwargs": {"gamma": 1}}, "lr_kwargs", "needs step_size"),
        (LearningRateModifier, STEP | {"lr_kwargs": {"gamma": "x", "step_size": 1}}, "lr_kwargs", "expected a factor"),
        (LearningRateModifier, STEP | {"lr_kwargs": {"gamma": 1, "step_size": 0}}, "lr_kwargs", "above 0"),
        (LearningRateModifier, STEP | {"lr_kwargs": {"gamma": 0, "step_size": 1}}, "lr_kwargs", "gamma: must be above"),
        (
            LearningRateModifier,
            STEP | {"lr_class": "CosineAnnealingWarmRestarts", "lr_kwargs": {"lr_min": -0.1, "cycle_epochs": 1}},
            "lr_kwargs",
            "lr_min: a learning rate must be between 0 and 1",
        ),
        (LearningRateModifier, STEP | {"lr_kwargs": {"gamma": [1], "step_size": 1}}, "lr_kwargs", "expected a factor"),
        (LearningRateModifier, STEP | {"start_epoch": 2.0, "end_epoch": 2.0}, "end_epoch", "must end after"),
        (
            LearningRateModifier,
            STEP | {"lr_class": "MultiStepLR", "end_epoch": 3.0, "lr_kwargs": {"gamma": 1, "milestones": [1, 3]}},
            "lr_kwargs",
            "milestone 3",
        ),
        (SetWeightDecayModifier, {"weight_decay": -0.1}, "weight_decay", "0 or more"),
    ],
)
def test_values_that_cannot_be_meant(kind: Any, values: dict[str, Any], key: str, part: str) -> None:
    with pytest.raises(FieldError) as caught:
        kind(**values)
    assert caught.value.key == key and part in str(caught.value)
