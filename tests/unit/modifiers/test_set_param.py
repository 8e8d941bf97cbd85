"""Parameters that a recipe sets: SparseML's figures, at once or gradually, and what cannot be set."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import golden
from recipe_texts import error_of
from torch import nn

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.set_param import GradualParamModifier, SetParamModifier
from sparse_accel.nn.layers import masks
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

FIGURES = golden("params_and_layers")


def train(recipe: str, *, epochs: int, steps: int, rate: float, model: nn.Module | None = None) -> list[list[float]]:
    """Trains with a gradient of 1 for every parameter; returns the bias, 9 at first, after each step."""
    model = nn.Sequential(nn.Linear(3, 2)) if model is None else model
    bias = dict(model.named_parameters())["0.bias"]
    nn.init.constant_(bias, 9.0)
    run = RecipeRun(load_recipe(f"modifiers:\n  - !EpochRangeModifier {{end_epoch: {epochs}}}\n{recipe}"))
    run.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    run.bind(None, model, optimizer, steps_per_epoch=steps)
    found = []
    for _ in range(epochs * steps):
        run.step_begin()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        run.grads_ready()
        optimizer.step()
        run.step_end()
        found.append(bias.tolist())
    run.finish()
    return [*found, bias.tolist()]


def written(name: str, keys: dict[str, Any]) -> str:
    return f"  - !{name} {json.dumps(keys)}\n"


def keys_of(case: dict[str, Any]) -> dict[str, Any]:
    others = ("lr", "grad", "bias_after_each_step", "steps_per_epoch", "bias_at_first")
    return {"params": ["0.bias"], **{key: value for key, value in case.items() if key not in (*others, "params")}}


@pytest.mark.parametrize("case", FIGURES["set_param"], ids=str)
def test_set_as_in_sparseml(case: dict[str, Any]) -> None:
    expected, steps = case["bias_after_each_step"], case["steps_per_epoch"]
    recipe = written("SetParamModifier", keys_of(case))
    if expected == "ValueError":
        with pytest.raises(UsageError, match=r"val is a number, but 0\.bias is a list of 2"):
            train(recipe, epochs=3, steps=steps, rate=case["lr"])
        return
    found = train(recipe, epochs=len(expected) // steps, steps=steps, rate=case["lr"])
    assert torch.allclose(torch.tensor(found[:-1]), torch.tensor(expected), atol=1e-5)
    assert found[-1] == found[-2]


@pytest.mark.parametrize("case", FIGURES["gradual_param"], ids=str)
def test_moved_as_in_sparseml(case: dict[str, Any]) -> None:
    expected, steps = torch.tensor(case["bias_after_each_step"]), case["steps_per_epoch"]
    inter_func = case.get("inter_func", "linear")
    if inter_func != "linear":  # SparseML's is linear all the same: here it is the one that is named
        begin, end = case["start_epoch"] * steps, case["end_epoch"] * steps
        for number in range(int(begin), int(end)):
            x = (expected[number] - expected[int(begin)]) / 4  # the fraction of the way, both values move by 4
            right = 1 - (1 - x) ** 3 if inter_func == "cubic" else 1 - (1 - x) ** (1 / 3)
            expected[number] = torch.tensor(case["init_val"]) + 4 * right
    recipe = written("GradualParamModifier", keys_of(case))
    found = train(recipe, epochs=len(expected) // steps, steps=steps, rate=case["lr"])
    assert torch.allclose(torch.tensor(found[:-1]), expected, atol=1e-5)


def test_the_cubic_case_by_hand() -> None:
    keys = {"init_val": [0.0, 1.0], "final_val": [4.0, 5.0], "start_epoch": 1, "end_epoch": 3, "update_frequency": 1}
    recipe = written("GradualParamModifier", {"params": "0.bias", "inter_func": "cubic", **keys})
    assert train(recipe, epochs=4, steps=1, rate=0.0)[:-1] == [[9, 9], [0, 1], [3.5, 4.5], [4, 5]]


def test_the_optimizer_moves_a_parameter_between_updates() -> None:
    keys = {"init_val": [0.0, 0.0], "final_val": [4.0, 4.0], "start_epoch": 0, "end_epoch": 2, "update_frequency": 1}
    recipe = written("GradualParamModifier", {"params": "0.bias", **keys})
    found = [first for first, _ in train(recipe, epochs=3, steps=2, rate=0.5)]
    assert found == [-0.5, -1.0, 1.5, 1.0, 3.5, 3.0, 3.0]
    frozen = recipe + written("TrainableParamsModifier", {"params": "0.bias", "trainable": False, "start_epoch": 1})
    assert [first for first, _ in train(frozen, epochs=3, steps=2, rate=0.5)] == [-0.5, -1.0, 2.0, 2.0, 4.0, 4.0, 4.0]


@given(st.floats(-5, 5, width=32), st.floats(-5, 5, width=32), st.integers(1, 3), st.sampled_from([-1, 0.3, 1]))
@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("inter_func", ["linear", "cubic", "inverse_cubic"])
def test_it_moves_one_way_and_ends_exactly(
    inter_func: str, first: float, last: float, end: int, frequency: float
) -> None:
    keys = {"init_val": [first] * 2, "final_val": [last] * 2, "start_epoch": 0, "end_epoch": end}
    recipe = written(
        "GradualParamModifier",
        {"params": "0.bias", "inter_func": inter_func, "update_frequency": frequency, **keys},
    )
    found = [value for value, _ in train(recipe, epochs=3, steps=3, rate=0.0)]
    assert found[0] == first and found[-1] == last
    assert found == sorted(found, reverse=last < first)
    assert set(found[end * 3 :]) == {last}


def test_at_the_end_of_training_it_is_set_too() -> None:
    recipe = written("SetParamModifier", {"params": "0.bias", "val": [1, 2], "start_epoch": 2})
    assert train(recipe, epochs=2, steps=2, rate=0.0) == [*[[9, 9]] * 4, [1, 2]]


def test_a_matrix_of_a_pattern_and_a_parameter_without_axes() -> None:
    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(3, 2))
            self.scale = nn.Parameter(torch.zeros(()))

    model: Any = Scaled()
    recipe = written("SetParamModifier", {"params": "re:0[.]weight", "val": [[1, 2, 3], [4, 5, 6]]})
    train(
        recipe + written("SetParamModifier", {"params": "scale", "val": -2}), epochs=1, steps=1, rate=0.0, model=model
    )
    assert model[0].weight.tolist() == [[1, 2, 3], [4, 5, 6]] and model.scale.item() == -2


def test_pruned_weights_stay_zero() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[0] = 0.0
    recipe = "  - !ConstantPruningModifier {}\n"
    recipe += written("SetParamModifier", {"params": "0.weight", "val": [[1, 2, 3], [4, 5, 6]], "start_epoch": 1})
    train(recipe, epochs=2, steps=1, rate=0.0, model=model)
    assert model[0].weight.tolist() == [[0, 0, 0], [4, 5, 6]]
    assert masks(model)["0.weight"].sum() == 3


def test_applied_at_once() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 2))
    keys = {"init_val": [0, 0], "final_val": [4, 5], "start_epoch": 0, "end_epoch": 2, "update_frequency": 1}
    recipe = written("GradualParamModifier", {"params": "0.bias", **keys})
    recipe += written("SetParamModifier", {"params": "0.weight", "val": [[1, 2, 3], [4, 5, 6]], "start_epoch": 1})
    run = RecipeRun(load_recipe(f"modifiers:\n{recipe}"))
    run.attach(model)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.0), steps_per_epoch=1)
    run.apply_at_once(lambda: iter(()))
    assert model[0].bias.tolist() == [4, 5] and model[0].weight.tolist() == [[1, 2, 3], [4, 5, 6]]


# --- what is refused --------------------------------------------------------------------------------------------------

GRADUAL = {"params": "0.bias", "init_val": [0, 0], "final_val": [1, 1], "start_epoch": 0, "end_epoch": 2}


@pytest.mark.parametrize(
    ("name", "keys", "key", "part"),
    [
        ("SetParamModifier", {"params": [], "val": 1}, "params", "must not be empty"),
        ("SetParamModifier", {"params": "0.bias", "val": []}, "val", "empty list"),
        ("SetParamModifier", {"params": "0.bias", "val": [[1], [1, 2]]}, "val", "differ in length"),
        ("SetParamModifier", {"params": "0.bias", "val": [[1], 2]}, "val", "differ in length"),
        ("SetParamModifier", {"params": "0.bias", "val": [1, "two"]}, "val", "expected numbers, got 'two'"),
        ("SetParamModifier", {"params": "0.bias", "val": [1, True]}, "val", "expected numbers, got True"),
        ("SetParamModifier", {"params": "0.bias", "val": "half"}, "val", "expected a number or a list, got 'half'"),
        ("SetParamModifier", {"params": "0.bias", "val": [1], "end_epoch": 2}, "end_epoch", "leave end_epoch out"),
        ("SetParamModifier", {"params": "0.bias", "val": [1e39, 0]}, "val", "too large for float32"),
        ("SetParamModifier", {"params": ["re:("], "val": 1}, "params", "is not a regular expression"),
        ("SetParamModifier", {"params": "0.bias"}, "val", "needs val"),
        ("GradualParamModifier", {**GRADUAL, "final_val": [1]}, "final_val", "init_val is a list of 2"),
        ("GradualParamModifier", {**GRADUAL, "final_val": 1}, "final_val", "is a number"),
        ("GradualParamModifier", {**GRADUAL, "inter_func": "quartic"}, "inter_func", "linear, cubic or inverse_cubic"),
        ("GradualParamModifier", {**GRADUAL, "update_frequency": -2}, "update_frequency", "or -1 for every step"),
        ("GradualParamModifier", {**GRADUAL, "end_epoch": 0}, "end_epoch", "must be after start_epoch"),
        ("GradualParamModifier", {**GRADUAL, "end_epoch": -1}, "end_epoch", "must be after start_epoch"),
    ],
)
def test_refused_when_the_recipe_is_read(name: str, keys: dict[str, Any], key: str, part: str) -> None:
    error = error_of(f"modifiers:\n{written(name, keys)}")
    assert error.key == key and part in str(error), error


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        (
            written("SetParamModifier", {"params": "0.bais", "val": [1, 2]}),
            r"^<text>:\d+: SetParamModifier: params: .*Similar names: 0\.bias",
        ),
        (written("SetParamModifier", {"params": "__ALL__", "val": [1, 2]}), r"list of 2, but 0\.weight is 2 x 3"),
        (written("SetParamModifier", {"params": "0.weight", "val": [[1, 2], [3, 4]]}), "is 2 x 2, but"),
        (written("SetParamModifier", {"params": "0.bias", "val": [1, 2]}) * 2, "set by SetParamModifier at the same"),
        (
            written("SetParamModifier", {"params": "0.bias", "val": [1, 2], "start_epoch": 1})
            + written("GradualParamModifier", GRADUAL),
            r"0\.bias is set by GradualParamModifier at the same",
        ),
    ],
)
def test_refused_for_the_model(recipe: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        train(recipe, epochs=2, steps=1, rate=0.0)


def test_one_may_begin_where_another_ends() -> None:
    recipe = written("GradualParamModifier", {**GRADUAL, "end_epoch": 1})
    recipe += written("SetParamModifier", {"params": "0.bias", "val": [7, 7], "start_epoch": 1})
    assert train(recipe, epochs=2, steps=1, rate=0.0)[-1] == [7, 7]
    assert SetParamModifier.params_strict and GradualParamModifier.params_strict


def test_not_strict() -> None:
    recipe = written("SetParamModifier", {"params": ["0.bais"], "val": [1, 2], "params_strict": False})
    assert train(recipe, epochs=1, steps=1, rate=0.0) == [[9, 9], [9, 9]]
