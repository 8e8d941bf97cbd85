"""The form with a scheme, and forms for TensorRT: quantizers and values of SparseML, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES, make_classifier
from loop import start
from places import golden
from schemes import IGNORE, PER_CHANNEL, attach, layers_of, recipe
from tiny import make_bert
from torch import Tensor, nn
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from sparse_accel.errors import UsageError
from sparse_accel.nn.fake_quantize import (
    FakeQuantize,
    QuantizationScheme,
    extrema,
    fake_quantize,
    moving_average,
    quantization_parameters,
)
from sparse_accel.nn.layers import make_sparse, quantizers
from sparse_accel.recipe import RecipeError, load_recipe

GOLDEN: dict[str, Any] = golden("quantization_schemes")
FORMS: dict[str, dict[str, Any]] = {form["form"]: form for form in GOLDEN["forms"]}
# Forms that SparseML accepted, or stopped at, and that are refused here, with a part of the message.
REFUSED = {
    "scheme default + ignore, strict default": "no layer of class 'Softmax'",
    "scheme with per-channel weights and embeddings per tensor": "a pruned weight must be the integer 0",
    "scheme with outputs": "a pruned weight must be the integer 0",
    "scheme with outputs, attention wrapped": "a pruned weight must be the integer 0",
    "scheme unknown string": "there is no preset 'wrong'. There are default, deepsparse, tensorrt",
    "scheme unknown key": "a scheme has no key 'weight'. Did you mean 'weights'?",
    "scheme unknown key weight": "a scheme has no key 'weight'. Did you mean 'weights'?",
    "mix of forms": "scheme: belongs to the form with a scheme, and submodules to the one without",
    "first form, submodule missing": "has no module 'qa_outputs'",
    "override of a type that is not a leaf: BertSelfOutput": "modules of class BertSelfOutput contain layers",
    "scheme_overrides unmatched name, strict True": "no layer of class 'qa_outputs'",
    "strategy group": "strategy: expected tensor or channel, got 'group'",
}


# --- which layers -----------------------------------------------------------------------------------------------------


def bert_of_the_figures(kind: str) -> nn.Module:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 16,
    }
    config = BertConfig(vocab_size=50, num_hidden_layers=2, **sizes)
    return BertForSequenceClassification(config) if kind == "seq" else BertForQuestionAnswering(config)


def expected_of(form: dict[str, Any]) -> dict[str, str]:
    """The figures without what is never quantized here: ids, products in attention, in the form without a scheme
    outputs of LayerNorm and Tanh, and embeddings outside of submodules."""
    parts = tuple(form["keys"].get("submodules", [""]))
    found = {}
    for layer, words in form["quantizers"].items():
        if "matmul" in layer or not layer.startswith(parts) or (words.startswith("output") and "weight" not in words):
            continue
        found[layer] = words.removeprefix("input i8a ").removeprefix("input i8s ") if "_embeddings" in layer else words
    return found


@pytest.mark.parametrize("name", [name for name in FORMS if name not in REFUSED])
def test_golden_quantizers(name: str) -> None:
    form = FORMS[name]
    model = bert_of_the_figures(form["model"])
    attach(model, form["keys"])
    if form["quantizers"]:  # SparseML stopped at num_calibration_steps without data
        assert layers_of(model) == expected_of(form)


@pytest.mark.parametrize("name", REFUSED)
def test_forms_that_are_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        attach(bert_of_the_figures(FORMS[name]["model"]), FORMS[name]["keys"])
    assert REFUSED[name] in str(caught.value)


def test_a_recipe_without_keys_has_the_default_scheme() -> None:
    model, other = make_bert(), make_bert()
    attach(model, "")
    attach(other, "scheme: default")
    assert layers_of(model) == layers_of(other) and len(quantizers(model)) == 39
    assert "embeddings.input_quantizer" not in " ".join(quantizers(model))


def test_the_longest_prefix_decides_and_then_the_class() -> None:
    model = make_bert()
    overrides = (
        "scheme_overrides: {Linear: {input_activations: {num_bits: 4}}, LayerNorm: {input_activations: null}, "
        "bert.encoder: {input_activations: {num_bits: 5}}, "
        "bert.encoder.layer.1.output: {input_activations: {num_bits: 6}}}"
    )
    attach(model, f"{overrides}, ignore: [bert.encoder.layer.0.attention]")
    bits = {name: quantizer.scheme.bits for name, quantizer in quantizers(model).items() if "input" in name}
    assert bits["classifier.input_quantizer"] == bits["bert.pooler.dense.input_quantizer"] == 4
    assert bits["bert.encoder.layer.1.attention.self.query.input_quantizer"] == 5
    assert bits["bert.encoder.layer.1.output.dense.input_quantizer"] == 6
    assert bits["bert.encoder.layer.1.output.LayerNorm.input_quantizer"] == 6  # its name, before its class
    assert "bert.embeddings.LayerNorm.input_quantizer" not in bits
    assert not any("layer.0.attention" in name for name in bits)


def test_a_name_that_others_begin_with_is_noticed() -> None:
    model = make_bert(num_hidden_layers=11)
    run = attach(model, "ignore: [bert.encoder.layer.1]")
    assert not any("layer.1." in name or "layer.10." in name for name in quantizers(model))
    assert any("bert.encoder.layer.1 also matches bert.encoder.layer.10." in line for line in run.notices)
    model = make_bert(num_hidden_layers=11)
    run = attach(model, "ignore: [bert.encoder.layer.1.]")
    assert any("layer.10." in name for name in quantizers(model)) and not run.notices


def test_a_scheme_of_layers_that_are_never_quantized_is_noticed() -> None:
    run = attach(make_bert(), "scheme_overrides: {Dropout: default}, ignore: [Dropout, LayerNorm]")
    [said] = [notice for notice in run.notices if "Dropout" in notice]
    assert said == "QuantizationModifier: scheme_overrides: Dropout has no effect: such layers are never quantized"


def test_an_encoder_without_a_head_takes_the_same_names() -> None:
    bert: Any = make_bert()
    model: nn.Module = bert.bert
    attach(model, "ignore: [bert.embeddings, bert.encoder.layer.0], scheme_overrides: {bert.pooler: tensorrt}")
    assert not any(name.startswith(("embeddings", "encoder.layer.0")) for name in quantizers(model))
    assert quantizers(model)["pooler.dense.input_quantizer"].scheme == QuantizationScheme(signed=True, symmetric=True)


def test_an_input_that_is_quantized_as_an_output_is_quantized_once() -> None:
    model = make_bert()
    run = attach(
        model,
        "scheme_overrides: {Linear: {weights: {symmetric: true}, output_activations: {}}}, ignore: [LayerNorm]",
    )
    names = quantizers(model).keys()
    assert "bert.encoder.layer.0.intermediate.dense.output_quantizer" in names
    assert not any("act_fn" in name or "pooler.activation" in name for name in names)
    assert any("are outputs that are quantized already" in line for line in run.notices)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_trains_with_the_default_scheme(architecture: str) -> None:
    """Each quantizer sees values: token ids, rotary embeddings and dropout have none."""
    model = make_classifier(ARCHITECTURES[architecture], vocabulary=40, tokens=16)
    attach(model, "")
    found = quantizers(model)
    for quantizer in found.values():
        quantizer.enabled = quantizer.observing = True
    model.train()
    model(input_ids=torch.arange(5, 11).view(2, 3), attention_mask=torch.ones(2, 3, dtype=torch.int64))
    unused = [name for name, quantizer in found.items() if not quantizer.ready and "rel_embeddings" not in name]
    assert not unused
    layers = {type(model.get_submodule(name.rpartition(".")[0])).__name__ for name in found}
    assert not {kind for kind in layers if "Rotary" in kind or "Dropout" in kind}
    assert sum(name.endswith("weight_quantizer") for name in found) >= 10


# --- values -----------------------------------------------------------------------------------------------------------

VALUES: dict[str, Any] = GOLDEN["linear_values"]
BATCHES = [torch.tensor(batch) for batch in VALUES["inputs"]]


class Fc(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.fc.weight.data = torch.tensor(VALUES["weight"])
        self.fc.bias.data = torch.tensor(VALUES["bias"])

    def forward(self, x: Tensor) -> Any:
        return self.fc(x)


NOT_HERE = {
    "scheme per channel asymmetric 4 bit": "a pruned weight must be the integer 0",
    "scheme input per channel": "strategy: channel is for weights",
}


@pytest.mark.parametrize("form", VALUES["forms"], ids=lambda form: form["form"])
def test_golden_values_of_a_linear(form: dict[str, Any]) -> None:
    """The figures move a range before they round, so the functions are called here in that order."""
    if form["form"] in NOT_HERE:
        with pytest.raises(RecipeError, match=NOT_HERE[form["form"]]):
            load_recipe(recipe(form["keys"]))
        return
    model = Fc()
    attach(model, form["keys"])
    layer: Any = model.fc
    ranges: dict[FakeQuantize, tuple[Tensor, Tensor]] = {}

    def rounded(quantizer: FakeQuantize, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = extrema(x.detach(), quantizer.scheme.channel_axis)
        if quantizer in ranges:
            pairs = zip(ranges[quantizer], found, strict=True)
            found = tuple(moving_average(old, new, quantizer.averaging_constant) for old, new in pairs)  # type: ignore[assignment]
        ranges[quantizer] = found
        parameters = quantization_parameters(*found, quantizer.scheme)
        return fake_quantize(x, *parameters, quantizer.scheme), *parameters

    for x, expected in zip(BATCHES, form["after_each_batch"], strict=True):
        leaf = x.clone().requires_grad_()
        layer.weight.grad = None
        inputs, input_scale, input_zero = rounded(layer.input_quantizer, leaf)
        weight, weight_scale, weight_zero = rounded(layer.weight_quantizer, layer.weight)
        out = F.linear(inputs, weight, layer.bias)
        out.pow(2).sum().backward()
        found: dict[str, Any] = {"input_scale": input_scale, "weight_scale": weight_scale, "out": out}
        found |= {"grad_x": leaf.grad, "grad_weight": layer.weight.grad}
        for key, value in found.items():
            torch.testing.assert_close(value, torch.tensor(expected[key]), rtol=1e-5, atol=1e-5)
        assert (input_zero.tolist(), weight_zero.tolist()) == (expected["input_zero"], expected["weight_zero"])


def test_rows_of_an_embedding_have_a_scale_each() -> None:
    layer: Any = make_sparse(nn.Embedding(5, 3))
    layer.weight.data = torch.tensor([[1.0, -2.0, 0.5]]) * torch.tensor([[1.0], [10.0], [0.1], [0.0], [3.0]])
    layer.weight_quantizer = FakeQuantize(QuantizationScheme(signed=True, symmetric=True, channel_axis=0), channels=5)
    layer.weight_quantizer.enabled = layer.weight_quantizer.observing = True
    ids = torch.tensor([[1, 0, 1], [2, 4, 3]])
    rows = layer(ids)
    rows.pow(2).sum().backward()
    quantizer = layer.weight_quantizer
    assert torch.equal(quantizer.maximum, layer.weight.detach().amax(1))  # of all rows, whichever were used
    whole = fake_quantize(layer.weight.detach(), quantizer.scale, quantizer.zero_point, quantizer.scheme)
    assert torch.equal(rows.detach(), whole[ids]) and not torch.equal(whole, layer.weight.detach())
    expected = torch.zeros_like(whole).index_add(0, ids.flatten(), (2 * whole[ids]).flatten(0, 1))
    torch.testing.assert_close(layer.weight.grad, expected)  # nothing is clipped


def test_pruned_weights_stay_the_integer_zero_in_each_row() -> None:
    keys = f"{PER_CHANNEL}, {IGNORE}"
    text = recipe(keys) + "\n  - !ConstantPruningModifier {params: __ALL_PRUNABLE__}"
    session = start(text, model=make_bert(sparsity=0.9)).train()
    layer: Any = session.model.get_submodule("bert.encoder.layer.0.output.dense")
    assert len(layer.weight_quantizer.scale.unique()) > len(layer.weight) // 2
    assert (layer.weight_in_use()[~layer.mask] == 0).all() and not layer.weight_quantizer.zero_point.any()


def test_the_constant_of_an_average_is_the_quantizers_own() -> None:
    keys = "scheme: {input_activations: {kwargs: {averaging_constant: 0.5}}}, " + IGNORE
    session = start(recipe(keys, 1))
    layer: Any = session.model.get_submodule("classifier")
    seen: list[float] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].detach().max())))
    session.train()
    first, *others = seen[1:]  # the rows of the first step are shown once before
    expected = first
    for value in others:
        expected += 0.5 * (value - expected)
    assert float(layer.input_quantizer.maximum) == pytest.approx(expected)
