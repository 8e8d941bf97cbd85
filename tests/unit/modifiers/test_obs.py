"""OBSPruningModifier: SparseML's figures, what the run around an update notices, and what is refused."""

from __future__ import annotations

import random
import signal
from typing import Any

import numpy as np
import pytest
import torch
from loop import Session, assert_same, compare, start, with_scaler
from mask_watch import Watch
from obs_golden import GOLDEN, SHAPES, Recorded, Two, farthest, gradients
from recipe_texts import OBS_KEYS as KEYS
from recipe_texts import obs
from tiny import make_bert, make_rows
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparse_accel.console import progress_bar
from sparse_accel.errors import Stopped, UsageError
from sparse_accel.main import run_main
from sparse_accel.models.teacher import Teacher
from sparse_accel.modifiers.base import check_gradients
from sparse_accel.modifiers.pruning.obs import OBSPruningModifier
from sparse_accel.modifiers.state import State
from sparse_accel.nn.fisher import FisherBlocks
from sparse_accel.nn.layers import masks, quantizers
from sparse_accel.progress import Progress
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

NO_TASK: Any = None


# --- SparseML's figures -----------------------------------------------------------------------------------------------


def bound(samples: list[dict[str, Tensor]], **keys: Any) -> tuple[OBSPruningModifier, State, Two, Recorded]:
    """A modifier on the golden model, whose gradients are given."""
    defaults: dict[str, Any] = {"end_epoch": 1.0, "update_frequency": 1.0, "fisher_block_size": 8, "damp": 1e-3}
    modifier = OBSPruningModifier(params=[*SHAPES], num_grads=16, **{**defaults, **keys})
    model = Two()
    recorded = Recorded(samples, model)
    state = State(model, [modifier], task=NO_TASK, gradient_samples=recorded)
    modifier.attach(state)
    modifier.bind(state)
    return modifier, state, model, recorded


@pytest.mark.parametrize("case", GOLDEN["recomputations"], ids=lambda case: str(case["num_recomputations"]))
def test_golden_recomputations(case: dict[str, Any]) -> None:
    modifier, _, model, recorded = bound(
        gradients("more_gradients"),
        num_recomputations=case["num_recomputations"],
        init_sparsity=0.6,
        final_sparsity=0.6,
    )
    modifier.step_begin(Progress(0, 2))
    assert farthest(model.weights(), case["weights"]) < 5e-7
    assert [draw["seed"] for draw in recorded.draws] == [(0, n + 1) for n in range(case["num_recomputations"])]


@pytest.mark.parametrize("case", GOLDEN["schedules"], ids=lambda case: f"{case['mask_type']}-{case['global_sparsity']}")
def test_golden_schedules(case: dict[str, Any]) -> None:
    keys = {name: value for name, value in case.items() if name not in ("updates", "num_grads")}
    modifier, state, model, recorded = bound(gradients("more_gradients"), **keys)
    expected = {update["step"]: update["weights"] for update in case["updates"]}
    for step in range(10):
        state.progress = Progress(step, 2)
        before = len(recorded.draws)
        modifier.step_begin(state.progress)
        assert (len(recorded.draws) > before) == (step in expected) or step == 8  # nothing may be left to prune
        if step in expected:
            assert farthest(model.weights(), expected[step]) < 5e-7
    assert modifier.structure_final(state.progress)


@pytest.mark.parametrize("case", GOLDEN["one_shot"], ids=lambda case: str(case["keys"]))
def test_golden_at_once(case: dict[str, Any]) -> None:
    modifier, _, model, _ = bound(gradients("gradients"), final_sparsity=0.7, **case["keys"])
    modifier.apply_at_once(lambda: iter(()))
    assert farthest(model.weights(), case["weights"]) < 5e-7


def test_groups_that_cross_rows_are_refused() -> None:
    """On rows of 6, SparseML scored groups that crossed rows, and masked others."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False))
    modifier = OBSPruningModifier(end_epoch=1, update_frequency=1, mask_type="block4", fisher_block_size=12)
    with pytest.raises(UsageError, match=r"0\.weight: blocks of 1 x 4 do not divide a weight of \(6, 6\)"):
        modifier.attach(State(model, [modifier], task=NO_TASK))


# --- when it updates --------------------------------------------------------------------------------------------------


class Drawn:
    """Counts the samples of each draw of a session, by step."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[int] = []
        source: Any = session.run.state.gradient_samples
        draw = source.draw

        def counted(*arguments: Any, **options: Any) -> None:
            self.steps.append(session.run.progress.step)
            draw(*arguments, **options)

        monkeypatch.setattr(source, "draw", counted)


def test_samples_are_drawn_only_where_something_is_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KEYS.replace("init_sparsity: 0.3", "init_sparsity: 0").replace("frequency: 1", "frequency: 0.3")
    session = start(obs(keys), model=make_bert())
    drawn = Drawn(session, monkeypatch)
    watch = Watch()
    session.train(watch)
    assert drawn.steps == [1, 2, 3, 4, 5, 6]  # at step 0, the sparsity is 0
    assert sum(int((~mask).sum()) for mask in masks(session.model).values()) == round(0.8 * 16384)
    session.run.finish()
    assert len(drawn.steps) == 6  # all is done


def test_a_run_of_one_step_an_epoch_is_pruned() -> None:
    """SparseML never pruned it, silently."""
    session = start(obs(), rows=make_rows(8)).train(Watch())
    assert sum(int((~mask).sum()) for mask in masks(session.model).values()) == round(0.8 * 16384)


def test_the_training_of_an_update_step_counts() -> None:
    """SparseML threw it away."""
    session = start(obs(), model=make_bert())
    moved = []

    def look(session: Session) -> None:
        name = "bert.encoder.layer.0.output.dense.weight"
        entry = session.optimizer.state[session.model.get_parameter(name)]
        moved.append(float(entry["step"]))

    session.train(look)
    assert moved == [1, 2, 3, 4, 5, 6]


def test_masks_only_tighten_and_the_others_move() -> None:
    session = start(obs(KEYS + ", fisher_block_size: 32"), model=make_bert(), rate=0.0)
    before = {name: weight.detach().clone() for name, weight in session.model.named_parameters()}
    session.train(Watch())
    for name, mask in masks(session.model).items():
        assert (session.model.get_parameter(name)[mask] != before[name][mask]).any(), name
    for name, weight in session.model.named_parameters():
        assert name in masks(session.model) or torch.equal(weight, before[name]), name


def test_with_blocks_of_one_no_other_weight_moves() -> None:
    session = start(obs(), model=make_bert(), rate=0.0)
    before = {name: weight.detach().clone() for name, weight in session.model.named_parameters()}
    session.train(Watch())
    for name, mask in masks(session.model).items():
        weight = session.model.get_parameter(name)
        assert torch.allclose(weight[mask], before[name][mask], rtol=1e-6, atol=0)


# --- the run around an update -----------------------------------------------------------------------------------------


def test_samples_disturb_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose gradients are known beforehand is the same to the bit: dropout, order of rows, clock, observers."""
    qat = "!QuantizationModifier {start_epoch: 0.4}"
    taken: list[dict[str, Tensor]] = []
    whole = start(obs(KEYS, 2, qat), model=make_bert())
    source: Any = whole.run.state.gradient_samples
    draw = source.draw

    def noting(weights: Any, count: int, take: Any, **options: Any) -> None:
        modes = [module.training for module in whole.model.modules()]
        before, in_python, in_numpy = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        grads = [parameter.grad for parameter in whole.model.parameters()]
        ranges = {name: q.minimum.clone() for name, q in quantizers(whole.model).items()}

        def noted(name: str, gradient: Tensor) -> None:
            assert not any(module.training for module in whole.model.modules())
            if not taken or name in taken[-1]:
                taken.append({})
            taken[-1][name] = gradient.clone()
            take(name, gradient)

        draw(weights, count, noted, **options)
        assert [module.training for module in whole.model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), before)
        assert random.getstate() == in_python and str(np.random.get_state()) == in_numpy
        assert all(one is parameter.grad for one, parameter in zip(grads, whole.model.parameters(), strict=True))
        assert all(torch.equal(q.minimum, ranges[name]) for name, q in quantizers(whole.model).items())

    monkeypatch.setattr(source, "draw", noting)
    whole.train()
    assert len(taken) == 3 * 4
    other = start(obs(KEYS, 2, qat), model=make_bert())
    other.run.state.gradient_samples = Recorded(taken)
    assert_same(whole, other.train())


def test_successive_updates_use_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    session = start(obs(), model=make_bert())
    source: Any = session.run.state.gradient_samples
    seen: list[tuple[int, ...]] = []
    loss = source.loss

    def noting(model: Any, rows: Any, batch: Any, from_recipe: bool) -> Tensor:
        seen.append(tuple(batch["row_id"].tolist()))
        return loss(model, rows, batch, from_recipe)

    source.loss = noting
    session.train()
    assert len(seen) == 12 and len(set(seen)) == 12
    assert all(len(set(rows)) == len(rows) for rows in seen)
    assert {len(rows) for rows in seen} == {8, 5}  # 21 rows: the last batch of an epoch is short


def test_a_sample_is_the_mean_gradient_of_its_rows() -> None:
    session = start(obs(KEYS.replace("num_grads: 4", "num_grads: 3")), model=make_bert(dropout=0.3), accumulation=2)
    found: list[dict[str, Tensor]] = []
    source: Any = session.run.state.gradient_samples
    name = "bert.encoder.layer.0.output.dense.weight"
    weight = session.model.get_parameter(name)
    batches: list[dict[str, Tensor]] = []
    parts: list[int] = []
    loss = source.loss

    def noting(model: Any, rows: Any, batch: Any, from_recipe: bool) -> Tensor:
        if not batches or batches[-1] is not batch:
            batches.append(batch)
        parts.append(len(rows["labels"]))
        return loss(model, rows, batch, from_recipe)

    source.loss = noting
    source.draw(
        {name: weight},
        3,
        lambda name, gradient: found.append({name: gradient.clone()}),
        options={},
        seed=(0, 1),
        from_recipe=False,
        what="test",
    )
    assert parts == [4, 4, 4, 4, 3, 2]  # at most a micro-batch at once
    session.model.eval()
    for batch, sample in zip(batches, found, strict=True):
        inputs = {key: value for key, value in batch.items() if key != "row_id"}
        (expected,) = torch.autograd.grad(session.model(**inputs).loss, [weight])
        assert torch.allclose(sample[name], expected, rtol=1e-4, atol=1e-7)


def test_the_loss_of_samples_is_the_tasks_or_the_recipes() -> None:
    """With DistillationModifier, from the very step in which it begins."""

    def gradient_of(keys: str) -> list[Tensor]:
        distilled = "!DistillationModifier {hardness: 1.0}"
        session = start(obs(f"{KEYS}{keys}", 2, distilled), model=make_bert(), teacher=Teacher(make_bert(seed=1)))
        found: list[Tensor] = []
        source: Any = session.run.state.gradient_samples
        draw = source.draw

        def noting(weights: Any, count: int, take: Any, **options: Any) -> None:
            draw(weights, count, lambda name, gradient: found.append(gradient.clone()), **options)
            raise InterruptedError

        source.draw = noting
        with pytest.raises(InterruptedError):
            session.run.step_begin()
        return found

    task, recipe = gradient_of(""), gradient_of(", grad_loss: recipe")
    assert len(task) == len(recipe) == 4 * 12
    assert not any(torch.allclose(one, other, rtol=0.1) for one, other in zip(task, recipe, strict=True))


def test_an_overflow_in_fp16_repeats_the_sample_and_updates_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = start(obs(), model=make_bert()).train(Watch())
    session = with_scaler(start(obs(), model=make_bert()), 2.0**10)
    drawn = Drawn(session, monkeypatch)
    source: Any = session.run.state.gradient_samples
    source.loss_scale = lambda: 2.0**140
    skipped: list[int] = []

    def overflows_once(gradient: Tensor) -> Tensor:
        if session.run.progress.step == 3 and session.model.training and not skipped:
            skipped.append(3)
            return gradient * torch.inf
        return gradient

    session.model.get_parameter("classifier.bias").register_hook(overflows_once)
    session.train(Watch())
    assert skipped == [3] and drawn.steps == [0, 3, 6] and session.run.progress.step == 6
    compare(plain.model.state_dict(), session.model.state_dict(), "weights")  # powers of two are divided out exactly


def test_gradients_that_are_not_finite_end_the_run() -> None:
    model = make_bert()
    model.get_parameter("classifier.bias").data[0] = float("nan")
    session = start(obs(), model=model)
    flags = [module.training for module in model.modules()]
    with pytest.raises(UsageError, match=r"OBSPruningModifier, .* step 0: gradient sample 1 contains NaN or inf"):
        session.run.step_begin()
    assert [module.training for module in model.modules()] == flags
    assert all(mask.all() for mask in masks(model).values())


@pytest.mark.parametrize("start_epoch", [0, 1])
@pytest.mark.parametrize("calibrates", [True, False])
def test_an_update_in_the_step_that_begins_quantization(start_epoch: int, calibrates: bool) -> None:
    """Its samples come before the first ranges: quantizers without a range pass values through."""
    session = start(obs(KEYS, 2, f"!QuantizationModifier {{start_epoch: {start_epoch}}}"), model=make_bert())
    if not calibrates:  # as in a loop of one's own
        session.run.calibrate = lambda forward: None  # type: ignore[method-assign]
    session.train(Watch())
    found = quantizers(session.model).values()
    assert found and all(quantizer.enabled and quantizer.ready for quantizer in found)
    assert sum(int((~mask).sum()) for mask in masks(session.model).values()) == round(0.8 * 16384)


def test_an_update_is_seen_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line after 30 seconds, not after minutes; nothing for an update that takes less."""
    clock: list[float] = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with progress_bar(None, 256, "gradients", "samples", leave=False) as bar:
        for _ in range(65):
            clock[0] += 1.0
            bar.update()
    lines = [line for line in capsys.readouterr().err.splitlines() if "gradients" in line]
    assert 2 <= len(lines) <= 3 and "/256" in lines[0]


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)])
def test_a_signal_during_an_update_is_said_to_save_nothing(
    number: signal.Signals,
    raised: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A checkpoint is not written then, and there may be none yet."""
    session = start(obs(), model=make_bert())
    add = FisherBlocks.add

    def interrupted(self: FisherBlocks, gradient: Tensor) -> None:
        add(self, gradient)
        if not sent:
            sent.append(True)
            signal.raise_signal(number)

    sent: list[bool] = []
    monkeypatch.setattr(FisherBlocks, "add", interrupted)

    def train() -> None:
        session.train()

    with pytest.raises(SystemExit) as ended:
        run_main(train)
    said = capfd.readouterr().err
    assert ended.value.code == (130 if raised is KeyboardInterrupt else 75)
    assert "saving and ending" not in said
    assert (
        "(not saved: the masks were being updated): run the same command again to resume from the last checkpoint, or, "
        "if there is none, to start again" in said
    )
    assert ("Ctrl-C: ending as soon as possible, without a checkpoint" in said) == (number == signal.SIGINT)


def test_ctrl_c_stops_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything has changed; the last checkpoint resumes to the same end."""
    whole = start(obs(), model=make_bert()).train(keep_snapshots=True)
    session = start(obs(), model=make_bert())
    added = []
    add = FisherBlocks.add

    def interrupted(self: FisherBlocks, gradient: Tensor) -> None:
        add(self, gradient)
        added.append(session.run.progress.step)
        if session.run.progress.step == 3 and added.count(3) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(FisherBlocks, "add", interrupted)
    with pytest.raises(KeyboardInterrupt, match="not saved"):
        session.train(keep_snapshots=True)
    assert added.count(3) == 12  # the rest of one sample: one gradient for each of 12 weights
    assert session.model.training
    compare(session.state(), whole.snapshots[3], "state")
    monkeypatch.undo()
    assert_same(whole, start(obs(), model=make_bert(seed=2)).load(session.snapshots[3]).train())


# --- a loop of one's own ----------------------------------------------------------------------------------------------


def own_run(loader: Any, keys: str = KEYS) -> tuple[RecipeRun, nn.Module]:
    model = make_bert()
    run = RecipeRun(load_recipe(obs(keys)))
    run.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.bind(None, model, optimizer, steps_per_epoch=3, gradient_loader=loader)
    return run, model


def test_a_loop_of_ones_own() -> None:
    """Its loader is that of the training; neither its generator nor its order is moved."""
    rows = [{name: torch.tensor(value) for name, value in row.items()} for row in make_rows(12)]
    rows = [{name: value[:4] if value.ndim else value for name, value in row.items()} for row in rows]
    generator = torch.Generator().manual_seed(3)
    loader: Any = DataLoader(rows, batch_size=4, shuffle=True, generator=generator)  # type: ignore[arg-type]
    run, model = own_run(loader)
    before = generator.get_state()
    for _ in range(6):
        run.step_begin()
        assert torch.equal(generator.get_state(), before)
        assert all(parameter.grad is None for parameter in model.parameters())
        run.step_end()
    run.finish()
    assert sum(int((~mask).sum()) for mask in masks(model).values()) == round(0.8 * 16384)


def test_a_loop_without_a_loader_is_told() -> None:
    with pytest.raises(UsageError, match=r"OBSPruningModifier needs gradient samples .*pass gradient_loader=\.\.\. to"):
        own_run(None)


def test_deepspeed_is_refused() -> None:
    recipe = load_recipe(obs())
    with pytest.raises(UsageError, match=r"OBSPruningModifier needs gradients, but DeepSpeed"):
        check_gradients(recipe.modifiers, given=False)
