"""Heads and neurons that are all zero: found, removed, and the smaller model computes the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from structure_models import BLOCKS, HEAD_COUNT, KINDS, NEURON_COUNT, make, output, set_to_zero
from tiny import make_albert
from torch import nn

from sparse_accel.modifiers.quantization import QuantizationModifier
from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme
from sparse_accel.nn.layers import make_sparse, mask_inputs, mask_outputs, masks, quantizers, sparse_layers
from sparse_accel.nn.structure import HEADS, NEURONS, Units, encoder_units
from sparse_accel.nn.structure_removal import remove_units, remove_zero_units, structure_of, zero_units
from sparse_accel.recipe_run import RecipeRun


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to rounding: sums of fewer numbers are added in another order."""
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-6)


def quantized(model: nn.Module, **keys: Any) -> nn.Module:
    """The model with quantizers of its weights and activations, on, their ranges from one batch."""
    run = RecipeRun()
    run.attach(model)
    QuantizationModifier(**keys).attach(run.state)
    for quantizer in quantizers(model).values():
        quantizer.enabled = quantizer.observing = True
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    output(model)
    for name, quantizer in quantizers(model).items():
        quantizer.observing = False
        if not quantizer.ready:  # of a layer that this model does not call
            quantizer.enabled = False
            assert "pooler" in name or "token_type" in name
    return model.eval()


def removed(model: nn.Module) -> nn.Module:
    small = copy.deepcopy(model)
    assert remove_zero_units(small).units
    return small


@pytest.mark.parametrize("kind", KINDS)
def test_the_smaller_model_computes_the_same(kind: str) -> None:
    model = make(kind)
    full = structure_of(model)
    assert (full.attention_heads, full.ffn_neurons) == ((HEAD_COUNT,) * BLOCKS, (NEURON_COUNT,) * BLOCKS)
    assert zero_units(model) == {}
    expected = set_to_zero(model)
    assert zero_units(model) == expected
    before = output(model)

    small = copy.deepcopy(model)
    removal = remove_zero_units(small)
    assert removal.units == expected and removal.kept == () and removal.before == full
    assert removal.after.attention_heads == (3, 1) and removal.after.ffn_neurons == (42, 32)
    assert removal.after == structure_of(small)
    # A head of 8 rows has 4 * 8 * 32 weights and 3 * 8 biases; a neuron 2 * 32 weights and a bias.
    assert full.multiply_adds - removal.after.multiply_adds == 4 * 1024 + 54 * 64
    assert full.parameters - removal.after.parameters == 4 * (1024 + 24) + 54 * 65
    assert sum(p.numel() for p in small.parameters()) == removal.after.parameters
    assert_equal(output(small), before)
    assert before.std() > 0.05
    assert zero_units(small) == {} and remove_zero_units(small).units == {}


@pytest.mark.parametrize("keys", [{}, {"quantize_linear_activations": True}], ids=["inputs", "outputs"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_quantizers(kind: str, keys: dict[str, Any]) -> None:
    model = make(kind)
    set_to_zero(model)
    quantized(model, **keys)
    small = removed(model)
    assert_equal(output(small), output(model))
    ranges = {name: each.scale for name, each in quantizers(model).items()}
    for name, each in quantizers(small).items():
        assert torch.equal(each.scale, ranges[name])
    plain = copy.deepcopy(model)
    for quantizer in quantizers(plain).values():
        quantizer.enabled = False
    assert (output(plain) - output(model)).abs().max() > 1e-4  # they round


def test_a_scale_for_each_row() -> None:
    model = make("Bert")
    set_to_zero(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and ".layer." in name:
            sparse = make_sparse(layer)
            quantizer = FakeQuantize(QuantizationScheme(8, True, True, channel_axis=0), layer.out_features)
            quantizer.set_range(layer.weight.amin(1).detach(), layer.weight.amax(1).detach())
            quantizer.enabled = True
            sparse.weight_quantizer = quantizer
    small = removed(model)
    assert_equal(output(small), output(model))
    for name, layer in sparse_layers(small):
        assert layer.weight_quantizer is not None
        assert {len(values) for values in layer.weight_quantizer.buffers()} == {len(layer.weight)}, name


def test_masks_decide_and_become_smaller() -> None:
    """What a mask hides is no use of a unit; unstructured masks stay with what is left."""
    model = make("Roberta")
    expected = set_to_zero(copy.deepcopy(model))
    for units, numbers in expected.items():
        kept = torch.ones(units.count, units.size, dtype=torch.bool)
        kept[list(numbers)] = False
        for name in units.inputs:
            mask_outputs(make_sparse(model.get_submodule(name)), kept.flatten())
        mask_inputs(make_sparse(model.get_submodule(units.output)), kept.flatten())
    layer = make_sparse(model.get_submodule("roberta.encoder.layer.1.intermediate.dense"))
    layer.mask = torch.rand_like(layer.weight) > 0.5
    before, left = output(model), layer.masked_weight().detach()[:32]
    assert zero_units(model) == expected
    small = removed(model)
    assert_equal(output(small), before)
    again = dict(sparse_layers(small))["roberta.encoder.layer.1.intermediate.dense"]
    assert torch.equal(again.masked_weight(), left) and again.mask is not None and again.mask.shape == (32, 32)
    shapes = {name: tuple(mask.shape) for name, mask in masks(small).items()}
    assert all(shapes[name] == tuple(small.get_parameter(name).shape) for name in shapes)
    assert masks(small)["roberta.encoder.layer.0.attention.self.query.bias"].all()


@pytest.mark.parametrize("part", [HEADS, NEURONS])
@pytest.mark.parametrize("which", ["row", "bias", "column"])
def test_a_unit_with_one_number_left_stays(part: str, which: str) -> None:
    model = make("DistilBert")
    expected = set_to_zero(model)
    units = next(each for each in expected if each.part == part and each.block == 1)
    first = expected[units][0] * units.size
    last_input: Any = model.get_submodule(units.inputs[-1])
    output_layer: Any = model.get_submodule(units.output)
    places = {"row": last_input.weight[first], "bias": last_input.bias[first : first + 1]}
    places["column"] = output_layer.weight[:, first]
    with torch.no_grad():
        places[which][-1] = 1e-30
    assert zero_units(model)[units] == expected[units][1:]
    before = output(model)
    assert_equal(output(removed(model)), before)


def test_one_unit_of_a_block_stays() -> None:
    model = make("Electra")
    set_to_zero(model, {HEADS: (range(4), []), NEURONS: ([], range(64))})
    before = output(model)
    small = copy.deepcopy(model)
    removal = remove_zero_units(small)
    assert removal.after.attention_heads == (1, 4) and removal.after.ffn_neurons == (64, 1)
    assert ["a zero head of block 0" in removal.kept[0], "a zero neuron of block 1" in removal.kept[1]] == [True, True]
    assert_equal(output(small), before)
    with pytest.raises(ValueError, match="no unit of attention_heads would be left in block 0"):
        remove_units(small, {encoder_units(small)[0]: [0]})
    assert structure_of(small) == removal.after


def test_neurons_that_the_activation_does_not_keep_at_zero() -> None:
    """Sigmoid makes 0.5 of 0, and the zero column of the next layer 0 of that."""
    model = make("Bert", hidden_act="sigmoid")
    set_to_zero(model)
    small = copy.deepcopy(model)
    removal = remove_zero_units(small)
    assert removal.after.ffn_neurons == (42, 32) and not removal.kept
    assert_equal(output(small), output(model))


def test_other_architectures_are_refused_by_name() -> None:
    for function in (zero_units, remove_zero_units, structure_of):
        with pytest.raises(ValueError, match="of an albert model cannot be removed, only those of bert, roberta"):
            function(make_albert())


@pytest.mark.parametrize("kind", KINDS)
def test_config_says_it_where_it_can(kind: str, tmp_path: Path) -> None:
    """As many neurons in every block, and all heads: such a folder loads with plain from_pretrained."""
    model = make(kind)
    set_to_zero(model, {NEURONS: (range(24), range(40, 64))})
    small: Any = removed(model)
    small.save_pretrained(tmp_path)
    read, info = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert structure_of(read).ffn_neurons == (40, 40)
    assert torch.equal(output(read.eval()), output(small))


@pytest.mark.parametrize(
    "gone",
    [{HEADS: ([1], [2])}, {HEADS: ([1], [2]), NEURONS: (range(8), range(8))}, {NEURONS: (range(9), range(8))}],
    ids=["heads", "heads and neurons", "other numbers of neurons"],
)
def test_config_stays_where_it_cannot(gone: Any, tmp_path: Path) -> None:
    """It would describe another model: such a folder does not load, and nothing is cut or filled up silently."""
    model: Any = make("Bert")
    before = model.config.to_dict()
    set_to_zero(model, gone)
    small: Any = removed(model)
    assert small.config.to_dict() == before == model.config.to_dict()
    small.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_training_goes_on_and_copies_keep_their_size() -> None:
    model = make("Bert")
    set_to_zero(model)
    small: Any = copy.deepcopy(removed(model))
    small.train()(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([1])).loss.backward()
    for name, parameter in small.named_parameters():
        assert parameter.requires_grad and parameter.grad is not None, name
    attention = small.bert.encoder.layer[1].attention.self
    assert (attention.num_attention_heads, attention.all_head_size, attention.attention_head_size) == (1, 8, 8)


def units_of_a_block(count: int) -> st.SearchStrategy[tuple[tuple[int, ...], ...]]:
    block = st.sets(st.integers(0, count - 1), max_size=count - 1).map(lambda found: tuple(sorted(found)))
    return st.tuples(*[block] * BLOCKS)


@given(heads=units_of_a_block(HEAD_COUNT), neurons=units_of_a_block(NEURON_COUNT), kind=st.sampled_from(KINDS))
@settings(max_examples=25, deadline=None)
def test_any_units(heads: Any, neurons: Any, kind: str) -> None:
    model = make(kind)
    expected: dict[Units, tuple[int, ...]] = set_to_zero(model, {HEADS: heads, NEURONS: neurons})
    small = copy.deepcopy(model)
    removal = remove_zero_units(small)
    assert removal.units == expected
    assert removal.after.attention_heads == tuple(HEAD_COUNT - len(each) for each in heads)
    assert removal.after.ffn_neurons == tuple(NEURON_COUNT - len(each) for each in neurons)
    assert_equal(output(small), output(model))
