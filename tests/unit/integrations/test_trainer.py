"""A recipe in a transformers Trainer trains the same model as in a loop of one's own, within rounding."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from modifier_table import CASES, Case, recipe_of, teacher_of
from tiny import make_tokenizer
from torch import Tensor, nn
from trainers import (
    RecipeTrainer,
    arguments,
    largest_difference,
    losses_of,
    make_student,
    make_teacher,
    make_trainer,
    own_loop,
)
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback

import sparse_accel
from sparse_accel.integrations import RecipeCallback
from sparse_accel.models.files import save_model
from sparse_accel.models.teacher import Teacher
from sparse_accel.nn.layers import masks, quantizers
from sparse_accel.recipe import load_recipe

# What a Trainer may differ by from a loop of one's own, in losses and weights: rounding of float32.
ROUNDING = 1e-6

NO_TEACHER = """
modifiers:
  - !EpochRangeModifier {end_epoch: 4}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.01, final_lr: 0.001, end_epoch: 4}
  - !MagnitudePruningModifier
      {start_epoch: 0.4, end_epoch: 2.5, init_sparsity: 0.5, final_sparsity: 0.9, update_frequency: 0.3}
  - !QuantizationModifier {start_epoch: 2, disable_quantization_observer_epoch: 3}
"""
ALL = f"{NO_TEACHER}  - !DistillationModifier {{hardness: 0.5}}\n"
MOVEMENT = """
modifiers:
  - !EpochRangeModifier {end_epoch: 3}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.01, final_lr: 0.001, end_epoch: 3}
  - !MovementPruningModifier {end_epoch: 2, final_sparsity: 0.8, straight_through: true}
"""
SECOND_ORDER = """
modifiers:
  - !EpochRangeModifier {end_epoch: 2}
  - !OBSPruningModifier
      {end_epoch: 2, update_frequency: 0.5, init_sparsity: 0.6, final_sparsity: 0.9, num_grads: 6}
"""


def check_same(trainer: Any, own: Any) -> None:
    found = losses_of(trainer)
    assert len(found) == len(own.losses) == trainer.state.max_steps
    assert max(abs(one - other) for one, other in zip(found, own.losses, strict=True)) <= ROUNDING
    assert largest_difference(trainer.model, own.model) <= ROUNDING
    pairs = zip(quantizers(trainer.model).values(), quantizers(own.model).values(), strict=True)
    assert all(torch.allclose(one.scale, other.scale, atol=ROUNDING) for one, other in pairs)


# The rate of the Trainer's own scheduler is another in every step: the recipe's must win.
@pytest.mark.parametrize(("accumulation", "rows"), [(1, 21), (2, 21), (2, 29)])
def test_masks_quantization_rate_and_distillation(tmp_path: Path, accumulation: int, rows: int) -> None:
    options: dict[str, Any] = {"lr_scheduler_type": "linear", "gradient_accumulation_steps": accumulation, "rows": rows}
    trainer = make_trainer(tmp_path, ALL, teacher=make_teacher(), **options)
    trainer.train()
    own = own_loop(ALL, trainer.steps, teacher=make_teacher(), rows=rows)
    check_same(trainer, own)
    assert max(len(step) for step in trainer.steps) == accumulation
    assert losses_of(trainer)[-1] != losses_of(trainer)[0]


def test_gradients_come_before_clipping(tmp_path: Path) -> None:
    """Scores of movement pruning are sums of gradients, so clipped gradients would give others."""
    trainer = make_trainer(tmp_path, MOVEMENT, max_grad_norm=0.01)
    trainer.train()
    own = own_loop(MOVEMENT, trainer.steps, clip=0.01)
    check_same(trainer, own)
    states = trainer.recipe_callback.run.state_dict(), own.run.state_dict()
    scores = [name for name in states[0] if ":score:" in name]
    assert len(scores) == 14
    for name in scores:
        assert torch.allclose(states[0][name], states[1][name], atol=ROUNDING), name
    assert min(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry) > 0.02


@pytest.mark.parametrize("accumulation", [1, 2])
def test_second_order(tmp_path: Path, accumulation: int) -> None:
    trainer = make_trainer(tmp_path, SECOND_ORDER, gradient_accumulation_steps=accumulation)
    trainer.train()
    check_same(trainer, own_loop(SECOND_ORDER, trainer.steps))


@pytest.mark.parametrize("case", CASES)
def test_every_modifier(tmp_path: Path, case: str) -> None:
    """Those of the table, each in a Trainer and in a loop of one's own."""
    name, entry = CASES[case]
    recipe = recipe_of(name, entry.keys)
    teacher, _ = teacher_of(load_recipe(recipe))
    trainer = make_trainer(tmp_path, recipe, teacher=teacher, learning_rate=1e-2)
    trainer.train()
    own = own_loop(recipe, trainer.steps, teacher=None if teacher is None else teacher.model)
    check_same(trainer, own)
    check_pruned(trainer.model, entry)


def check_pruned(model: Any, entry: Case) -> None:
    assert model.config.num_hidden_layers == entry.blocks
    found = masks(model)
    weights = dict(model.named_parameters())
    for name, mask in found.items():
        assert not weights[name][~mask].any(), name
    if entry.pruned and found:
        zeros = 1 - sum(int(mask.sum()) for mask in found.values()) / sum(mask.numel() for mask in found.values())
        assert math.isclose(zeros, entry.pruned, abs_tol=0.02)


def test_labels_weigh_the_same_in_every_micro_batch(tmp_path: Path) -> None:
    """Without a recipe, a Trainer adds up the mean losses of micro-batches of models that ignore num_items_in_batch."""
    recipe = "modifiers: [!EpochRangeModifier {end_epoch: 1}]\n"
    found = []
    for accumulation in (1, 2):
        sizes: dict[str, Any] = {
            "gradient_accumulation_steps": accumulation,
            "per_device_train_batch_size": 8 // accumulation,
        }
        trainer = make_trainer(tmp_path, recipe, learning_rate=0.0, **sizes)
        trainer.train()
        found.append([(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_label_smoothing_and_compute_loss_func(tmp_path: Path) -> None:
    """The loss is the Trainer's; the recipe adds its terms."""

    def double(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return 2.0 * torch.nn.functional.cross_entropy(outputs["logits"], labels)

    plain = make_trainer(tmp_path, ALL, teacher=make_teacher(), max_grad_norm=0.0)
    plain.train()
    doubled = make_trainer(tmp_path, ALL, teacher=make_teacher(), options={"compute_loss_func": double})
    doubled.train()
    smoothed = make_trainer(tmp_path, ALL, teacher=make_teacher(), label_smoothing_factor=0.5)
    smoothed.train()
    first, second, third = (trainer.state.log_history[0] for trainer in (plain, doubled, smoothed))
    assert second["task_loss"] == pytest.approx(2 * first["task_loss"])
    assert second["distillation_loss"] == third["distillation_loss"] == first["distillation_loss"]
    assert second["loss"] == pytest.approx(first["task_loss"] + 0.5 * first["distillation_loss"])
    assert third["task_loss"] != first["task_loss"]


# --- what is logged, evaluated, saved ---------------------------------------------------------------------------------


def test_figures_are_logged(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
            seen.append(dict(logs))

    trainer = make_trainer(
        tmp_path, ALL, teacher=make_teacher(), options={"callbacks": [Tracker()]}, lr_scheduler_type="linear"
    )
    trainer.train()
    logged = [entry for entry in seen if "loss" in entry]
    for entry in logged:
        assert entry["loss"] == pytest.approx(0.5 * entry["task_loss"] + 0.5 * entry["distillation_loss"], rel=1e-5)
    # The rate that the optimizer used, not that of the scheduler.
    assert [entry["learning_rate"] for entry in logged] == pytest.approx([0.01 - 0.009 * n / 12 for n in range(12)])
    assert logged[-1]["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert [entry["quantization/phase"] for entry in logged] == [0.0] * 6 + [1.0] * 3 + [2.0] * 3


def test_figures_are_means_over_the_steps_of_a_log(tmp_path: Path) -> None:
    each, some = (make_trainer(tmp_path, ALL, teacher=make_teacher(), logging_steps=n) for n in (1, 4))
    each.train()
    some.train()
    wanted = [entry["task_loss"] for entry in each.state.log_history if "loss" in entry]
    found = [entry["task_loss"] for entry in some.state.log_history if "loss" in entry]
    assert found == pytest.approx([sum(wanted[n : n + 4]) / 4 for n in (0, 4, 8)])


def test_evaluations_do_not_move_ranges(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [{}, {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}]
    found = []
    for setting in settings:
        trainer = make_trainer(tmp_path, ALL, teacher=make_teacher(), **setting)
        trainer.train()
        found.append(trainer)
    assert largest_difference(found[0].model, found[1].model) == 0.0
    for one, other in zip(*(quantizers(trainer.model).values() for trainer in found), strict=True):
        assert torch.equal(one.scale, other.scale)
    last = [entry for entry in found[1].state.log_history if "eval_loss" in entry][-1]["eval_loss"]
    assert found[1].evaluate()["eval_loss"] == last  # the last evaluation was of the finished model


def outputs_of(model: nn.Module) -> Tensor:
    inputs = make_tokenizer()(["good film", "the plot was very boring"], padding=True, return_tensors="pt")
    with torch.no_grad():
        found: Tensor = model.eval()(**inputs)["logits"]
    return found


def test_saved_model_and_checkpoints(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ALL, teacher=make_teacher(), save_strategy="epoch")
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    reference = tmp_path / "reference"
    save_model(reference, trainer.accelerator, trainer.model, make_tokenizer())
    for name in ("model.safetensors", "quantization.json"):
        assert (tmp_path / "final" / name).read_bytes() == (reference / name).read_bytes(), name
    for folder in (tmp_path / "final", tmp_path / "checkpoint-12"):
        loaded = sparse_accel.load(folder)
        assert torch.equal(outputs_of(loaded), outputs_of(trainer.model))
        floats: Any = AutoModelForSequenceClassification.from_pretrained(folder)
        assert not quantizers(floats) and not torch.equal(outputs_of(floats), outputs_of(loaded))
    early: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-6")
    weight = early.bert.encoder.layer[0].attention.self.query.weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.875, abs=0.02)  # exact zeros in training, too
    assert not (tmp_path / "checkpoint-6" / "quantization.json").exists()  # QAT begins in the next step
    assert (tmp_path / "checkpoint-9" / "quantization.json").exists()


def test_a_copy_saves_its_own_weights(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, NO_TEACHER)
    trainer.train()
    copied = copy.deepcopy(trainer.model)
    with torch.no_grad():
        copied.classifier.bias.fill_(5.0)
    copied.save_pretrained(tmp_path / "copy")
    saved: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "copy")
    assert saved.classifier.bias.tolist() == [5.0, 5.0]


def test_dropped_layers_are_not_in_files(tmp_path: Path) -> None:
    recipe = """
modifiers:
  - !EpochRangeModifier {end_epoch: 2}
  - !LayerPruningModifier {layers: bert.encoder.layer.0, start_epoch: 1}
"""
    trainer = make_trainer(tmp_path, recipe, save_strategy="steps", save_steps=1)
    trainer.train()
    for step, blocks in ((3, 2), (4, 1), (6, 1)):
        found: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{step}")
        assert len(found.bert.encoder.layer) == found.config.num_hidden_layers == blocks


# --- the callback alone, teachers -------------------------------------------------------------------------------------


def test_callback_alone(tmp_path: Path) -> None:
    """Masks, quantization and learning rate in the plain Trainer, and what it saves."""
    alone = make_trainer(
        tmp_path / "alone",
        "",
        kind=Trainer,
        options={"callbacks": [RecipeCallback(NO_TEACHER)]},
        lr_scheduler_type="linear",
        save_strategy="epoch",
    )
    alone.train()
    mixed = make_trainer(tmp_path / "mixed", NO_TEACHER)
    mixed.train()
    assert losses_of(alone) == losses_of(mixed)
    rates = [entry["learning_rate"] for entry in alone.state.log_history if "learning_rate" in entry]
    assert rates == [entry["learning_rate"] for entry in mixed.state.log_history if "learning_rate" in entry]
    assert largest_difference(alone.model, mixed.model) == 0.0
    alone.save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "final", tmp_path / "alone" / "checkpoint-12"):
        assert torch.equal(outputs_of(sparse_accel.load(folder)), outputs_of(alone.model))


def test_ways_to_name_a_teacher(tmp_path: Path) -> None:
    teacher: Any = make_teacher()
    teacher.config.id2label, teacher.config.label2id = {0: "good", 1: "bad"}, {"good": 0, "bad": 1}
    teacher.save_pretrained(tmp_path / "teacher")
    make_tokenizer().save_pretrained(tmp_path / "teacher")
    losses = []
    for given in (Teacher(copy.deepcopy(teacher), [1, 0]), copy.deepcopy(teacher), str(tmp_path / "teacher")):
        student: Any = make_student()
        student.config.id2label, student.config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
        trainer = make_trainer(tmp_path, ALL, model=student, teacher=given)
        trainer.train()
        losses.append(losses_of(trainer))
    assert losses[0] == losses[1] == losses[2]
    left_out = make_trainer(tmp_path, ALL, teacher="disable")
    left_out.train()
    assert losses_of(left_out) != losses[0]


def test_gradient_checkpointing_and_bf16(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path, ALL, teacher=make_teacher())
    plain.train()
    recomputed = make_trainer(tmp_path, ALL, teacher=make_teacher(), gradient_checkpointing=True)
    recomputed.train()
    assert losses_of(recomputed) == pytest.approx(losses_of(plain), abs=ROUNDING)
    narrow = make_trainer(tmp_path, ALL, teacher=make_teacher(), bf16=True)
    narrow.train()
    assert losses_of(narrow)[0] == pytest.approx(losses_of(plain)[0], rel=0.02)
    assert losses_of(narrow)[0] != losses_of(plain)[0]
    arguments(tmp_path)  # resets Accelerate's state: bf16 would be the precision of the next tests of this process


def test_mixin_comes_first() -> None:
    with pytest.raises(TypeError, match="RecipeMixin must come before the Trainer"):
        type("Wrong", (Trainer, RecipeTrainer.__mro__[1]), {})
