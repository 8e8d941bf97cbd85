"""Masked language modelling on a stream, in one process: the same rows in any layout, with recipes and evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from language_fixtures import RECIPES, TinyTexts, run, texts, write_texts
from script_fixtures import Outcome, assert_same_model, flat, make_model, read_json, trace
from stream_watch import Row, watched
from token_fixtures import NO_DROPOUT, VOCABULARY

from sparse_accel.data.gradient_batches import GradientBatches
from sparse_accel.tasks.masked_language_modeling.task import MaskedLanguageModeling
from sparse_accel.training import loop

pytest_plugins = ["language_fixtures"]

Steps = dict[int, list[Row]]
STEPS = 12
# A run reads twice the rows of the stream.
STREAM: dict[str, Any] = {
    "streaming": True,
    "stream_shards": 4,
    "shuffle_window": 8,
    "per_device_train_batch_size": 8,
    "num_train_epochs": None,
    "max_steps": STEPS,
    "do_eval": None,
    "validation_file": None,
    "save_strategy": "steps",
    "save_steps": 4,
}


@pytest.fixture(scope="module")
def flags(language: TinyTexts, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    train = write_texts(tmp_path_factory.mktemp("texts") / "train.txt", texts(90, seed=1))
    return lambda **others: language.flags(**{**STREAM, "train_file": train, **others})


@pytest.fixture(scope="module")
def record(flags: Callable[..., dict[str, Any]]) -> Callable[..., tuple[Outcome, Steps]]:
    """Runs the script; gives how it ended, and the rows of each step, sorted."""

    def train(found: Steps | None = None, **others: Any) -> tuple[Outcome, Steps]:
        steps: Steps = {} if found is None else found
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                loop, "train_step", watched(loop.train_step, lambda step, rows: steps.update({step: sorted(rows)}))
            )
            return run(**flags(**others)), steps

    return train


@pytest.fixture(scope="module")
def whole(record: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Steps]:
    """A run of one process without workers, and its rows."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done, found = record(output_dir=output)
    assert done.code == 0, done.all
    assert len(found) == STEPS and {len(rows) for rows in found.values()} == {8}
    return output, found


def test_each_pass_gives_each_row_once_and_masks_it_anew(whole: tuple[Path, Steps]) -> None:
    rows = [row for step in whole[1].values() for row in step]
    places = [(epoch, number) for epoch, number, _, _ in rows]
    assert len({*places}) == len(places) == 8 * STEPS
    first, second = ({number: labels for epoch, number, _, labels in rows if epoch == each} for each in (0, 1))
    assert 40 < len(first) < 60 and {number % 4 for number in first} == {0, 1, 2, 3}
    again = first.keys() & second.keys()
    assert len(again) > 30 and sum(first[number] != second[number] for number in again) >= 0.9 * len(again)
    assert all(any(label != -100 for label in labels) for _, _, _, labels in rows)


@pytest.mark.parametrize(
    "layout",
    [
        {"dataloader_num_workers": 1},
        {"dataloader_num_workers": 2},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "dataloader_num_workers": 2},
    ],
)
def test_the_rows_do_not_depend_on_the_layout(
    whole: tuple[Path, Steps], record: Callable[..., Any], tmp_path: Path, layout: dict[str, int]
) -> None:
    done, found = record(output_dir=tmp_path / "out", **layout)
    assert done.code == 0, done.all
    assert found == whole[1]
    losses = trace(tmp_path / "out", "train/loss")
    assert losses == pytest.approx(trace(whole[0], "train/loss"), abs=1e-6)
    if layout == {"dataloader_num_workers": 1}:
        assert_same_model(tmp_path / "out", whole[0])


@pytest.mark.parametrize(
    "others", [{"seed": 1}, {"stream_shards": 2}, {"shuffle_window": 16}], ids=lambda others: next(iter(others))
)
def test_what_the_order_depends_on(
    whole: tuple[Path, Steps], record: Callable[..., Any], tmp_path: Path, others: dict[str, int]
) -> None:
    _, found = record(output_dir=tmp_path / "out", max_steps=2, **others)
    assert all(found[step] != whole[1][step] for step in (1, 2))


# --- recipes ----------------------------------------------------------------------------------------------------------

GRADUAL = """
modifiers:
  - !EpochRangeModifier {end_epoch: 3}
  - !MagnitudePruningModifier
      {start_epoch: 0, end_epoch: 2, init_sparsity: 0.3, final_sparsity: 0.8, update_frequency: 0.25}
  - !QuantizationModifier {start_epoch: 2, disable_quantization_observer_epoch: 2.5, submodules: [bert.encoder]}
"""
BY_EPOCH: dict[str, Any] = {"max_steps": None, "steps_per_epoch": 4, "save_steps": 100}


def test_pruning_and_quantization_count_epochs_of_the_length_given(
    whole: tuple[Path, Steps], record: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "gradual.yaml").write_text(GRADUAL)
    done, found = record(**BY_EPOCH, recipe=tmp_path / "gradual.yaml", output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert "12, 4 per epoch" in flat(done.out)
    results = read_json(tmp_path / "out" / "all_results.json")
    assert results["encoder_sparsity"] == pytest.approx(0.8, abs=0.005) and results["quantized_linears"] == 12
    assert found == whole[1]  # the step that makes the first ranges reads no other rows


@pytest.mark.parametrize("workers", [0, 2])
def test_gradient_samples_are_the_next_rows_masked_and_do_not_move_the_stream(
    whole: tuple[Path, Steps],
    record: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    """oBERT's recipe, with a live teacher of logits and hidden states. The rows of an update of the masks are those of
    the steps after it: more are drawn than a pass has."""
    found: Steps = {}
    updates: dict[int, list[set[tuple[int, int]]]] = {}  # by the step that begins with it
    endless = GradientBatches.endless

    def watched_batches(self: GradientBatches, *settings: Any) -> Any:
        drawn = updates.setdefault(max(found), [])
        for batch in endless(self, *settings):
            drawn.append({*zip(batch["epoch"].tolist(), batch["row_id"].tolist(), strict=True)})
            yield batch

    masked: list[int] = []
    prepare = MaskedLanguageModeling.prepare

    def watched_prepare(self: Any, batch: Any, epoch: int) -> Any:
        prepared = prepare(self, batch, epoch)
        masked.append(int((prepared["labels"] != -100).sum(dim=1).min()))
        return prepared

    monkeypatch.setattr(GradientBatches, "endless", watched_batches)
    monkeypatch.setattr(MaskedLanguageModeling, "prepare", watched_prepare)
    teacher = make_model(tmp_path / "teacher", sparse=False, vocabulary=VOCABULARY, **NO_DROPOUT)
    done, _ = record(
        found,
        **BY_EPOCH,
        recipe=RECIPES / "obert_pruned90.yaml",
        recipe_args={"num_grads": 12},
        distill_teacher=teacher,
        dataloader_num_workers=workers,
        output_dir=tmp_path / "out",
    )
    assert done.code == 0, done.all
    assert "it runs in each step, for its hidden_states, logits" in flat(done.out)
    assert read_json(tmp_path / "out" / "all_results.json")["encoder_sparsity"] == pytest.approx(0.9, abs=0.005)
    assert found == whole[1]
    assert min(masked) >= 1
    order = {step: {(epoch, row) for epoch, row, _, _ in rows} for step, rows in found.items()}
    assert [*updates] == [1, 3, 5, 7, 9]
    for step, drawn in updates.items():
        assert [len(batch) for batch in drawn] == [16] * 12
        after = [order[number] for number in range(step + 1, STEPS + 1)]
        for batch, one, two in zip(drawn, after[::2], after[1::2], strict=False):
            assert batch == one | two


# --- steps that are not taken -----------------------------------------------------------------------------------------


def test_a_skipped_step_loses_no_row(
    whole: tuple[Path, Steps], record: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step's own rows pass by; all others are trained on in the same steps, also after a checkpoint."""
    loss, calls = MaskedLanguageModeling.loss, [0]

    def nan_once(self: Any, *arguments: Any, **settings: Any) -> Any:
        calls[0] += 1
        return loss(self, *arguments, **settings) * (math.nan if calls[0] == 3 else 1)

    monkeypatch.setattr(MaskedLanguageModeling, "loss", nan_once)
    done, found = record(nan_loss="skip", output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert found == whole[1]
    places = [read_json(folder / "checkpoint-4" / "stream_state.json") for folder in (tmp_path / "out", whole[0])]
    assert places[0] == places[1]


def test_evaluations_and_the_best_model(
    whole: tuple[Path, Steps], record: Callable[..., Any], language: TinyTexts, tmp_path: Path
) -> None:
    done, found = record(
        do_eval=True,
        validation_file=language.validation,
        eval_strategy="steps",
        eval_steps=4,
        load_best_model_at_end=True,
        save_total_limit=1,
        output_dir=tmp_path / "out",
    )
    assert done.code == 0, done.all
    assert found == whole[1]
    results = read_json(tmp_path / "out" / "all_results.json")
    assert results["eval_loss"] == pytest.approx(min(trace(tmp_path / "out", "eval_loss").values()))
    assert not (tmp_path / "out" / "stream_state.json").exists()


# --- short streams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_shorter_than_an_epoch_is_told_once(
    flags: Callable[..., dict[str, Any]], tmp_path: Path, workers: int
) -> None:
    """Also of a run that was interrupted before the end of its first epoch, and with rows that other passes share."""
    short = write_texts(tmp_path / "short.txt", texts(60, seed=3))
    settings = flags(train_file=short, dataloader_num_workers=workers, output_dir=tmp_path / "out")
    said = "warning: the stream has 30 rows: an epoch of 12 steps reads it 3.2 times"
    done = run(**settings)
    assert done.code == 0 and done.err.count("warning") == done.err.count(said) == 1, done.all
    for path in (tmp_path / "out").glob("checkpoint-*"):
        if path.name != "checkpoint-4":
            path.rename(tmp_path / path.name)
    record = tmp_path / "out" / "run.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    again = run(**settings)
    assert "from step 4" in again.out and again.err.count(said) == 1, again.all


def test_texts_of_which_no_token_can_be_masked(flags: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    unknown = write_texts(tmp_path / "unknown.txt", ["?? 12 !!"] * 300)
    done = run(**flags(train_file=unknown, output_dir=tmp_path / "out"))
    assert done.code == 2 and "no token of the first 8 rows can be masked" in done.err, done.all
