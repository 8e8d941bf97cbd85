"""Masks and fake quantization of a CPU: with the compiled function, and with PyTorch's operations, the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_accel.nn import cpu_kernels
from sparse_accel.nn.cpu_kernels import Grid, MaskedOnCpu, fake_quantize_on_cpu, kernel, mask_bits
from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme
from sparse_accel.nn.layers import make_sparse

needs_kernel = pytest.mark.skipif(kernel() is None, reason="the library is not built")


def in_passes(x: Tensor, grid: Grid) -> Tensor:
    result: Tensor = cpu_kernels._FakeQuantizeInPasses.apply(x, grid)
    return result


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 1500),
    seed=st.integers(0, 2**20),
    scale=st.floats(2e-4, 0.5),
    affine=st.booleans(),
    masks=st.booleans(),
    threads=st.sampled_from([1, 2, 3]),
    transposed=st.booleans(),
)
def test_the_same_bits_as_operations_of_pytorch(
    rows: int, columns: int, seed: int, scale: float, affine: bool, masks: bool, threads: int, transposed: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (
        2 * torch.randn(columns, rows, generator=generator).t()
        if transposed
        else torch.randn(rows, columns, generator=generator)
    )
    gradient = torch.randn(x.shape, generator=generator)
    mask = torch.rand(x.shape, generator=generator) < 0.3 if masks else torch.ones(x.shape, dtype=torch.bool)
    integers = (0, 255) if affine else (-128, 127)
    grid = Grid(torch.tensor(scale, dtype=torch.float32).item(), seed % 256 if affine else 0, *integers)
    first, second = (x.clone().requires_grad_() for _ in range(2))
    expected = in_passes(torch.where(mask, first, 0.0), grid)
    expected.backward(gradient)
    seen = torch.tensor([torch.inf]), torch.tensor([-torch.inf])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = fake_quantize_on_cpu(second, grid, mask_bits(mask) if masks else None, seen)
        found.backward(gradient)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)
    assert first.grad is not None and second.grad is not None and torch.equal(first.grad, second.grad)
    masked = torch.where(mask, x, 0.0)
    assert torch.equal(seen[0], masked.min().reshape(1)) and torch.equal(seen[1], masked.max().reshape(1))


def layer(masks: str) -> Any:
    torch.manual_seed(0)
    made: Any = make_sparse(torch.nn.Linear(48, 40))
    if "mask" in masks:
        made.mask = torch.rand(40, 48) < 0.4
    if "rows" in masks:
        made.row_mask = torch.arange(40) % 3 > 0
    made.straight_through = "through" in masks
    made.weight_quantizer = FakeQuantize(QuantizationScheme(signed=True, symmetric=True))
    made.input_quantizer = FakeQuantize(QuantizationScheme())
    for quantizer in (made.weight_quantizer, made.input_quantizer):
        quantizer.enabled = quantizer.observing = True
    return made


def trained(masks: str, precision: torch.dtype) -> list[Tensor]:
    """Weights, gradients and ranges of a few steps: the first forward sets ranges, the others only collect."""
    made = layer(masks)
    if "alone" in masks:
        made.weight_quantizer.enabled = made.input_quantizer.enabled = False
    found: list[Tensor] = []
    for step in range(3):
        x = torch.randn(5, 48, generator=torch.Generator().manual_seed(step), requires_grad=True)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            y = made(torch.tanh(torch.nn.functional.linear(x, torch.eye(48))))  # in bfloat16: of an earlier layer
        assert y.dtype == precision
        y.float().square().sum().backward()
        assert made.weight.grad.dtype == torch.float32
        assert x.grad is not None
        found += [x.grad, made.weight.grad.clone()]
        with torch.no_grad():
            made.weight -= 0.01 * made.weight.grad
        made.zero_grad()
    for quantizer in (made.weight_quantizer, made.input_quantizer):
        found += [quantizer.scale, quantizer.seen_minimum, quantizer.seen_maximum]
    return [*found, made.weight.detach()]


@needs_kernel
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masks", ["none", "mask", "rows", "mask and rows", "mask straight through", "mask alone"])
def test_a_layer_trains_alike_without_the_library(
    masks: str, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = trained(masks, precision)
    monkeypatch.setattr(cpu_kernels, "kernel", lambda: None)
    monkeypatch.setattr("sparse_accel.nn.fake_quantize.kernel", lambda: None)
    for number, (ours, theirs) in enumerate(zip(compiled, trained(masks, precision), strict=True)):
        assert torch.equal(ours, theirs), number


@needs_kernel
def test_a_missing_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_ACCEL_LIBRARY", "/nowhere/libsparse_accel.so")
    kernel.cache_clear()
    try:
        assert kernel() is None
        assert MaskedOnCpu.apply(torch.ones(3), mask_bits(torch.tensor([True, False, True]))).tolist() == [1, 0, 1]
    finally:
        monkeypatch.undo()
        kernel.cache_clear()
    assert kernel() is not None


@needs_kernel
def test_memory_that_is_not_the_tensors_is_not_read() -> None:
    fast, x = kernel(), torch.ones(4, 6)
    assert fast is not None
    for wrong in (torch.ones(4, 5, dtype=torch.bool), torch.ones(6, 4, dtype=torch.bool).t(), torch.ones(4, 6)):
        with pytest.raises(ValueError, match="must be"):
            fast(x, mask=wrong)
    with pytest.raises(ValueError, match="one shape"):
        fast(x, gradient=torch.ones(2), grid=Grid(0.1, 0, -128, 127))
    with pytest.raises(ValueError, match="float32"):
        fast(x.double())
