"""ConstantPruningModifier says when there is nothing to keep at zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop import Session, start
from tiny import make_albert, make_bert
from torch import nn

from sparse_accel.modifiers.pruning.constant import SPARSE, ConstantPruningModifier
from sparse_accel.nn.layers import masks, prunable_names
from sparse_accel.recipe import RecipeError, load_recipe
from sparse_accel.recipe_run import RecipeRun

Capture = pytest.CaptureFixture[str]
BLOCK = "bert.encoder.layer.1.output.dense.weight"


def holding(keys: str = "", *more: str) -> str:
    lines = ["  - !EpochRangeModifier {end_epoch: 2}", f"  - !ConstantPruningModifier {{{keys}}}", *more]
    return "\n".join(["modifiers:", *lines])


def attached(model: nn.Module, keys: str = "") -> RecipeRun:
    run = RecipeRun(load_recipe(holding(keys)))
    run.attach(model)
    return run


def warnings(capsys: Capture) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ConstantPruning")]


def replace_layer(model: nn.Module, *names: str) -> nn.Module:
    for name in names:
        torch.nn.init.normal_(model.get_parameter(name))
    return model


# --- a dense model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["", "start_epoch: 0", "params: ['re:bert.encoder.*dense.weight']"])
def test_a_dense_model_is_warned_about_before_training(keys: str, capsys: Capture) -> None:
    run = attached(make_bert(), keys)
    (line,) = warnings(capsys)
    layers = 6 if "re:" in keys else 14
    count = sum(weight.numel() for weight in (run.state.model.get_parameter(name) for name in masks(run.state.model)))
    assert f"only 0.0% of the {count:,} weights in the {layers} layers of params are zero." in line
    assert "start from a sparse model, or prune with MagnitudePruningModifier" in line


def test_only_the_first_process_says_it(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    attached(make_bert())
    assert not warnings(capsys)


@pytest.mark.parametrize("params", ["__ALL_PRUNABLE__", "['re:bert.encoder.*(query|key|value|dense).weight']"])
def test_a_sparse_model_is_not_warned_about(params: str, capsys: Capture) -> None:
    """A head and a pooler that are new are dense, and __ALL_PRUNABLE__ names them."""
    attached(make_bert(sparsity=0.9), f"params: {params}")
    assert not warnings(capsys)


@settings(max_examples=30, deadline=None)
@given(zeros=st.integers(0, 200), more=st.integers(1, 200))
def test_the_limit_is_over_all_weights_together(zeros: int, more: int) -> None:
    said: list[str] = []
    counts = {"a.weight": (zeros, 2000), "b.weight": (more, 1000)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparse_accel.modifiers.pruning.constant.warn", said.append)
        ConstantPruningModifier(params=["re:.*"])._warn_where_dense(counts)
    dense, missing = (zeros + more) / 3000 < SPARSE, zeros == 0
    assert len(said) == (1 if dense or missing else 0)
    assert not dense or "only" in said[0]


# --- a layer that is dense in a sparse model --------------------------------------------------------------------------


def test_layers_without_zeros_in_a_sparse_model_are_named(capsys: Capture) -> None:
    names = [f"bert.encoder.layer.{block}.output.dense.weight" for block in (0, 1)]
    names += [f"bert.encoder.layer.{block}.intermediate.dense.weight" for block in (0, 1)]
    attached(replace_layer(make_bert(sparsity=0.9), *names))
    (line,) = warnings(capsys)
    assert "4 of the 14 layers of params have no zeros and stay dense" in line
    assert f"{names[2]}, {names[0]}, {names[3]} ... (4 in all). Check that" in line


def test_a_head_that_params_names_itself_is_named(capsys: Capture) -> None:
    attached(make_bert(sparsity=0.9), "params: ['re:bert.encoder.*dense.weight', classifier.weight]")
    (line,) = warnings(capsys)
    assert "1 of the 7 layers" in line and "are zero: classifier.weight. Check" in line


def test_a_shared_block_is_a_block(capsys: Capture) -> None:
    model = make_albert()
    names = [name for name in prunable_names(model) if ".albert_layers.0." in name]
    for name in names[1:]:
        model.get_parameter(name).data[::2] = 0.0
    attached(model)
    (line,) = warnings(capsys)
    assert names[0] in line and "1 of the" in line


# --- later, resumed, at once ------------------------------------------------------------------------------------------


def test_a_late_start_is_judged_when_the_zeros_are_taken(capsys: Capture) -> None:
    epochs: list[tuple[float, list[str]]] = []

    def look(session: Session) -> None:
        epochs.append((session.run.progress.epoch, warnings(capsys)))

    session = start(holding("start_epoch: 1"), model=make_bert())
    assert not warnings(capsys)
    session.train(look)
    assert [bool(said) for _, said in epochs] == [False] * 3 + [True] + [False] * 2  # as the first step after it begins
    assert "are zero at epoch 1." in epochs[3][1][0]


def test_what_another_modifier_has_pruned_by_then_counts(capsys: Capture) -> None:
    pruning = "  - !MagnitudePruningModifier {end_epoch: 1, final_sparsity: 0.8}"
    start(holding("start_epoch: 1", pruning), model=make_bert()).train()
    assert not warnings(capsys)


def test_a_resumed_run_has_the_same_state(capsys: Capture) -> None:
    whole = start(holding(), model=make_bert()).train(keep_snapshots=True)
    resumed = start(holding(), model=make_bert()).load(whole.snapshots[4]).train()
    assert len(warnings(capsys)) == 2  # each start says it once
    assert resumed.run.state_dict().keys() == whole.run.state_dict().keys()
    assert torch.equal(resumed.model.get_parameter(BLOCK), whole.model.get_parameter(BLOCK))


@pytest.mark.parametrize("keys", ["", "start_epoch: 1"])
def test_at_once_it_is_said_once(keys: str, capsys: Capture) -> None:
    model = make_bert()
    run = attached(model, keys)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.0), steps_per_epoch=1)
    run.apply_at_once(lambda: iter(()))
    assert len(warnings(capsys)) == 1


# --- nothing named ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "modifier",
    [
        "ConstantPruningModifier {params: []}",
        "ConstantPruningModifier {params: ''}",
        "MagnitudePruningModifier {params: [], end_epoch: 1}",
        "MagnitudePruningModifier {final_sparsity: {0.8: []}, end_epoch: 1}",
        "MagnitudePruningModifier {final_sparsity: {}, params: [], end_epoch: 1}",
    ],
)
def test_params_that_name_nothing_are_an_error(modifier: str) -> None:
    with pytest.raises(RecipeError, match=r"<text>:2: .*(params: must not be empty: name|: list weights in it)"):
        load_recipe(f"modifiers:\n  - !{modifier}\n")
