"""Fisher blocks: SparseML's figures, and what must hold for every weight."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from obs_golden import GOLDEN, farthest, gradients, tensors, weights
from torch import Tensor

import sparse_accel.nn.fisher as fisher_module
from sparse_accel.nn.fisher import EPSILON, FisherBlocks, fisher_bytes
from sparse_accel.nn.masks import masks_of_scores

WEIGHTS, SAMPLES = weights(), gradients("gradients")


def blocks_of(samples: list[Tensor], size: int, damp: float) -> FisherBlocks:
    found = FisherBlocks(samples[0].numel(), size)
    for sample in samples:
        found.add(sample)
    found.invert(damp)
    return found


def inverse_by_rank_one_updates(samples: Tensor, damp: float) -> Tensor:
    """The paper's recursion, in the precision of the samples, (m, n): F^-1 -= v v^T / (m + g v), v = F^-1 g."""
    count, size = samples.shape
    inverse = torch.eye(size, dtype=samples.dtype) / damp
    for gradient in samples:
        v = inverse @ gradient
        inverse -= torch.outer(v, v) / (count + gradient @ v)
    return inverse


def exact_inverse_diagonal(samples: Tensor, damp: float) -> Tensor:
    """The diagonal of F^-1 in fractions; samples (m, n)."""
    count, size = samples.shape
    rows = [[Fraction(float(value)) for value in row] for row in samples]
    pairs = [[sum(row[i] * row[j] for row in rows) / count for j in range(size)] for i in range(size)]
    table = [
        [pairs[i][j] + (Fraction(damp) if i == j else 0) for j in range(size)]
        + [Fraction(int(i == j)) for j in range(size)]
        for i in range(size)
    ]
    for pivot in range(size):
        table[pivot] = [value / table[pivot][pivot] for value in table[pivot]]
        for i in range(size):
            if i != pivot:
                factor = table[i][pivot]
                table[i] = [value - factor * other for value, other in zip(table[i], table[pivot], strict=True)]
    return torch.tensor([float(table[i][size + i]) for i in range(size)], dtype=torch.float64)


# --- SparseML's figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda case: "-".join(str(value) for value in [*case.values()][:5])
)
def test_golden_scores_masks_and_weights(case: dict[str, Any]) -> None:
    size, damp, kind = case["fisher_block_size"], case["damp"], case["mask_type"]
    fisher = {name: blocks_of([sample[name] for sample in SAMPLES], size, damp) for name in WEIGHTS}
    scores = {name: fisher[name].scores(weight, kind) for name, weight in WEIGHTS.items()}
    for name, expected in tensors(GOLDEN["scores"][f"{kind} {size} {damp:g}"]).items():
        assert float((scores[name] - expected).abs().max() / expected.abs().max()) < 2e-6
    groups = [[*WEIGHTS]] if case["global_sparsity"] else [[name] for name in WEIGHTS]
    found = {}
    for names in groups:
        masks = masks_of_scores([scores[name] for name in names], case["sparsity"], kind)
        for name, mask in zip(names, masks, strict=True):
            found[name] = fisher[name].update(WEIGHTS[name], ~mask, kind)
    assert farthest(found, case["weights"]) < 5e-7


@pytest.mark.parametrize("damp", ["0.01", "1e-07"])
def test_golden_inverse_is_that_of_rank_one_updates(damp: str) -> None:
    samples = [sample["a.weight"] for sample in SAMPLES]
    found = blocks_of(samples, 8, float(damp)).inverse()
    expected = torch.tensor(GOLDEN["inverse"][damp], dtype=torch.float64).view(6, 8, 8)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6
    for number, block in enumerate(found):
        rows = torch.stack([sample.flatten()[8 * number : 8 * number + 8] for sample in samples]).double()
        assert torch.allclose(block, inverse_by_rank_one_updates(rows, float(damp)), rtol=1e-10, atol=0)


def test_a_finite_loader_divides_by_the_samples_there_were() -> None:
    """SparseML divided 16 samples by num_grads 32."""
    samples = [sample["a.weight"] for sample in SAMPLES]
    old = blocks_of([*samples, *[torch.zeros(6, 8)] * 16], 8, 1e-2).scores(WEIGHTS["a.weight"])
    expected = tensors(GOLDEN["finite_loader"])["a.weight"]
    assert torch.allclose(old, expected, rtol=3e-6, atol=0)
    assert not torch.allclose(blocks_of(samples, 8, 1e-2).scores(WEIGHTS["a.weight"]), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2, 1e4])
def test_large_gradients_lose_no_digits(scale: float) -> None:
    """With damp 1e-7 and gradients of size 1, the recursion in float32 is off by tens of percent."""
    rows = torch.stack([sample["a.weight"].flatten()[:8] * (scale * 1000) for sample in SAMPLES])
    expected = exact_inverse_diagonal(rows, 1e-7)
    found = blocks_of(list(rows), 8, 1e-7).inverse()[0].diagonal()
    in_float32 = inverse_by_rank_one_updates(rows, 1e-7).diagonal().double()
    assert float(((found - expected) / expected).abs().max()) < 1e-6
    if scale >= 1:
        assert float(((in_float32 - expected) / expected).abs().max()) > 0.05


# --- for every weight -------------------------------------------------------------------------------------------------


@st.composite
def problems(draw: Any) -> tuple[list[Tensor], int, float]:
    numel, size = draw(st.integers(1, 40)), draw(st.integers(1, 48))
    count, seed = draw(st.integers(1, 30)), draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** draw(st.integers(-5, 0))
    pruned = torch.rand(numel, generator=generator) < draw(st.sampled_from([0.0, 0.5]))
    samples = [(torch.randn(numel, generator=generator) * scale).masked_fill(pruned, 0) for _ in range(count)]
    return samples, size, draw(st.sampled_from([1e-7, 1e-3, 1.0]))


@settings(deadline=None, max_examples=60)
@given(problems())
def test_the_inverse_equals_the_recursion(problem: tuple[list[Tensor], int, float]) -> None:
    samples, size, damp = problem
    found = blocks_of(samples, size, damp)
    size = min(size, samples[0].numel())
    rows = torch.nn.functional.pad(torch.stack(samples).double(), (0, -samples[0].numel() % size))
    for number, block in enumerate(found.inverse()):
        expected = inverse_by_rank_one_updates(rows[:, number * size : (number + 1) * size], damp)
        assert float((block - expected).abs().max() / expected.abs().max()) < 1e-7


@settings(deadline=None, max_examples=60)
@given(problems(), st.integers(0, 10**6))
def test_scores_and_updates_equal_their_formulas(problem: tuple[list[Tensor], int, float], seed: int) -> None:
    samples, size, damp = problem
    fisher = blocks_of(samples, size, damp)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(samples[0].numel(), generator=generator)
    pruned = torch.rand(weight.shape, generator=generator) < 0.4
    complete = torch.block_diag(*fisher.inverse())[: len(weight), : len(weight)]
    scores = weight.double() ** 2 / (2 * complete.diagonal() + EPSILON)
    assert torch.allclose(fisher.scores(weight).double(), scores, rtol=1e-6, atol=0)
    steps = torch.where(pruned, weight.double() / (complete.diagonal() + EPSILON), 0.0)
    expected = (weight.double() - complete @ steps).masked_fill(pruned, 0.0)
    assert torch.allclose(fisher.update(weight, pruned).double(), expected, rtol=1e-5, atol=1e-6)


def test_a_group_of_four_is_pruned_at_the_least_cost() -> None:
    """Its score is the rise of the quadratic w^T F w / 2 when the group is 0 and the others are optimal."""
    samples = [torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    fisher, weight = blocks_of(samples, 8, 0.1), torch.randn(8, generator=torch.Generator().manual_seed(99))
    matrix = torch.linalg.inv(fisher.inverse()[0])
    pruned = torch.tensor([True] * 4 + [False] * 4)
    moved = fisher.update(weight, pruned, "block4")
    change = (moved - weight).double()
    assert 0.5 * change @ matrix @ change == pytest.approx(float(fisher.scores(weight, "block4")[0]), rel=1e-5)
    assert (moved[:4] == 0).all() and fisher.scores(weight, "block4").view(2, 4).std(1).max() == 0
    for other in torch.randn(20, 4, generator=torch.Generator().manual_seed(1)):
        worse = (torch.cat([torch.zeros(4), moved[4:] + 0.1 * other]) - weight).double()
        assert worse @ matrix @ worse > change @ matrix @ change


@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_the_size_of_a_step_of_the_arithmetic_changes_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, samples = WEIGHTS["b.weight"], [sample["b.weight"] for sample in SAMPLES]
    found = blocks_of(samples, size, 1e-4)
    monkeypatch.setattr(fisher_module, "_AT_ONCE_ON_CPU", 1)
    monkeypatch.setattr(fisher_module, "_samples_at_once", lambda size: 1)
    other = blocks_of(samples, size, 1e-4)
    assert torch.allclose(found.inverse(), other.inverse(), rtol=1e-9)
    assert torch.allclose(found.scores(weight), other.scores(weight), rtol=1e-6)


def test_weights_pruned_before_do_not_move_and_others_of_their_block_do() -> None:
    before = torch.zeros(48, dtype=torch.bool)
    before[[2, 9]] = True
    samples = [sample["a.weight"].flatten().masked_fill(before, 0) for sample in SAMPLES]
    weight = WEIGHTS["a.weight"].flatten().masked_fill(before, 0)
    now = torch.zeros(48, dtype=torch.bool)
    now[[0, 40]] = True
    moved = blocks_of(samples, 8, 1e-7).update(weight, now)
    assert (moved[before | now] == 0).all()
    changed = (moved != weight).view(6, 8).any(1)
    assert changed.tolist() == [True, False, False, False, False, True]  # the blocks of what is pruned now


def test_gradients_beyond_float64_still_give_finite_scores() -> None:
    """damp is then lost to rounding, and a block has no Cholesky factor."""
    gradient = torch.full((4,), 1e9)
    fisher = blocks_of([gradient], 4, 1e-7)
    scores = fisher.scores(torch.ones(4))
    assert torch.isfinite(scores).all() and torch.isfinite(fisher.update(torch.ones(4), scores > 1)).all()


def test_memory_is_that_of_the_lower_half() -> None:
    fisher = FisherBlocks(1000, 50)
    assert fisher._blocks.numel() * 8 == 1000 * 4 * 51
    fisher.add(torch.zeros(1000))
    assert fisher._waiting is not None
    assert fisher._blocks.numel() * 8 + fisher._waiting.numel() * 4 == fisher_bytes(1000, 50)
