"""RecipeRun in a loop of one's own, and what is refused before training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recipe_texts import magnitude
from tiny import make_bert, make_roberta, make_rows, make_tokenizer
from torch import nn
from torch.nn.utils import prune

from sparse_accel.data.batches import Collator
from sparse_accel.errors import UsageError
from sparse_accel.models.teacher import Teacher
from sparse_accel.modifiers import Modifier
from sparse_accel.nn.layers import masks, quantized_linears
from sparse_accel.progress import Progress
from sparse_accel.recipe import RecipeError, load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.tasks import TextClassification, task_of

RECIPE = """
modifiers:
  - !EpochRangeModifier {end_epoch: 3}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.01, final_lr: 0, end_epoch: 3}
  - !MagnitudePruningModifier {end_epoch: 2, final_sparsity: 0.8}
  - !QuantizationModifier {start_epoch: 1, disable_quantization_observer_epoch: 2}
  - !DistillationModifier {hardness: 0.5}
"""


def batches() -> list[dict[str, Any]]:
    rows = make_rows(12)
    return [Collator(make_tokenizer())(rows[start : start + 4]) for start in (0, 4, 8)]


def test_a_loop_of_ones_own_in_plain_pytorch() -> None:
    """As the docstring of RecipeRun has it, without Accelerate; the teacher is asked live."""
    model, loader = make_bert(), batches()
    run = RecipeRun(load_recipe(RECIPE), teacher=Teacher(make_bert(seed=1)))
    run.attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    run.bind(None, model, optimizer, steps_per_epoch=len(loader))
    rates, phases, parts = [], [], []
    for _ in range(run.max_epochs):
        for batch in loader:
            run.step_begin()
            outputs = model(**batch)
            terms = run.losses(outputs.loss, batch, outputs)
            assert terms["loss"].shape == ()
            terms["loss"].backward()
            run.grads_ready()
            optimizer.step()
            optimizer.zero_grad()
            rates.append(run.learning_rate())
            phases.append(run.phase())
            parts.append({name: float(value.detach()) for name, value in terms.items()})
            run.step_end()
    run.finish()
    assert rates == pytest.approx([0.01 * (1 - step / 9) for step in range(9)])
    assert phases[0] == "pruning, distilled" and phases[-1] == "pruned, distilled, QAT, ranges frozen"
    for found in parts:
        mixed = 0.5 * found["task_loss"] + 0.5 * found["distillation_loss"]
        assert found["loss"] == pytest.approx(mixed, abs=1e-6)
    for name, mask in masks(model).items():
        assert int((~mask).sum()) == round(0.8 * mask.numel())
        assert (model.get_parameter(name)[~mask] == 0).all()
    assert quantized_linears(model) == (14, 14) and run.structure_final()
    assert run.metrics() == {"quantization/phase": 2.0}


def test_accumulated_by_hand_and_skipped_by_a_scaler() -> None:
    model, loader = make_bert(), batches()
    run = RecipeRun(load_recipe(RECIPE.replace("  - !DistillationModifier {hardness: 0.5}\n", "")))
    run.attach(model)
    optimizer = torch.optim.AdamW(model.parameters())
    run.bind(None, model, optimizer, steps_per_epoch=1)
    for number in range(4):
        run.step_begin()
        for batch in loader:
            (run.loss(model(**batch).loss, batch, {}) / len(loader)).backward()
        run.grads_ready()
        optimizer.step()
        optimizer.zero_grad()
        run.step_end(skipped=number == 1)
    assert run.progress.step == 3


def test_without_a_recipe_nothing_happens() -> None:
    model = make_bert()
    run = RecipeRun()
    run.attach(model)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.5), steps_per_epoch=0)
    run.step_begin()
    loss = torch.tensor(1.0)
    assert run.loss(loss, {}, {}) is loss and run.max_epochs == 0 and run.phase() == ""
    run.step_end()
    run.finish()
    assert list(run.state_dict()) == ["step"] and run.learning_rate() == 0.5 and run.structure_final()


def test_the_base_rate_holds_until_a_modifier_begins() -> None:
    model = nn.Linear(1, 1)
    recipe = "modifiers:\n  - !SetLearningRateModifier {start_epoch: 1, learning_rate: 0.25}"
    run = RecipeRun(load_recipe(recipe), lr_schedule=lambda progress: 0.5 + progress.step)
    run.attach(model)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=9.0), steps_per_epoch=2)
    rates = []
    for _ in range(4):
        run.step_begin()
        rates.append(run.learning_rate())
        run.step_end()
    assert rates == [0.5, 1.5, 0.25, 0.25]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_recipe_that_distils_needs_a_teacher() -> None:
    with pytest.raises(UsageError, match="there is no teacher: pass --distill_teacher PATH"):
        RecipeRun(load_recipe(RECIPE)).attach(make_bert())
    run = RecipeRun(load_recipe(RECIPE), teacher="disable")
    run.attach(make_bert())
    assert "DistillationModifier" not in [modifier.name for modifier in run.modifiers]
    assert run.left_out == ["DistillationModifier"]


def test_the_recipe_of_a_run_is_the_one_that_is_applied() -> None:
    """What is left out is in no record of a run; the number of epochs stays."""
    text = (
        "late: 2\nmodifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 2}\n"
        "distillation_modifiers:\n  - !DistillationModifier {end_epoch: eval(late)}\n"
    )
    stages = (
        "one:\n  start: 1\n  modifiers:\n    - !DistillationModifier {}\n"
        "two:\n  modifiers:\n    - !EpochRangeModifier {start_epoch: 0, end_epoch: 2}\n"
    )
    for recipe in (load_recipe(text), load_recipe(stages)):
        run = RecipeRun(recipe, teacher="disable")
        assert run.recipe is not None and run.max_epochs == recipe.max_epochs
        again = load_recipe(run.recipe.resolved())
        assert [modifier.name for modifier in again.modifiers] == ["EpochRangeModifier"] and again == run.recipe
        assert "DistillationModifier" in recipe.resolved()
    alone = RecipeRun(load_recipe("modifiers:\n  - !DistillationModifier {end_epoch: 3}\n"), teacher="disable")
    assert alone.recipe is None and alone.max_epochs == 3 and not alone.modifiers


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("QuantizationModifier {start_epoch: 1}", "QuantizationModifier {start_epoch: 2}"),
        ("DistillationModifier {end_epoch: 2}", "DistillationModifier {start_epoch: 1}"),
        ("DistillationModifier {}", "DistillationModifier {hardness: 0.1}"),
    ],
)
def test_two_that_act_at_the_same_time_are_refused_when_read(first: str, second: str) -> None:
    with pytest.raises(RecipeError, match=r"two of this kind act at the same time from epoch \d.*line \d"):
        load_recipe(f"modifiers:\n  - !{first}\n  - !{second}")


def test_two_distillations_one_after_the_other_are_fine() -> None:
    text = "modifiers:\n  - !DistillationModifier {end_epoch: 1}\n  - !DistillationModifier {start_epoch: 1}"
    assert len(load_recipe(text).modifiers) == 2


def test_a_freeze_before_the_start_is_refused_when_read() -> None:
    text = "modifiers:\n  - !QuantizationModifier {start_epoch: 2, disable_quantization_observer_epoch: 1.5}"
    with pytest.raises(RecipeError, match=r"would freeze at epoch 1\.5, before quantization begins at epoch 2"):
        load_recipe(text)


def test_patterns_of_bert_in_another_model_name_near_misses() -> None:
    recipe = load_recipe(magnitude("params: ['re:bert.encoder.layer.*dense.weight'], end_epoch: 1"))
    with pytest.raises(UsageError, match=r"re:bert\.encoder.*matches no parameter of this model.*roberta\.encoder"):
        RecipeRun(recipe).attach(make_roberta())


# --- state ------------------------------------------------------------------------------------------------------------


def test_state_names_each_modifier() -> None:
    model = make_bert()
    run = RecipeRun(load_recipe(RECIPE), teacher=Teacher(make_bert(seed=1)))
    run.attach(model)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.0), steps_per_epoch=1)
    keys = list(run.state_dict())
    assert keys[0] == "step" and all(key.split(":")[1].endswith("Modifier") for key in keys[1:])
    kinds = {key.split(":")[1] for key in keys[1:]}
    assert kinds == {"MagnitudePruningModifier", "QuantizationModifier"}  # the others are functions of the clock


def test_clock() -> None:
    clock = Progress(0, 10)
    assert clock.reached(-1) and clock.reached(0) and not clock.reached(0.01) and clock.begins(0) and clock.begins(-1)
    assert Progress(3, 10).reached(0.1 * 3) and not Progress(2, 10).reached(0.1 * 3)  # 0.1 * 3 is above 0.3
    assert [step for step in range(40) if Progress(step, 10).begins(0.75)] == [8]
    assert Progress(7, 10).next() == Progress(8, 10) and Progress(7, 10).previous() == Progress(6, 10)
    assert Progress(7, 10).epoch == 0.7


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "single_label_classification"),
        ({"num_labels": 1}, "regression"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "multi_label_classification"),
    ],
)
def test_problem_types_are_those_of_transformers(settings: dict[str, Any], expected: str) -> None:
    for model, problem_type in ((make_bert(**settings), expected), (nn.Linear(1, 1), "single_label_classification")):
        task = task_of(model)
        assert isinstance(task, TextClassification) and task.problem_type == problem_type


def test_a_modifier_that_does_nothing_does_nothing() -> None:
    modifier = Modifier()
    assert (
        modifier.loss_terms({}, {}) == {} and modifier.task_weight() == 1 and modifier.structure_final(Progress(0, 1))
    )
    assert modifier.state_dict() == {} and modifier.metrics() == {} and modifier.phase() == "" and not modifier.events()


@pytest.mark.parametrize("recipe", [None, "modifiers:\n  - !SetLearningRateModifier {learning_rate: 0.1}\n"])
def test_zeros_that_training_will_lose_are_named(recipe: str | None) -> None:
    """A sparse model trained without a modifier that keeps its zeros becomes dense."""
    run = RecipeRun(load_recipe(recipe) if recipe else None)
    run.attach(make_bert(sparsity=0.9))
    (notice,) = run.training_notices
    assert notice.startswith("90.0% of the weights of 12 layers") and "ConstantPruningModifier" in notice


def test_zeros_that_are_kept_or_frozen_are_not_named() -> None:
    for recipe in (
        "!ConstantPruningModifier {}",
        "!TrainableParamsModifier {params: __ALL_PRUNABLE__, trainable: false}",
    ):
        run = RecipeRun(load_recipe(f"modifiers:\n  - {recipe}\n"))
        run.attach(make_bert(sparsity=0.9))
        assert run.training_notices == []
    dense = RecipeRun()
    dense.attach(make_bert())
    assert dense.training_notices == []


def test_zeros_are_counted_only_where_they_can_be() -> None:
    """Weights pruned by torch are computed from others, those on `meta` have no values, a new head may be all zero."""
    model: Any = make_bert()
    prune.l1_unstructured(model.bert.encoder.layer[0].output.dense, "weight", amount=0.5)
    nn.init.zeros_(model.classifier.weight)
    for each in (model, make_bert().to("meta")):
        run = RecipeRun()
        run.attach(each)
        assert run.training_notices == []


def test_the_fraction_of_zeros_is_of_all_weights() -> None:
    model: Any = make_bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[1:] = 0
        model.classifier.weight[0, :16] = 0
    run = RecipeRun()
    run.attach(model)
    large, small = model.bert.encoder.layer[0].output.dense.weight, model.classifier.weight
    expected = (int((large == 0).sum()) + 16) / (large.numel() + small.numel())
    assert run.training_notices[0].startswith(f"{expected:.1%} of the weights of 2 layers")
