"""What a Trainer cannot give is refused when it is made, or before the first step, with the reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import make_bert, make_rows
from torch import nn
from trainers import RecipeTrainer, arguments, make_student, make_teacher, make_trainer
from transformers import Trainer

from sparse_accel.errors import UsageError
from sparse_accel.integrations import RecipeCallback
from sparse_accel.integrations.limits import check_arguments
from sparse_accel.recipe import RecipeError

PLAIN = """
modifiers:
  - !EpochRangeModifier {end_epoch: 2}
  - !ConstantPruningModifier {params: __ALL_PRUNABLE__}
"""
DISTILLATION = f"{PLAIN}  - !DistillationModifier {{hardness: 0.5}}\n"
MOVEMENT = """
modifiers:
  - !EpochRangeModifier {end_epoch: 2}
  - !MovementPruningModifier {end_epoch: 1, final_sparsity: 0.8}
"""
SECOND_ORDER = """
modifiers:
  - !OBSPruningModifier {end_epoch: 2, update_frequency: 0.5, final_sparsity: 0.8, num_grads: 2}
"""


def refused(folder: Path, recipe: str, *, trains: bool = False, **options: Any) -> str:
    with pytest.raises(UsageError) as found:
        trainer = make_trainer(folder, recipe, **options)
        if trains:
            trainer.train()
    return str(found.value)


def alone(folder: Path, recipe: str, *, trains: bool = False, **settings: Any) -> str:
    options = {"callbacks": [RecipeCallback(recipe)]}
    return refused(folder, "", kind=Trainer, options=options, trains=trains, **settings)


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "auto_find_batch_size": ({"auto_find_batch_size": True}, "find the batch size first, and set it"),
    "use_liger_kernel": ({"use_liger_kernel": True}, "replaces layers after they have got masks"),
    "torch_compile": ({"torch_compile": True}, "torch_compile: a Trainer compiles the model for fixed shapes"),
    "fp16_full_eval": ({"fp16_full_eval": True}, "round the ranges of quantizers to 16 bits"),
    "bf16_full_eval": ({"bf16_full_eval": True}, "round the ranges of quantizers to 16 bits"),
    "lomo": ({"optim": "lomo"}, "optim lomo updates weights in the backward"),
    "layerwise": ({"optim": "galore_adamw_layerwise"}, "optim galore_adamw_layerwise updates weights"),
    "deepspeed": ({"deepspeed": {"zero_optimization": {"stage": 1}}}, "DeepSpeed: a Trainer saves and loads"),
    "fsdp": ({"fsdp": "full_shard"}, "FSDP: a Trainer saves and loads its sharded weights past the recipe"),
    "parallelism_config": ({"parallelism_config": object()}, "masks and ranges are not split over processes"),
    "several GPUs": ({"n_gpu": 2}, "one process has 2 GPUs, so the Trainer copies the model"),
}


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("trainer", [None, SimpleNamespace()])
def test_arguments(tmp_path: Path, case: str, trainer: Any) -> None:
    """With stand-ins for arguments that need other hardware or packages."""
    changed, message = SETTINGS[case]
    ordinary = {**vars(arguments(tmp_path)), "n_gpu": 0, "world_size": 1}
    check_arguments(SimpleNamespace(**ordinary), trainer)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as found:
        check_arguments(SimpleNamespace(**{**ordinary, **changed}), trainer)  # type: ignore[arg-type]
    assert message in str(found.value)


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP"])
def test_launchers(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path)
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(UsageError, match="saves and loads its sharded weights past the recipe"):
        check_arguments(args, SimpleNamespace())  # type: ignore[arg-type]


# --- the callback alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (DISTILLATION, "<text>:5: DistillationModifier needs the loss, and a Trainer gives a callback neither"),
        (MOVEMENT, "MovementPruningModifier needs gradients before they are clipped"),
        (SECOND_ORDER, "OBSPruningModifier needs gradients"),
        (
            f"{PLAIN}  - !TrainableParamsModifier {{params: classifier.bias, trainable: false, end_epoch: 1}}\n",
            "TrainableParamsModifier needs gradients before they are clipped",
        ),
    ],
)
def test_losses_and_gradients(tmp_path: Path, recipe: str, message: str) -> None:
    found = alone(tmp_path, recipe)
    assert message in found
    assert "use RecipeMixin: class MyTrainer(RecipeMixin, Trainer)" in found


def test_settings_of_a_callback_alone(tmp_path: Path) -> None:
    best: dict[str, Any] = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    assert "load_best_model_at_end: a Trainer does not tell a callback" in alone(tmp_path, PLAIN, **best)
    several = SimpleNamespace(**{**vars(arguments(tmp_path)), "n_gpu": 0, "world_size": 2})
    with pytest.raises(UsageError, match="set ddp_broadcast_buffers=False in TrainingArguments, or use RecipeMixin"):
        check_arguments(several, None)  # type: ignore[arg-type]
    several.ddp_broadcast_buffers = False
    check_arguments(several, None)  # type: ignore[arg-type]


def test_a_callback_alone_does_not_resume(tmp_path: Path) -> None:
    options: dict[str, Any] = {"kind": Trainer, "save_strategy": "epoch"}
    make_trainer(tmp_path, "", options={"callbacks": [RecipeCallback(PLAIN)]}, **options).train()
    with pytest.raises(UsageError, match="does not tell a callback which checkpoint it resumes from"):
        trainer = make_trainer(tmp_path, "", options={"callbacks": [RecipeCallback(PLAIN)]}, **options)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_callback_that_comes_too_late(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "", kind=Trainer)
    trainer.add_callback(RecipeCallback(PLAIN))
    with pytest.raises(UsageError, match="was added after the Trainer was made"):
        trainer.train()


# --- models and losses ------------------------------------------------------------------------------------------------


def test_models(tmp_path: Path) -> None:
    adapter: Any = make_bert()
    adapter.peft_config = {}
    assert "PEFT: the files of an adapter" in refused(tmp_path, PLAIN, model=adapter)
    assert "Linear has no save_pretrained" in refused(tmp_path, PLAIN, model=nn.Linear(2, 2))
    with pytest.raises(UsageError, match="the model is another one than when the Trainer was made"):
        rows = make_rows(21)
        args = arguments(tmp_path)
        RecipeTrainer(None, args, train_dataset=rows, recipe=PLAIN, model_init=lambda: make_student()).train()


def test_one_recipe_for_a_model(tmp_path: Path) -> None:
    both = {"callbacks": [RecipeCallback(PLAIN)]}
    assert "the model already has a recipe" in refused(tmp_path, PLAIN, options=both)
    trainer = make_trainer(tmp_path, PLAIN)
    assert "the model already has a recipe" in refused(tmp_path, PLAIN, model=trainer.model)
    with pytest.raises(UsageError, match=r"call model.push_to_hub\(\.\.\.\) or trainer.push_to_hub\(\)"):
        trainer.model.save_pretrained(tmp_path / "model", push_to_hub=True)


def test_second_order_needs_the_loss_of_the_model(tmp_path: Path) -> None:
    class Doubled(RecipeTrainer):
        def compute_loss(self, *args: Any, **options: Any) -> Any:
            return super().compute_loss(*args, **options)

    func = {"compute_loss_func": lambda outputs, labels, num_items_in_batch: outputs["logits"].sum()}
    where = "draws gradient samples of the loss that the model itself computes, but this Trainer trains on another"
    assert f"{where} (compute_loss_func)" in refused(tmp_path, SECOND_ORDER, options=func)
    assert f"{where} (label_smoothing_factor)" in refused(tmp_path, SECOND_ORDER, label_smoothing_factor=0.1)
    assert f"{where} (Doubled.compute_loss)" in refused(tmp_path, SECOND_ORDER, kind=Doubled)


def test_fp16_with_gradients(tmp_path: Path) -> None:
    class Half(RecipeTrainer):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            self.accelerator.state._mixed_precision = "fp16"

    assert "use bf16 instead of fp16" in refused(tmp_path, MOVEMENT, kind=Half)
    make_trainer(tmp_path, PLAIN, kind=Half)


def test_teachers(tmp_path: Path) -> None:
    assert "there is no teacher" in refused(tmp_path, DISTILLATION)
    assert "teacher has no effect: the recipe has no DistillationModifier" in refused(
        tmp_path, PLAIN, teacher=make_teacher()
    )
    student = make_student()
    assert "teacher is the model itself" in refused(tmp_path, DISTILLATION, model=student, teacher=student)

    class Tuples(RecipeTrainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            return {**super()._prepare_inputs(inputs), "return_dict": False}

    message = refused(tmp_path, DISTILLATION, kind=Tuples, teacher=make_teacher(), trains=True)
    assert "the model returned a tuple, but distillation needs outputs by name" in message


# --- the clock --------------------------------------------------------------------------------------------------------


def test_epochs_are_those_of_the_recipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = refused(tmp_path, PLAIN, trains=True, max_steps=4)
    assert "the Trainer runs 4 steps, but the recipe 2 epochs of 3: leave max_steps out" in message
    trainer = make_trainer(tmp_path, PLAIN, num_train_epochs=5)
    trainer.train()
    assert trainer.state.global_step == 6
    assert "num_train_epochs 5 is overridden: the recipe runs 2" in capfd.readouterr().err
    make_trainer(tmp_path, PLAIN, max_steps=6).train()
    with pytest.raises(UsageError, match=r"train\(\) was called twice"):
        trainer.train()


def test_rates_that_the_recipe_overrides_are_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = f"{PLAIN}  - !SetLearningRateModifier {{learning_rate: 0.003, start_epoch: %s}}\n"
    make_trainer(tmp_path, recipe % 0, warmup_steps=3)
    whole = capfd.readouterr().err
    assert "learning_rate, lr_scheduler_type, warmup_steps of TrainingArguments: overridden, because" in whole
    make_trainer(tmp_path, recipe % 1)
    part = capfd.readouterr().err
    assert "overridden for parameter group 0 from epoch 1 on, group 1 from epoch 1 on, because the recipe" in part
    make_trainer(tmp_path, PLAIN)
    assert "overridden" not in capfd.readouterr().err


def test_rows_without_a_length(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(make_rows(21))

    message = refused(tmp_path, PLAIN, options={"train_dataset": Stream()}, trains=True, max_steps=6)
    assert "the training rows have no length, so the epochs of the recipe have none" in message


def test_errors_of_recipes_come_first(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="NoSuchModifier"):
        make_trainer(tmp_path, "modifiers: [!NoSuchModifier {}]\n", model=nn.Linear(2, 2))
