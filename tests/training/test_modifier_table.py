"""Whatever is in the registry is in the table, and whatever is in the table is driven by all five kinds of tests."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from modifier_table import CASES, TABLE
from places import ROOT

from sparse_accel.modifiers import REGISTRY

DRIVEN = {
    "parse": "tests/training/test_modifiers.py::test_parses",
    "train, resume": "tests/training/test_modifiers.py::test_trains_and_resumes_bit_for_bit",
    "distributed": "tests/distributed/test_modifiers_distributed.py::test_two_processes_train_what_one_trains",
    "export": "tests/export/test_modifiers_export.py::test_exports",
}


def test_the_table_covers_the_registry() -> None:
    assert TABLE.keys() == REGISTRY.keys()
    assert {CASES[which][0] for which in CASES} == REGISTRY.keys()


# Lists each test that pytest finds, but for those that it would leave out or let fail.
COLLECT = """
import sys, pytest

class Lists:
    def pytest_collection_finish(self, session):
        for item in session.items:
            if not {mark.name for mark in item.iter_markers()} & LEFT_OUT:
                print("found", item.nodeid)

LEFT_OUT = {"skip", "skipif", "xfail"}
sys.exit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[Lists()]))
"""


@pytest.fixture(scope="module")
def collected() -> str:
    """The names of the tests as pytest finds them: one line each."""
    command = [sys.executable, "-c", COLLECT, *DRIVEN.values()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("what", DRIVEN)
def test_every_modifier_is_driven(what: str, collected: str) -> None:
    found = re.findall(
        rf"^found {re.escape(DRIVEN[what])}\[(?:[a-z0-9_]+-)?([A-Z].*)\]$", collected, flags=re.MULTILINE
    )
    assert set(found) == CASES.keys()
