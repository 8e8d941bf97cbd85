"""Dropout with the compiled library's random numbers: what PyTorch's dropout promises."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from tiny import make_bert
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from sparse_accel.nn import attention
from sparse_accel.nn import dropout as module
from sparse_accel.nn.dropout import use_compiled_dropout

pytestmark = pytest.mark.usefixtures("compiled_dropout")


def seeded(x: Tensor, p: float, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return F.dropout(x, p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_zeros_and_the_mean_are_as_promised(p: float, dtype: torch.dtype) -> None:
    x = torch.ones(1000, 1000, dtype=dtype)
    found = seeded(x, p)
    zeros = (found == 0).double().mean().item()
    assert abs(zeros - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-17
    stay = found[found != 0]
    assert torch.allclose(stay.float(), torch.full_like(stay, 1 / (1 - p)).float(), rtol=1e-4 if p != 0.9 else 1e-3)
    # Neighbours, rows and two calls are independent.
    kept = (found != 0).double() - (1 - zeros)
    for other in (kept.roll(1, 1), kept.roll(1, 0), (F.dropout(x, p) != 0).double() - (1 - zeros)):
        assert abs((kept * other).mean().item()) / (p * (1 - p)) < 5e-3


def test_the_gradient_is_that_of_what_stays() -> None:
    x = torch.randn(33, 65, requires_grad=True)
    gradient = torch.randn(33, 65)
    found = seeded(x, 0.25)
    found.backward(gradient)
    factor = torch.where(found == 0, 0.0, 1 / 0.75)
    assert x.grad is not None and torch.equal(x.grad, gradient * factor) and torch.equal(found, x * factor)


def test_it_has_a_second_derivative() -> None:
    x = torch.randn(8, 8, dtype=torch.float32, requires_grad=True)
    (first,) = torch.autograd.grad(seeded(x, 0.5).square().sum(), x, create_graph=True)
    first.sum().backward()
    assert x.grad is not None and set(x.grad.unique().tolist()) == {0.0, 8.0}  # 2 * 2 * 2


def test_a_seed_gives_the_same_on_any_threads() -> None:
    x = torch.randn(300, 700)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(seeded(x, 0.1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], each) for each in found)
    assert not torch.equal(found[0], seeded(x, 0.1, seed=1))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    F.dropout(x, 0.1)
    second = F.dropout(x, 0.1)
    torch.set_rng_state(state)
    assert torch.equal(F.dropout(x, 0.1), found[0]) and torch.equal(F.dropout(x, 0.1), second)


def test_recomputed_activations_drop_the_same() -> None:
    x = torch.randn(50, 50, requires_grad=True)
    found = seeded(x, 0.5)
    found.sum().backward()
    expected, x.grad = x.grad, None
    torch.manual_seed(0)
    checkpoint(lambda each: F.dropout(each, 0.5).exp().log(), x, use_reentrant=False).sum().backward()
    assert expected is not None and x.grad is not None
    assert torch.equal((x.grad == 0), (expected == 0)) and torch.allclose(x.grad, expected)


def test_eval_and_probabilities_without_chance() -> None:
    x = torch.randn(3, 4)
    assert F.dropout(x, 0.5, training=False) is x and torch.nn.Dropout(0.5).eval()(x) is x
    assert torch.equal(F.dropout(x, 0.0), x) and not F.dropout(x, 1.0).any()
    assert F.dropout(x[:0], 0.5).shape == (0, 4)
    with pytest.raises(ValueError, match="probability"):
        F.dropout(x, 1.5)


def test_other_tensors_get_the_numbers_of_pytorch() -> None:
    """float64, probabilities that 16 bits do not tell from 0, transforms, and everything once it is off again."""

    def changed(x: Tensor, p: float = 0.5) -> tuple[Tensor, Tensor]:
        found = seeded(x, p)
        use_compiled_dropout(False)
        expected = seeded(x, p)
        use_compiled_dropout()
        return found, expected

    assert torch.equal(*changed(torch.randn(40, 40, dtype=torch.float64)))
    assert torch.equal(*changed(torch.randn(400, 400), 1e-6))
    assert not torch.equal(*changed(torch.randn(40, 40)))
    assert torch.equal(*changed(torch.randn(40, 30).t()))
    assert seeded(torch.randn(40, 30).t(), 0.5).stride() == (1, 30)
    assert torch.equal(*changed(torch._neg_view(torch.ones(40, 40))))
    assert torch.equal(*changed(torch._efficientzerotensor((8,))))
    torch.manual_seed(0)
    found = torch.func.grad(lambda x: F.dropout(x, 0.5).sum())(torch.ones(64, 64))
    assert set(found.unique().tolist()) == {0.0, 2.0}
    mapped = torch.func.vmap(lambda x: F.dropout(x, 0.5), randomness="different")(torch.ones(64, 64))
    assert set(mapped.unique().tolist()) == {0.0, 2.0}


def test_derivatives_of_every_kind() -> None:
    x = torch.randn(6, 7, requires_grad=True)
    found = seeded(x, 0.5)
    factors = torch.where(found == 0, 0.0, 2.0)
    (each,) = torch.autograd.grad(found, x, torch.ones(3, 6, 7), is_grads_batched=True, retain_graph=True)
    assert torch.equal(each, factors.expand(3, 6, 7))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.full((6, 7), 3.0))
        tangent = torch.autograd.forward_ad.unpack_dual(seeded(dual, 0.5)).tangent
    assert tangent is not None and torch.equal(tangent, 3 * factors)
    found.backward(torch.ones(7, 6).t())
    assert x.grad is not None and torch.equal(x.grad, factors)


def test_a_trace_contains_pytorch_s_operations() -> None:
    graph = make_fx(lambda x: F.dropout(x, 0.5))(torch.randn(3, 4))
    assert "bernoulli" in graph.code


def test_every_dropout_of_an_encoder_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also inside of attention: none of PyTorch's random numbers of a tensor's size are made."""
    model = make_bert(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2).train()
    sizes: list[Any] = []
    original, attended = module._Dropout.forward, attention._Attention.forward

    def watched(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        sizes.append(tuple(x.shape))
        return original(ctx, x, *arguments)

    def watched_attention(ctx: Any, query: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        result = attended(ctx, query, *arguments)
        sizes.append(tuple(result[1].shape))
        return result

    monkeypatch.setattr(module._Dropout, "forward", staticmethod(watched))
    monkeypatch.setattr(attention._Attention, "forward", staticmethod(watched_attention))
    model(input_ids=torch.randint(5, 20, (2, 6)))
    blocks = cast(Any, model.config).num_hidden_layers
    assert sum(len(size) == 4 for size in sizes) == blocks  # probabilities of attention
    assert sum(len(size) == 3 for size in sizes) == 1 + 2 * blocks


def test_a_model_learns_as_with_the_numbers_of_pytorch() -> None:
    """The loss after some steps: the mean over seeds agrees within its spread."""
    start = make_bert(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    ids, labels = torch.randint(5, 20, (16, 6)), torch.randint(0, 2, (16,))

    def trained(seed: int, on: bool) -> float:
        use_compiled_dropout(on)
        model = copy.deepcopy(start).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        torch.manual_seed(seed)
        losses = []
        for _ in range(12):
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    ours, theirs = ([trained(seed, on) for seed in range(8)] for on in (True, False))
    difference = torch.tensor(ours).mean() - torch.tensor(theirs).mean()
    error = (torch.tensor(ours).var() / 8 + torch.tensor(theirs).var() / 8).sqrt()
    assert abs(difference) < 4 * error
