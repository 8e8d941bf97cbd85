"""A training that resumes from a Trainer's checkpoint gives the same bytes as one that was not interrupted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from modifier_table import CASES, recipe_of, teacher_of
from trainers import RecipeTrainer, make_student, make_teacher, make_trainer
from transformers import EarlyStoppingCallback, TrainerCallback

from sparse_accel.errors import UsageError
from sparse_accel.nn.layers import masks, quantizers
from sparse_accel.recipe import load_recipe

ALL = """
modifiers:
  - !EpochRangeModifier {end_epoch: 4}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.01, final_lr: 0.001, end_epoch: 4}
  - !MovementPruningModifier {start_epoch: 0.4, end_epoch: 2.5, final_sparsity: 0.9, straight_through: true}
  - !QuantizationModifier {start_epoch: 2, disable_quantization_observer_epoch: 3}
  - !DistillationModifier {hardness: 0.5}
"""


def check_same_bytes(one: Any, other: Any) -> None:
    first, second = one.model.state_dict(), other.model.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    ours, theirs = masks(one.model), masks(other.model)
    assert ours.keys() == theirs.keys() and all(torch.equal(mask, theirs[name]) for name, mask in ours.items())
    for (name, a), b in zip(quantizers(one.model).items(), quantizers(other.model).values(), strict=True):
        assert torch.equal(a.scale, b.scale) and torch.equal(a.zero_point, b.zero_point), name
        assert (a.enabled, a.ready) == (b.enabled, b.ready), name


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("epochs", [1, 2.5, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.5, 2, 3.5, 4))])
def test_resumes_to_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, accumulation: int, epochs: float) -> None:
    """With dropout, in the middle of an epoch and between two, before and after each event of the recipe."""
    folder = tmp_path_factory.mktemp("run")
    steps_per_epoch = -(-21 // (8 * accumulation))

    def make() -> Any:
        return make_trainer(
            folder,
            ALL,
            model=make_student(dropout=0.1),
            teacher=make_teacher(),
            save_strategy="steps",
            save_steps=1,
            gradient_accumulation_steps=accumulation,
        )

    whole = make()
    whole.train()
    resumed = make()
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{int(epochs * steps_per_epoch)}"))
    check_same_bytes(whole, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_modifier(tmp_path: Path, case: str) -> None:
    name, entry = CASES[case]
    recipe = recipe_of(name, entry.keys)

    def make() -> Any:
        teacher, _ = teacher_of(load_recipe(recipe))
        model = make_student(dropout=0.1)
        return make_trainer(tmp_path, recipe, model=model, teacher=teacher, save_strategy="steps", save_steps=1)

    whole = make()
    whole.train()
    for step in (4, 6):  # after everything has begun, and after the last step
        resumed = make()
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        check_same_bytes(whole, resumed)


# --- the best checkpoint ----------------------------------------------------------------------------------------------

BEST = """
modifiers:
  - !EpochRangeModifier {end_epoch: 5}
  - !MagnitudePruningModifier {end_epoch: 2, init_sparsity: 0.5, final_sparsity: 0.9, update_frequency: 0.3}
  - !QuantizationModifier {start_epoch: 2}
"""


class Judge(RecipeTrainer):
    """Its evaluations give these accuracies, one an epoch."""

    accuracies: tuple[float, ...] = ()

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        found = super().evaluate(*args, **options)
        return found | {"eval_accuracy": self.accuracies[round(self.state.epoch or 0) - 1]}


def judged(folder: Path, *accuracies: float, **options: Any) -> Any:
    trainer = make_trainer(
        folder,
        BEST,
        kind=Judge,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        options=options,
    )
    trainer.accuracies = accuracies
    trainer.train()
    return trainer


def test_the_best_model_is_one_with_its_final_structure(tmp_path: Path) -> None:
    """Epochs 1 and 2 are better, but not yet as sparse and quantized; ranges move until the end."""
    trainer = judged(tmp_path, 0.99, 0.98, 0.7, 0.8, 0.75)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-12")
    assert trainer.state.best_metric == 0.8
    trainer.save_model(str(tmp_path / "best"))
    for name in ("model.safetensors", "quantization.json"):
        found = [(tmp_path / folder / name).read_bytes() for folder in ("best", "checkpoint-12", "checkpoint-15")]
        assert found[0] == found[1] != found[2], name
    weights = dict(trainer.model.named_parameters())  # those of the best, too
    assert all(not weights[name][~mask].any() for name, mask in masks(trainer.model).items())


def test_early_stopping_after_the_structure_is_final(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stopper = EarlyStoppingCallback(early_stopping_patience=1)
    trainer = judged(tmp_path, 0.1, 0.1, 0.1, 0.8, 0.7, callbacks=[stopper])
    assert trainer.state.best_metric == 0.8
    assert "before the recipe did" not in capfd.readouterr().err


def test_stopping_before_the_recipe_ends_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_training_stop = state.global_step == 4

    trainer = make_trainer(tmp_path, BEST, options={"callbacks": [Stop()]})
    trainer.train()
    assert "training ended at epoch 1.33, before the recipe did" in capfd.readouterr().err
    zeros = [1 - float(mask.float().mean()) for mask in masks(trainer.model).values()]
    assert max(zeros) < 0.89  # not cut to the final sparsity in one go


# --- what is refused --------------------------------------------------------------------------------------------------


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"teacher": make_teacher(), "save_strategy": "steps", "save_steps": 4}
    make_trainer(tmp_path, ALL, **options).train()
    folder = tmp_path / "checkpoint-4"

    def refused(recipe: str = ALL, **others: Any) -> str:
        with pytest.raises(UsageError) as found:
            make_trainer(tmp_path, recipe, **{**options, **others}).train(resume_from_checkpoint=str(folder))
        return str(found.value)

    changed = refused(ALL.replace("0.9,", "0.8,"))
    assert "belongs to another run: its modifiers are MovementPruningModifier(" in changed
    assert (
        changed.index("final_sparsity=0.9") < changed.index("but here they are") < changed.index("final_sparsity=0.8")
    )
    assert "its steps an epoch are 3, but here they are 6" in refused(per_device_train_batch_size=4)
    state = folder / "recipe_state.safetensors"
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    assert "recipe_state.safetensors cannot be read" in refused()
    state.unlink()
    assert "checkpoint-4 has no recipe_state.safetensors: it was written without this recipe" in refused()


def test_a_step_that_the_scaler_skips_moves_the_clock(tmp_path: Path) -> None:
    """The Trainer counts it; nothing of it is observed."""
    trainer = make_trainer(tmp_path, BEST)
    callback, run = trainer.recipe_callback, trainer.recipe_callback.run
    skipped: list[int] = []

    class Skip(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 6:  # the first step with quantization
                skipped.append(run.progress.step)

    original = callback.on_optimizer_step

    def on_optimizer_step(args: Any, state: Any, control: Any, optimizer: Any, **others: Any) -> None:
        done = SimpleNamespace(step_was_skipped=state.global_step == 6)
        original(args, state, control, optimizer=done)
        assert run.progress.step == state.global_step + 1

    callback.on_optimizer_step = on_optimizer_step
    trainer.add_callback(Skip())
    trainer.train()
    assert skipped == [6] and run.progress.step == 15
    assert all(quantizer.ready for quantizer in quantizers(trainer.model).values())
