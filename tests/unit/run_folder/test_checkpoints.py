"""Checkpoints: which are kept, and what is said of one that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loop import Session, start
from safetensors.torch import load_file
from tiny import make_bert, make_tokenizer
from transformers import AutoModelForSequenceClassification

from sparse_accel.errors import UsageError
from sparse_accel.files import write_json
from sparse_accel.nn.layers import masks
from sparse_accel.progress import Progress
from sparse_accel.run_folder.checkpoints import (
    CHECKSUMS,
    RECIPE_STATE,
    TRAINER_STATE,
    TRAINING_STATE,
    checkpoints_in,
    copy_model,
    delete_old,
    load_checkpoint,
    newest_intact,
    publish,
    restore_complete,
    save_checkpoint,
    verify,
)
from sparse_accel.run_folder.trainer_state import History

RECIPE = """
modifiers:
  - !EpochRangeModifier {end_epoch: 1}
  - !MagnitudePruningModifier {end_epoch: 1, final_sparsity: 0.8}
  - !QuantizationModifier {}
"""


def numbers(folder: Path) -> list[int]:
    return [int(path.name.partition("-")[2]) for path in checkpoints_in(folder)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with checkpoints of steps 5, 10, 15, 100, and other things."""
    for name in ("checkpoint-100", "checkpoint-5", "checkpoint-15", "checkpoint-10", "checkpoint-x", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / ".checkpoint-20.partial").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    return tmp_path


def test_checkpoints_are_found_in_order_of_steps(folder: Path) -> None:
    assert numbers(folder) == [5, 10, 15, 100]


@pytest.mark.parametrize(
    ("keep", "best", "kept"),
    [
        (1, None, [100]),
        (2, None, [15, 100]),
        (9, None, [5, 10, 15, 100]),
        (1, 100, [100]),
        (1, 5, [5, 100]),  # the newest too: an interrupted run goes on from it
        (2, 5, [5, 100]),
        (3, 5, [5, 15, 100]),
        (2, 100, [15, 100]),
        (2, 77, [15, 100]),  # a best one that was never saved
    ],
)
def test_the_newest_and_the_best_are_kept(folder: Path, keep: int, best: int | None, kept: list[int]) -> None:
    delete_old(folder, keep, best)
    assert numbers(folder) == kept
    assert (folder / "other").is_dir() and (folder / "checkpoint-x").is_dir() and (folder / "checkpoint-7").is_file()


def test_saving_deletes_old_ones_but_not_the_best(tmp_path: Path) -> None:
    session, history = start(RECIPE), History("eval_accuracy", greater_is_better=True)

    def save() -> None:
        step = session.run.progress.step
        history.consider({"eval_accuracy": 1.0 if step == 1 else 0.5}, step)
        save_checkpoint(tmp_path, session.accelerator, session.model, make_tokenizer(), session.run, history, keep=1)

    seen: list[list[int]] = []
    session.train(lambda _: seen.append(numbers(tmp_path)), keep_snapshots=True, save=save)
    assert seen == [[], [1], [1, 2]] and numbers(tmp_path) == [1, 3]


def test_its_weights_are_zero_under_the_masks_of_that_moment(tmp_path: Path) -> None:
    """The stored weights under a tightening mask are not zero before the end: what training goes on with keeps them."""
    session = start(RECIPE)

    def save() -> None:
        save_checkpoint(tmp_path, session.accelerator, session.model, make_tokenizer(), session.run, History())

    with pytest.raises(KeyboardInterrupt):
        session.train(interrupt_at=2, save=save)
    (checkpoint,) = checkpoints_in(tmp_path)
    files = [load_file(checkpoint / name) for name in ("model.safetensors", TRAINING_STATE)]
    for name, mask in masks(session.model).items():
        assert 0 < int((~mask).sum()) < 0.8 * mask.numel()
        assert torch.equal(files[0][name] == 0, ~mask)
        stored = files[1][f"weight:{name}"]
        assert torch.equal(stored, session.model.get_parameter(name)) and (stored[~mask] != 0).any()


# --- one checkpoint ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Path]:
    session = start(RECIPE).train()
    history = History()
    history.log.append({"step": 3, "epoch": 1.0, "train/loss": 0.5})
    folder = tmp_path_factory.mktemp("saved")
    return session, save_checkpoint(folder, session.accelerator, session.model, make_tokenizer(), session.run, history)


def copy_of(saved: tuple[Session, Path], tmp_path: Path) -> Path:
    return shutil.copytree(saved[1], tmp_path / saved[1].name)


def test_it_is_a_model_folder_with_zeros_of_its_own(saved: tuple[Session, Path]) -> None:
    _, folder = saved
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "quantization.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint-3"]  # nothing half written
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    weight = model.bert.encoder.layer[1].output.dense.weight
    assert int((weight == 0).sum()) == round(0.8 * weight.numel())


def test_saving_again_at_the_same_step_replaces_it(saved: tuple[Session, Path], tmp_path: Path) -> None:
    folder = copy_of(saved, tmp_path)
    (folder / "left_over.txt").write_text("of another run")
    session = saved[0]
    save_checkpoint(tmp_path, session.accelerator, session.model, make_tokenizer(), session.run, History())
    assert numbers(tmp_path) == [3] and not (folder / "left_over.txt").exists()


def test_model_files_are_copied_without_training_state(saved: tuple[Session, Path], tmp_path: Path) -> None:
    copy_model(saved[1], tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "quantization.json", "tokenizer.json"} <= names
    assert not names & {RECIPE_STATE, TRAINER_STATE, TRAINING_STATE, CHECKSUMS}


@pytest.mark.parametrize("name", [".checkpoint-3.partial", ".checkpoint-3.older.partial"])
def test_a_whole_one_without_its_name_gets_it(saved: tuple[Session, Path], tmp_path: Path, name: str) -> None:
    """As a kill between the two renames leaves it, where another one of that step is replaced."""
    (copy_of(saved, tmp_path)).rename(tmp_path / name)
    (tmp_path / ".checkpoint-9.partial").mkdir()  # never sealed
    restore_complete(tmp_path)
    assert numbers(tmp_path) == [3] and newest_intact(tmp_path) == tmp_path / "checkpoint-3"
    assert (tmp_path / ".checkpoint-9.partial").is_dir()


def truncate(name: str) -> Callable[[Path], None]:
    def tear(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return tear


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    "harm",
    [
        truncate(RECIPE_STATE),
        truncate(TRAINER_STATE),
        truncate(TRAINING_STATE),
        remove(RECIPE_STATE),
        remove(TRAINER_STATE),
        remove(TRAINING_STATE),
    ],
)
def test_a_torn_checkpoint_is_named_and_what_to_do(
    saved: tuple[Session, Path], tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    folder = copy_of(saved, tmp_path)
    assert verify(folder) == ""
    harm(folder)
    assert "is missing" in verify(folder) or "does not match its checksum" in verify(folder)
    session = start(RECIPE)
    with pytest.raises(UsageError, match="cannot be read") as caught:
        load_checkpoint(folder, session.accelerator, session.run, History())
    assert str(folder) in str(caught.value) and "Delete that folder to resume from an older checkpoint" in str(
        caught.value
    )
    assert session.run.progress.step == 0


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE.replace("  - !QuantizationModifier {}\n", ""),
        RECIPE.replace("{}", "{quantize_embeddings: false}"),
        RECIPE.replace("0.8}", "0.8, params: [classifier.weight]}"),
        RECIPE + "  - !ConstantPruningModifier {start_epoch: 1}\n",
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(saved: tuple[Session, Path], recipe: str) -> None:
    session = start(recipe)
    before = session.state()["model"]["classifier.weight"]
    with pytest.raises(UsageError, match="with another recipe or model"):
        load_checkpoint(saved[1], session.accelerator, session.run, History())
    assert torch.equal(session.state()["model"]["classifier.weight"], before)


def test_a_checkpoint_of_another_model_is_refused(saved: tuple[Session, Path]) -> None:
    session = start(RECIPE, model=make_bert(num_labels=3))
    with pytest.raises(UsageError, match="with another recipe or model"):
        load_checkpoint(saved[1], session.accelerator, session.run, History())


# --- history, files ---------------------------------------------------------------------------------------------------


def test_the_best_is_the_first_of_equals_and_goes_with_its_metric() -> None:
    history = History("eval_accuracy", greater_is_better=True)
    values = [(1, 0.5), (2, 0.7), (3, 0.7), (4, 0.6)]
    assert [history.consider({"eval_accuracy": value}, step) for step, value in values] == [True, True, False, False]
    assert (history.best_step, history.best_metric) == (2, 0.7)
    history.add({"eval_accuracy": 0.6}, Progress(4, 3))
    record = json.loads(history.text(Progress(4, 3)))
    again, other = History("eval_accuracy", greater_is_better=True), History("eval_loss")
    again.load(record)
    other.load(record)
    assert again == history and other.best_step is None and list(other.log) == list(history.log)
    assert again.evaluations == list(again.log) and again.text(Progress(4, 3)) == history.text(Progress(4, 3))
    assert other.consider({"eval_loss": 2.0}, 5) and not other.consider({"eval_loss": 2.5}, 6)


def test_publishing_moves_every_file_into_place(tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    output.mkdir()
    (output / "model.safetensors").write_text("old")
    (output / "kept.txt").write_text("kept")
    (source / "model.safetensors").write_text("new")
    write_json(source / "figures.json", {"accuracy": torch.tensor(0.5), "folder": Path("x")})
    publish(source, output)
    assert not source.exists() and (output / "model.safetensors").read_text() == "new"
    assert (output / "kept.txt").exists()
    assert json.loads((output / "figures.json").read_text()) == {"accuracy": 0.5, "folder": "x"}
    assert not [name for name in os.listdir(output) if name.startswith(".")]
