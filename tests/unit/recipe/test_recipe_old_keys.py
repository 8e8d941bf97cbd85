"""Keys that recipes of SparseML carry: read at the values that change nothing, refused with a reason at others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_texts import error_of

from sparse_accel.modifiers import REGISTRY
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe.fields import field_types, key_table

# The constructors of SparseML 1.8.0: a value for each required key, and the defaults of the others.
REQUIRED: dict[str, dict[str, Any]] = {
    "EpochRangeModifier": {"start_epoch": 0.0, "end_epoch": 3.0},
    "LearningRateFunctionModifier": {
        "lr_func": "linear",
        "init_lr": 0.1,
        "final_lr": 0.0,
        "start_epoch": 0.0,
        "end_epoch": 3.0,
    },
    "LearningRateModifier": {
        "lr_class": "ExponentialLR",
        "lr_kwargs": {"gamma": 0.5},
        "init_lr": 0.1,
        "start_epoch": 0.0,
    },
    "SetLearningRateModifier": {"learning_rate": 0.1},
    "SetWeightDecayModifier": {"weight_decay": 0.1},
    "TrainableParamsModifier": {"params": "__ALL__", "trainable": False},
    "SetParamModifier": {"params": ["classifier.bias"], "val": [0.0, 1.0]},
    "GradualParamModifier": {
        "params": ["classifier.bias"],
        "init_val": [0.0, 1.0],
        "final_val": [1.0, 0.0],
        "start_epoch": 0.0,
        "end_epoch": 2.0,
        "update_frequency": 0.5,
    },
    "LayerPruningModifier": {"layers": ["bert.encoder.layer.2"]},
    "ConstantPruningModifier": {"params": "__ALL_PRUNABLE__"},
    "GMPruningModifier": {
        "init_sparsity": 0.05,
        "final_sparsity": 0.8,
        "start_epoch": 0.0,
        "end_epoch": 2.0,
        "update_frequency": 0.5,
        "params": "__ALL_PRUNABLE__",
    },
    "QuantizationModifier": {"quantize_embeddings": True},  # the form without a scheme
    "DistillationModifier": {},
    "HiddenStateDistillationModifier": {},  # not of SparseML
    "PerLayerDistillationModifier": {},
}
for same in (
    "MagnitudePruningModifier",
    "GlobalMagnitudePruningModifier",
    "MovementPruningModifier",
    "OBSPruningModifier",
    "StructuredPruningModifier",
):
    REQUIRED[same] = REQUIRED["GMPruningModifier"]
BOTH_EPOCHS = {"start_epoch": -1.0, "end_epoch": -1.0}
GRADUAL = {"leave_enabled": True, "inter_func": "cubic", "mask_type": "unstructured"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "EpochRangeModifier": {},
    "LearningRateFunctionModifier": {"cycle_epochs": 1.0, "param_groups": None, "update_frequency": -1.0},
    "LearningRateModifier": {"end_epoch": -1.0, "update_frequency": -1.0, "constant_logging": False},
    "SetLearningRateModifier": {**BOTH_EPOCHS, "param_groups": None, "constant_logging": False},
    "SetWeightDecayModifier": {**BOTH_EPOCHS, "param_groups": None, "constant_logging": False},
    "TrainableParamsModifier": {**BOTH_EPOCHS, "params_strict": True},
    "SetParamModifier": {"start_epoch": 0.0, "end_epoch": -1.0, "params_strict": True},
    "GradualParamModifier": {"inter_func": "linear", "params_strict": True},
    "LayerPruningModifier": {**BOTH_EPOCHS, "update_frequency": -1.0},
    "ConstantPruningModifier": {**BOTH_EPOCHS, "update_frequency": -1.0},
    "MagnitudePruningModifier": GRADUAL,
    "GMPruningModifier": {**GRADUAL, "global_sparsity": False, "phased": False, "score_type": "magnitude"},
    "GlobalMagnitudePruningModifier": {
        **GRADUAL,
        "global_sparsity": True,
        "phased": False,
        "score_type": "magnitude",
    },
    "MovementPruningModifier": GRADUAL,
    "OBSPruningModifier": {
        **GRADUAL,
        "global_sparsity": True,
        "num_grads": 1024,
        "damp": 1e-7,
        "fisher_block_size": 1,
        "grad_sampler_kwargs": None,
        "num_recomputations": 1,
    },
    "StructuredPruningModifier": {**GRADUAL, "mask_type": "filter", "param_groups": None},
    "DistillationModifier": {
        **BOTH_EPOCHS,
        "distill_output_keys": None,
        "teacher_input_keys": None,
        "update_frequency": -1.0,
        "hardness": 0.5,
        "temperature": 2.0,
    },
    "HiddenStateDistillationModifier": {},  # not of SparseML
    "PerLayerDistillationModifier": {
        **BOTH_EPOCHS,
        "gain": 1.5,
        "update_frequency": -1.0,
        "normalize": True,
        "student_layer_names": None,
        "teacher_layer_names": None,
        "project_features": True,
        "epsilon": 1e-6,
    },
    # its two classes behind one tag
    "QuantizationModifier": {
        **BOTH_EPOCHS,
        "submodules": None,
        "model_fuse_fn_name": None,
        "disable_quantization_observer_epoch": None,
        "freeze_bn_stats_epoch": None,
        "model_fuse_fn_kwargs": None,
        "quantize_embeddings": True,
        "reduce_range": False,
        "quantize_linear_activations": True,
        "quantize_conv_activations": True,
        "quantize_embedding_activations": True,
        "activation_bits": 8,
        "weight_bits": 8,
        "num_calibration_steps": None,
        "exclude_batchnorm": True,
        "exclude_module_types": None,
        "custom_quantizable_module_types": None,
        "activation_qconfig_kwargs": None,
        "weight_qconfig_kwargs": None,
        "tensorrt": False,
        "scheme": None,
        "scheme_overrides": None,
        "ignore": None,
        "strict": True,
    },
}
NEUTRAL = [
    (name, key, value)
    for name, kind in REGISTRY.items()
    for key, values in key_table(kind, "neutral").items()
    for value in values
]


def recipe_of(name: str, keys: dict[str, Any]) -> str:
    lines = [f"      {key}: {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(["modifiers:", f"  - !{name}", *lines]) + "\n"


def test_the_tables_name_every_modifier() -> None:
    assert REQUIRED.keys() == DEFAULTS.keys() == REGISTRY.keys()


@pytest.mark.parametrize("name", DEFAULTS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_key_at_its_old_default_is_as_if_it_was_left_out(name: str, data: st.DataObject) -> None:
    keys = data.draw(st.permutations(list(DEFAULTS[name])))
    chosen = {key: DEFAULTS[name][key] for key in keys[: data.draw(st.integers(0, len(keys)))]}
    recipe = load_recipe(recipe_of(name, REQUIRED[name] | chosen))
    assert recipe == load_recipe(recipe_of(name, REQUIRED[name])) == load_recipe(recipe.resolved())
    assert recipe.notes == []


@pytest.mark.parametrize(("name", "key", "value"), NEUTRAL)
def test_a_neutral_value_changes_nothing(name: str, key: str, value: Any) -> None:
    kind = REGISTRY[name]
    assert key in {*field_types(kind), *key_table(kind, "without_effect"), *key_table(kind, "known_later")}
    required = {name: value for name, value in REQUIRED[name].items() if name != key}
    recipe = load_recipe(recipe_of(name, required | {key: value}))
    assert recipe == load_recipe(recipe_of(name, required)) and recipe.notes == []


@pytest.mark.parametrize("name", REGISTRY)
def test_what_is_logged_is_not_set_by_a_modifier(name: str) -> None:
    """SparseML 1.8 drops `log_types` of every modifier, for recipes that are older still."""
    recipe = load_recipe(recipe_of(name, REQUIRED[name] | {"log_types": "__ALL__", "constant_logging": True}))
    assert recipe == load_recipe(recipe_of(name, REQUIRED[name]))
    assert len(recipe.notes) == 2 and "log_types has no effect" in recipe.notes[0]


@pytest.mark.parametrize(
    ("name", "key", "value", "reason"),
    [
        ("GMPruningModifier", "score_type", "movement", "ranked by magnitude"),
        ("GMPruningModifier", "phased", True, "no dense phases in between"),
        ("MagnitudePruningModifier", "score_type", None, "ranked by magnitude"),
        ("DistillationModifier", "teacher_input_keys", ["input_ids"], "all inputs of the student"),
        ("QuantizationModifier", "activation_qconfig_kwargs", {"averaging_constant": 0.1}, "uint8 affine"),
        ("EpochRangeModifier", "update_frequency", 0.5, "does nothing between its start and its end"),
        ("TrainableParamsModifier", "update_frequency", 0.5, "does nothing between its start and its end"),
        ("SetWeightDecayModifier", "update_frequency", 0.5, "does nothing between its start and its end"),
    ],
)
def test_another_value_is_refused_as_known(name: str, key: str, value: Any, reason: str) -> None:
    error = error_of(recipe_of(name, REQUIRED[name] | {key: value}))
    assert error.key == key and error.line == 3 + len(REQUIRED[name])
    assert key in str(error) and "not supported yet: " in str(error) and reason in str(error)


@pytest.mark.parametrize(
    ("name", "key", "meant"),
    [
        ("GMPruningModifier", "score_typ", "score_type"),
        ("GMPruningModifier", "mask_typ", "mask_type"),
        ("DistillationModifier", "teacher_input_key", "teacher_input_keys"),
        ("QuantizationModifier", "weight_qconfig_kwarg", "weight_qconfig_kwargs"),
        ("EpochRangeModifier", "log_type", "log_types"),
    ],
)
def test_a_misspelt_key_is_told_apart_and_names_the_nearest(name: str, key: str, meant: str) -> None:
    message = str(error_of(recipe_of(name, REQUIRED[name] | {key: None})))
    assert f"has no key '{key}'. Did you mean '{meant}'?" in message and "known" not in message


def test_a_neutral_value_may_come_from_a_variable() -> None:
    text = "keys: null\nkind: magnitude\n"
    distillation = load_recipe(text + recipe_of("DistillationModifier", {"teacher_input_keys": "eval(keys)"}))
    assert distillation.modifiers == load_recipe(recipe_of("DistillationModifier", {})).modifiers
    pruning = recipe_of("GMPruningModifier", REQUIRED["GMPruningModifier"] | {"score_type": "eval(kind)"})
    assert load_recipe(text + pruning, "keys=x").modifiers
    assert "ranked by magnitude" in str(error_of(text + pruning, "kind=movement"))
