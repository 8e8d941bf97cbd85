"""The random numbers of the compiled library's dropout, in NumPy."""

from __future__ import annotations

import numpy as np

LOWER = np.uint64(0xFFFFFFFF)


def philox(counters: np.ndarray, key: int, rounds: int) -> np.ndarray:
    """The words of Philox4x32 (Salmon et al. 2011), (counters, 4)."""
    upper = np.uint64(32)
    a, b, c, d = counters & LOWER, counters >> upper, np.zeros_like(counters), np.zeros_like(counters)
    first, second = key & 0xFFFFFFFF, key >> 32
    for _ in range(rounds):
        of_a, of_c = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (of_c >> upper) ^ b ^ np.uint64(first), of_c & LOWER
        c, d = (of_a >> upper) ^ d ^ np.uint64(second), of_a & LOWER
        first, second = (first + 0x9E3779B9) & 0xFFFFFFFF, (second + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([a, b, c, d], axis=1).astype(np.uint32)


def halves(length: int, key: int) -> np.ndarray:
    """The number of 16 bits of each position: of 8 counters, first the first two words of each, then the others."""
    groups = -(-length // 64)
    words = philox(np.arange(8 * groups, dtype=np.uint64), key, 7).reshape(groups, 8, 2, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(words).view(np.uint16).reshape(-1)[:length]
