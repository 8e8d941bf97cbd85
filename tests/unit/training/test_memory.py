"""Memory that is freed stays with the process, in huge pages: in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from sparse_accel.training.memory import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**24)
before = faults()
for _ in range(4):
    np.ones(2**24)  # 128 MiB, freed at once: 32,768 pages
print(faults() - before)
"""
ROLLUP, ENABLED = Path("/proc/self/smaps_rollup"), Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGES = """
import re, sys
from sparse_accel.training.memory import keep_freed_memory
def megabytes(*names):
    found = dict(re.findall(r"(\\w+): +(\\d+) kB", open("/proc/self/smaps_rollup").read()))
    return [int(found[name]) // 1024 for name in names]
if "keep" in sys.argv:
    before, = megabytes("Rss")
    keep_freed_memory()
    assert megabytes("Rss")[0] - before <= 8  # addresses, no memory
kept = [b"x" * 2**27 for _ in range(4)]  # 512 MiB; NumPy would ask for huge pages itself
print(*megabytes("AnonHugePages"))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the options are those of glibc")
def test_pages_are_not_mapped_again() -> None:
    def faults(*arguments: str) -> int:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < 100 < faults()


@pytest.mark.skipif(not ROLLUP.exists() or platform.libc_ver()[0] != "glibc", reason="this is Linux with glibc")
@pytest.mark.skipif(not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="huge pages are off here")
@pytest.mark.parametrize(
    ("variables", "huge"),
    [({}, True), ({"MALLOC_ARENA_MAX": "2"}, False), ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, False)],
    ids=["as it is", "MALLOC_", "tunables"],
)
def test_memory_comes_in_huge_pages(variables: dict[str, str], huge: bool) -> None:
    """Not where variables say how memory is to be allocated, unless the system has huge pages for everything."""
    command = [sys.executable, "-c", PAGES, "keep"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if huge or "[always]" not in ENABLED.read_text():
        assert (int(done.stdout) > 256) == huge
