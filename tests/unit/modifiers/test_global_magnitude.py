"""GlobalMagnitudePruningModifier: one ranking over all layers, as SparseML's figures have it."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import golden
from recipe_texts import error_of
from torch import Tensor, nn

from sparse_accel.errors import UsageError
from sparse_accel.modifiers import REGISTRY, FieldError
from sparse_accel.modifiers.pruning.gradual import GradualPruningModifier
from sparse_accel.modifiers.pruning.magnitude import GlobalMagnitudePruningModifier, MagnitudePruningModifier
from sparse_accel.modifiers.state import State
from sparse_accel.nn.layers import masks
from sparse_accel.progress import Progress
from sparse_accel.recipe import load_recipe

GOLDEN: dict[str, Any] = golden("global_magnitude")
SPAN = {"start_epoch": 0, "end_epoch": 3, "update_frequency": 1}


def make_model(weights: dict[str, Tensor]) -> nn.Module:
    model = nn.Module()
    for name, weight in weights.items():
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        model.add_module(name.removesuffix(".weight"), layer)
    return model


def prune(modifier: GradualPruningModifier, weights: dict[str, Tensor], steps: int) -> list[dict[str, Tensor]]:
    """The masks that each of the steps begins with, two steps per epoch; the weights are at rest."""
    model = make_model(weights)
    state: Any = State(model, [modifier], task=None)  # type: ignore[arg-type]
    modifier.attach(state)
    modifier.bind(state)
    found = []
    for step in range(steps):
        modifier.step_begin(Progress(step, 2))
        found.append({name: mask.clone() for name, mask in masks(model).items()})
    return found


def as_mask(rows: list[str]) -> Tensor:
    return torch.tensor([[int(digit) for digit in row] for row in rows], dtype=torch.bool)


def golden_weights(count: int = 3) -> dict[str, Tensor]:
    return {name: torch.tensor(weight) for name, weight in list(GOLDEN["weights"].items())[:count]}


# --- SparseML's figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(GOLDEN["runs"])))
def test_golden_masks(number: int) -> None:
    run = GOLDEN["runs"][number]
    keys = {key: value for key, value in run["keys"].items() if key != "modifier"}
    kind: Any = REGISTRY[run["keys"]["modifier"]]
    if keys.get("mask_type") in ("block4", "2:4"):  # SparseML pads rows of 6, and lets groups cross them: a fault
        with pytest.raises(UsageError, match=r"a\.weight: (blocks of 1 x 4|groups of 4) do not divide"):
            prune(kind(params=list(GOLDEN["weights"]), **keys), golden_weights(), 1)
    if keys.get("mask_type") == "block4":
        return
    weights = {name: w for name, w in golden_weights().items() if keys.get("mask_type") != "2:4" or w.shape[1] % 4 == 0}
    found = prune(kind(params=list(weights), **keys), weights, 8)
    assert run["steps"] == [0, 2, 4, 6]
    for step, expected in zip(run["steps"], run["masks"], strict=True):
        by_name = dict(zip(GOLDEN["weights"], expected, strict=True))
        for name, mask in found[step].items():
            assert torch.equal(mask, as_mask(by_name[name])), (number, step, name)
        assert {name: mask.tolist() for name, mask in found[step + 1].items()} == {
            name: mask.tolist() for name, mask in found[step].items()
        }


def test_golden_options() -> None:
    """Here an integer is a number, and a sparsity of 1 is allowed; there both are errors."""
    seen = set()
    for name, keys_text, outcome in GOLDEN["option_checks"]:
        keys = {"params": ["a.weight", "b.weight"], **SPAN, **ast.literal_eval(keys_text)}
        kind: Any = REGISTRY[name]
        if "Error" in outcome:
            seen.add((outcome, "final_sparsity" if keys["final_sparsity"] == 1.0 else type(keys["final_sparsity"])))
            if isinstance(keys["final_sparsity"], dict):
                with pytest.raises(FieldError, match="global_sparsity: needs one final_sparsity"):
                    kind(**keys)
            else:
                prune(kind(**keys), golden_weights(2), 8)
            continue
        zeros = ast.literal_eval(outcome.removeprefix("zeros ").partition(" hooks")[0])
        found = prune(kind(**keys), golden_weights(2), len(zeros))
        # There, weights keep their zeros when masks end, because these do not train; here too, but the masks are gone.
        steps = range(len(zeros)) if "hooks at end True" in outcome else range(6)
        for step in steps:
            assert [int((~mask).sum()) for mask in found[step].values()] == zeros[step], (name, keys_text, step)
        if "hooks at end False" in outcome:
            assert all(mask.all() for masks_then in found[6:] for mask in masks_then.values())
    assert len(seen) == 3


# --- what must hold for every model -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), final=st.floats(0.05, 1.0), kind=st.sampled_from(["unstructured", "block4"]))
def test_the_sparsity_is_that_of_all_layers_together(seed: int, final: float, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {"a.weight": torch.randn(4, 8, generator=generator), "b.weight": torch.randn(2, 4, generator=generator)}
    modifier = GlobalMagnitudePruningModifier(end_epoch=2, final_sparsity=final, mask_type=kind)
    last = prune(modifier, weights, 6)[-1]
    size = 4 if kind == "block4" else 1
    assert sum(int((~mask).sum()) for mask in last.values()) == round(final * 40 / size) * size
    if kind == "unstructured":
        kept = torch.cat([weights[name][mask].abs() for name, mask in last.items()])
        dropped = torch.cat([weights[name][~mask].abs() for name, mask in last.items()])
        assert not len(kept) or not len(dropped) or kept.min() >= dropped.max()


def test_global_and_per_layer_are_two_names_of_one_modifier() -> None:
    keys = "init_sparsity: 0.2, final_sparsity: 0.75, end_epoch: 3, update_frequency: 1"
    for name, extra, expected in (
        ("GlobalMagnitudePruningModifier", "", True),
        ("GlobalMagnitudePruningModifier", ", global_sparsity: false", False),
        ("MagnitudePruningModifier", "", False),
        ("GMPruningModifier", ", global_sparsity: true", True),
    ):
        recipe = load_recipe(f"modifiers:\n  - !{name} {{{keys}{extra}}}\n")
        (modifier,) = recipe.select(MagnitudePruningModifier)
        assert modifier.global_sparsity is expected
        assert (", global" in dict(recipe.timeline())[0.0]) is expected
        assert load_recipe(recipe.resolved()) == recipe


def test_a_mapping_of_several_sparsities_is_refused() -> None:
    text = (
        "modifiers:\n  - !GlobalMagnitudePruningModifier\n    end_epoch: 3\n    final_sparsity: {0.75: [a], 0.5: [b]}\n"
    )
    error = error_of(text)
    assert error.key == "global_sparsity" and "this mapping has several" in str(error)
