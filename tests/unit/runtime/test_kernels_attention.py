"""Attention of each instruction set that this CPU has, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_models import ISAS, attention, one_operator, run

Array = np.ndarray
every_isa = pytest.mark.parametrize("isa", ISAS)
LOWEST = np.finfo(np.float32).min


def floats(random: np.random.Generator, *shape: int) -> Array:
    return random.normal(size=shape).astype(np.float32)


def mask_of(random: np.random.Generator, kind: str, batch: int, tokens: int) -> Array | None:
    shapes = {"row": (batch, 1, 1), "query": (batch, 1, tokens), "shared": (1, 1, 1), "shared query": (1, 1, tokens)}
    if kind == "none":
        return None
    masked = LOWEST if kind in ("row", "shared") else np.float32(-np.inf)
    mask = np.where(random.random((*shapes[kind], tokens)) < 0.4, masked, np.float32(0))
    if batch and tokens:
        mask[-1, 0, -1] = masked  # all keys of a query
    return mask.astype(np.float32)


@every_isa
@pytest.mark.parametrize("size", [1, 8, 12, 32, 64, 100])
@pytest.mark.parametrize("mask_kind", ["none", "row", "query", "shared", "shared query"])
def test_attention(isa: str, size: int, mask_kind: str) -> None:
    for batch, tokens, heads in [
        (1, 1, 1),
        (2, 7, 3),
        (3, 16, 2),
        (2, 17, 1),
        (1, 33, 2),
        (2, 70, 1),
        (0, 5, 2),
        (2, 0, 2),
    ]:
        check_attention(isa, batch, tokens, heads, size, mask_kind)


@every_isa
def test_attention_of_all_lengths(isa: str) -> None:
    for tokens in range(1, 71):
        check_attention(isa, 1, tokens, 1, 20, ("none", "row", "query")[tokens % 3])
    check_attention(isa, 1, 512, 2, 32, "row")


def check_attention(isa: str, batch: int, tokens: int, heads: int, size: int, mask_kind: str) -> None:
    """q in one tensor, k and v side by side in another one; numbers around them."""
    random = np.random.default_rng(tokens)
    width = heads * size
    q, kv = floats(random, batch, tokens, width + 3), floats(random, batch, tokens, 2 * width)
    mask = mask_of(random, mask_kind, batch, tokens)
    offsets = (3, 0, width)
    scale = float(np.float32(size**-0.5))
    attributes: dict[str, Any] = dict(zip(("q_offset", "k_offset", "v_offset"), offsets, strict=True), scale=scale)
    inputs = ["q", "kv", "kv", None if mask is None else "mask"]
    model = one_operator("Attention", inputs, heads=heads, head_size=size, **attributes)
    found = run(isa, model, q=q, kv=kv, **({} if mask is None else {"mask": mask}))
    expected = attention(q, kv, kv, mask, heads, size, offsets, scale)
    assert found.shape == (batch, tokens, width)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@every_isa
@pytest.mark.parametrize("place", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_attention_to_what_is_no_number(isa: str, place: str, bad: float) -> None:
    """The result is none either, except that minus infinity among the scores hides a key."""
    random = np.random.default_rng(0)
    values = {name: floats(random, 2, 9, 8) for name in "qkv"}
    model = one_operator("Attention", ["q", "k", "v", None], heads=1, head_size=8, scale=1.0)
    before = run(isa, model, **values)
    values[place][0, 4, 5] = bad
    found = run(isa, model, **values)
    with np.errstate(invalid="ignore"):
        expected = attention(values["q"], values["k"], values["v"], None, 1, 8, (0, 0, 0), 1.0)
    assert not np.isfinite(expected[0]).all()
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(found[1], before[1])
