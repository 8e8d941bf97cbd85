"""What a forked program does is what it does in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_server import ForkServer
from places import ROOT


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer(dict(os.environ)) as server:
        yield server


@pytest.mark.parametrize(
    "code",
    [
        "print(1)",
        "raise ValueError('broken')",
        "import sys; sys.exit('a text')",
        "import sys; sys.exit(3)",
        "import sys; print(sys.stdin.read(), sys.argv[1:])",
        "import tiny",  # a module that only tests find
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
        "import atexit; atexit.register(print, 'at the end')",
    ],
)
def test_as_in_a_process_of_its_own(server: ForkServer, code: str, tmp_path: Path) -> None:
    forked = server.run(code, "word", cwd=tmp_path)
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "word"]
    alone = subprocess.run(
        command, cwd=tmp_path, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (forked.returncode, forked.stdout) == (alone.returncode, alone.stdout)
    assert forked.stderr.splitlines()[-1:] == alone.stderr.splitlines()[-1:]


def test_a_program_that_does_not_end_is_killed(server: ForkServer, tmp_path: Path) -> None:
    server.start("import time; time.sleep(60)", cwd=tmp_path)
    assert server.wait(timeout=0.2).returncode == -signal.SIGKILL
