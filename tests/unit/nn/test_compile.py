"""A model with masks and quantizers is one graph to torch.compile in every phase, and computes what it computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import make_bert
from torch import Tensor

from sparse_accel.nn.fake_quantize import QuantizationScheme, fake_quantize, quantization_parameters
from sparse_accel.nn.layers import make_sparse, mask_inputs, mask_outputs
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.zoo import RECIPES

# One step an epoch: pruned; QAT begins, ranges unknown; QAT goes on; ranges frozen.
RECIPE_ARGS = {"num_epochs": 4, "qat_start_epoch": 1, "observer_epoch": 3}


def step(model: Any, run: RecipeRun, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Takes a step; returns logits and gradients."""
    run.step_begin()
    logits = model(**batch)["logits"]
    logits.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step_end()
    return logits.detach(), gradients


@pytest.mark.slow
def test_every_phase_is_one_graph() -> None:
    plain: Any = make_bert(sparsity=0.9, dropout=0.0)
    plain.bert.encoder.layer = plain.bert.encoder.layer[:1]  # tracing takes its time
    models = [plain, copy.deepcopy(plain)]
    runs = []
    for model in models:
        recipe = load_recipe(RECIPES / "sst2_pruned90_quant.yaml", RECIPE_ARGS)
        runs.append(RecipeRun(recipe, teacher="disable"))
        runs[-1].attach(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        runs[-1].bind(None, model, optimizer, steps_per_epoch=1)
        model.train()
    torch.compiler.reset()
    compiled = torch.compile(models[1], backend="eager", fullgraph=True, dynamic=True)
    for number in range(RECIPE_ARGS["num_epochs"]):
        ids = torch.randint(5, 30, (4, 7 + number), generator=torch.Generator().manual_seed(number))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits, gradients = step(models[0], runs[0], batch)
        found, found_gradients = step(compiled, runs[1], batch)
        assert torch.allclose(found, logits, atol=1e-5), number
        assert gradients.keys() == found_gradients.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(found_gradients[name], gradient, atol=1e-5), (number, name)
    ranges, found_ranges = ([m.state_dict() for m in run.modifiers if m.name == "QuantizationModifier"] for run in runs)
    assert torch.allclose(found_ranges[0]["minimum"], ranges[0]["minimum"], atol=1e-5)
    assert ranges[0]["minimum"].min() < -0.1


@pytest.mark.parametrize(
    "form",
    [
        QuantizationScheme(8),
        QuantizationScheme(8, signed=True, symmetric=True),
        QuantizationScheme(4, signed=True, symmetric=True, channel_axis=0),
    ],
)
def test_a_compiled_quantizer_rounds_bit_for_bit_alike(form: QuantizationScheme) -> None:
    torch.compiler.reset()
    values = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 3
    shape = (6,) if form.channel_axis == 0 else (1,)
    parameters = quantization_parameters(torch.full(shape, -2.5), torch.full(shape, 3.0), form)

    def both(function: Any) -> tuple[Tensor, Tensor]:
        x = values.clone().requires_grad_()
        y = function(x, *parameters, form)
        y.sum().backward()
        assert x.grad is not None
        return y.detach(), x.grad

    expected = both(fake_quantize)
    found = both(torch.compile(fake_quantize, backend="aot_eager", fullgraph=True))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert 0 < float(expected[1].mean()) < 1


@pytest.mark.slow
def test_masks_are_in_the_graph() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Embedding(9, 8), torch.nn.Linear(8, 4))
    for layer in map(make_sparse, model):
        layer.mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
        mask_outputs(layer, torch.arange(len(layer.weight)) != 1)
        mask_inputs(layer, torch.arange(layer.weight.shape[1]) != 2)
    other: Any = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for straight_through in (True, False):  # false: at the end of pruning
        for layer in (*model, *other):
            layer.straight_through = straight_through
            layer.weight.grad = None
        for each in (model, compiled):
            each(torch.arange(9)).square().sum().backward()
        for layer, copied in zip(model, other, strict=True):
            assert torch.allclose(copied.weight.grad, layer.weight.grad, atol=1e-6)
            masked = ~layer.mask_in_use()
            assert bool((copied.weight.grad[masked] != 0).any()) is straight_through
