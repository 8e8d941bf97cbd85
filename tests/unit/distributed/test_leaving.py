"""A process of several ends with its own exit code, whatever the threads of the libraries underneath do meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from script_fixtures import environment
from torch import nn

from sparse_accel.distributed import collectives
from sparse_accel.recipe_run import RecipeRun

# As gloo's thread does with the last tensor, another thread asks for Python while Python takes itself apart.
THREAD = """
import atexit, sys, threading, time
from datetime import timedelta
from sparse_accel.errors import Stopped
from sparse_accel.main import run_main
from sparse_accel.distributed import collectives
import torch.distributed as dist

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(1.5)

slow, store = Slow(), dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=1))

def start_thread():
    threading.Thread(target=store.get, args=["never"], daemon=True).start()
    time.sleep(0.2)
"""

PROGRAM = f"""{THREAD}
atexit.register(print, "the end of a tracker", end="")

def main():
    start_thread()
    print("printed", end=" ")
    raise ERROR

run_main(main)
"""


@pytest.mark.parametrize(("error", "code"), [("Stopped('SIGTERM')", 75), ("SystemExit(0)", 0), ("ValueError", 1)])
def test_a_thread_that_lives_on_does_not_change_the_exit_code(error: str, code: int) -> None:
    several = environment() | {"RANK": "1", "WORLD_SIZE": "2"}
    program = [sys.executable, "-c", PROGRAM.replace("ERROR", error)]
    ended = subprocess.run(program, env=several, capture_output=True, text=True, timeout=120)
    assert ended.returncode == code, ended.stderr
    assert ended.stdout == "printed the end of a tracker"
    assert ("ValueError" in ended.stderr) == (code == 1)


OWN = f"""{THREAD}
collectives._SECONDS_AT_EXIT, collectives.world_size = 5.0, lambda: 2
collectives.wait_at_exit()
start_thread()
sys.exit(3)
"""


def test_a_program_of_ones_own_waits_for_such_a_thread() -> None:
    """Whose exit code is not known before it ends."""
    ended = subprocess.run([sys.executable, "-c", OWN], env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 3, ended.stderr


def test_bind_makes_it_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[Any] = []
    monkeypatch.setattr("atexit.register", lambda *call: registered.append(call))
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    collectives._register_wait.cache_clear()
    model = nn.Linear(2, 2)
    for _ in range(2):
        run = RecipeRun(None)
        run.attach(model)
        run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.1), steps_per_epoch=1)
    assert registered == [(time.sleep, collectives._SECONDS_AT_EXIT)]
    collectives._register_wait.cache_clear()
