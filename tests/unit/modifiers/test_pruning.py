"""Pruning while training: what the model computes with is exactly zero under the mask, at every single step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loop import ROWS, Session, make_accelerator, start
from mask_watch import Watch
from recipe_texts import magnitude
from tiny import make_albert, make_bert, make_rows
from torch import Tensor, nn

from sparse_accel.errors import UsageError
from sparse_accel.models.sparsity import sparsity_report
from sparse_accel.modifiers.pruning.schedule import scheduled_sparsity, update_due
from sparse_accel.nn.layers import SparseLayer, masks, prunable_names, sparse_layers
from sparse_accel.progress import Progress
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

BLOCKS = "params: ['re:bert.encoder.*weight']"  # LayerNorm's weights are no matrices: the pattern is refused
LINEARS = "params: ['re:bert.encoder.*(query|key|value|dense).weight']"
STEPS = 3


def sparsity(mask: Tensor) -> float:
    return float((~mask).float().mean())


# --- constant ---------------------------------------------------------------------------------------------------------

CONSTANT = """
modifiers:
  - !EpochRangeModifier {end_epoch: 2}
  - !ConstantPruningModifier {params: __ALL_PRUNABLE__}
"""


@pytest.mark.parametrize("make", [make_bert, make_albert])
def test_constant_pruning_keeps_every_zero_and_trains_the_rest(make: Any) -> None:
    model = make()
    for name, parameter in model.named_parameters():
        if name in prunable_names(model):
            parameter.data[torch.rand(parameter.shape) < 0.7] = 0.0
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    watch = Watch()
    session = start(CONSTANT, model=model).train(watch)
    for name, mask in masks(session.model).items():
        assert torch.equal(mask, before[name] != 0)
        weight = session.model.get_parameter(name)
        # Constant from the first step: gradients, moments and decay are zero under it by themselves.
        assert (weight[~mask] == 0).all() and (weight[mask] != before[name][mask]).all()
        assert all((value[~mask] == 0).all() for key, value in session.optimizer.state[weight].items() if key != "step")
    assert set(masks(session.model)) == set(prunable_names(model))


def test_a_weight_that_happens_to_reach_zero_is_free_to_leave_it() -> None:
    session = start(CONSTANT)
    weight = session.model.get_parameter("classifier.weight")

    def pin(session: Session) -> None:
        if session.run.progress.step == 2:
            weight.data[0, 0] = 0.0

    session.train(pin)
    assert weight[0, 0] != 0 and masks(session.model)["classifier.weight"][0, 0]


def test_a_constant_mask_taken_late_holds_what_is_zero_then() -> None:
    watch = Watch(tightening=False)
    recipe = CONSTANT.replace("{params", "{start_epoch: 1, end_epoch: 1.6, params")
    session = start(recipe)
    name = "bert.encoder.layer.0.output.dense.weight"
    weight = session.model.get_parameter(name)
    structure_final: list[bool] = []

    def clear_some(session: Session) -> None:
        watch(session)
        structure_final.append(session.run.structure_final())
        if session.run.progress.step == STEPS:
            weight.data[:5] = 0.0
        if session.run.progress.step > STEPS + 2:  # epoch 1.6 begins with step 5
            assert masks(session.model)[name].all()

    session.train(clear_some)
    assert watch.dropped(name) == [0, 0, 0, 5 * 64, 5 * 64, 0]
    assert structure_final == [False] * STEPS + [True] * STEPS  # masks are taken as the step after epoch 1 begins
    assert (weight[:5] != 0).any()


# --- gradual ----------------------------------------------------------------------------------------------------------


def test_gradual_pruning_follows_its_schedule_to_the_weight() -> None:
    watch = Watch()
    keys = f"{LINEARS}, start_epoch: 0.5, end_epoch: 2, init_sparsity: 0.2, final_sparsity: 0.9"
    session = start(magnitude(keys), model=make_bert()).train(watch)
    for name, mask in masks(session.model).items():
        expected = []
        for step in range(9):
            fraction = (step / STEPS - 0.5) / 1.5
            share = 0.0 if step < 2 else scheduled_sparsity(fraction, 0.2, 0.9, "cubic")
            expected.append(round(share * mask.numel()))
        assert watch.dropped(name) == expected
    report = sparsity_report(session.model)
    assert report["encoder_linear"]["sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_weights_under_a_tightening_mask_move_no_more() -> None:
    """No gradient reaches them; what the optimizer still does to the stored number, the model never sees."""
    session = start(magnitude(f"{LINEARS}, end_epoch: 1, final_sparsity: 0.9", epochs=2)).train(Watch())
    session.model.zero_grad()
    session.model(**{name: torch.tensor([make_rows(1)[0][name]]) for name in ("input_ids",)}).logits.sum().backward()
    for name, mask in masks(session.model).items():
        gradient = session.model.get_parameter(name).grad
        assert gradient is not None and (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()


def test_after_the_end_stored_weights_are_zero_under_their_masks() -> None:
    """A loop of one's own may save the model as any other."""
    session = start(magnitude(f"{LINEARS}, end_epoch: 3, final_sparsity: 0.9")).train(Watch())
    for name, mask in masks(session.model).items():
        assert torch.equal(session.model.get_parameter(name) == 0, ~mask)


@pytest.mark.parametrize(
    ("end_epoch", "frequency"), [(1, -1), (1, 0.1), (1.5, 0.34), (1.5, 0.5), (1, 5), (3, 1), (3, 0.1)]
)
def test_the_final_sparsity_is_reached_whatever_the_frequency(end_epoch: float, frequency: float) -> None:
    watch = Watch()
    keys = f"{LINEARS}, end_epoch: {end_epoch}, final_sparsity: 0.87, update_frequency: {frequency}"
    session = start(magnitude(keys), model=make_bert()).train(watch)
    for mask in masks(session.model).values():
        assert int((~mask).sum()) == round(0.87 * mask.numel())


@pytest.mark.parametrize(
    ("start_epoch", "end_epoch", "frequency", "steps"),
    [
        (0, 2, -1, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (-1, 2, 0.5, [0, 2, 4, 6, 8]),
        (-1, 2, 0.3, [0, 2, 3, 4, 5, 6, 8]),  # epochs 0, 0.3, ..., 1.8, 2: at the first step at or after each
        (0.5, 2, 1, [2, 6, 8]),
        (0, 2, 0.1, [0, 1, 2, 3, 4, 5, 6, 7, 8]),  # finer than a step
        (0, 2, 5, [0, 8]),
        (1, 1, -1, [4]),
        (0.1, 0.9, 0.1, [1, 2, 3, 4]),
    ],
)
def test_steps_that_begin_with_a_new_mask(
    start_epoch: float, end_epoch: float, frequency: float, steps: list[int]
) -> None:
    found = [step for step in range(20) if update_due(Progress(step, 4), start_epoch, end_epoch, frequency)]
    assert found == steps


def test_from_param_begins_with_each_weights_own_sparsity() -> None:
    model = make_bert(sparsity=0.6)
    own = {name: float((model.get_parameter(name) == 0).float().mean()) for name in prunable_names(model)}
    watch = Watch()
    keys = "init_sparsity: __FROM_PARAM__, end_epoch: 2, final_sparsity: 0.9, inter_func: linear"
    start(magnitude(keys), model=model).train(watch)
    for name, share in own.items():
        count = model.get_parameter(name).numel()
        expected = [round(scheduled_sparsity(step / 6, share, 0.9, "linear") * count) for step in range(9)]
        assert watch.dropped(name) == expected
    assert own["classifier.weight"] == 0 and own["bert.encoder.layer.0.output.dense.weight"] == pytest.approx(
        0.6, abs=0.01
    )


def test_leave_enabled_false_lets_weights_grow_again_from_zero() -> None:
    watch = Watch(tightening=False)
    session = start(magnitude(f"{LINEARS}, end_epoch: 2, final_sparsity: 0.9, leave_enabled: false"))
    stored: dict[str, Tensor] = {}

    def look(session: Session) -> None:
        watch(session)
        if session.run.progress.step == 2 * STEPS:
            stored.update({name: mask.clone() for name, mask in masks(session.model).items()})
        if session.run.progress.step == 2 * STEPS + 1:
            for name, mask in masks(session.model).items():
                assert mask.all()
                grown = session.model.get_parameter(name)[~stored[name]].abs()
                assert grown.max() <= 0.011 and (grown > 0).any()  # one step from 0 at a rate of 0.01

    session.train(look)
    assert session.run.structure_final()


def test_lower_sparsity_gives_weights_back_from_zero() -> None:
    """A sparsity that falls releases weights; they restart at 0, not at what lay under the mask."""
    model = make_bert()
    recipe = magnitude(f"{LINEARS}, init_sparsity: 0.9, final_sparsity: 0.5, end_epoch: 2, inter_func: linear")
    watch = Watch(tightening=False)

    def look(session: Session) -> None:
        previous = watch.masks[-1] if watch.masks else None
        watch(session)
        for name, mask in watch.masks[-1].items():
            if previous is not None:
                released = session.model.get_parameter(name)[mask & ~previous[name]].abs()
                assert released.numel() == 0 or released.max() <= 0.011

    session = start(recipe, model=model).train(look)
    assert all(sparsity(mask) == pytest.approx(0.5, abs=1e-3) for mask in masks(session.model).values())


def test_a_table_of_final_sparsities() -> None:
    table = (
        "final_sparsity: {0.5: ['re:.*layer.0.*dense.weight'], 0.8: [classifier.weight, 're:.*layer.1.*query.weight']}"
    )
    session = start(magnitude(f"{table}, end_epoch: 1", epochs=1)).train(Watch())
    found = {name: sparsity(mask) for name, mask in masks(session.model).items()}
    assert len(found) == 5
    for name, share in found.items():
        assert share == pytest.approx(0.5 if "layer.0" in name else 0.8, abs=0.01)


def test_a_table_that_names_a_weight_twice_is_an_error() -> None:
    recipe = magnitude(
        "final_sparsity: {0.5: __ALL_PRUNABLE__, 0.8: [classifier.weight]}, end_epoch: 1".replace(
            "__ALL_PRUNABLE__", "['__ALL_PRUNABLE__']"
        ),
        epochs=1,
    )
    with pytest.raises(UsageError, match=r"names classifier[.]weight twice, with 0[.]5 and 0[.]8"):
        RecipeRun(load_recipe(recipe)).attach(make_bert())


def test_one_ranking_over_all_layers() -> None:
    model = make_bert()
    model.get_parameter("bert.encoder.layer.1.output.dense.weight").data.mul_(0.1)
    session = start(magnitude(f"{LINEARS}, end_epoch: 2, final_sparsity: 0.7, global_sparsity: true"), model=model)
    session.train(Watch())
    found = masks(session.model)
    dropped, count = sum(int((~mask).sum()) for mask in found.values()), sum(mask.numel() for mask in found.values())
    assert dropped == round(0.7 * count)
    assert sparsity(found["bert.encoder.layer.1.output.dense.weight"]) > 0.8
    assert len({round(sparsity(mask), 3) for mask in found.values()}) > 1


@pytest.mark.parametrize(("kind", "share"), [("2:4", 0.5), ("1:4", 0.75), ("block4", 0.9), ("[2, 4]", 0.9)])
def test_structured_masks(kind: str, share: float) -> None:
    watch = Watch()
    # With new N largest of M at each step a weight may come back: the groups are ranked on effective weights, so not.
    keys = f"{LINEARS}, end_epoch: 2, final_sparsity: {share}, mask_type: '{kind}'".replace("'[", "[").replace(
        "]'", "]"
    )
    session = start(magnitude(keys), model=make_bert()).train(watch)
    for name, mask in masks(session.model).items():
        if ":" in kind:
            assert (mask.view(-1, 4).sum(1) == int(kind[0])).all(), name
            assert watch.dropped(name) == [round(share * mask.numel())] * 9
        else:
            rows = 2 if kind == "[2, 4]" else 1
            blocks = mask.view(mask.shape[0] // rows, rows, -1, 4).movedim(2, 1).flatten(2)
            assert torch.equal(blocks.all(-1), blocks.any(-1)), name
            assert int((~blocks.any(-1)).sum()) == round(share * blocks.shape[0] * blocks.shape[1]), name


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (f"{BLOCKS}, end_epoch: 1", "LayerNorm.weight cannot be pruned: only weights of Linear"),
        ("params: [clasifier.weight], end_epoch: 1", "Similar names: classifier.weight"),
        ("mask_type: [3, 1], end_epoch: 1", "blocks of 3 x 1 do not divide .* remove this weight from params"),
        ("mask_type: '3:5', final_sparsity: 0.4, end_epoch: 1", "groups of 5 do not divide"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_training(keys: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RecipeRun(load_recipe(magnitude(keys, epochs=1))).attach(make_bert())


def test_two_that_prune_one_weight_at_the_same_time_are_refused() -> None:
    """Each would set the mask without the other's zeros."""
    constant = "\n  - !ConstantPruningModifier {params: __ALL_PRUNABLE__}"
    with pytest.raises(UsageError, match=r"classifier[.]weight is pruned by MagnitudePruningModifier at the same time"):
        RecipeRun(load_recipe(magnitude("params: [classifier.weight], end_epoch: 1", 1) + constant)).attach(make_bert())


def test_one_may_hold_what_another_has_pruned() -> None:
    recipe = magnitude(f"{LINEARS}, end_epoch: 1, final_sparsity: 0.8", 2)
    recipe += f"  - !ConstantPruningModifier {{{LINEARS}, start_epoch: 1}}"
    session = start(recipe).train(Watch())
    for mask in masks(session.model).values():
        assert int((~mask).sum()) == round(0.8 * mask.numel())


# --- your own loop, at once -------------------------------------------------------------------------------------------


def test_at_once() -> None:
    model = make_bert()
    run = RecipeRun(load_recipe(magnitude(f"{LINEARS}, end_epoch: 2, final_sparsity: 0.9")))
    run.attach(model)
    run.bind(make_accelerator(), model, torch.optim.SGD(model.parameters(), lr=0.0), steps_per_epoch=1)
    run.apply_at_once(lambda: iter(()))
    assert len(masks(model)) == 12 and ROWS
    for mask in masks(model).values():
        assert int((~mask).sum()) == round(0.9 * mask.numel())


def test_layers_that_are_not_pruned_stay_plain() -> None:
    session = start(magnitude("params: [classifier.weight], end_epoch: 1", epochs=1)).train()
    assert [name for name, _ in sparse_layers(session.model)] == ["classifier"]
    assert isinstance(session.model.get_submodule("classifier"), SparseLayer)
    assert type(session.model.get_submodule("bert.pooler.dense")) is nn.Linear


# --- a model that is sparse already -----------------------------------------------------------------------------------

INSTEAD = "use a ConstantPruningModifier"


@pytest.mark.parametrize(
    ("text", "more_than", "ways"),
    [
        (
            "!MagnitudePruningModifier {init_sparsity: 0.5, KEYS}",
            "init_sparsity 0.5",
            "set init_sparsity: __FROM_PARAM__",
        ),
        (
            "!OBSPruningModifier {init_sparsity: 0.5, update_frequency: 1, KEYS}",
            "init_sparsity 0.5",
            "__FROM_PARAM__, or",
        ),
        (
            "!MagnitudePruningModifier {init_sparsity: 0.5, start_epoch: 1, KEYS}",
            "init_sparsity 0.5",
            "set init_sparsity: __FROM_PARAM__, with a ConstantPruningModifier until epoch 1, or",
        ),
        (
            "!MagnitudePruningModifier {init_sparsity: 0.5, final_sparsity: 0.8, end_epoch: 2}",
            "init_sparsity 0.5",
            "set init_sparsity: __FROM_PARAM__ and a final_sparsity of 0.9 or more, or",
        ),
        (
            "!MagnitudePruningModifier {mask_type: '2:4', final_sparsity: 0.5, end_epoch: 2}",
            "those of its mask_type",
            f"keep them, {INSTEAD}",
        ),
        ("!MovementPruningModifier {init_sparsity: 0.5, KEYS}", "init_sparsity 0.5", f"keep them, {INSTEAD}"),
    ],
)
def test_zeros_that_may_grow_again_are_said(text: str, more_than: str, ways: str) -> None:
    run = RecipeRun(load_recipe(_two_epochs(text)))
    run.attach(make_bert(sparsity=0.9))
    found = [notice for notice in run.notices if "may grow again" in notice]
    assert len(found) == 1 and "of params are 90.0% zero at the start, more than " + more_than in found[0], run.notices
    assert ways in found[0] and found[0].endswith(INSTEAD)


@pytest.mark.parametrize("keys", ["init_sparsity: __FROM_PARAM__", "init_sparsity: 0.95"])
@pytest.mark.parametrize("ranks_all", ["true", "false"])
def test_zeros_that_stay_are_not(keys: str, ranks_all: str) -> None:
    text = f"!MagnitudePruningModifier {{{keys}, final_sparsity: 0.97, global_sparsity: {ranks_all}, end_epoch: 2}}"
    run = RecipeRun(load_recipe(_two_epochs(text)))
    run.attach(make_bert(sparsity=0.9))
    assert not any("may grow again" in notice for notice in run.notices)


def _two_epochs(text: str) -> str:
    keys = "params: ['re:bert.encoder.*(query|key|value|dense).weight'], final_sparsity: 0.95, end_epoch: 2"
    return f"modifiers:\n  - !EpochRangeModifier {{end_epoch: 2}}\n  - {text.replace('KEYS', keys)}\n"
