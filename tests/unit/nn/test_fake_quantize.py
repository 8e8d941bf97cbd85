"""Fake quantization: SparseML's figures, torch's own kernel, and the module that gathers ranges step by step."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from places import golden
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_accel.nn.fake_quantize import (
    FakeQuantize,
    Observers,
    QuantizationScheme,
    extrema,
    fake_quantize,
    moving_average,
    quantization_parameters,
)
from sparse_accel.nn.layers import SparseEmbedding, make_sparse

GOLDEN: dict[str, Any] = golden("fake_quantize")
INPUTS = [torch.tensor(batch) for batch in GOLDEN["inputs"]]
CASES = [name for name in GOLDEN if name not in ("about", "inputs")]
ACTIVATION = QuantizationScheme()
WEIGHT = QuantizationScheme(signed=True, symmetric=True)


# --- SparseML's figures -----------------------------------------------------------------------------------------------


def scheme_of(case: dict[str, Any]) -> QuantizationScheme:
    arguments = case["args"]
    scheme = QuantizationScheme(
        bits=arguments["bits"],
        signed=arguments["dtype"] == "torch.qint8",
        symmetric=arguments["symmetric"],
        channel_axis=0 if arguments["strategy"] == "channel" else None,
        reduce_range=arguments["reduce_range"],
    )
    assert scheme.integers == (case["quant_min"], case["quant_max"])
    return scheme


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    """The figures move the range before they round, so the first batch is its own range."""
    case = GOLDEN[name]
    scheme = scheme_of(case)
    minimum = maximum = torch.empty(0)
    for number, (x, expected) in enumerate(zip(INPUTS, case["after_each_batch"], strict=True)):
        found = extrema(x, scheme.channel_axis)
        constant = case["averaging_constant"] if number else 1.0
        minimum = moving_average(minimum, found[0], constant) if number else found[0]
        maximum = moving_average(maximum, found[1], constant) if number else found[1]
        scale, zero_point = quantization_parameters(minimum, maximum, scheme)
        leaf = x.clone().requires_grad_()
        out = fake_quantize(leaf, scale, zero_point, scheme)
        out.sum().backward()
        assert leaf.grad is not None
        for mine, key in ((minimum, "min"), (maximum, "max"), (scale, "scale"), (out, "out")):
            torch.testing.assert_close(mine.squeeze(), torch.tensor(expected[key]).squeeze(), rtol=1e-6, atol=1e-7)
        assert zero_point.tolist() == expected["zero_point"]
        assert leaf.grad.tolist() == expected["grad"]
    frozen = fake_quantize(3 * INPUTS[0], scale, zero_point, scheme)
    torch.testing.assert_close(frozen, torch.tensor(case["frozen_out_of_3x_first_input"]), rtol=1e-6, atol=1e-7)


def test_golden_has_nine_configurations() -> None:
    assert len(CASES) == 9 and len(INPUTS) == 3


# --- pure functions ---------------------------------------------------------------------------------------------------

FORMATS = st.builds(
    QuantizationScheme,
    bits=st.integers(2, 8),
    signed=st.booleans(),
    symmetric=st.booleans(),
    reduce_range=st.booleans(),
).filter(lambda scheme: scheme.bits > 2 or not scheme.reduce_range)
NUMBERS = st.floats(-1e4, 1e4, width=32)


@given(
    st.lists(NUMBERS, min_size=1, max_size=40),
    st.floats(2**-20, 2**10, width=32),
    st.integers(-128, 127),
    FORMATS,
)
def test_equals_torchs_kernel_forward_and_backward(
    values: list[float], scale: float, offset: int, scheme: QuantizationScheme
) -> None:
    lowest, highest = scheme.integers
    zero_point = torch.tensor([max(lowest, min(highest, offset))], dtype=torch.int32)
    scales = torch.tensor([scale])
    upstream = torch.linspace(-1, 1, len(values))
    results = []
    for function in (
        lambda x: fake_quantize(x, scales, zero_point, scheme),
        lambda x: torch.fake_quantize_per_tensor_affine(x, scales, zero_point, lowest, highest),
    ):
        leaf = torch.tensor(values, dtype=torch.float32).requires_grad_()
        out = function(leaf)
        out.backward(upstream)
        results.append((out.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])  # type: ignore[arg-type]


@given(NUMBERS, NUMBERS, FORMATS)
def test_a_range_holds_zero_and_its_ends(one: float, other: float, scheme: QuantizationScheme) -> None:
    minimum, maximum = torch.tensor([min(one, other)]), torch.tensor([max(one, other)])
    scale, zero_point = quantization_parameters(minimum, maximum, scheme)
    lowest, highest = scheme.integers
    assert scale.dtype == torch.float32 and zero_point.dtype == torch.int32
    assert lowest <= int(zero_point) <= highest and float(scale) > 0
    assert float(fake_quantize(torch.zeros(1), scale, zero_point, scheme)) == 0
    ends = torch.cat([minimum, maximum])
    rounded = fake_quantize(ends, scale, zero_point, scheme)
    assert ((rounded - ends).abs() <= 1.01 * float(scale)).all()
    if scheme.symmetric:
        assert int(zero_point) == (0 if scheme.signed else (highest + 1) // 2)


@given(st.lists(NUMBERS, min_size=1, max_size=40), FORMATS)
def test_rounding_twice_is_rounding_once(values: list[float], scheme: QuantizationScheme) -> None:
    x = torch.tensor(values)
    parameters = quantization_parameters(*extrema(x, None), scheme)
    once = fake_quantize(x, *parameters, scheme)
    torch.testing.assert_close(fake_quantize(once, *parameters, scheme), once, rtol=1e-6, atol=0)
    assert len(set(once.tolist())) <= scheme.integers[1] - scheme.integers[0] + 1


def test_pruned_weights_stay_zero() -> None:
    weight = torch.randn(8, 8) + 0.3
    weight[torch.rand(8, 8) > 0.5] = 0.0
    for axis in (None, 0):
        scheme = QuantizationScheme(signed=True, symmetric=True, channel_axis=axis)
        rounded = fake_quantize(weight, *quantization_parameters(*extrema(weight, axis), scheme), scheme)
        assert (rounded[weight == 0] == 0).all()


def test_a_constant_tensor_has_a_scale() -> None:
    scale, zero_point = quantization_parameters(torch.zeros(1), torch.zeros(1), ACTIVATION)
    assert float(scale) == torch.finfo(torch.float32).eps and int(zero_point) == 0
    assert float(fake_quantize(torch.zeros(1), scale, zero_point, ACTIVATION)) == 0


@pytest.mark.parametrize("scheme", [ACTIVATION, WEIGHT])
def test_parameters_are_quotients_of_tensors(scheme: QuantizationScheme) -> None:
    """A GPU divides by a plain number in another way than a CPU, and a saved scale is compared with its range's."""
    divisors: list[Any] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.overloadpacket is torch.ops.aten.div:
                divisors.append(args[1])
            return function(*args, **(kwargs or {}))

    with Watch():
        quantization_parameters(torch.tensor([-1.0]), torch.tensor([2.0]), scheme)
    assert divisors and all(isinstance(divisor, Tensor) and divisor.ndim == 1 for divisor in divisors)


def test_float32_under_autocast() -> None:
    x = torch.randn(4, dtype=torch.bfloat16)
    minimum, maximum = extrema(x, None)
    assert minimum.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = fake_quantize(x, *quantization_parameters(minimum, maximum, ACTIVATION), ACTIVATION)
    assert out.dtype == torch.float32


# --- the module -------------------------------------------------------------------------------------------------------


def make(scheme: QuantizationScheme = ACTIVATION, *, enabled: bool = True, observing: bool = True) -> FakeQuantize:
    quantizer = FakeQuantize(scheme)
    quantizer.enabled, quantizer.observing = enabled, observing
    return quantizer


def range_of(quantizer: FakeQuantize) -> tuple[float, float]:
    return float(quantizer.minimum), float(quantizer.maximum)


def test_off_is_identity() -> None:
    x = torch.randn(3)
    quantizer = make(enabled=False)
    assert quantizer(x) is x and not quantizer.ready
    assert "off" in repr(quantizer)


def test_has_no_keys_in_a_weight_file() -> None:
    assert not FakeQuantize(ACTIVATION).state_dict()


def test_on_without_a_range_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no range"):
        make(observing=False)(torch.randn(3))
    with pytest.raises(RuntimeError, match="no range"):
        make().eval()(torch.randn(3))


def test_the_first_step_starts_from_its_own_batch() -> None:
    quantizer, x = make(), torch.tensor([-1.0, 0.5, 3.0])
    out = quantizer(x)
    assert range_of(quantizer) == (-1.0, 3.0)
    torch.testing.assert_close(out, x, atol=4 / 255, rtol=0)
    assert not torch.equal(out, x)


def test_ranges_follow_steps_not_micro_batches() -> None:
    quantizer = make()
    observers = Observers([quantizer])
    assert observers.fresh
    for x in ([-1.0, 2.0], [-3.0, 1.0]):  # one step of two micro-batches
        quantizer(torch.tensor(x))
    assert range_of(quantizer) == (-1.0, 2.0)  # the step under way rounds to what its first forward showed
    observers.update()
    assert range_of(quantizer) == (-3.0, 2.0) and not observers.fresh
    for x in ([-5.0, 0.0], [0.0, 7.0]):
        quantizer(torch.tensor(x))
    assert range_of(quantizer) == (-3.0, 2.0)
    observers.update()
    assert range_of(quantizer) == pytest.approx((-3.0 - 0.02, 2.0 + 0.05))
    scale, zero_point = quantization_parameters(quantizer.minimum, quantizer.maximum, ACTIVATION)
    assert torch.equal(quantizer.scale, scale) and torch.equal(quantizer.zero_point, zero_point)


@pytest.mark.parametrize("how", ["eval", "frozen"])
def test_does_not_observe_in_evaluation_or_when_frozen(how: str) -> None:
    quantizer = make()
    observers = Observers([quantizer])
    quantizer(torch.tensor([-1.0, 2.0]))
    observers.update()
    before = range_of(quantizer), float(quantizer.scale)
    if how == "eval":
        quantizer.eval()
    else:
        quantizer.observing = False
    out = quantizer(torch.tensor([-50.0, 50.0]))
    observers.update()  # nothing was seen: nothing moves
    assert (range_of(quantizer), float(quantizer.scale)) == before
    torch.testing.assert_close(out, torch.tensor([-1.0, 2.0]), atol=3 / 255, rtol=0)


def test_a_table_of_mixed_formats_equals_each_alone() -> None:
    schemes = [ACTIVATION, WEIGHT, QuantizationScheme(signed=True, symmetric=True, channel_axis=0), ACTIVATION]
    batches = [[torch.randn(4, 6) * 3**number for number in range(len(schemes))] for _ in range(3)]
    together = [FakeQuantize(scheme, channels=4 if scheme.channel_axis == 0 else 1) for scheme in schemes]
    alone = [FakeQuantize(scheme, channels=4 if scheme.channel_axis == 0 else 1) for scheme in schemes]
    tables = [Observers(together), *(Observers([quantizer]) for quantizer in alone)]
    for quantizer in [*together, *alone]:
        quantizer.enabled = quantizer.observing = True
    for batch in batches:
        for one, other, x in zip(together, alone, batch, strict=True):
            assert torch.equal(one(x), other(x))
        for observers in tables:
            observers.update()
    for one, other in zip(together, alone, strict=True):
        for name, buffer in one.named_buffers():
            assert torch.equal(buffer, dict(other.named_buffers())[name]), name


def test_a_quantizer_that_saw_nothing_keeps_its_place() -> None:
    """A layer that a step does not use: its range starts when it is used for the first time."""
    used, unused = make(), make()
    observers = Observers([used, unused])
    used(torch.tensor([-1.0, 1.0]))
    observers.update()
    assert used.ready and not unused.ready and torch.isfinite(observers.scale).all()
    unused(torch.tensor([-4.0, 4.0]))
    assert range_of(unused) == (-4.0, 4.0)
    observers.update()
    assert range_of(unused) == (-4.0, 4.0) and range_of(used) == (-1.0, 1.0)


def test_a_table_takes_what_another_held() -> None:
    old, new = ([FakeQuantize(scheme) for scheme in (ACTIVATION, WEIGHT)] for _ in range(2))
    observers, other = Observers(old), Observers(new)
    for quantizer in old:
        quantizer.enabled = quantizer.observing = True
        quantizer(torch.randn(9))
    observers.update()
    other.load(observers.minimum, observers.maximum, [quantizer.ready for quantizer in observers.quantizers])
    assert not other.fresh
    for one, another in zip(old, new, strict=True):
        assert another.ready and torch.equal(one.scale, another.scale)
        assert torch.equal(one.zero_point, another.zero_point)


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_embedding_rounds_only_the_rows_in_use_to_the_same_numbers(masked: bool) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(20, 8, padding_idx=0)
    ids = torch.tensor([[3, 3, 0], [7, 19, 1]])
    embedding.weight.data[10] *= 5  # the widest row is not among them
    upstream = torch.randn(2, 3, 8)
    mask = torch.rand(20, 8) > 0.5 if masked else None

    weight = embedding.weight.detach().clone().requires_grad_()
    effective = weight if mask is None else torch.where(mask, weight, 0.0)
    parameters = quantization_parameters(*extrema(effective.detach(), None), WEIGHT)
    expected = nn.functional.embedding(ids, fake_quantize(effective, *parameters, WEIGHT), padding_idx=0)
    expected.backward(upstream)

    layer = make_sparse(embedding)
    assert isinstance(layer, SparseEmbedding)
    layer.mask = mask
    layer.weight_quantizer = make(WEIGHT)
    out = layer(ids)
    out.backward(upstream)
    assert torch.equal(layer.weight_quantizer.scale, parameters[0])  # of the whole table, not of the rows in use
    assert torch.equal(out, expected)
    assert weight.grad is not None and torch.allclose(embedding.weight.grad, weight.grad)  # type: ignore[arg-type]


def test_the_grid_of_a_weight_is_that_of_its_effective_values() -> None:
    layer = make_sparse(nn.Linear(4, 4))
    with torch.no_grad():
        layer.weight[0, 0] = 100.0
    layer.mask = torch.ones(4, 4, dtype=torch.bool)
    layer.mask[0, 0] = False
    layer.weight_quantizer = make(WEIGHT)
    out: Tensor = layer(torch.eye(4))
    assert out.shape == (4, 4) and float(layer.weight_quantizer.maximum) < 1
