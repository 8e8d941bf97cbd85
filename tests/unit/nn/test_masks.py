"""Masks: SparseML's figures, and what must hold for every weight."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from places import golden
from torch import Tensor

from sparse_accel.modifiers.pruning.schedule import scheduled_sparsity
from sparse_accel.nn.cpu_kernels import mask_bits
from sparse_accel.nn.masks import (
    MaskType,
    clear,
    constant_mask,
    magnitude,
    magnitude_mask,
    masked,
    masks_of_scores,
    sparsity_of,
    whole_blocks,
)

GOLDEN: dict[str, Any] = golden("masks")
WEIGHT, SECOND, TIED = (torch.tensor(GOLDEN[name]) for name in ("w", "w2", "tie"))
SPARSITIES = ["0.0", "0.25", "0.5", "0.9", "1.0"]


def golden_mask(name: str) -> Tensor:
    return torch.tensor(GOLDEN[name], dtype=torch.bool)


# --- SparseML's figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_golden_unstructured(sparsity: str) -> None:
    assert torch.equal(magnitude_mask(WEIGHT, float(sparsity)), golden_mask(f"unstructured_{sparsity}"))


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_golden_ties_agree_in_number(sparsity: str) -> None:
    mask, expected = magnitude_mask(TIED, float(sparsity)), golden_mask(f"unstructured_tie_{sparsity}")
    assert mask.sum() == expected.sum()
    assert torch.equal(TIED[mask].sort().values, TIED[expected].sort().values)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_golden_block4(sparsity: str) -> None:
    assert torch.equal(magnitude_mask(WEIGHT, float(sparsity), "block4"), golden_mask(f"block4_{sparsity}_mask"))


@pytest.mark.parametrize("block", [(1, 4), (4, 1)])
def test_golden_blocks(block: tuple[int, int]) -> None:
    assert torch.equal(magnitude_mask(WEIGHT, 0.5, list(block)), golden_mask(f"block_{block[0]}x{block[1]}_0.5_mask"))


@pytest.mark.parametrize(("kind", "sparsity"), [("2:4", "0.5"), ("1:4", "0.75")])
def test_golden_groups(kind: str, sparsity: str) -> None:
    assert torch.equal(magnitude_mask(WEIGHT, float(sparsity), kind), golden_mask(f"{kind}_{sparsity}"))


def test_golden_group_of_another_sparsity_is_refused() -> None:
    assert GOLDEN["2:4_err_0.9"].startswith("ValueError")
    with pytest.raises(ValueError, match=r"2:4 mask has sparsity 0\.5, not 0\.9"):
        magnitude_mask(WEIGHT, 0.9, "2:4")


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_golden_global(sparsity: str) -> None:
    masks = masks_of_scores([magnitude(WEIGHT), magnitude(SECOND)], float(sparsity))
    for mask, expected in zip(masks, GOLDEN[f"global_{sparsity}"], strict=True):
        assert torch.equal(mask, torch.tensor(expected, dtype=torch.bool))


def test_golden_constant() -> None:
    case = GOLDEN["constant"]
    assert torch.equal(constant_mask(torch.tensor(case["in"])), torch.tensor(case["mask"], dtype=torch.bool))


@pytest.mark.parametrize("function", ["cubic", "linear", "inverse_cubic"])
def test_golden_schedule(function: str) -> None:
    for position, expected in GOLDEN[f"interpolate_{function}"]:
        assert scheduled_sparsity(position / 10, 0.05, 0.9, function) == pytest.approx(expected, abs=1e-12)


def test_all_golden_cases_are_used() -> None:
    used = {"about", "w", "w2", "tie", "constant", "2:4_0.5", "1:4_0.75", "2:4_err_0.9"}
    used |= {f"{kind}_{s}" for kind in ("unstructured", "unstructured_tie", "global") for s in SPARSITIES}
    used |= {f"block4_{s}_mask" for s in SPARSITIES} | {"block_1x4_0.5_mask", "block_4x1_0.5_mask"}
    assert used | {f"interpolate_{name}" for name in ("cubic", "linear", "inverse_cubic")} == set(GOLDEN)


# --- what must hold for every weight ----------------------------------------------------------------------------------

# Few distinct values, so that ties are common; infinities too.
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0, 1e-30, float("inf"), float("-inf")])
SHARES = st.floats(0, 1)


@st.composite
def weights(draw: st.DrawFn, rows_of: int = 1, columns_of: int = 1) -> Tensor:
    rows, columns = draw(st.integers(1, 4)) * rows_of, draw(st.integers(1, 6)) * columns_of
    values = draw(st.lists(VALUES | st.floats(-4, 4, width=32), min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=torch.float32).view(rows, columns)


def assert_keeps_the_largest(score: Tensor, mask: Tensor, dropped: int) -> None:
    assert int((~mask).sum()) == dropped
    if 0 < dropped < mask.numel():
        assert score[mask].min() >= score[~mask].max()


@given(weights(), SHARES)
def test_drops_exactly_the_rounded_share_of_the_smallest(weight: Tensor, sparsity: float) -> None:
    mask = magnitude_mask(weight, sparsity)
    assert_keeps_the_largest(weight.abs(), mask, round(sparsity * weight.numel()))
    assert torch.equal(mask, magnitude_mask(weight.clone(), sparsity))


@given(weights(2, 4), SHARES, st.sampled_from(["unstructured", [1, 4], [2, 2]]), st.data())
def test_what_is_not_left_is_neither_counted_nor_dropped(weight: Tensor, share: float, kind: Any, data: Any) -> None:
    """As if rows and columns were taken out before, where no block is left in part."""
    score = weight.abs()
    rows, columns = (torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for n in score.shape)
    left = rows[:, None] & columns
    whole = whole_blocks(left, score.shape, kind).expand(score.shape)
    (mask,) = masks_of_scores([score], share, kind, [left])
    size = 1 if kind == "unstructured" else 4
    assert mask[~whole].all()
    assert int((~mask).sum()) == size * round(share * (int(whole.sum()) // size))
    if kind == "unstructured":
        assert torch.equal(whole, left)
        smaller = score[rows][:, columns]
        if smaller.numel():
            assert torch.equal(mask[rows][:, columns], masks_of_scores([smaller], share)[0])
    else:
        assert not (left & ~whole).any()
        assert_keeps_the_largest_block(score, mask, whole, kind)


def assert_keeps_the_largest_block(score: Tensor, mask: Tensor, whole: Tensor, block: list[int]) -> None:
    def of_blocks(x: Tensor) -> Tensor:
        return x.view(len(x) // block[0], block[0], -1, block[1]).movedim(2, 1).flatten(2)

    means, kept, counts = of_blocks(score).mean(-1), of_blocks(mask).any(-1), of_blocks(whole).any(-1)
    assert torch.equal(of_blocks(whole).all(-1), counts) and torch.equal(of_blocks(mask).all(-1), kept)
    if kept[counts].any() and not kept[counts].all():
        assert means[counts & kept].min() >= means[counts & ~kept].max()


@given(weights(2, 4), SHARES, st.sampled_from([[1, 4], [2, 1], [2, 2], [2, 4]]))
def test_blocks_are_kept_or_dropped_as_one(weight: Tensor, sparsity: float, block: list[int]) -> None:
    mask = magnitude_mask(weight, sparsity, block)
    rows, columns = block
    blocks = mask.view(len(mask) // rows, rows, -1, columns).movedim(2, 1).flatten(2)
    assert torch.equal(blocks.all(-1), blocks.any(-1))
    score = weight.abs().view(len(mask) // rows, rows, -1, columns).mean(dim=(1, 3))
    assert_keeps_the_largest(score, blocks.all(-1), round(sparsity * score.numel()))


def test_block4_is_four_neighbours_of_a_row() -> None:
    assert torch.equal(magnitude_mask(WEIGHT, 0.5, "block4"), magnitude_mask(WEIGHT, 0.5, [1, 4]))


@given(weights(1, 4), st.sampled_from(["1:4", "2:4", "3:4", "1:2"]))
def test_groups_keep_n_of_each_m(weight: Tensor, kind: str) -> None:
    kept, size = (int(number) for number in kind.split(":"))
    mask = magnitude_mask(weight, 1 - kept / size, kind)
    score, group = weight.abs().view(-1, size), mask.view(-1, size)
    assert (group.sum(dim=1) == kept).all()
    lowest, highest = score.masked_fill(~group, torch.inf).amin(dim=1), score.masked_fill(group, 0).amax(dim=1)
    assert (lowest >= highest).all()
    assert torch.equal(mask, masks_of_scores([magnitude(weight)], 1 - kept / size, kind)[0])


@given(st.lists(weights(), min_size=1, max_size=4), SHARES)
def test_one_ranking_over_all_weights(tensors: list[Tensor], sparsity: float) -> None:
    masks = masks_of_scores([magnitude(weight) for weight in tensors], sparsity)
    score = torch.cat([weight.abs().flatten() for weight in tensors])
    assert [mask.shape for mask in masks] == [weight.shape for weight in tensors]
    assert_keeps_the_largest(score, torch.cat([mask.flatten() for mask in masks]), round(sparsity * score.numel()))


@given(
    weights(1, 4),
    st.lists(SHARES, min_size=1, max_size=5).map(sorted),
    st.sampled_from(["unstructured", "block4"]),
    st.integers(0, 2**32 - 1),
)
def test_masks_tighten_as_sparsity_grows(weight: Tensor, shares: list[float], kind: str, seed: int) -> None:
    """Scored on the effective weight; what is kept moves in between, as training moves it."""
    mask = torch.ones_like(weight, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for sparsity in shares:
        new = magnitude_mask(masked(weight, mask), sparsity, kind)
        assert not (new & ~mask).any()
        mask = new
        weight = weight + torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("kind", ["block4", [4, 1], [1, 8], "2:4"])
def test_convolutions_are_taken_as_matrices(kind: MaskType) -> None:
    weight = torch.randn(8, 4, 2, generator=torch.Generator().manual_seed(0))
    mask = magnitude_mask(weight, 0.5, kind)
    assert mask.shape == weight.shape
    assert torch.equal(mask.flatten(1), magnitude_mask(weight.flatten(1), 0.5, kind))


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((4, 6), "block4", "blocks of 1 x 4 do not divide a weight of \\(4, 6\\)"),
        ((3, 8), [2, 2], "blocks of 2 x 2 do not divide"),
        ((4, 6), "2:4", "groups of 4 do not divide the rows of a weight of \\(4, 6\\)"),
    ],
)
def test_units_that_do_not_divide_a_weight_are_refused(shape: tuple[int, ...], kind: MaskType, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        magnitude_mask(torch.ones(shape), 0.5, kind)


# --- the effective weight ---------------------------------------------------------------------------------------------


@given(weights(), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_masked_is_exactly_zero_with_no_gradient_under_the_mask(weight: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(weight.shape, generator=generator) > 0.5
    upstream = torch.randn(weight.shape, generator=generator)
    results = []
    for bits in (None, mask_bits(mask)):
        leaf = weight.clone().requires_grad_()
        effective = masked(leaf, mask, bits)
        effective.backward(upstream)
        assert leaf.grad is not None
        assert (effective[~mask] == 0).all() and torch.equal(effective[mask], weight[mask])
        assert (leaf.grad[~mask] == 0).all() and torch.equal(leaf.grad[mask], upstream[mask])
        results.append((effective.detach(), leaf.grad))
    for plain, fast in zip(*results, strict=True):
        assert torch.equal(plain.view(torch.int32), fast.view(torch.int32))  # bit for bit, signs of zeros too


@given(weights(), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_straight_through_changes_the_gradient_alone(weight: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(weight.shape, generator=generator) > 0.5
    upstream = torch.randn(weight.shape, generator=generator)
    for bits in (None, mask_bits(mask)):
        leaf = weight.clone().requires_grad_()
        effective = masked(leaf, mask, bits, straight_through=True)
        effective.backward(upstream)
        assert torch.equal(effective.view(torch.int32), masked(weight, mask, bits).view(torch.int32))
        assert leaf.grad is not None and torch.equal(leaf.grad, upstream)


@given(weights(), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_cleared_in_place_is_masked(weight: Tensor, seed: int) -> None:
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    for bits in (None, mask_bits(mask)):
        found = weight.clone()
        clear(found, mask, bits)
        assert torch.equal(found.view(torch.int32), masked(weight, mask).view(torch.int32))


def test_masked_takes_a_gradient_of_any_layout() -> None:
    weight = torch.randn(4, 6).t().requires_grad_()
    mask = torch.rand(6, 4) > 0.5
    masked(weight, mask, mask_bits(mask)).t().sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, mask.float())


def test_share_of_zeros() -> None:
    assert sparsity_of(torch.tensor([0.0, -0.0, 1.0, 2.0])) == 0.5
    assert sparsity_of(torch.zeros(0)) == 0.0
    many = torch.zeros(20_000_001)  # more than float32 can count
    many[:7] = 1
    assert sparsity_of(many) * len(many) == pytest.approx(19_999_994, abs=1e-6)


@given(SHARES, SHARES, st.sampled_from(["linear", "cubic", "inverse_cubic"]), st.floats(0, 1))
def test_a_schedule_begins_and_ends_exactly_and_stays_between(
    initial: float, final: float, function: str, fraction: float
) -> None:
    assert scheduled_sparsity(0.0, initial, final, function) == initial
    assert (
        scheduled_sparsity(1.0, initial, final, function) == scheduled_sparsity(1.5, initial, final, function) == final
    )
    low, high = sorted((initial, final))
    assert low - 1e-12 <= scheduled_sparsity(fraction, initial, final, function) <= high + 1e-12
