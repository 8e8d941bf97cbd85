"""Which parameters a recipe means, and that frozen ones do not move at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.parameter_names import match_parameter_names
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

NAMES = [
    "bert.embeddings.weight",
    "bert.encoder.layer.0.dense.weight",
    "bert.encoder.layer.0.dense.bias",
    "bert.encoder.layer.1.dense.weight",
    "classifier.weight",
    "classifier.bias",
]
PRUNABLE = [name for name in NAMES if "dense.weight" in name or name == "classifier.weight"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("__ALL__", NAMES),
        ("__ALL_PRUNABLE__", PRUNABLE),
        (["classifier.bias", "bert.embeddings.weight"], [NAMES[0], NAMES[5]]),
        ("re:bert", NAMES[:4]),
        (["re:.*dense[.]weight$", "classifier.bias"], [NAMES[1], NAMES[3], NAMES[5]]),
        (["re:.*bias", "re:.*bias"], [NAMES[2], NAMES[5]]),
        ([], []),
    ],
)
def test_patterns(patterns: str | list[str], expected: list[str]) -> None:
    assert match_parameter_names(patterns, NAMES, PRUNABLE) == expected


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("clasifier.weight", "Similar names: classifier.weight"),
        ("classifier", "re:classifier[.]"),
        ("re:dense", "put .* first"),
        ("re:bert.encoder.layers.*", "bert.encoder.layer"),
        ("re:(", "not a regular expression"),
        ("zzz", "The model has bert.embeddings.weight"),
    ],
)
def test_a_pattern_that_means_nothing_names_near_misses(pattern: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        match_parameter_names(["classifier.bias", pattern], NAMES, PRUNABLE)
    assert pattern in str(caught.value) and part in str(caught.value)


def test_patterns_that_mean_nothing_are_passed_over_when_asked() -> None:
    assert match_parameter_names(["zzz", "classifier.bias"], NAMES, PRUNABLE, strict=False) == ["classifier.bias"]


# --- training ---------------------------------------------------------------------------------------------------------


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def train(recipe: str, epochs: int = 4, steps: int = 2) -> tuple[nn.Module, list[dict[str, bool]]]:
    """Trains with momentum and weight decay; returns, for each epoch, which parameters moved in it."""
    trained = model()
    run = RecipeRun(load_recipe(f"modifiers:\n  - !EpochRangeModifier {{end_epoch: {epochs}}}\n" + recipe))
    run.attach(trained)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.1, weight_decay=0.5)
    run.bind(None, trained, optimizer, steps_per_epoch=steps)
    moved = []
    for _ in range(epochs):
        before = {name: value.detach().clone() for name, value in trained.named_parameters()}
        for _ in range(steps):
            run.step_begin()
            outputs = trained(torch.randn(5, 3))
            run.loss(outputs.square().mean(), {}, outputs).backward()
            run.grads_ready()
            optimizer.step()
            optimizer.zero_grad()
            run.step_end()
        moved.append({name: not torch.equal(value, before[name]) for name, value in trained.named_parameters()})
    run.finish()
    return trained, moved


def freeze(params: str, **keys: Any) -> str:
    written = {"params": params, "trainable": "false"} | keys
    return f"  - !TrainableParamsModifier {{{', '.join(f'{key}: {value}' for key, value in written.items())}}}\n"


def test_frozen_throughout_needs_no_gradient_and_does_not_move() -> None:
    trained, moved = train(freeze("'re:0[.]'"))
    assert [name for name, value in trained.named_parameters() if not value.requires_grad] == ["0.weight", "0.bias"]
    assert all(epoch == {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True} for epoch in moved)


def test_frozen_for_a_time_moves_before_and_after_only() -> None:
    _, moved = train(freeze("[0.weight]", start_epoch=1, end_epoch=3))
    assert [epoch["0.weight"] for epoch in moved] == [True, False, False, True]
    assert all(epoch["0.bias"] and epoch["2.weight"] for epoch in moved)


def test_frozen_to_the_end_of_training_costs_no_gradient() -> None:
    trained, _ = train(freeze("[0.weight]", start_epoch=0, end_epoch=4))
    assert not dict(trained.named_parameters())["0.weight"].requires_grad


@pytest.mark.parametrize("turn", [False, True])
def test_freeze_all_and_free_a_part(turn: bool) -> None:
    lines = [freeze("__ALL__", end_epoch=2), freeze("'re:2'", trainable="true")]
    _, moved = train("".join(lines[::-1] if turn else lines))
    assert all(epoch["2.weight"] and epoch["2.bias"] for epoch in moved)
    assert [epoch["0.weight"] for epoch in moved] == [False, False, True, True]


def test_freezing_everything_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing is left to train"):
        train(freeze("__ALL__"))


def test_a_name_that_the_model_lacks_is_an_error_unless_not_strict() -> None:
    with pytest.raises(UsageError, match=r"0\.wieght.*0\.weight"):
        train(freeze("[0.wieght]"))
    _, moved = train(freeze("[0.wieght]", params_strict="false"), epochs=1)
    assert all(moved[0].values())
