"""One table of all modifiers. It drives parsing, training and resuming for each of them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from loop import ROWS, Session, assert_same, figures_of, make_accelerator, start
from tiny import make_bert, make_rows, make_tokenizer

from sparse_accel.models.teacher import Teacher
from sparse_accel.modifiers import REGISTRY
from sparse_accel.recipe import Recipe, load_recipe

EPOCHS, STEPS = 2, 3
RESUMED_AT = (1, 3, 5, 6)  # inside an epoch, between two, and after the last step

# Minimal recipes of each modifier; what begins, changes or ends does so inside an epoch, too.
TABLE: dict[str, list[str]] = {
    "EpochRangeModifier": [""],
    "LearningRateFunctionModifier": [
        "{lr_func: linear, init_lr: 0.01, final_lr: 0, end_epoch: 2}",
        "{lr_func: cosine, init_lr: 0.01, final_lr: 0.001, start_epoch: 0.5, end_epoch: 1.5}",
        "{lr_func: cyclic_linear, init_lr: 0.01, final_lr: 0.001, end_epoch: 2, cycle_epochs: 0.7}",
    ],
    "LearningRateModifier": [
        "{lr_class: StepLR, lr_kwargs: {gamma: 0.5, step_size: 0.5}, init_lr: 0.01}",
        "{lr_class: CosineAnnealingWarmRestarts, lr_kwargs: {lr_min: 0.001, cycle_epochs: 1}, init_lr: 0.01}",
    ],
    "SetLearningRateModifier": ["{learning_rate: 0.003, start_epoch: 1.3}"],
    "SetWeightDecayModifier": ["{weight_decay: 0.5, start_epoch: 0.7, param_groups: [0]}"],
    "TrainableParamsModifier": [
        "{params: 're:bert.embeddings', trainable: false}",
        "{params: 're:bert.encoder', trainable: false, start_epoch: 0.5, end_epoch: 1.4}",
    ],
    "ConstantPruningModifier": [
        "{params: __ALL_PRUNABLE__}",
        "{params: ['re:.*query.weight', bert.embeddings.word_embeddings.weight], start_epoch: 0, end_epoch: 1.3}",
        "{end_epoch: 2}",
    ],
    "MagnitudePruningModifier": [
        "{end_epoch: 2, final_sparsity: 0.9}",
        "{start_epoch: 0.3, end_epoch: 1.4, update_frequency: 0.5, init_sparsity: __FROM_PARAM__, mask_type: block4}",
        "{end_epoch: 1, final_sparsity: 0.8, leave_enabled: false}",
        "{end_epoch: 2, final_sparsity: 0.8, leave_enabled: false}",
    ],
    "GMPruningModifier": ["{end_epoch: 1.5, final_sparsity: 0.9, global_sparsity: true, inter_func: linear}"],
    "QuantizationModifier": [
        "{start_epoch: 0.5, disable_quantization_observer_epoch: 1.4}",
        "{start_epoch: 1, disable_quantization_observer_epoch: 1, quantize_linear_activations: 0}",
        "{submodules: [bert.encoder, classifier]}",
    ],
    "DistillationModifier": ["{hardness: 0.5, temperature: 2.0, start_epoch: 0.4, end_epoch: 1.6}", ""],
}
CASES = [
    pytest.param(name, keys, id=f"{name}-{i}") for name, entries in TABLE.items() for i, keys in enumerate(entries)
]


def recipe_of(name: str, keys: str) -> str:
    lines = ["modifiers:", f"  - !EpochRangeModifier {{end_epoch: {EPOCHS}}}"]
    return "\n".join(lines if name == "EpochRangeModifier" else [*lines, f"  - !{name} {keys or '{}'}"])


def begin(name: str, keys: str, recipe: Recipe | None = None, **options: Any) -> Session:
    teacher = Teacher(make_bert(seed=1)) if name == "DistillationModifier" else None
    if teacher is not None:
        teacher.make_table(make_accelerator(), make_rows(ROWS), make_tokenizer(), batch_size=8)
    return start(recipe or recipe_of(name, keys), teacher=teacher, **options)


def test_the_table_covers_the_registry() -> None:
    assert TABLE.keys() == REGISTRY.keys()


@pytest.mark.parametrize(("name", "keys"), CASES)
def test_parses(name: str, keys: str) -> None:
    recipe = load_recipe(recipe_of(name, keys))
    kind = REGISTRY[name]
    (modifier,) = recipe.select(kind)
    assert type(modifier) is kind
    assert load_recipe(recipe.resolved()) == recipe
    assert recipe.max_epochs == EPOCHS
    assert modifier.events() and len(recipe.timeline()) >= 1
    assert all(0 <= epoch <= EPOCHS and text for epoch, text in recipe.timeline())


@functools.cache
def plain_losses() -> list[float]:
    return losses(begin("EpochRangeModifier", "").train())


def losses(session: Session) -> list[float]:
    return [entry["train/loss"] for entry in session.trace]


@pytest.mark.parametrize(("name", "keys"), CASES)
def test_trains_and_resumes_bit_for_bit(name: str, keys: str) -> None:
    """The recipe is read once: what a run learns of its model is the run's own."""
    recipe = load_recipe(recipe_of(name, keys))
    resolved = recipe.resolved()
    whole = begin(name, keys, recipe).train(keep_snapshots=True)
    assert [entry["step"] for entry in whole.trace] == list(range(1, EPOCHS * STEPS + 1))
    assert list(whole.model.state_dict()) == list(make_bert().state_dict())
    assert name == "EpochRangeModifier" or losses(whole) != plain_losses()  # it acts
    for step in RESUMED_AT:
        resumed = begin(name, keys, recipe, model=make_bert(seed=2)).load(whole.snapshots[step]).train()
        assert [figures_of(entry) for entry in resumed.trace] == [figures_of(entry) for entry in whole.trace[step:]]
        assert_same(whole, resumed)
        assert resumed.run.settled() == whole.run.settled()
    assert recipe.resolved() == resolved
