"""Masks of units: how many go and which, and that all that a unit owns moves together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_bert, make_distilbert, make_roberta
from torch import Tensor, nn

from sparse_accel.nn.layers import masks
from sparse_accel.nn.structure import HEADS, NEURONS, PARTS, encoder_units
from sparse_accel.nn.structure_masks import MaskedUnits, masked_units, masks_of_units, masks_within_budget
from sparse_accel.nn.structure_scores import TaylorScores, relative_norms

SIZE = {HEADS: 8, NEURONS: 1}
MODELS: dict[str, Callable[..., Any]] = {"bert": make_bert, "roberta": make_roberta, "distilbert": make_distilbert}

each_model = pytest.mark.parametrize("kind", MODELS)


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[Tensor], list[Tensor]]:
    """Scores of one to four layers, with ties, and which units of each are left: one at least."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    scores = [torch.tensor(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))).float() for n in sizes]
    kept = [torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n))) for n in sizes]
    for mask in kept:
        mask[draw(st.integers(0, len(mask) - 1))] = True
    return scores, kept


# --- how many, and which ----------------------------------------------------------------------------------------------


@given(layers(), st.data())
def test_as_many_as_asked_for_and_one_of_each_layer_stays(found: tuple[list[Tensor], list[Tensor]], data: Any) -> None:
    scores, kept = found
    gone = sum(int((~mask).sum()) for mask in kept)
    most = sum(len(score) - 1 for score in scores)
    removed = data.draw(st.integers(0, most))
    after = masks_of_units(scores, removed, kept)
    assert all(mask.any() for mask in after)
    assert sum(int((~mask).sum()) for mask in after) == max(removed, gone)  # nothing comes back
    assert all(not (new & ~old).any() for new, old in zip(after, kept, strict=True))
    highest = [score.masked_fill(~old, -1).max() for score, old in zip(scores, kept, strict=True)]
    dropped = torch.cat([score[old & ~new] for score, old, new in zip(scores, kept, after, strict=True)])
    for score, new, top in zip(scores, after, highest, strict=True):
        beside_the_highest = score[new & (score != top)]
        assert not len(dropped) or (beside_the_highest >= dropped.max()).all()


def test_too_many() -> None:
    scores, kept = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])], [torch.tensor([True, True]), torch.tensor([True])]
    assert [mask.tolist() for mask in masks_of_units(scores, 1, kept)] == [[False, True], [True]]
    with pytest.raises(ValueError, match="2 of 3 units"):
        masks_of_units(scores, 2, kept)


@given(layers(), st.data())
def test_a_budget_is_kept_and_not_overdone(found: tuple[list[Tensor], list[Tensor]], data: Any) -> None:
    scores, kept = found
    costs = [data.draw(st.integers(1, 20)) for _ in scores]
    least, most = (
        sum(cost * count for cost, count in zip(costs, counts, strict=True))
        for counts in ([1] * len(costs), [int(mask.sum()) for mask in kept])
    )
    budget = data.draw(st.integers(least, max(most, least)))
    after = masks_within_budget(scores, costs, budget, kept)
    assert all(mask.any() for mask in after)
    assert all(not (new & ~old).any() for new, old in zip(after, kept, strict=True))
    spent = sum(cost * int(mask.sum()) for cost, mask in zip(costs, after, strict=True))
    assert spent <= budget
    dropped = [
        (float(score), cost)
        for scores_of, cost, old, new in zip(scores, costs, kept, after, strict=True)
        for score in scores_of[old & ~new]
    ]
    if dropped:  # the last to go, of the highest score, was needed
        assert spent + max(cost for score, cost in dropped if score == max(dropped)[0]) > budget
    if spent < most:
        with pytest.raises(ValueError, match="one unit of each layer costs"):
            masks_within_budget(scores, costs, least - 1, kept)


@given(st.lists(st.floats(0, 1e3, width=32, allow_subnormal=False), min_size=1, max_size=20))
def test_norms_are_relative_to_their_layer(squares: list[float]) -> None:
    x = torch.tensor(squares)
    found = relative_norms(x)
    assert torch.equal(found.argsort(stable=True), x.argsort(stable=True)) or len(set(squares)) < len(squares)
    assert not found.isnan().any()
    if x.sum() > 1e-3:
        assert float(found.square().mean()) == pytest.approx(1, abs=1e-3)
        torch.testing.assert_close(relative_norms(100 * x), found)


# --- what moves together ----------------------------------------------------------------------------------------------


def batch() -> dict[str, Tensor]:
    ids = torch.randint(5, 30, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def randomized(model: Any) -> Any:
    """Weights and biases far from 0."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(**batch()).logits
    return found


@each_model
@pytest.mark.parametrize("part", PARTS)
def test_what_a_removed_unit_owns_has_no_effect(kind: str, part: str) -> None:
    """Whatever its rows, biases and columns hold; nothing else of the model is masked."""
    model = randomized(MODELS[kind]())
    before = logits(model)
    units = next(each for each in encoder_units(model) if each.part == part and each.block == 1)
    masked = masked_units(model, units)
    assert (masked.count, masked.size) == (units.count, SIZE[part]) and torch.equal(logits(model), before)
    kept = torch.ones(units.count, dtype=torch.bool)
    kept[1] = kept[3] = False
    masked.set_kept(kept)
    without = logits(model)
    assert not torch.allclose(without, before)
    assert torch.equal(masked.kept, kept)

    gone = [number * units.size + line for number in (1, 3) for line in range(units.size)]
    owned = {name: mask for name, mask in masks(model).items() if not mask.all()}
    assert set(owned) == {f"{name}.{k}" for name in units.inputs for k in ("weight", "bias")} | {
        f"{units.output}.weight"
    }
    for name in units.inputs:
        layer: Any = model.get_submodule(name)
        assert (~owned[f"{name}.weight"]).any(1).nonzero().flatten().tolist() == gone
        assert (~owned[f"{name}.bias"]).nonzero().flatten().tolist() == gone
        layer.weight.data[gone] = 1e3
        layer.bias.data[gone] = -1e3
    output: Any = model.get_submodule(units.output)
    output.weight.data[:, gone] = 1e3
    assert torch.equal(logits(model), without)

    masked.clear(kept)
    for layer in masked.layers:  # the zeros that are stored do the same as the masks
        layer.row_mask = layer.column_mask = layer.bias_mask = None
    torch.testing.assert_close(logits(model), without)
    assert all(int((~mask).sum()) for mask in owned.values())


@each_model
def test_a_removed_unit_gets_no_gradient(kind: str) -> None:
    model = randomized(MODELS[kind]())
    for units in encoder_units(model):
        masked = masked_units(model, units)
        masked.set_kept(torch.arange(units.count) % 2 == 0)
    model(**batch()).logits.square().sum().backward()
    parameters = dict(model.named_parameters())
    for name, mask in masks(model).items():
        gradient = parameters[name].grad
        assert gradient is not None and (gradient[~mask] == 0).all() and (gradient[mask] != 0).any(), name


def test_units_that_come_back_restart_at_0() -> None:
    model = randomized(make_bert())
    masked = masked_units(model, encoder_units(model)[1])
    masked.change(torch.arange(64) > 3)
    masked.change(torch.arange(64) > 1)
    first, second = masked.layers
    assert torch.equal((first.weight == 0).all(1), torch.isin(torch.arange(64), torch.tensor([2, 3])))  # 0, 1: masked
    assert torch.equal((second.weight == 0).all(0), torch.isin(torch.arange(64), torch.tensor([2, 3])))
    assert torch.equal(masked.kept, torch.arange(64) > 1)


# --- scores -----------------------------------------------------------------------------------------------------------


@each_model
def test_squares_are_of_all_that_a_unit_owns(kind: str) -> None:
    model = randomized(MODELS[kind]()).requires_grad_(False)
    for units in encoder_units(model):
        masked = masked_units(model, units)
        for number in (0, units.count - 1):
            lines = slice(number * units.size, (number + 1) * units.size)
            total = sum(
                float(tensor[lines].square().sum())
                for name in units.inputs
                for tensor in (model.get_submodule(name).weight, model.get_submodule(name).bias)
            )
            total += float(model.get_submodule(units.output).weight[:, lines].square().sum())
            assert float(masked.squares()[number]) == pytest.approx(total, rel=1e-5)
        assert masked.cost * masked.count == sum(
            model.get_submodule(name).weight.numel() for name in (*units.inputs, units.output)
        )


@each_model
def test_products_are_the_derivative_by_the_size_of_a_unit(kind: str) -> None:
    """All that a unit owns times a factor: the derivative of the loss by it at 1 is the sum of weight * gradient."""
    model = randomized(MODELS[kind]()).double()

    def loss(model: Any) -> Tensor:
        found: Tensor = model(**batch()).logits.square().sum()
        return found

    loss(model).backward()
    for units in encoder_units(model):
        masked = masked_units(model, units)
        lines = slice(units.size, 2 * units.size)  # of unit 1
        values = []
        for factor in (1 - 1e-5, 1 + 1e-5):
            other = copy.deepcopy(model)
            with torch.no_grad():
                for name in units.inputs:
                    layer: Any = other.get_submodule(name)
                    layer.weight[lines] *= factor
                    layer.bias[lines] *= factor
                output: Any = other.get_submodule(units.output)
                output.weight[:, lines] *= factor
                values.append(float(loss(other)))
        assert float(masked.gradient_products()[1]) == pytest.approx((values[1] - values[0]) / 2e-5, rel=1e-3)


def test_taylor_scores_are_means_over_steps_that_count() -> None:
    model = randomized(make_bert())
    units = [masked_units(model, each) for each in encoder_units(model)]
    scores = TaylorScores(units, torch.device("cpu"))
    assert all(not found.any() for found in scores.take()) and not scores.known
    seen = []
    for number in range(3):
        model.zero_grad()
        (model(**batch()).logits * (number + 1)).sum().backward()
        seen.append([each.gradient_products().abs() for each in units])
        scores.add()
    model.bert.encoder.layer[0].output.dense.weight.grad[0, 0] = torch.nan
    scores.add()
    state = {name: value.clone() for name, value in scores.state_dict().items()}
    means = scores.take()
    for number, found in enumerate(means):
        torch.testing.assert_close(found, sum(step[number] for step in seen) / 3)
    assert scores.known and all(torch.equal(a, b) for a, b in zip(means, scores.take(), strict=True))
    resumed = TaylorScores(units, torch.device("cpu"))
    resumed.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(means, resumed.take(), strict=True))
    with pytest.raises(ValueError, match="other units"):
        TaylorScores(units[1:], torch.device("cpu")).load_state_dict(state)


def test_masks_of_a_tied_weight_are_in_all_its_layers() -> None:
    embedding, decoder = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    decoder.weight = embedding.weight
    masked = MaskedUnits("tied", 1, {"embedding.weight": [embedding, decoder]}, {})
    masked.change(torch.arange(6) != 2)
    x = torch.ones(1, 4)
    assert not embedding(torch.tensor([2])).any() and not decoder(x)[0, 2].any() and decoder(x)[0, 1].any()
    torch.testing.assert_close(masked.sum_of_norms(), embedding.weight.norm(dim=1) * (torch.arange(6) != 2))


def test_layers_of_different_sizes_have_no_common_mask() -> None:
    with pytest.raises(ValueError, match="a has 5, b has 4"):
        MaskedUnits("a", 1, {"a": [nn.Linear(3, 5)], "b": [nn.Linear(3, 4)]}, {})
