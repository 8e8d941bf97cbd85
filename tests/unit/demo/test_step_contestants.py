"""The steps that benchmarks compare do what they are named after, and their times are compared in turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny import make_bert

from sparse_accel.demo.step_contestants import (
    FLOAT,
    FROZEN,
    QUANTIZED,
    Batch,
    compare,
    hand_written_step,
    make_encoder_sparse,
    recipe_step,
    shown_ratio,
    spaced_batches,
)
from sparse_accel.models.teacher import Teacher


def batch_of(rows: int = 4, tokens: int = 8) -> Batch:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30, (rows, tokens), generator=draw)
    return {"input_ids": ids, "labels": torch.arange(rows) % 2, "row_id": torch.arange(rows)}


def test_steps_by_phase() -> None:
    start: Any = make_bert()
    make_encoder_sparse(start, 0.9)
    zeros = start.bert.encoder.layer[0].output.dense.weight == 0
    assert zeros.float().mean() == pytest.approx(0.9, abs=1e-3)
    teacher = Teacher(make_bert(seed=1))
    teacher.table = torch.randn(4, 2)
    accelerator = Accelerator(cpu=True)
    for variables, words in ((FLOAT, ""), (QUANTIZED, "QAT"), (FROZEN, "frozen")):
        step = recipe_step(accelerator, start, teacher, variables=variables)
        for _ in range(3):
            step(batch_of())
        phase = step.run.phase()
        assert step.run.progress.step == 3 and "pruned" in phase and "distilled" in phase
        assert ("QAT" in phase) == bool(words) and ("frozen" in phase) == (words == "frozen")
        trained: Any = step.run.state.model
        assert (trained.bert.encoder.layer[0].output.dense.masked_weight()[zeros] == 0).all()
    assert "distilled" not in recipe_step(accelerator, start, None).run.phase()


def test_a_hand_written_step_trains_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    start: Any = make_bert()
    before = start.classifier.weight.clone()
    kept: list[Any] = []
    prepare = Accelerator.prepare

    def keep(self: Accelerator, *parts: Any) -> Any:
        kept.append(prepare(self, *parts))
        return kept[-1]

    monkeypatch.setattr(Accelerator, "prepare", keep)
    step = hand_written_step(Accelerator(cpu=True), start)
    step(batch_of())
    assert torch.equal(start.classifier.weight, before)
    model: Any = kept[0][0]
    assert not torch.equal(model.classifier.weight, before) and model.training
    assert model.classifier.weight.grad is None


class Clock:
    """Time that passes only when a step says so."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, []  # type: float, list[str]

    def step(self, name: str, seconds: Any) -> Any:
        def take(batch: Batch) -> None:
            self.order.append(name)
            self.now += seconds(len(batch["labels"]))

        return take


def test_a_comparison_is_by_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("sparse_accel.demo.step_contestants.time.perf_counter", lambda: clock.now)
    batches = [batch_of(1), batch_of(3)]
    found = compare(
        {
            "one": (clock.step("one", lambda rows: rows), batches),
            "two": (clock.step("two", lambda rows: 2 * rows + (clock.order.count("two") > 6)), batches),
            "three": (clock.step("three", lambda rows: rows / 2), batches),
        },
        rounds=4,
    )
    assert found["one"] == {"seconds": 2.0, "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}
    assert found["three"]["ratio"] == 0.5
    # Of four rounds, the first two take 8 seconds and the last two 10, over 4 of the first contestant.
    assert found["two"] == {"seconds": 4.5, "ratio": 2.25, "ratio_low": 2.0, "ratio_high": 2.5}
    assert shown_ratio(found["two"]) == "2.25 (2.00 to 2.50)"
    turns = [tuple(clock.order[start : start + 3]) for start in range(0, len(clock.order), 3)]
    assert len(turns) == 10 and all(set(turn) == {"one", "two", "three"} for turn in turns)
    assert len(set(turns[0::2])) == len(set(turns[1::2])) == 3  # each batch meets every order


def test_contestants_have_the_same_batches() -> None:
    def step(batch: Batch) -> None: ...

    with pytest.raises(ValueError, match="different numbers of batches"):
        compare({"one": (step, [batch_of()]), "two": (step, [])}, 1)
    with pytest.raises(ValueError, match="or none"):
        compare({}, 1)


def test_batches_are_spaced_over_the_lengths() -> None:
    lengths = [3 + row % 50 for row in range(1000)]
    batches = spaced_batches(lengths, 10, 5)
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest == sorted(longest) and longest[0] < 13 and longest[-1] > 42
    means = [sum(lengths[row] for row in batch) / 10 for batch in batches]
    assert sum(means) / 5 == pytest.approx(sum(lengths) / 1000, rel=0.05)
    with pytest.raises(ValueError, match="20 rows give 2 batches of 10, not 3"):
        spaced_batches(lengths[:20], 10, 3)
