"""Whatever is in the registry is in the table, and whatever is in the table is driven by all five kinds of tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_modifiers
import test_modifiers_distributed
import test_modifiers_export
from modifier_table import CASES

from sparse_accel.modifiers import REGISTRY

DRIVEN: dict[str, Callable[..., None]] = {
    "parse": test_modifiers.test_parses,
    "train": test_modifiers.test_trains_and_resumes_bit_for_bit,
    "resume": test_modifiers.test_trains_and_resumes_bit_for_bit,
    "distributed": test_modifiers_distributed.test_two_processes_train_what_one_trains,
    "export": test_modifiers_export.test_exports,
}


@pytest.mark.parametrize("what", DRIVEN)
def test_every_modifier_is_driven(what: str) -> None:
    cases = cases_of(DRIVEN[what])
    assert cases == list(CASES)
    assert {CASES[which][0] for which in cases} == REGISTRY.keys()


def cases_of(test: Any) -> list[str]:
    """Returns the cases that a test is parametrized over, as pytest will find them."""
    assert "which" in test.__code__.co_varnames and not any(mark.name in ("skip", "xfail") for mark in test.pytestmark)
    found = [mark.args[1] for mark in test.pytestmark if mark.name == "parametrize" and mark.args[0] == "which"]
    assert len(found) == 1
    return list(found[0])
