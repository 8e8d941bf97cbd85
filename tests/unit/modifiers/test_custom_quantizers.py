"""`custom_quantizable_module_types`: which layers get a quantizer of their input, and that it is like the others."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from loop import start
from places import golden
from tiny import make_albert, make_bert, make_distilbert, make_tokenizer
from torch import Tensor, nn

import sparse_accel
from sparse_accel.errors import UsageError
from sparse_accel.models.files import save_model
from sparse_accel.modifiers.base import FieldError
from sparse_accel.modifiers.quantization import QuantizationModifier
from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme
from sparse_accel.nn.layers import add_input_quantizer, quantizers, takes_input_quantizer
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

FORMS: list[dict[str, Any]] = golden("custom_quantizers")["forms"]
GELU = "bert.encoder.layer.0.intermediate.intermediate_act_fn"
FLOAT_OUTPUTS = "quantize_linear_activations: 0"


def recipe(keys: str) -> str:
    return f"modifiers:\n  - !EpochRangeModifier {{end_epoch: 2}}\n  - !QuantizationModifier {{{keys.strip('{}')}}}"


def attach(model: nn.Module, keys: str) -> RecipeRun:
    run = RecipeRun(load_recipe(recipe(keys)))
    run.attach(model)
    return run


# --- which layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form["form"])
def test_golden_quantizers(form: dict[str, Any]) -> None:
    """One that is excluded, too, gets its quantizer: so the recipe for GoEmotions works."""
    model = make_bert()
    attach(model, form["keys"])
    expected = FORMS[0]["quantizers"] | form["quantizers"]
    found: dict[str, dict[str, str]] = {}
    for name, quantizer in quantizers(model).items():
        layer, _, which = name.rpartition(".")
        scheme = quantizer.scheme
        kind = f"{'i' if scheme.signed else 'u'}{scheme.bits}{'s' if scheme.symmetric else 'a'}"
        found.setdefault(layer, {})[which.removesuffix("_quantizer")] = kind
    words = {layer: " ".join(f"{which} {kind}" for which, kind in sorted(it.items())) for layer, it in found.items()}
    assert words == expected and len(quantizers(model)) == form["count"]


def test_nothing_else_of_the_model_changes() -> None:
    model, plain = make_bert(), make_bert()
    attach(model, "custom_quantizable_module_types: [GELUActivation, LayerNorm, Dropout]")
    assert list(model.state_dict()) == list(plain.state_dict())
    assert type(model.get_submodule(GELU)) is type(plain.get_submodule(GELU))
    ids = torch.arange(2, 8).view(2, 3)
    assert torch.equal(model.eval()(ids).logits, plain.eval()(ids).logits)


def test_a_layer_that_blocks_share_has_one_quantizer() -> None:
    model = make_albert()
    attach(model, f"custom_quantizable_module_types: [NewGELUActivation], {FLOAT_OUTPUTS}")
    (name,) = (name for name in quantizers(model) if "activation" in name)
    assert name == "albert.encoder.albert_layer_groups.0.albert_layers.0.activation.input_quantizer"

    bert: Any = make_bert()
    first, second = bert.bert.encoder.layer
    second.intermediate.intermediate_act_fn = first.intermediate.intermediate_act_fn
    attach(bert, f"custom_quantizable_module_types: [GELUActivation], {FLOAT_OUTPUTS}")
    assert [name for name in quantizers(bert) if "act_fn" in name] == [f"{GELU}.input_quantizer"]


def test_those_outside_of_submodules_are_noticed() -> None:
    model = make_bert()
    run = attach(model, "submodules: [bert.encoder], custom_quantizable_module_types: [Tanh, LayerNorm]")
    norms = [name for name in quantizers(model) if "LayerNorm" in name]
    assert len(norms) == 4 and not any("pooler" in name or "embeddings" in name for name in quantizers(model))
    assert any("there is no Tanh in submodules" in line for line in run.notices)


def test_an_output_that_is_quantized_already_is_not_quantized_again() -> None:
    """onnxruntime removes one of two quantizers in a row, and decisions differ."""
    model = make_bert()
    run = attach(model, "custom_quantizable_module_types: [GELUActivation, LayerNorm]")
    assert f"{GELU}.input_quantizer" not in quantizers(model)
    assert "bert.embeddings.LayerNorm.input_quantizer" in quantizers(model)  # the input is a sum
    assert any("of class GELUActivation are outputs that are quantized already" in line for line in run.notices)


def test_bits_are_those_of_other_activations() -> None:
    model = make_bert()
    keys = f"custom_quantizable_module_types: [GELUActivation], {FLOAT_OUTPUTS}, activation_bits: 4, reduce_range: true"
    attach(model, keys)
    assert quantizers(model)[f"{GELU}.input_quantizer"].scheme == QuantizationScheme(4, reduce_range=True)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ("GeluActivation", r"this bert model has no layer of class 'GeluActivation'\. Did you mean 'GELUActivation'\?"),
        ("Softmax", r"no layer of class 'Softmax'\. It has Dropout, GELUActivation, LayerNorm, Tanh$"),
        ("BertLayer", r"bert\.encoder\.layer\.0 \(BertLayer\) contains other layers: .* has Dropout, GELUActivation, "),
        ("BertForSequenceClassification", r"the model \(BertForSequenceClassification\) contains other layers"),
        ("ModuleList", r"bert\.encoder\.layer \(ModuleList\) contains other layers"),
    ],
)
def test_a_class_that_does_not_fit_the_model_is_an_error(kinds: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attach(make_bert(), f"custom_quantizable_module_types: [{kinds}]")


@pytest.mark.parametrize("kind", ["Linear", "Embedding", "Conv1d", "Conv2d"])
def test_a_class_that_is_quantized_anyway_is_an_error(kind: str) -> None:
    with pytest.raises(FieldError, match=f"{kind} layers are quantized without this key: remove {kind}") as caught:
        QuantizationModifier(custom_quantizable_module_types=["GELUActivation", kind])
    assert caught.value.key == "custom_quantizable_module_types"


class Positions(nn.Embedding):
    """A class of its own, whose input is integers."""


def test_an_input_of_integers_is_an_error_when_the_model_is_read() -> None:
    model: Any = make_bert()
    model.bert.embeddings.position_embeddings = Positions(64, 32)
    with pytest.raises(UsageError, match=r"input of Positions cannot be quantized, .* remove this class from custom_"):
        attach(model, "custom_quantizable_module_types: [Positions]")


def test_a_model_without_example_inputs_says_so_in_its_first_forward() -> None:
    model = nn.Sequential(Positions(8, 4), nn.ReLU(), nn.Linear(4, 2))
    attach(model, "custom_quantizable_module_types: [ReLU]")
    model(torch.tensor([[1, 2]]))
    attach(model, "custom_quantizable_module_types: [Positions]")
    with pytest.raises(UsageError, match="first argument is not a tensor of floats"):
        model(torch.tensor([[1, 2]]))


# --- one layer --------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return x * factor


def quantizer(low: float = -1.0, high: float = 1.0) -> FakeQuantize:
    made = FakeQuantize(QuantizationScheme(bits=2))
    made.set_range(torch.tensor([low]), torch.tensor([high]))
    made.enabled = True
    return made


def test_the_first_input_is_quantized_and_others_are_not() -> None:
    layer, x = Scaled(), torch.tensor([-3.0, -0.3, 0.2, 0.9])
    add_input_quantizer(layer, quantizer())
    assert torch.equal(layer(x, 0.3), quantizer()(x) * 0.3) and not torch.equal(quantizer()(x), x)
    add_input_quantizer(layer, quantizer(0, 3))  # replaces it
    assert torch.equal(layer(x, factor=0.3), quantizer(0, 3)(x) * 0.3)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_has_a_quantizer_of_its_own(again: Any) -> None:
    layer, x = Scaled(), torch.tensor([-3.0, -0.3, 0.2, 0.9])
    add_input_quantizer(layer, quantizer())
    other = again(layer)
    other.input_quantizer.set_range(torch.tensor([0.0]), torch.tensor([3.0]))
    assert torch.equal(layer(x), quantizer()(x)) and torch.equal(other(x), quantizer(0, 3)(x))


def test_compiles_without_a_break() -> None:
    gelu, first, x = nn.GELU(), quantizer(), torch.randn(3, 4)
    layer = nn.Sequential(nn.Linear(4, 4), gelu)
    add_input_quantizer(gelu, first)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    first.enabled = False
    torch.testing.assert_close(compiled(x), nn.functional.gelu(layer[0](x)))


def test_layers_with_quantizers_or_layers_of_their_own_are_refused() -> None:
    for layer in (nn.Linear(2, 2), nn.Embedding(2, 2), nn.Sequential(nn.ReLU()), quantizer()):
        assert not takes_input_quantizer(layer)
        with pytest.raises(TypeError, match="of its own"):
            add_input_quantizer(layer, quantizer())


# --- training and files -----------------------------------------------------------------------------------------------


def test_is_observed_trained_frozen_saved_and_loaded_like_the_others(tmp_path: Path) -> None:
    keys = (
        "start_epoch: 1, disable_quantization_observer_epoch: 1.7, custom_quantizable_module_types: [GELUActivation], "
        "quantize_linear_activations: 0"
    )
    session = start(recipe(keys))
    seen: list[Tensor] = []
    layer: Any = session.model.get_submodule(GELU)
    layer.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].detach()))
    history: list[tuple[bool, float, float]] = []

    def look(session: Any) -> None:
        quantizer = layer.input_quantizer
        history.append((quantizer.ready, float(quantizer.minimum), float(quantizer.maximum)))
        assert quantizer.ready == (seen[-1].unique().numel() <= 256)  # what the activation computes with

    session.train(look)
    assert [ready for ready, _, _ in history] == [False] * 3 + [True] * 3
    assert len({(low, high) for _, low, high in history[3:]}) == 3 and all(
        high > 0 > low for _, low, high in history[3:]
    )

    save_model(tmp_path, session.accelerator, session.model, make_tokenizer())
    loaded = sparse_accel.load(tmp_path)
    assert list(quantizers(loaded)) == list(quantizers(session.model)) and len(quantizers(loaded)) == 36
    expected = session.outputs()
    session.model = loaded
    assert torch.equal(session.outputs(), expected)
    quantizers(loaded)[f"{GELU}.input_quantizer"].enabled = False
    assert not torch.equal(session.outputs(), expected)


def test_ranges_of_another_architecture_are_refused(tmp_path: Path) -> None:
    session = start(recipe(f"custom_quantizable_module_types: [GELUActivation], {FLOAT_OUTPUTS}")).train()
    save_model(tmp_path, session.accelerator, session.model, make_tokenizer())
    path = tmp_path / "quantization.json"
    text = path.read_text()
    for wrong in (GELU.rpartition(".")[0], GELU.replace("layer.0", "layer.7")):
        path.write_text(text.replace(f'"{GELU}.', f'"{wrong}.'))
        with pytest.raises(UsageError, match="the model has no layer for"):
            sparse_accel.load(tmp_path)
    path.write_text(text.replace(f"{GELU}.input_quantizer", f"{GELU}.output_quantizer"))
    with pytest.raises(UsageError, match=r"no layer for '.*act_fn\.output_quantizer'"):
        sparse_accel.load(tmp_path)


def test_the_timeline_says_what_is_quantized() -> None:
    run = attach(make_distilbert(), "custom_quantizable_module_types: [GELUActivation]")
    assert run.recipe is not None
    assert any(
        "(the entire model, embeddings and inputs of GELUActivation too)" in it for _, it in run.recipe.timeline()
    )
