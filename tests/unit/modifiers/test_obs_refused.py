"""OBSPruningModifier: what is refused, and what is said, before training."""

from __future__ import annotations

from typing import Any

import pytest
from loop import start
from obs_golden import Recorded
from recipe_texts import OBS_KEYS as KEYS
from recipe_texts import error_of, obs
from tiny import make_bert
from torch import nn

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.pruning.obs import OBSPruningModifier
from sparse_accel.modifiers.state import State
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

NO_TASK: Any = None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("end_epoch: 1", "update_frequency: required: epochs between two updates"),
        ("end_epoch: 1, update_frequency: 0", "update_frequency: required"),
        ("end_epoch: 1, update_frequency: 1, mask_type: '2:4', final_sparsity: 0.5", "mask_type: scores exist for"),
        ("end_epoch: 1, update_frequency: 1, mask_type: [4, 4]", "mask_type: scores exist for single weights"),
        ("end_epoch: 1, update_frequency: 1, mask_type: block4", "needs a multiple of 4, such as 4 or 8, got 1"),
        (
            "end_epoch: 1, update_frequency: 1, mask_type: block4, fisher_block_size: 50",
            "needs a multiple of 4, such as 48 or 52, got 50",
        ),
        ("end_epoch: 1, update_frequency: 1, num_grads: 0", "num_grads: expected 1 or more, got 0"),
        ("end_epoch: 1, update_frequency: 1, damp: 0", "damp: expected a number above 0, got 0"),
        ("end_epoch: 1, update_frequency: 1, damp: small", "damp: expected a number, got 'small'"),
        ("end_epoch: 1, update_frequency: 1, fisher_block_size: -50", "fisher_block_size: expected 1 or more"),
        ("end_epoch: 1, update_frequency: 1, num_recomputations: 0", "num_recomputations: expected 1 or more"),
        ("end_epoch: 1, update_frequency: 1, num_grad: 8", "has no key 'num_grad'. Did you mean 'num_grads'?"),
        (
            "end_epoch: 1, update_frequency: 1, grad_sampler_kwargs: {shuffle: true}",
            "grad_sampler_kwargs: 'shuffle' cannot be set: the rows of gradient samples are always shuffled",
        ),
        (
            "end_epoch: 1, update_frequency: 1, grad_sampler_kwargs: {batchsize: 8}",
            "grad_sampler_kwargs: there is no 'batchsize'. Did you mean 'batch_size'?",
        ),
        (
            "end_epoch: 1, update_frequency: 1, grad_sampler_kwargs: {batch_size: 0}",
            "batch_size: expected an integer of 1 or more, got 0",
        ),
        (
            "end_epoch: 1, update_frequency: 1, init_sparsity: 0.9, final_sparsity: 0.5",
            "final_sparsity: 0.5 is below init_sparsity 0.9",
        ),
        ("end_epoch: 1, update_frequency: 1, grad_loss: recipe", "grad_loss: recipe: no modifier adds a term"),
        ("end_epoch: 1, update_frequency: 1, grad_loss: teacher", "grad_loss: expected one of task, recipe"),
        (
            "end_epoch: 1, update_frequency: 1, final_sparsity: {0.8: [a], 0.6: [b]}",
            "global_sparsity: needs one final_sparsity",
        ),
    ],
)
def test_wrong_keys(keys: str, message: str) -> None:
    error = error_of(obs(keys))
    assert message in str(error) and "OBSPruningModifier" in str(error) and error.line


def test_keys_as_old_recipes_write_them() -> None:
    keys = (
        "params: ['re:bert.*'], init_sparsity: .7, final_sparsity: 0.97, start_epoch: 2, end_epoch: 26, "
        "update_frequency: 4.0, inter_func: cubic, global_sparsity: True, mask_type: [1, 4], num_grads: 1024, "
        "damp: 1e-7, fisher_block_size: 32, grad_sampler_kwargs: {batch_size: 16}"
    )
    (modifier,) = load_recipe(obs(keys, 30)).select(OBSPruningModifier)
    assert modifier.damp == 1e-7 and modifier.mask_type == "block4" and modifier.num_recomputations == 1
    (plain,) = load_recipe(obs("end_epoch: 1, update_frequency: 1")).select(OBSPruningModifier)
    assert (plain.global_sparsity, plain.num_grads, plain.damp, plain.fisher_block_size) == (True, 1024, 1e-7, 1)
    assert plain.mask_type == "unstructured" and plain.leave_enabled and plain.grad_sampler_kwargs is None
    words = dict((epoch, text) for epoch, text in modifier.events())
    assert "pruning by second-order scores (OBS) from 0.7 to 0.97" in words[2]
    assert "1024 gradient samples per update, Fisher blocks of 32" in words[2]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            "mask_type: block4, fisher_block_size: 24",
            r"fisher_block_size 24 does not divide bert.encoder.*query.weight, which has 1024 .* weights: 4, 8, 16, 32",
        ),
        ("params: ['re:bert.encoder.*weight']", "LayerNorm.weight cannot be pruned"),
        ("init_sparsity: __FROM_PARAM__, final_sparsity: 0.4", r"has 50\.0% zeros, more than its final_sparsity 0\.4"),
    ],
)
def test_what_does_not_fit_the_model(keys: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RecipeRun(load_recipe(obs(f"end_epoch: 1, update_frequency: 1, {keys}"))).attach(make_bert(sparsity=0.5))


def test_more_samples_than_rows_are_refused_and_rows_used_twice_are_named() -> None:
    with pytest.raises(
        UsageError, match=r"num_grads asks for 22 gradient samples, but there are only 21 .* 21 or less"
    ):
        start(obs(KEYS.replace("num_grads: 4", "num_grads: 22")))
    session = start(obs())
    assert (
        "OBSPruningModifier: 3 updates x 4 samples x 8 rows = 96 rows, 4.6 times the 21 training rows; each update, "
        "1.5 times" in session.run.notices
    )


@pytest.mark.parametrize(
    ("old", "new", "cost"),
    [
        ("num_grads: 4", "num_grads: 4, grad_sampler_kwargs: {batch_size: 2}", "3 updates x 4 samples x 2 rows = 24"),
        ("num_grads: 4", "num_grads: 4, num_recomputations: 3", "3 updates x 3 rounds x 4 samples x 8 rows = 288"),
        ("init_sparsity: 0.3", "init_sparsity: 0", "2 updates x 4 samples x 8 rows = 64"),
        ("init_sparsity: 0.3", "init_sparsity: 0.8", "1 update x 4 samples x 8 rows = 32"),
        ("frequency: 1", "frequency: 0.3", "7 updates x 4 samples x 8 rows = 224"),
        ("frequency: 1", "frequency: 0.01", "7 updates x 4 samples x 8 rows = 224"),  # one in each of 6 steps
    ],
)
def test_the_cost_of_all_updates_is_said(old: str, new: str, cost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training, as many as are drawn then."""
    session = start(obs(KEYS.replace(old, new)), model=make_bert())
    (notice,) = session.run.notices
    assert notice.startswith(f"OBSPruningModifier: {cost} rows, ")
    drawn: list[int] = []
    source: Any = session.run.state.gradient_samples
    draw = source.draw

    def counted(*given: Any, **options: Any) -> None:
        drawn.append(1)
        draw(*given, **options)

    monkeypatch.setattr(source, "draw", counted)
    session.train()
    assert len(drawn) == int(cost.split()[0]) * (3 if "rounds" in cost else 1)


def test_an_end_that_an_earlier_modifier_has_reached_is_said() -> None:
    """Masks only tighten: the second modifier would do nothing, silently."""
    earlier = "!MagnitudePruningModifier {params: ['re:bert.encoder.*(query|key|value|dense).weight'], end_epoch: 1, "
    keys = KEYS.replace("end_epoch: 2", "start_epoch: 1, end_epoch: 2")
    for final, said in ((0.9, True), (0.5, False)):
        run = RecipeRun(load_recipe(obs(keys, 2, f"{earlier}final_sparsity: {final}}}")))
        run.attach(make_bert())
        assert (
            "OBSPruningModifier has no effect: MagnitudePruningModifier ends at epoch 1" in str(run.notices)
        ) == said


def test_a_frozen_weight_has_no_gradient() -> None:
    frozen = "!TrainableParamsModifier {params: 're:bert.encoder.layer.1', trainable: false}"
    with pytest.raises(UsageError, match=r"layer\.1.*weight is frozen and has no gradient: remove it from params"):
        start(obs(KEYS, 2, frozen))


def test_the_memory_of_an_update_is_named() -> None:
    """An update that needs much memory says so before training."""
    modifier = OBSPruningModifier(end_epoch=1, update_frequency=1, fisher_block_size=50, num_grads=1)
    model = nn.Sequential(nn.Linear(4096, 2048, device="meta"))
    modifier._final["0.weight"] = 0.95
    state = State(model, [modifier], task=NO_TASK, gradient_samples=Recorded([]))
    modifier._layers["0.weight"] = [model[0]]  # type: ignore[list-item]
    modifier.bind(state)
    assert state.notices[1:] == [
        "OBSPruningModifier: an update of the masks needs about 2.1 GB on each process, on the device of the model: "
        "lower fisher_block_size, or use more processes"
    ]
