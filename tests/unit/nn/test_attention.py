"""Attention with dropout on a CPU: its formula, with the dropout of `nn.dropout`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from sparse_accel.nn import attention as module
from sparse_accel.nn.cpu_kernels import kernel
from sparse_accel.nn.dropout import dropout, use_compiled_dropout

pytestmark = pytest.mark.usefixtures("compiled_dropout")


def factors(*shape: int, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Query, key and value of so many texts, heads, queries, keys, and numbers of a head; as models make them, with the
    heads of a token side by side."""
    texts, heads, queries, keys, size = shape
    made = [torch.randn(texts, tokens, heads, size).to(dtype).transpose(1, 2) for tokens in (queries, keys, keys)]
    return [each.requires_grad_() for each in made]


def expected(inputs: list[Any], mask: Tensor | None, p: float, scale: float | None) -> Tensor:
    """By its formula, in float64."""
    query, key, value = inputs
    scores = query.double() @ key.double().transpose(-2, -1) * (scale or query.shape[-1] ** -0.5)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    torch.manual_seed(3)
    kept = dropout(torch.ones(scores.shape), p, train=True)
    return torch.nan_to_num(torch.softmax(scores, -1)) * kept @ value.double()


def found(inputs: list[Any], mask: Tensor | None, p: float, scale: float | None = None) -> Tensor:
    torch.manual_seed(3)
    query, key, value = inputs
    return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=p, scale=scale)


def near(one: Tensor | None, other: Tensor | None, tolerance: float) -> bool:
    assert one is not None and other is not None
    return bool((one.double() - other.double()).abs().max() <= tolerance * other.double().abs().max())


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(1, most) for most in (3, 4, 40, 40, 33)]),
    st.sampled_from(["none", "bool", "added", "per head", "one key"]),
    st.sampled_from([0.1, 0.5]),
    st.sampled_from([None, 0.3]),
    st.booleans(),
)
def test_results_and_gradients(shape: Any, kind: str, p: float, scale: float | None, half: bool) -> None:
    texts, heads, queries, keys, _ = shape
    torch.manual_seed(0)
    inputs = factors(*shape, dtype=torch.bfloat16 if half else torch.float32)
    same = [each.detach().double().requires_grad_() for each in inputs]
    masks = {
        "bool": torch.rand(texts, 1, queries, keys) > 0.3,
        "added": torch.randn(texts, 1, 1, keys).to(inputs[0].dtype),
        "per head": torch.randn(1, heads, queries, keys),
        "one key": torch.randn(texts, 1, queries, 1).to(inputs[0].dtype),
    }
    mask = masks.get(kind)
    if mask is not None and half and mask.dtype != torch.bool:
        mask = mask.bfloat16()
    ours, theirs = found(inputs, mask, p, scale), expected(same, mask, p, scale)
    tolerance = 3e-2 if half else 1e-5
    assert ours.dtype == inputs[0].dtype and near(ours, theirs, tolerance)
    gradient = torch.randn(ours.shape).to(ours.dtype)
    ours.backward(gradient)
    theirs.backward(gradient.double())
    largest = max(float(each.grad.abs().max()) for each in same if each.grad is not None)
    for one, other in zip(inputs, same, strict=True):
        assert one.grad is not None and other.grad is not None
        assert (one.grad.double() - other.grad).abs().max() <= tolerance * largest


def test_it_is_used_under_autocast_and_not_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.dtype] = []
    original = module._Attention.forward

    def watched(ctx: Any, query: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        used.append(query.dtype)
        return original(ctx, query, *arguments)

    monkeypatch.setattr(module._Attention, "forward", staticmethod(watched))
    inputs = factors(2, 2, 5, 5, 8)
    other: Any = F.scaled_dot_product_attention
    with torch.autocast("cpu", torch.bfloat16):
        assert other(*inputs, dropout_p=0.1).dtype == torch.bfloat16
    other(*inputs, dropout_p=0.1)
    assert used == [torch.bfloat16, torch.float32]

    other(*inputs, dropout_p=0.0)
    other(*inputs, dropout_p=0.1, is_causal=True)
    other(*(each.double() for each in inputs), dropout_p=0.1)
    other(inputs[0], *(each[:, :1] for each in inputs[1:]), dropout_p=0.1, enable_gqa=True)
    for mask in (torch.zeros(5, 5, requires_grad=True), torch._neg_view(torch.ones(5, 5)), torch.tensor(0.5)):
        other(*inputs, attn_mask=mask, dropout_p=0.1).sum().backward()
    with torch.inference_mode():
        key = torch.randn(2, 2, 5, 8)
    other(inputs[0].detach(), key, inputs[2].detach(), dropout_p=0.1)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs[0].detach(), torch.ones(2, 2, 5, 8))
        assert torch.autograd.forward_ad.unpack_dual(other(dual, *inputs[1:], dropout_p=0.1)).tangent is not None
    torch.func.vmap(lambda *each: other(*each, dropout_p=0.1), randomness="different")(*(x[None] for x in inputs))
    assert "bernoulli" in make_fx(lambda *each: other(*each, dropout_p=0.1))(*inputs).code
    use_compiled_dropout(False)
    other(*inputs, dropout_p=0.1)
    assert len(used) == 2


def test_where_it_is_not_used_the_bits_are_those_of_pytorch() -> None:
    attend: Any = F.scaled_dot_product_attention
    for options in ({"is_causal": True}, {"attn_mask": torch.randn(6, 6)}):
        inputs = [each.double() for each in factors(2, 2, 6, 6, 8)]
        each: list[Tensor] = []
        for on in (True, False):
            use_compiled_dropout(on)
            torch.manual_seed(0)
            each.append(attend(*inputs, dropout_p=0.2, **options))
        assert torch.equal(*each)


def test_the_same_on_any_threads() -> None:
    inputs = factors(8, 4, 60, 60, 16)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for each in inputs:
                each.grad = None
            result = found(inputs, None, 0.1)
            result.sum().backward()
            results.append([result, *(each.grad for each in inputs)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for later in results[1:] for one, other in zip(results[0], later, strict=True))


def test_derivatives_of_every_kind() -> None:
    """Batches of gradients, second derivatives, and the gradient of the weights themselves."""
    inputs, mask = factors(2, 2, 5, 6, 8), torch.rand(2, 1, 5, 6) > 0.3
    same = [each.detach().double().requires_grad_() for each in inputs]
    ours, theirs = found(inputs, mask, 0.5), expected(same, mask, 0.5, None)
    gradients = torch.randn(3, *ours.shape)
    batched = torch.autograd.grad(ours, inputs, gradients, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(ours, inputs, gradient, retain_graph=True) for gradient in gradients]
    for number, of_batch in enumerate(batched):
        assert near(of_batch, torch.stack([one[number] for one in each]), 1e-5)
    for result, parts in ((ours, inputs), (theirs, same)):
        first = torch.autograd.grad(result.square().sum(), parts, create_graph=True)
        torch.stack([part.square().sum() for part in first]).sum().backward()
    assert all(near(one.grad, other.grad, 1e-4) for one, other in zip(inputs, same, strict=True))

    torch.manual_seed(0)
    _, weights = torch.ops.aten._scaled_dot_product_attention_math(*inputs, dropout_p=0.5)
    (of_query,) = torch.autograd.grad((weights * gradients[0, :, :, :, :6]).sum(), inputs[0])
    kept = weights.detach() != 0
    plain = torch.softmax(inputs[0] @ inputs[1].transpose(-2, -1) * 8**-0.5, -1) * kept * 2
    assert near(of_query, torch.autograd.grad((plain * gradients[0, :, :, :, :6]).sum(), inputs[0])[0], 1e-5)


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 2)])
def test_only_what_is_trained_gets_a_gradient(trained: tuple[int, ...]) -> None:
    inputs, whole = factors(2, 2, 5, 6, 8), []
    for each in (inputs, [x.detach().requires_grad_(number in trained) for number, x in enumerate(inputs)]):
        found(each, None, 0.1).square().sum().backward()
        whole.append(each)
    for number, (one, other) in enumerate(zip(*whole, strict=True)):
        assert (other.grad is None) == (number not in trained)
        assert other.grad is None or torch.equal(one.grad, other.grad)


def test_wrong_tensors_are_refused() -> None:
    fast = kernel()
    assert fast is not None
    scores = torch.randn(1, 2, 3, 4)
    for wrong in (torch.zeros(1, 2, 3, 5), torch.zeros(1, 2, 3, 4).double(), torch.zeros(1, 2, 4, 3).transpose(2, 3)):
        with pytest.raises(ValueError, match="the mask must be float32"):
            fast.attention_weights(scores, wrong, 1.0, 0.1, 0, torch.float32)
    with pytest.raises(ValueError, match="contiguous"):
        fast.attention_weights(scores.transpose(2, 3), None, 1.0, 0.1, 0, torch.float32)
    with pytest.raises(ValueError, match="p must be"):
        fast.attention_weights(scores, None, 1.0, 1.0, 0, torch.float32)
    with pytest.raises(ValueError, match="more than 8192 keys"):
        fast.attention_weights(torch.zeros(1, 1, 1, 8193), None, 1.0, 0.1, 0, torch.float32)
    with pytest.raises(ValueError, match="one shape"):
        fast.attention_gradient(scores, torch.zeros(1, 2, 3, 3), 1.0, 0.1, 0)
