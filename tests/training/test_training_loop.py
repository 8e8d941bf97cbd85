"""The loop: what is due when, what is averaged over what, and how it stops."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from loop import Session, figures_of, make_accelerator, start
from loop import run_loop as loop
from tiny import make_bert, make_rows, make_tokenizer
from torch import nn

from sparse_accel.data.batches import Collator, GlobalBatchSampler, make_loader
from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import Modifier
from sparse_accel.nn.losses import task_loss
from sparse_accel.tasks import task_of
from sparse_accel.training.evaluation import predict
from sparse_accel.training.schedule import Schedule

RANGE = "modifiers:\n  - !EpochRangeModifier {end_epoch: 2}"
STEPS = 3


def run_loop(session: Session, schedule: Schedule, **options: Any) -> list[str]:
    """Trains and returns what was called, with the step."""
    calls: list[str] = []

    def called(name: str) -> Any:
        return lambda *_: calls.append(f"{name} {session.run.progress.step}")

    settings: dict[str, Any] = {"seed": 0, "log": called("log"), "evaluate": called("evaluate"), "save": called("save")}
    loop(session, schedule, **{**settings, **options})
    return calls


# --- when -------------------------------------------------------------------------------------------------------------


def test_what_is_due_when() -> None:
    calls = run_loop(start(RANGE), Schedule(6, log_every=4, evaluate_every=3, save_every=2))
    expected = ["log 1", "save 2", "evaluate 3", "log 4", "save 4", "log 6", "evaluate 6", "save 6"]
    assert calls == expected
    assert run_loop(start(RANGE), Schedule(2)) == ["log 1"]


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5])
def test_it_stops_after_the_last_step_wherever_that_lies(total: int) -> None:
    session = start(None, total_steps=total).train()
    assert session.run.progress.step == total == len(session.trace)


def test_every_epoch_shows_every_row_once_in_another_order() -> None:
    seen: list[list[int]] = []

    class Spy(Modifier):
        def loss_terms(self, batch: dict[str, Any], outputs: Any) -> dict[str, Any]:
            seen.append(batch["row_id"].tolist())
            return {}

    session = start(RANGE)
    session.run.modifiers = [Spy()]
    session.train()
    epochs = [[row for batch in seen[start : start + STEPS] for row in batch] for start in (0, STEPS)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(21)) and epochs[0] != epochs[1]


def test_hooks_come_in_their_order() -> None:
    calls: list[str] = []

    class Spy(Modifier):
        def step_begin(self, progress: Any) -> None:
            calls.append(f"begin {progress.step}")

        def loss_terms(self, batch: dict[str, Any], outputs: Any) -> dict[str, Any]:
            assert outputs["logits"].shape == (len(batch["labels"]), 2)
            calls.append("loss")
            return {}

        def grads_ready(self) -> None:
            gradient = session.model.get_parameter("classifier.weight").grad
            calls.append("grads" if gradient is not None and float(gradient.norm()) > 0 else "no grads")

        def step_end(self, progress: Any) -> None:
            calls.append(f"end {progress.step}")

        def finish(self) -> None:
            calls.append("finish")

    session = start(None, accumulation=2, total_steps=2)
    session.run.modifiers = [Spy()]
    session.train(lambda _: calls.append("log"))
    step = ["loss", "loss", "grads"]
    assert calls == ["begin 0", *step, "end 1", "log", "begin 1", *step, "end 2", "finish", "log"]


def test_evaluation_leaves_the_model_in_training_mode() -> None:
    session = start(RANGE)
    modes: list[bool] = []
    session.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    run_loop(session, Schedule(3, evaluate_every=1), evaluate=lambda: session.outputs())
    assert modes == [True, False, False] * 3  # nine rows in two batches are evaluated


# --- averages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_logged_loss_is_the_mean_over_real_rows(accumulation: int) -> None:
    """17 rows in global batches of 8: the last one is a single row, and in four parts three of them are fillers."""
    rows = make_rows(17)
    model = make_bert(dropout=0.0)
    with torch.no_grad():
        batch = Collator(make_tokenizer())({**rows[:], "row_id": list(range(17))})
        labels = batch.pop("labels")
        batch.pop("row_id")
        each = task_loss(model(**batch).logits, labels, "single_label_classification")
    session = start(None, model=model, rows=rows, accumulation=accumulation, rate=0.0, total_steps=3)
    figures: list[dict[str, float]] = []
    run_loop(session, Schedule(3, log_every=3), log=figures.append)
    assert figures[0]["train/epoch"] == pytest.approx(1 / 3) and figures[1]["train/epoch"] == 1
    # The first step is logged at once; the second log is of the nine other rows.
    mean = (8 * figures[0]["train/loss"] + 9 * figures[1]["train/loss"]) / 17
    assert mean == pytest.approx(float(each.mean()), abs=1e-6)


class Skipping:
    """Makes an accelerator say, for the first `times` questions, that the scaler has skipped the step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left = times
        monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda _: self.ask()))

    def ask(self) -> bool:
        self.left -= 1
        return self.left >= 0


def test_a_skipped_step_moves_no_clock_and_counts_in_no_average(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RANGE + "\n  - !QuantizationModifier {start_epoch: 0.3}\n  - !MagnitudePruningModifier {end_epoch: 1}"
    plain = start(recipe, rate=0.0).train()
    Skipping(monkeypatch, 2)
    skipped = start(recipe, rate=0.0).train()
    assert [figures_of(entry) for entry in skipped.trace] == [figures_of(entry) for entry in plain.trace]
    for name, value in plain.run.state_dict().items():
        assert torch.equal(value, skipped.run.state_dict()[name]), name


def test_steps_that_are_skipped_without_end_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Skipping(monkeypatch, 1000)
    with pytest.raises(UsageError, match="gradients overflow in fp16 at step 0"):
        start(RANGE).train()


def test_a_loss_that_is_no_number_is_an_error() -> None:
    model = make_bert()
    model.get_parameter("classifier.bias").data[0] = torch.nan
    with pytest.raises(UsageError, match="the loss is nan at step 1"):
        start(RANGE, model=model).train()


class Breaks(nn.Module):
    """A model whose logits are no numbers in some of its training forwards, counted from 1."""

    def __init__(self, model: nn.Module, broken: set[int]) -> None:
        super().__init__()
        self.model, self.broken, self.forwards = model, broken, 0
        self.config = model.config

    def forward(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        self.forwards += 1
        if self.forwards in self.broken:
            outputs.logits = outputs.logits * torch.nan
        return outputs


def test_a_step_without_a_number_is_skipped_where_asked() -> None:
    """Nothing of it counts: the weights, the moments and the mean of the losses are as if it had not been."""
    session = start(RANGE, model=Breaks(make_bert(), {2}))
    states: list[dict[str, Any]] = []
    session.train(lambda s: states.append(s.state()), skip_nan_steps=True, keep_snapshots=False)
    assert [entry["step"] for entry in session.trace] == [1, 3, 4, 5, 6]  # the second had nothing to log
    assert all(np.isfinite(entry["train/loss"]) for entry in session.trace)
    assert [entry.get("train/steps_skipped", 0) for entry in session.trace] == [0, 1, 1, 1, 1]
    assert session.run.progress.step == 6
    steps = {float(entry["step"]) for entry in states[-1]["optimizer"]["state"].values()}
    assert steps == {5.0}
    assert all(bool(torch.isfinite(parameter).all()) for parameter in session.model.parameters())


def test_ranges_do_not_see_a_step_that_is_skipped() -> None:
    recipe = RANGE + "\n  - !QuantizationModifier {}"
    session = start(recipe, model=Breaks(make_bert(), {3}))  # the second step's: the first is shown once before
    before: list[Any] = []
    session.train(lambda s: before.append(s.run.state_dict()), skip_nan_steps=True)
    assert [entry["step"] for entry in session.trace] == [1, 3, 4, 5, 6]
    assert all(bool(torch.isfinite(value.float()).all()) for value in session.run.state_dict().values())


def test_a_model_that_never_gives_a_number_ends_the_run() -> None:
    session = start("modifiers:\n  - !EpochRangeModifier {end_epoch: 20}", model=Breaks(make_bert(), {*range(2, 99)}))
    with pytest.raises(UsageError, match="NaN or inf in 30 steps in a row"):
        session.train(skip_nan_steps=True)


def test_gradients_are_clipped_only_when_asked_to() -> None:
    def norms(limit: float) -> list[float]:
        found: list[float] = []
        session = start(None, total_steps=2)
        prepared: Any = session.optimizer
        prepared.optimizer.register_step_pre_hook(
            lambda *_: found.append(
                float(torch.stack([p.grad.norm() for p in session.model.parameters() if p.grad is not None]).norm())
            )
        )
        run_loop(session, Schedule(2), max_grad_norm=limit)
        return found

    free = norms(0.0)
    assert free[0] > 0.1 and norms(1e-3) == pytest.approx([1e-3, 1e-3], rel=1e-2)


# --- interruptions ----------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_step_saves_and_stops() -> None:
    session = start(RANGE)
    with pytest.raises(KeyboardInterrupt):
        session.train(interrupt_at=2)
    assert list(session.snapshots) == [2] and session.run.progress.step == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once() -> None:
    session = start(RANGE)

    def impatient(_: Session) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        session.train(impatient)
    assert not session.snapshots


def test_dropout_follows_seed_and_step_only() -> None:
    torch.manual_seed(1)
    one = start(RANGE).train()
    torch.manual_seed(2)

    def reseed(_: Session) -> None:
        torch.manual_seed(3)

    other = start(RANGE).train(reseed)
    assert [figures_of(entry) for entry in one.trace] == [figures_of(entry) for entry in other.trace]
    third = start(RANGE).train(seed=8)
    assert [figures_of(entry) for entry in one.trace] != [figures_of(entry) for entry in third.trace]


# --- prediction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("labelled", [True, False])
def test_predictions_come_in_the_order_of_rows_without_fillers(splits: int, labelled: bool) -> None:
    rows, model, accelerator = make_rows(13), make_bert().train(), make_accelerator()
    batch = Collator(make_tokenizer())({**rows[:], "row_id": list(range(13))})
    labels = batch.pop("labels")
    batch.pop("row_id")
    with torch.no_grad():
        expected = model.eval()(**batch).logits
    sampler = GlobalBatchSampler([len(ids) for ids in rows["input_ids"]], 3, splits, seed=None)
    rows = rows if labelled else rows.remove_columns("labels")
    loader = accelerator.prepare_data_loader(make_loader(rows, sampler, Collator(make_tokenizer())))
    logits, loss = predict(accelerator, model.train(), loader, task_of(model), rows)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-6)
    mean = float(task_loss(expected, labels, "single_label_classification").mean())
    assert loss == (pytest.approx(mean, abs=1e-6) if labelled else None)
