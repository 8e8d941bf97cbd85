"""Schemes in recipes and in files: what is read back, and the messages for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from loop import start
from schemes import IGNORE, PER_CHANNEL, attach, layers_of, recipe
from tiny import make_bert, make_tokenizer

import sparse_accel
from sparse_accel.errors import UsageError
from sparse_accel.models.files import QUANTIZATION_FILE, save_model
from sparse_accel.modifiers.base import FieldError
from sparse_accel.modifiers.quantization import QuantizationModifier
from sparse_accel.recipe import RecipeError, load_recipe
from sparse_accel.recipe_run import RecipeRun


@pytest.mark.parametrize("keys", [f"{PER_CHANNEL}, {IGNORE}", "tensorrt: true", "scheme: tensorrt"])
def test_the_files_hold_the_model_as_it_was_trained(keys: str, tmp_path: Path) -> None:
    session = start(recipe(keys)).train()
    save_model(tmp_path, session.accelerator, session.model, make_tokenizer())
    loaded = sparse_accel.load(tmp_path)
    expected = session.outputs()
    session.model = loaded
    assert torch.equal(session.outputs(), expected)
    entries = json.loads((tmp_path / QUANTIZATION_FILE).read_text())["quantizers"]
    table = entries["bert.embeddings.word_embeddings.weight_quantizer"]
    rows = cast(Any, loaded).bert.embeddings.word_embeddings.num_embeddings
    assert len(table["scale"]) == (rows if "channel" in keys else 1)


@pytest.mark.parametrize(
    "keys",
    [
        "",
        "scheme: tensorrt, strict: false, ignore: [Softmax]",
        f"{PER_CHANNEL}, scheme_overrides: {{Embedding: {{input_activations: null}}, classifier: deepsparse}}",
        "tensorrt: true",
        "weight_qconfig_kwargs: {qscheme: torch.per_channel_symmetric, averaging_constant: 0.1}",
        "quantize_embeddings: 0",
    ],
)
def test_a_resolved_recipe_has_the_same_form(keys: str) -> None:
    first = load_recipe(recipe(keys))
    second = load_recipe(first.resolved())
    assert first == second and first.resolved() == second.resolved() and not second.notes
    models = make_bert(), make_bert()
    for model, each in zip(models, (first, second), strict=True):
        RecipeRun(each).attach(model)
    assert layers_of(models[0]) == layers_of(models[1])


def test_a_scheme_as_sparseml_writes_it_is_read() -> None:
    """With the target, and null as a text: from `serialized_scheme_form` of the figures."""
    tensor = "{num_bits: 8, symmetric: true, strategy: tensor, kwargs: {}}"
    scheme = (
        f"{{input_activations: {tensor}, weights: {tensor}, output_activations: 'null', target_hardware: tensorrt}}"
    )
    model, preset = make_bert(), make_bert()
    attach(
        model, f"scheme: {scheme}, strict: true, ignore: [], model_fuse_fn_name: no_fuse, model_fuse_fn_kwargs: {{}}"
    )
    attach(preset, "scheme: tensorrt")
    assert layers_of(model) == layers_of(preset)


def test_one_scale_per_row_without_a_scheme() -> None:
    model = make_bert()
    attach(model, "weight_qconfig_kwargs: {qscheme: per_channel_symmetric, reduce_range: true}, tensorrt: true")
    found = layers_of(model)
    assert found["classifier"] == "input i8s weight i8s/channel[-64, 63]"
    assert found["bert.embeddings.word_embeddings"] == "weight i8s/channel[-64, 63]"


def test_outputs_that_tensorrt_does_not_take_are_noticed() -> None:
    run = attach(make_bert(), "tensorrt: true, quantize_linear_activations: true")
    assert any("quantize_linear_activations has no effect" in line for line in run.notices)
    assert not attach(make_bert(), "tensorrt: true").notices


MISTAKES = {
    "scheme: deepsprase": "scheme: there is no preset 'deepsprase'. Did you mean 'deepsparse'? There are",
    "scheme: [default]": "scheme: expected a string or a mapping or null, got ['default']",
    "scheme: {wieghts: null}": "a scheme has no key 'wieghts'. Did you mean 'weights'?",
    "scheme: {weights: {bits: 8}}": "scheme: weights has no key 'bits'. Did you mean 'num_bits'?",
    "scheme: {weights: 8}": "weights: expected a mapping with num_bits, symmetric, strategy, kwargs, or null; got 8",
    "scheme: {weights: {num_bits: 9, symmetric: true}}": "weights: num_bits: expected 2 to 8, got 9",
    "scheme: {weights: {num_bits: x}}": "weights: num_bits: expected a number, got 'x'",
    "scheme: {weights: {symmetric: 7}}": "weights: symmetric: expected true or false, got 7",
    "scheme: {weights: {symmetric: true, strategy: chanel}}": "got 'chanel'. Did you mean 'channel'?",
    "scheme: {input_activations: {kwargs: {averaging_const: 1}}}": "Did you mean 'averaging_constant'?",
    "scheme: {input_activations: {kwargs: {averaging_constant: 0}}}": "expected a number above 0, at most 1; got 0",
    "scheme: {input_activations: {kwargs: 3}}": "kwargs: expected a mapping with averaging_constant, ",
    "scheme: {input_activations: {num_bits: 2, kwargs: {reduce_range: true}}}": "of 2 bits, none may be left unused",
    "scheme: {target_hardware: tpu}": "target_hardware: expected deepsparse, tensorrt or null, got 'tpu'",
    "scheme_overrides: {Embedding: null}": "scheme_overrides: Embedding: expected a preset (default, deepsparse,",
    "scheme_overrides: {Embedding: tensort}": "Embedding: there is no preset 'tensort'. Did you mean 'tensorrt'?",
    "ignore: ['']": "ignore: an empty name matches all layers",
    "ignore: [LayerNorm], reduce_range: true": "ignore: belongs to the form with a scheme, and reduce_range to the one",
    "strict: false, tensorrt: true": "strict: belongs to the form with a scheme, and tensorrt to the one without",
    "num_calibration_steps: 0": "num_calibration_steps: expected a number from 1 on, got 0",
    "weight_qconfig_kwargs: {observer: x}": "a weight's quantizer has no key 'observer'",
    "weight_qconfig_kwargs: {qscheme: [a]}": "qscheme: expected per_tensor_symmetric",
    "submodules: ['']": "has an empty name",
    "weight_qconfig_kwargs: {qscheme: per_tensor_affine}": "expected per_tensor_symmetric or per_channel_symmetric",
}


@pytest.mark.parametrize("keys", MISTAKES)
def test_mistakes_in_a_recipe_name_key_and_line(keys: str) -> None:
    key = keys.split(":")[0]
    text = "modifiers:\n  - !QuantizationModifier\n      start_epoch: 0\n      "
    lines = yaml_lines(keys)
    with pytest.raises(RecipeError) as caught:
        load_recipe(text + "\n      ".join(lines) + "\n")
    assert MISTAKES[keys] in str(caught.value)
    assert (caught.value.key, caught.value.line) == (key, 4)


# Recipes with a mistake inside a mapping: its line, counted from that of the key, and what is said.
NESTED = {
    "scheme:\n  weights:\n    symmetric: true\n    num_bits: 9": (
        3,
        "scheme: weights: num_bits: expected 2 to 8, got 9",
    ),
    "scheme:\n  weights:\n    symmetric: true\n    bits: 8": (3, "scheme: weights has no key 'bits'"),
    "scheme:\n  wieghts: null": (1, "scheme: a scheme has no key 'wieghts'"),
    "scheme:\n  weights:\n    symmetric: true\n    kwargs:\n      averaging_constant: 0": (
        4,
        "scheme: weights: kwargs: averaging_constant: expected a number above 0, at most 1; got 0",
    ),
    "scheme:\n  weights:\n    symmetric: true\n    kwargs:\n      averaging: 0": (
        4,
        "scheme: weights: kwargs has no key",
    ),
    "scheme:\n  weights: {num_bits: 8}": (1, "scheme: weights: symmetric: false, the default of a mapping, is not"),
    "scheme_overrides:\n  Linear: default\n  Embedding: tensort": (
        2,
        "scheme_overrides: Embedding: there is no preset 'tensort'",
    ),
    "scheme_overrides:\n  Linear: default\n  Embedding:\n    weights:\n      num_bits: 12\n      symmetric: true": (
        4,
        "scheme_overrides: Embedding: weights: num_bits: expected 2 to 8, got 12",
    ),
    "scheme_overrides:\n  Linear: default\n  5: default": (2, "scheme_overrides: a key: expected a string, got 5"),
    "weight_qconfig_kwargs:\n  reduce_range: true\n  averaging_constant: 2": (
        2,
        "weight_qconfig_kwargs: averaging_constant: expected a number above 0",
    ),
    "ignore:\n  - LayerNorm\n  - 5": (0, "ignore: entry 2: expected a string, got 5"),
}


@pytest.mark.parametrize("keys", NESTED)
def test_mistakes_inside_a_mapping_name_the_entry_and_its_line(keys: str) -> None:
    lines, said = NESTED[keys]
    text = "modifiers:\n  - !QuantizationModifier\n      start_epoch: 0\n      " + keys.replace("\n", "\n      ")
    with pytest.raises(RecipeError) as caught:
        load_recipe(text + "\n")
    assert f"<text>:{4 + lines}: QuantizationModifier: {said}" in str(caught.value)
    assert (caught.value.key, caught.value.line) == (keys.split(":")[0], 4 + lines)


def test_an_entry_that_comes_from_another_place_has_the_line_of_that_place() -> None:
    """Of a variable, the line of the key; of an alias, the line of what it stands for."""
    begin = "modifiers:\n  - !QuantizationModifier\n      "
    with pytest.raises(RecipeError) as caught:
        load_recipe(f"s: {{weights: {{num_bits: 9}}}}\n{begin}scheme: eval(s)\n")
    assert caught.value.line == 4 and "weights: num_bits: expected 2 to 8" in str(caught.value)
    with pytest.raises(RecipeError) as caught:
        load_recipe(f"s: &s\n  weights:\n    num_bits: 9\n{begin}scheme: *s\n")
    assert caught.value.line == 3 and "weights: num_bits: expected 2 to 8" in str(caught.value)


def yaml_lines(keys: str) -> list[str]:
    """`a: {b: c}, d: e` as lines: one for each key outside of brackets."""
    parts = keys.replace(", reduce_range: true", "\n reduce_range: true") if keys.startswith("ignore") else keys
    return [part.strip() for part in parts.replace(", tensorrt", "\n tensorrt").split("\n")]


MISFITS = {
    "ignore: [LayerNrom]": r"ignore: this bert model has no layer of class 'LayerNrom'.*Did you mean 'LayerNorm'\?",
    "scheme_overrides: {bert.encodr: default}": r"scheme_overrides: .*'bert\.encodr'.*Did you mean 'bert\.encoder'\?",
    "ignore: [BertLayer]": "ignore: modules of class BertLayer contain layers",
    "scheme: {output_activations: {}}": r"output_activations of bert\.embeddings\.LayerNorm \(LayerNorm\): ",
    "ignore: [bert, classifier]": "nothing to quantize",
}


@pytest.mark.parametrize("keys", MISFITS)
def test_entries_that_do_not_fit_the_model_are_errors(keys: str) -> None:
    with pytest.raises(UsageError, match=MISFITS[keys]):
        attach(make_bert(), keys)


def test_strict_false_passes_over_what_matches_nothing() -> None:
    model, other = make_bert(), make_bert()
    run = attach(model, "ignore: [LayerNrom, QATMatMul], strict: false")
    attach(other, "")
    assert layers_of(model) == layers_of(other)
    assert any("QATMatMul has no effect" in line for line in run.notices)


def test_in_python_too() -> None:
    with pytest.raises(FieldError, match="scheme: belongs to"):
        QuantizationModifier(scheme="default", submodules=["bert"])
    assert QuantizationModifier().scheme == "default" and QuantizationModifier(tensorrt=True).scheme is None
