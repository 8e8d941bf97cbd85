"""The one mechanism: layers that keep their names, their weights and, while everything is off, their outputs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import make_albert, make_bert, make_distilbert, make_roberta, make_rows
from torch import Tensor, nn

from sparse_accel.nn.layers import (
    SparseLinear,
    make_sparse,
    mask_inputs,
    mask_outputs,
    mask_versions,
    maskable_layers,
    masked_fraction,
    masks,
    plain_class_name,
    prunable_names,
    quantized_linears,
    quantizers,
    sparse_layers,
)
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

EVERYTHING = """
modifiers:
  - !ConstantPruningModifier {params: __ALL_PRUNABLE__}
  - !QuantizationModifier {start_epoch: 1, quantize_embeddings: true}
"""


def inputs() -> dict[str, Tensor]:
    row = make_rows(1)[0]
    return {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}


def attach(model: nn.Module, recipe: str = EVERYTHING) -> RecipeRun:
    run = RecipeRun(load_recipe(recipe))
    run.attach(model)
    return run


def begin(model: nn.Module, recipe: str) -> RecipeRun:
    """Attaches, binds and begins the first step."""
    run = attach(model, recipe)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.1), steps_per_epoch=1)
    run.step_begin()
    return run


# --- structure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_bert, make_distilbert, make_roberta, make_albert])
def test_names_keys_and_outputs_stay_while_everything_is_off(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    names = [name for name, _ in model.named_parameters()]
    keys = list(model.state_dict())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    output = model(**inputs()).logits
    attach(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == keys
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(**inputs()).logits, output)
    model.load_state_dict(make().state_dict(), strict=True)


def test_which_layers_get_which_quantizers() -> None:
    model = make_bert()
    attach(model)
    on = {name: quantizer.scheme for name, quantizer in quantizers(model).items()}
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    embeddings = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    assert len(linears) == 14 and len(embeddings) == 3
    expected = {f"{name}.{which}_quantizer" for name in linears for which in ("input", "weight", "output")}
    expected |= {f"{name}.{which}_quantizer" for name in embeddings for which in ("weight", "output")}
    assert set(on) == expected
    for name, form in on.items():
        assert (form.signed, form.symmetric) == ((True, True) if "weight_quantizer" in name else (False, False))
    assert quantized_linears(model) == (0, 14)


def test_a_layer_that_blocks_share_is_one() -> None:
    model = make_albert()
    attach(model)
    shared = [name for name, _ in sparse_layers(model) if "albert_layers" in name]
    assert len(shared) == 6  # query, key, value, dense, ffn, ffn_output: once, for two blocks
    assert len(masks(model)) == len(prunable_names(model)) == 9
    assert len(quantizers(model)) == 9 * 3 + 3 * 2


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.embedding(ids))


def test_a_tied_weight_has_one_mask() -> None:
    model = Tied()
    with torch.no_grad():
        model.embedding.weight[::2] = 0.0
    assert list(maskable_layers(model)) == ["embedding.weight"]
    assert prunable_names(model) == []  # an embedding first of all
    run = begin(model, "modifiers:\n  - !ConstantPruningModifier {params: [embedding.weight]}")
    expected = model.embedding.weight != 0
    for layer in (model.embedding, model.head):
        assert torch.equal(layer.mask, expected)  # type: ignore[arg-type]
    model(torch.arange(6)).sum().backward()
    assert model.head.weight.grad is not None and (model.head.weight.grad[~expected] == 0).all()
    assert list(run.state_dict()) == ["step", "0:ConstantPruningModifier:embedding.weight"]


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Linear(4, 3), torch.randn(2, 4)),
        (nn.Conv1d(4, 3, 3, padding=1, stride=2), torch.randn(2, 4, 8)),
        (nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular", groups=2), torch.randn(2, 4, 8)),
        (nn.Conv2d(4, 3, (3, 1), dilation=2), torch.randn(2, 4, 8, 8)),
        (nn.Embedding(9, 4, padding_idx=0), torch.randint(9, (2, 5))),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "x",
)
def test_every_kind_computes_with_the_effective_weight(module: nn.Module, x: Tensor) -> None:
    plain, kind = copy.deepcopy(module), type(module).__name__
    layer = make_sparse(module)
    assert plain_class_name(layer) == kind and make_sparse(layer) is layer
    layer.mask = torch.rand(layer.weight.shape) > 0.5
    with torch.no_grad():
        layer.weight[~layer.mask] = torch.inf  # whatever lies under the mask
        plain.weight.mul_(layer.mask)  # type: ignore[operator]
    torch.testing.assert_close(layer(x), plain(x))
    layer(x).sum().backward()
    plain(x).sum().backward()
    assert (layer.weight.grad[~layer.mask] == 0).all()
    torch.testing.assert_close(layer.weight.grad[layer.mask], plain.weight.grad[layer.mask])  # type: ignore[index]


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Linear(4, 3), torch.randn(2, 4)),
        (nn.Conv1d(4, 3, 3), torch.randn(2, 4, 8)),
        (nn.Embedding(9, 4, padding_idx=0), torch.randint(9, (2, 5))),
    ],
)
def test_a_straight_through_mask_lets_every_gradient_pass(module: nn.Module, x: Tensor) -> None:
    plain: Any = copy.deepcopy(module)
    layer = make_sparse(module)
    layer.mask = torch.rand(layer.weight.shape) > 0.5
    plain.weight.data.mul_(layer.mask)
    layer.straight_through = True
    torch.testing.assert_close(layer(x), plain(x))
    factor = torch.randn(layer(x).shape)
    (layer(x) * factor).sum().backward()
    (plain(x) * factor).sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    assert (layer.weight.grad[~layer.mask] != 0).any()
    kept, full = layer.weight.grad[layer.mask], layer.weight.grad
    layer.clear_masked(full)
    assert torch.equal(full[layer.mask], kept) and (full[~layer.mask] == 0).all()


@pytest.mark.parametrize("kinds", [("row",), ("column",), ("row", "column"), ("mask", "row", "column")], ids="+".join)
@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Linear(4, 3), torch.randn(2, 4)),
        (nn.Conv1d(4, 4, 3, groups=2), torch.randn(2, 4, 8)),
        (nn.Conv2d(4, 3, (3, 1)), torch.randn(2, 4, 8, 8)),
        (nn.Embedding(9, 4, padding_idx=0), torch.randint(9, (2, 5))),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "x",
)
def test_masks_of_rows_and_columns_join_that_of_weights(module: nn.Module, x: Tensor, kinds: tuple[str, ...]) -> None:
    plain: Any = copy.deepcopy(module)
    layer: Any = make_sparse(copy.deepcopy(module))
    shape = layer.weight.shape
    assert layer.whole_shape == shape and layer.mask_in_use() is None and layer.masked_weight() is layer.weight
    generator = torch.Generator().manual_seed(0)
    expected = torch.ones(shape, dtype=torch.bool)
    if "mask" in kinds:
        layer.mask = torch.rand(shape, generator=generator) > 0.3
        expected &= layer.mask
    if "row" in kinds:
        rows = torch.arange(shape[0]) != 1
        mask_outputs(layer, rows, bias=False)
        expected[1] = False
    if "column" in kinds:
        mask_inputs(layer, torch.arange(shape[1]) != 0)
        expected[:, 0] = False
    (found,) = masks(nn.ModuleList([layer])).values()
    assert torch.equal(found, expected)
    with torch.no_grad():
        layer.weight[~expected] = torch.inf
        plain.weight.mul_(expected)
    for version in range(2):  # and once more after a change in place
        torch.testing.assert_close(layer(x), plain(x))
        layer.weight.grad = plain.weight.grad = None
        layer(x).sum().backward()
        plain(x).sum().backward()
        assert (layer.weight.grad[~expected] == 0).all()
        torch.testing.assert_close(layer.weight.grad[expected], plain.weight.grad[expected])
        gradient = torch.ones(shape)
        layer.clear_masked(gradient)
        assert torch.equal(gradient.bool(), expected)
        before = mask_versions(layer)
        if version == 0:
            for kind in kinds:
                mask = layer.mask if kind == "mask" else getattr(layer, f"{kind}_mask")
                mask[-1] = False
                if kind == "column":
                    expected[:, -1] = False
                else:
                    expected[-1] = False
            after = mask_versions(layer)
            assert len(after) == len(kinds)
            assert all(one[0] is two[0] and one[1] != two[1] for one, two in zip(before, after, strict=True))
            plain.weight.data.mul_(expected)


def test_the_fraction_that_all_masks_remove() -> None:
    blocks = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 4)])
    model, layers = nn.ModuleDict({"blocks": blocks}), [make_sparse(each) for each in blocks]
    assert masked_fraction(model) == 0
    mask_outputs(layers[0], torch.arange(6) > 1)
    mask_inputs(layers[1], torch.arange(6) > 2)
    assert masked_fraction(model) == pytest.approx((8 + 12) / 48)
    layers[1].mask = torch.ones(4, 6, dtype=torch.bool)
    layers[1].mask[0] = False
    assert masked_fraction(model) == pytest.approx((8 + 12 + 3) / 48)


class OwnLinear(nn.Linear):
    """A Linear whose forward may do something else."""


@pytest.mark.parametrize("module", [nn.LayerNorm(3), nn.ReLU(), OwnLinear(2, 2), nn.Bilinear(2, 2, 2)])
def test_other_modules_are_refused(module: nn.Module) -> None:
    with pytest.raises(TypeError, match=f"{type(module).__name__} is not one of"):
        make_sparse(module)


# --- masks that change ------------------------------------------------------------------------------------------------


def test_a_mask_changed_in_place_or_replaced_is_the_one_in_use() -> None:
    layer = make_sparse(nn.Linear(3, 3))
    everything = torch.ones(3, 3, dtype=torch.bool)
    layer.mask = everything.clone()
    assert torch.equal(layer.masked_weight(), layer.weight)
    layer.mask[0] = False
    assert (layer.masked_weight()[0] == 0).all()
    for row in range(3):  # a freed mask's address may be given to the next one
        layer.mask = None
        layer.mask = everything.clone()
        layer.mask[row] = False
        assert torch.equal((layer.masked_weight() == 0).all(1), torch.arange(3) == row)


@pytest.mark.parametrize("changes", range(4))  # a tensor counts its changes, a copy of it anew
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_is_its_own(copied: Callable[[nn.Module], Any], changes: int) -> None:
    torch.manual_seed(0)
    layer = make_sparse(nn.Linear(3, 3))
    layer.mask = torch.rand(3, 3) > 0.5
    x = torch.randn(2, 3)
    for _ in range(changes):
        layer.mask[1] = ~layer.mask[1]
    layer(x)
    layer.mask[0] = ~layer.mask[0]
    other = copied(layer)
    expected = layer(x)
    assert isinstance(other, SparseLinear) and torch.equal(other(x), expected)
    assert other.mask is not None
    other.mask.fill_(False)
    assert torch.equal(other(x), other.bias.expand(2, 3)) and torch.equal(layer(x), expected)


def test_a_trained_model_can_be_copied() -> None:
    model = make_bert(sparsity=0.5)
    begin(model, EVERYTHING.replace("start_epoch: 1", "start_epoch: 0"))
    model(**inputs())
    model.eval()
    expected = model(**inputs()).logits
    other = copy.deepcopy(model)
    assert torch.equal(other(**inputs()).logits, expected)
    for quantizer in quantizers(other).values():
        quantizer.scale.fill_(1.0)
    assert torch.equal(model(**inputs()).logits, expected)


def test_the_weight_in_use_is_masked_then_rounded() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model.state_dict()["0.weight"][0] = 0.0
    begin(model, EVERYTHING.replace("start_epoch: 1", "start_epoch: 0"))
    layer = model[0]
    assert isinstance(layer, SparseLinear)
    x = torch.randn(3, 4)
    model(x)
    weight = layer.weight_in_use()
    assert (weight[0] == 0).all() and not torch.equal(weight, layer.weight)
    assert torch.equal(layer(x), layer.quantize_output(F.linear(layer.quantize_input(x), weight, layer.bias)))
