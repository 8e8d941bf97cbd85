"""Which process works on which weight."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from sparse_accel.distributed.gradients import owners


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 10**7), min_size=1), st.integers(1, 16))
def test_work_is_spread_evenly(sizes: dict[str, int], processes: int) -> None:
    found = owners(sizes, processes)
    assert list(found) == list(sizes) and set(found.values()) <= set(range(processes))
    loads = [sum(sizes[name] for name in sizes if found[name] == process) for process in range(processes)]
    assert max(loads) <= sum(sizes.values()) / processes + max(sizes.values())
    assert owners(dict(reversed(sizes.items())), processes) == found  # the order of the names does not matter


def test_bert_base_in_two_processes() -> None:
    widths = {"query": 768, "key": 768, "value": 768, "attention": 768, "intermediate": 3072, "output": 3072}
    sizes = {f"{layer}.{name}": 768 * width for layer in range(12) for name, width in widths.items()}
    found = owners(sizes, 2)
    loads = [sum(sizes[name] for name in sizes if found[name] == process) for process in (0, 1)]
    assert max(loads) / sum(loads) < 0.51
