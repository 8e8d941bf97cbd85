"""What says how long tests take: seconds by test file at the end of pytest, seconds by group at the end of .ci/run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, SUPPORT

# Stands for `make`: notes what it was asked for, and fails where it is told to.
MAKE = """#!/bin/sh
echo "made $1"
[ "$1" != "$FAILING" ] || exit 3
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_seconds_by_test_file(tmp_path: Path, workers: list[str]) -> None:
    shutil.copy(SUPPORT / "durations.py", tmp_path)
    hooks = "from durations import pytest_runtest_logreport, pytest_terminal_summary\n"
    (tmp_path / "conftest.py").write_text(hooks)
    (tmp_path / "test_slow.py").write_text(
        "import time\n\n\ndef test_one():\n    time.sleep(0.3)\n\n\ndef test_two(): ...\n"
    )
    for number in range(16):
        (tmp_path / f"test_quick_{number}.py").write_text("def test_one(): ...\n")
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.partition("seconds by test file")[2].splitlines()[1:]
    found = [re.fullmatch(r" +(\d+\.\d)  +(\d+) tests  (.*)", line) for line in lines]
    rows = [(float(match[1]), int(match[2]), match[3]) for match in found if match]
    assert len(rows) == 16  # the 15 largest of 17, and the sum
    assert rows[0][0] >= 0.3 and rows[0][1:] == (2, "test_slow.py")
    assert rows[-1][0] >= rows[0][0] and rows[-1][1:] == (18, "in 17 files")


# Stands for compilers, which are there and have nothing to say.
COMPILER = "#!/bin/sh\n"


@pytest.mark.parametrize("failing", ["", ".venv/.dev", "check", "test", "test-slow"])
def test_seconds_by_group(tmp_path: Path, failing: str) -> None:
    groups = {"install": ".venv/.dev", "check": "check", "test": "test", "test-slow": "test-slow"}
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    for name, program in (("make", MAKE), ("g++", COMPILER), ("clang++", COMPILER)):
        make.with_name(name).write_text(program)
        make.with_name(name).chmod(0o755)
    variables = os.environ | {"PATH": f"{make.parent}:{os.environ['PATH']}", "FAILING": failing}
    done = subprocess.run([tmp_path / ".ci" / "run"], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == (3 if failing else 0) and done.stderr == ""
    ran, _, taken = done.stdout.partition("\nseconds by group\n")
    targets = list(groups.values())
    last = targets.index(failing) if failing else len(targets) - 1
    assert ran.splitlines() == [f"made {target}" for target in targets[: last + 1]]
    passed = ["compilers", *(name for name, target in groups.items() if target in targets[: last + (not failing)])]
    assert re.findall(r"^ +\d+  (\S+)$", taken, flags=re.MULTILINE) == passed
    assert re.findall(r"^ failed  (\S+)$", taken, flags=re.MULTILINE) == [n for n, t in groups.items() if t == failing]
