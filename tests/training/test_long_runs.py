"""A process does not grow in a long run: tests/support/long_run.py, shortened. Times are for people to look at."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from places import SUPPORT
from script_fixtures import environment

GROWN = re.compile(r"from [\d,]+ to [\d,]+: ([+-][\d.]+) MB, \+0 files, \+0 threads\n")


@pytest.mark.slow
def test_training_and_sessions_do_not_grow() -> None:
    command = [sys.executable, str(SUPPORT / "long_run.py"), "--steps", "300", "--sessions", "100"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    of_training, of_sessions = map(float, GROWN.findall(done.stdout))
    # A step that kept its gradients would add 1 MB every 20 steps, a session that kept its weights 0.5 MB each.
    assert of_training < 5 and of_sessions < 5, done.stdout
