"""Movement pruning: SparseML's figures, the paper's form, and what must not count."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop import Session, assert_same, start, with_scaler
from mask_watch import Watch
from places import golden
from recipe_texts import error_of
from tiny import make_bert
from torch import Tensor, nn

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.pruning.movement import MovementPruningModifier
from sparse_accel.modifiers.pruning.schedule import update_due
from sparse_accel.modifiers.state import State
from sparse_accel.nn.layers import SparseLinear, masks
from sparse_accel.nn.masks import MOVEMENT_RATE, add_movement, masks_of_scores
from sparse_accel.progress import Progress
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

GOLDEN: dict[str, Any] = golden("movement")
GRADIENTS = [torch.tensor(gradient) for gradient in GOLDEN["gradients"]]
LAST = 8  # the step at end_epoch; SparseML still updates scores after it, but nothing uses them
LINEARS = "params: ['re:bert.encoder.*(query|key|value|dense).weight']"
BLOCK = "bert.encoder.layer.1.output.dense.weight"


def movement(keys: str, epochs: int = 2) -> str:
    return f"modifiers:\n  - !EpochRangeModifier {{end_epoch: {epochs}}}\n  - !MovementPruningModifier {{{keys}}}\n"


def as_mask(rows: list[str]) -> Tensor:
    return torch.tensor([[int(digit) for digit in row] for row in rows], dtype=torch.bool)


class Trainer:
    """One Linear that is trained with given gradients of its masked weight, two steps per epoch.

    Attributes:
        scores, masks, weights, stored: after each step; weights as the model uses them, and as they are stored.
    """

    def __init__(self, rate: float, weight: Tensor | None = None, **keys: Any) -> None:
        self.model = nn.Sequential(nn.Linear(8, 4, bias=False))
        self.model[0].weight.data = torch.tensor(GOLDEN["weight"]) if weight is None else weight.clone()
        self.modifier = MovementPruningModifier(**{"params": ["0.weight"], **GOLDEN["keys"], **keys})
        state: Any = State(self.model, [self.modifier], task=None)  # type: ignore[arg-type]
        state.progress = Progress(0, 2)
        self.modifier.attach(state)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate)
        self.modifier.bind(state)
        self.progress = state.progress
        self.scores: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.stored: list[Tensor] = []

    @property
    def layer(self) -> SparseLinear:
        layer = self.model[0]
        assert isinstance(layer, SparseLinear)
        return layer

    def step(self, gradient: Tensor) -> None:
        self.modifier.step_begin(self.progress)
        (self.layer.masked_weight() * gradient).sum().backward()
        self.modifier.grads_ready()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress = self.progress.next()
        self.modifier.step_end(self.progress)
        assert self.layer.mask is not None
        self.scores.append(self.modifier._score("0.weight").clone())
        self.masks.append(self.layer.mask.clone())
        self.weights.append(self.layer.masked_weight().detach().clone())
        self.stored.append(self.layer.weight.detach().clone())

    def train(self, gradients: list[Tensor]) -> Trainer:
        for gradient in gradients:
            self.step(gradient)
        return self

    def came_back(self) -> list[tuple[int, Tensor]]:
        """The steps in which weights came back, and which."""
        pairs = [(step, self.masks[step] & ~self.masks[step - 1]) for step in range(1, len(self.masks))]
        return [(step, back) for step, back in pairs if back.any()]


# --- SparseML's figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", GOLDEN["runs"])
def test_golden_runs(rate: str) -> None:
    expected = GOLDEN["runs"][rate]
    found = Trainer(float(rate)).train(GRADIENTS)
    for step in range(len(GRADIENTS)):
        assert torch.equal(found.masks[step], as_mask(expected["masks"][step])), step
        torch.testing.assert_close(found.weights[step], torch.tensor(expected["weights"][step]), rtol=0, atol=1e-7)
        if step <= LAST:
            torch.testing.assert_close(found.scores[step], torch.tensor(expected["scores"][step]), rtol=0, atol=5e-9)
    back = found.came_back()
    assert sum(int(weights.sum()) for _, weights in back) == expected["let_back_in"]
    for step, weights in back:
        assert (found.weights[step][weights] == 0).all()


@pytest.mark.parametrize("kind", ["block4", "[1, 4]"])
def test_golden_blocks(kind: str) -> None:
    expected = GOLDEN["mask_types"][kind]
    mask_type = json.loads(kind) if kind.startswith("[") else kind
    found = Trainer(0.1, mask_type=mask_type, init_sparsity=0.5, final_sparsity=0.5).train(GRADIENTS)
    for step in range(len(GRADIENTS)):
        assert torch.equal(found.masks[step], as_mask(expected["masks"][step])), step
        if step <= LAST:
            torch.testing.assert_close(found.scores[step], torch.tensor(expected["scores"][step]), rtol=0, atol=5e-9)


def test_groups_are_ranked_by_the_score_and_not_by_its_size() -> None:
    """SparseML takes |S| here, which keeps the weights that training moves to 0 fastest: a fault."""
    expected = GOLDEN["mask_types"]["2:4"]
    found = Trainer(0.1, mask_type="2:4", init_sparsity=0.5, final_sparsity=0.5).train(GRADIENTS)
    for step in (2, 4, 6, LAST):
        theirs = torch.tensor(expected["scores"][step])
        assert torch.equal(masks_of_scores([theirs.abs()], 0.5, "2:4")[0], as_mask(expected["masks"][step]))
        groups, kept = found.scores[step].view(-1, 4), found.masks[step].view(-1, 4)
        assert (kept.sum(1) == 2).all()
        lowest_kept, highest_pruned = groups.where(kept, torch.inf).amin(1), groups.where(~kept, -torch.inf).amax(1)
        assert (lowest_kept >= highest_pruned).all()
    torch.testing.assert_close(found.scores[2], torch.tensor(expected["scores"][2]), rtol=0, atol=5e-9)


# --- the score --------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 5))
def test_scores_are_the_sum_of_gradient_times_weight(seed: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(2, steps, 3, 5, generator=generator)
    score = torch.zeros(3, 5)
    for gradient, weight in zip(*draws, strict=True):
        add_movement(score, gradient, weight, torch.tensor(True))
        add_movement(score, gradient * torch.nan, weight, torch.tensor(False))
    expected = -MOVEMENT_RATE * (draws[0].double() * draws[1].double()).sum(0)
    torch.testing.assert_close(score.double(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("straight_through", [False, True])
def test_a_tensor_whose_gradient_is_no_number_keeps_its_scores(bad: float, straight_through: bool) -> None:
    found = Trainer(0.0, straight_through=straight_through)
    found.step(GRADIENTS[0])
    broken = GRADIENTS[1].clone()
    broken[2, 3] = bad
    before = found.scores[0]
    found.step(broken)
    assert torch.equal(found.scores[1], before)


# --- the paper's form -------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), rate=st.sampled_from([0.0, 0.1, 1.0]), frequency=st.sampled_from([-1.0, 1.0]))
def test_straight_through_is_the_paper_s_algorithm(seed: int, rate: float, frequency: float) -> None:
    """Written out in float64: gradients of masked weights count for scores, but move no weights."""
    generator = torch.Generator().manual_seed(seed)
    weight, gradients = torch.randn(4, 8, generator=generator), list(torch.randn(12, 4, 8, generator=generator))
    found = Trainer(rate, weight, straight_through=True, update_frequency=frequency).train(gradients)
    stored, score, mask = weight.double(), torch.zeros(4, 8).double(), torch.ones(4, 8, dtype=torch.bool)
    for step, gradient in enumerate(gradients):
        if step <= LAST:
            score = score - 0.01 * gradient.double() * stored
            torch.testing.assert_close(found.scores[step].double(), score, rtol=0, atol=1e-5)
        mask = found.masks[step]
        if update_due(Progress(step, 2), 1.0, 4.0, frequency):  # ranked in float32: two scores may be near
            assert float(score[mask].min() - score[~mask].max()) > -1e-5
        else:
            assert torch.equal(mask, found.masks[step - 1]) if step else mask.all()
        stored = stored - rate * gradient.double() * mask
        torch.testing.assert_close(found.stored[step].double(), stored, rtol=0, atol=1e-5)


def test_a_pruned_weight_comes_back_with_its_value() -> None:
    """The first gradients push the first row of weights to 0, the later ones away from it."""
    weight = torch.full((4, 8), 1.0)
    towards, away = torch.full((4, 8), -0.5), torch.full((4, 8), -0.1)
    towards[0], away[0] = 1.0, -2.0
    keys = {"init_sparsity": 0.25, "final_sparsity": 0.25, "update_frequency": -1.0}
    paper = Trainer(0.0, weight, straight_through=True, **keys).train([towards] * 3 + [away] * 6)
    assert not paper.masks[2][0].any() and paper.masks[-1][0].all()
    ((_, first), *_) = paper.came_back()
    assert first.any() and (paper.weights[-1][paper.masks[-1]] == 1.0).all()
    frozen = Trainer(0.0, weight, **keys).train([towards] * 3 + [away] * 6)
    assert not frozen.masks[-1][0].any()
    assert torch.equal(frozen.scores[-1][0], frozen.scores[2][0])


@pytest.mark.parametrize("straight_through", ["false", "true"])
def test_the_optimizer_sees_no_gradient_of_pruned_weights(straight_through: str) -> None:
    session = start(movement(f"{LINEARS}, end_epoch: 1.5, final_sparsity: 0.8, straight_through: {straight_through}"))
    seen: list[int] = []

    def look(*_: Any) -> None:
        for name, mask in masks(session.model).items():
            gradient = session.model.get_parameter(name).grad
            assert gradient is not None and (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()
            seen.append(int((~mask).sum()))

    prepared: Any = session.optimizer
    prepared.optimizer.register_step_pre_hook(look)
    session.train(Watch(tightening=False))
    assert len(seen) == 6 * 12 and min(seen) > 0


def test_straight_through_ends_with_pruning_and_zeros_are_stored() -> None:
    session = start(movement(f"{LINEARS}, end_epoch: 1, final_sparsity: 0.8, straight_through: true"))
    flags: list[bool] = []
    layer: Any = session.model.get_submodule(BLOCK.removesuffix(".weight"))
    stored: list[int] = []

    def look(session: Session) -> None:
        flags.append(layer.straight_through)
        stored.append(int((layer.weight == 0).sum()))

    session.train(look)
    assert flags == [True] * 4 + [False] * 2  # the masks of epoch 1 are made in its first step
    assert stored[-2] < stored[-1] == round(0.8 * layer.weight.numel())
    for name, mask in masks(session.model).items():
        assert torch.equal(session.model.get_parameter(name) == 0, ~mask), name


def test_stored_weights_of_a_straight_through_run_are_resumed() -> None:
    keys = f"{LINEARS}, end_epoch: 2, final_sparsity: 0.8, straight_through: true"
    whole = start(movement(keys)).train(keep_snapshots=True)
    snapshot = whole.snapshots[4]
    mask = next(mask for key, mask in snapshot["run"].items() if key.endswith(f":{BLOCK}") and mask.dtype == torch.bool)
    assert (snapshot["model"][BLOCK][~mask] != 0).any()
    assert_same(whole, start(movement(keys), model=make_bert(seed=2)).load(snapshot).train())


# --- steps that do not count ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [2, 3, 5])
def test_a_skipped_step_is_in_no_score_and_its_masks_are_made_in_the_next(broken: int) -> None:
    """Step 3 is that of the final masks, step 5 the last of the run."""
    session = start(movement(f"{LINEARS}, end_epoch: 1, final_sparsity: 0.8, update_frequency: 0.33"))
    weight = session.model.get_parameter(BLOCK)
    weight.register_hook(lambda gradient: gradient * torch.nan if session.run.progress.step == broken else gradient)
    other = next(name for name in masks(session.model) if name != BLOCK)
    pruned: list[float] = []
    scores: list[Tensor] = []
    final: list[bool] = []

    def look(session: Session) -> None:
        pruned.append(float((~masks(session.model)[other]).float().mean()))
        (modifier,) = (m for m in session.run.modifiers if isinstance(m, MovementPruningModifier))
        scores.append(modifier._score(other).clone())
        final.append(session.run.structure_final())

    session.train(look, skip_nan_steps=True)
    step_of = [step for step in range(6) if step != broken]  # a skipped step is not logged
    by_step = dict(zip(step_of, pruned, strict=True))
    assert by_step[0] == pytest.approx(0.05, abs=1e-3) and by_step[4] == pytest.approx(0.8, abs=1e-3)
    assert step_of[final.index(True)] == (4 if broken == 3 else 3)
    assert all(bool(score.isfinite().all()) for score in scores)


@pytest.mark.parametrize("straight_through", ["false", "true"])
def test_a_step_that_the_fp16_scaler_skips_counts_once(straight_through: str) -> None:
    """Scales are powers of 2, so numbers stay the same; the first steps overflow until the scale is small enough."""
    recipe = movement(f"{LINEARS}, end_epoch: 1.5, final_sparsity: 0.8, straight_through: {straight_through}")
    plain, skipped = (with_scaler(start(recipe), scale).train() for scale in (1.0, 2.0**126))
    for name, value in plain.run.state_dict().items():
        assert torch.equal(value, skipped.run.state_dict()[name]), name
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, skipped.model.get_parameter(name)), name


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_frozen_weight_is_refused_before_training() -> None:
    model = make_bert()
    model.get_parameter(BLOCK).requires_grad_(False)
    with pytest.raises(UsageError, match=f"{BLOCK} is frozen"):
        start(movement(f"{LINEARS}, end_epoch: 1"), model=model)


def test_a_loop_that_shows_no_gradients_is_an_error_and_not_a_random_mask() -> None:
    model = make_bert()
    run = RecipeRun(load_recipe(movement(f"{LINEARS}, end_epoch: 1")))
    run.attach(model)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.1), steps_per_epoch=3)
    run.step_begin()
    with pytest.raises(UsageError, match=r"no gradient has reached it.*run\.grads_ready\(\) in every step"):
        run.finish()


def test_two_that_score_one_weight_are_refused() -> None:
    later = f"  - !MovementPruningModifier {{params: [{BLOCK}], start_epoch: 1, end_epoch: 2}}\n"
    with pytest.raises(UsageError, match=f"{BLOCK} is in params of two of this kind"):
        RecipeRun(load_recipe(movement(f"{LINEARS}, end_epoch: 1") + later)).attach(make_bert())


@pytest.mark.parametrize(
    ("keys", "other", "part"),
    [
        ("end_epoch: 1", "GMPruningModifier {start_epoch: 1, end_epoch: 2}", "start at epoch 1.3333333 or later$"),
        ("end_epoch: 0.9", "GMPruningModifier {start_epoch: 1, end_epoch: 2}", "start at epoch 1.3333333 or later$"),
        ("end_epoch: 1, leave_enabled: false", "ConstantPruningModifier {start_epoch: 1}", "set leave_enabled to true"),
    ],
)
def test_one_that_begins_in_the_step_of_the_last_masks_would_lose_its_own(keys: str, other: str, part: str) -> None:
    text = movement(f"{LINEARS}, final_sparsity: 0.6, {keys}") + f"  - !{other}\n".replace("{", f"{{{LINEARS}, ")
    with pytest.raises(UsageError, match=f"MovementPruningModifier: .*query.weight is pruned by .*{part}"):
        start(text)


@pytest.mark.parametrize(
    ("other", "pruned"),
    [
        ("ConstantPruningModifier {start_epoch: 1}", 0.6),
        ("GMPruningModifier {start_epoch: 1.1, end_epoch: 2, final_sparsity: 0.8}", 0.8),
    ],
)
def test_one_after_the_other(other: str, pruned: float) -> None:
    text = movement(f"{LINEARS}, final_sparsity: 0.6, end_epoch: 1") + f"  - !{other}\n".replace("{", f"{{{LINEARS}, ")
    session = start(text).train()
    for name, mask in masks(session.model).items():
        assert int((~mask).sum()) == round(pruned * mask.numel()), name


def test_weights_that_may_grow_again_restart_at_0() -> None:
    """Not at their stored values, which would undo the pruning."""
    session = start(
        movement(f"{LINEARS}, end_epoch: 1, final_sparsity: 0.8, straight_through: true, leave_enabled: false")
    )
    layer: Any = session.model.get_submodule(BLOCK.removesuffix(".weight"))
    zeros: list[int] = []
    prepared: Any = session.optimizer
    prepared.optimizer.register_step_pre_hook(lambda *_: zeros.append(int((layer.masked_weight() == 0).sum())))
    session.train()
    assert bool(layer.mask.all()) and zeros[3] == round(0.8 * layer.weight.numel()) and zeros[4] < zeros[3] / 2


def test_at_once_is_refused() -> None:
    run = RecipeRun(load_recipe(movement(f"{LINEARS}, end_epoch: 1")))
    run.attach(make_bert())
    with pytest.raises(UsageError, match="--one_shot: MovementPruningModifier works only in training"):
        run.apply_at_once(lambda: iter(()))


def test_the_state_of_other_weights_is_refused() -> None:
    session = start(movement(f"{LINEARS}, end_epoch: 1"))
    state = session.run.state_dict()
    for change in ({"due": None}, {f"score:{BLOCK}": None}, {f"score:{BLOCK}": torch.zeros(2, 2)}):
        ((ending, value),) = change.items()
        (key,) = (key for key in state if key.endswith(f":{ending}"))
        broken = {name: tensor for name, tensor in state.items() if name != key}
        with pytest.raises(ValueError, match="the scores of MovementPruningModifier belong to other weights"):
            session.run.load_state_dict(broken if value is None else {**broken, key: value})


@pytest.mark.parametrize(
    ("keys", "key", "part"),
    [
        ("final_sparsity: 0.9", "end_epoch", "required"),
        ("end_epoch: 1, straight_through: maybe", "straight_through", "true or false"),
        ("end_epoch: 1, straight_thru: true", "straight_thru", "Did you mean 'straight_through'?"),
        ("end_epoch: 1, update_frequency: -2", "update_frequency", "or -1 for every step"),
        ("end_epoch: 1, params: ['re:(']", "params", "is not a regular expression"),
        ("end_epoch: 1, final_sparsity: {0.5: ['re:(']}", "final_sparsity", "is not a regular expression"),
        ("end_epoch: 1, mask_type: 2:4", "final_sparsity", "2:4 has sparsity 0.5"),
    ],
)
def test_wrong_keys(keys: str, key: str, part: str) -> None:
    error = error_of(f"modifiers:\n  - !MovementPruningModifier {{{keys}}}\n")
    assert error.key == key and part in str(error)


def test_the_timeline_says_which_form_it_is() -> None:
    lines = [
        dict(load_recipe(movement(f"end_epoch: 1, straight_through: {value}")).timeline())[0.0]
        for value in ("true", "false")
    ]
    assert "pruning by movement" in lines[1] and lines[0].endswith(", straight-through")
