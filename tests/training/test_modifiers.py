"""The table of all modifiers drives parsing, training and resuming for each of them."""

from __future__ import annotations

import functools

import pytest
from loop import Session, assert_same, figures_of
from modifier_table import CASES, EPOCHS, STEPS, begin, recipe_of
from tiny import make_bert

from sparse_accel.modifiers import REGISTRY
from sparse_accel.recipe import load_recipe

RESUMED_AT = (1, 3, 5, 6)  # inside an epoch, between two, and after the last step

each_case = pytest.mark.parametrize("which", CASES)


@each_case
def test_parses(which: str) -> None:
    name, case = CASES[which]
    recipe = load_recipe(recipe_of(name, case.keys))
    kind = REGISTRY[name]
    (modifier,) = recipe.select(kind)
    assert type(modifier) is kind
    assert load_recipe(recipe.resolved()) == recipe
    assert recipe.max_epochs == EPOCHS
    assert modifier.events() or name == "EpochRangeModifier"
    assert recipe.timeline()[-1] == (EPOCHS, "training ends")
    assert all(0 <= epoch <= EPOCHS and text for epoch, text in recipe.timeline())


@functools.cache
def plain_losses() -> list[float]:
    return losses(begin("EpochRangeModifier", "").train())


def losses(session: Session) -> list[float]:
    return [entry["train/loss"] for entry in session.trace]


@each_case
def test_trains_and_resumes_bit_for_bit(which: str) -> None:
    """The recipe is read once: what a run learns of its model is the run's own."""
    name, case = CASES[which]
    keys = case.keys
    recipe = load_recipe(recipe_of(name, keys))
    resolved = recipe.resolved()
    whole = begin(name, keys, recipe).train(keep_snapshots=True)
    assert [entry["step"] for entry in whole.trace] == list(range(1, EPOCHS * STEPS + 1))
    assert list(whole.model.state_dict()) == list(make_bert(num_hidden_layers=case.blocks).state_dict())
    assert name == "EpochRangeModifier" or losses(whole) != plain_losses()  # it acts
    for step in RESUMED_AT:
        resumed = begin(name, keys, recipe, model=make_bert(seed=2)).load(whole.snapshots[step]).train()
        assert [figures_of(entry) for entry in resumed.trace] == [figures_of(entry) for entry in whole.trace[step:]]
        assert_same(whole, resumed)
        assert resumed.run.structure_final() == whole.run.structure_final()
    assert recipe.resolved() == resolved
