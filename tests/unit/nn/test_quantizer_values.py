"""What goes through quantizers: clipped fractions and histograms, against a direct count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme
from sparse_accel.nn.layers import make_sparse
from sparse_accel.nn.quantizer_values import BINS, watch_quantizers


class Model(nn.Module):
    def __init__(self, scheme: QuantizationScheme, channels: int = 1) -> None:
        super().__init__()
        self.input_quantizer = FakeQuantize(scheme, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.input_quantizer(x)
        return result


def quantizing(scheme: QuantizationScheme, low: float, high: float) -> Model:
    model = Model(scheme).eval()
    model.input_quantizer.enabled = True
    model.input_quantizer.set_range(torch.tensor([low]), torch.tensor([high]))
    return model


@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=50),
    low=st.floats(-4, -0.5),
    high=st.floats(0.5, 4),
    signed=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_clipped_is_what_fake_quantization_cannot_keep(
    values: list[float], low: float, high: float, signed: bool
) -> None:
    model = quantizing(QuantizationScheme(8, signed=signed), low, high)
    x = torch.tensor(values)
    with watch_quantizers(model) as found:
        model(x)
    quantizer = model.input_quantizer
    # A value is kept if its nearest grid point is at most half a step away: clipping moves it by more.
    distance = (model(x) - x).abs()
    lost = distance > quantizer.scale * 0.5 * (1 + 1e-4) + 1e-6
    unclear = (distance - quantizer.scale * 0.5).abs() < 1e-4 * quantizer.scale + 1e-6
    result = found["input"]
    assert int(lost.sum() - (lost & unclear).sum()) <= round(result.clipped * len(values))
    assert round(result.clipped * len(values)) <= int(lost.sum() + unclear.sum())
    assert sum(result.counts) == len(values) and len(result.counts) == BINS == len(result.edges) - 1
    assert (result.min, result.max, result.scale) == pytest.approx((low, high, float(quantizer.scale)), rel=1e-6)


def test_several_forwards_count_together_and_nothing_changes() -> None:
    model = quantizing(QuantizationScheme(8), -1.0, 1.0)
    inside, outside = torch.zeros(6), torch.full((2,), 9.0)
    before = {name: value.clone() for name, value in model.input_quantizer.named_buffers()}
    with watch_quantizers(model) as found:
        assert found == {}
        model(inside)
        model(outside)
    assert found["input"].clipped == 0.25 and found["input"].counts[-1] == 2, "beyond the bins: the outermost one"
    for name, value in model.input_quantizer.named_buffers():
        assert torch.equal(value, before[name]), name
    model(outside)
    assert sum(found["input"].counts) == 8, "nothing is counted after the block"


def test_one_scale_per_channel() -> None:
    model = Model(QuantizationScheme(8, signed=True, symmetric=True, channel_axis=0), channels=2).eval()
    model.input_quantizer.enabled = True
    model.input_quantizer.set_range(torch.tensor([-1.0, -4.0]), torch.tensor([1.0, 4.0]))
    with watch_quantizers(model) as found:
        model(torch.tensor([[0.5, 3.0], [0.5, 3.0]]))
    assert found["input"].clipped == 0.25, "3 is outside the first channel's range alone"
    assert (found["input"].min, found["input"].max) == (-4.0, 4.0)


def test_one_scale_per_row_of_an_embedding() -> None:
    layer: Any = make_sparse(nn.Embedding(3, 2))
    layer.weight.data = torch.tensor([[1.0, -1.0], [5.0, 3.0], [0.5, 0.5]])
    layer.weight_quantizer = FakeQuantize(QuantizationScheme(8, signed=True, symmetric=True, channel_axis=0), 3).eval()
    layer.weight_quantizer.enabled = True
    layer.weight_quantizer.set_range(torch.tensor([-1.0, -4.0, -1.0]), torch.tensor([1.0, 4.0, 1.0]))
    with watch_quantizers(layer) as found:
        layer(torch.tensor([[1, 0], [1, 2]]))
    assert found["weight"].clipped == 0.25, "5, twice, of eight numbers"


def test_quantizers_that_are_off_are_left_out() -> None:
    model = Model(QuantizationScheme(8))
    with watch_quantizers(model) as found:
        model(torch.zeros(3))
    assert found == {}


@pytest.mark.parametrize("evaluated_before", [False, True])
def test_a_compiled_model_is_counted_too(evaluated_before: bool) -> None:
    """Hooks that were added after a graph was compiled are skipped in it."""
    torch.compiler.reset()
    model = quantizing(QuantizationScheme(8), -1.0, 1.0)
    compiled = torch.compile(model, backend="eager", dynamic=True)
    x = torch.tensor([0.5, 0.5, 0.5, 9.0])
    for _ in range(2):
        if evaluated_before:
            compiled(x)
        with watch_quantizers(model) as found:
            compiled(x)
        assert found["input"].clipped == 0.25 and sum(found["input"].counts) == 4


def test_a_quantizer_that_saw_nothing_has_no_entry() -> None:
    model = nn.ModuleDict({"seen": quantizing(QuantizationScheme(8), -1.0, 1.0)})
    model["skipped"] = quantizing(QuantizationScheme(8), -1.0, 1.0)
    with watch_quantizers(model) as found:
        model["seen"](torch.zeros(3))
    assert found.keys() == {"seen.input"}
