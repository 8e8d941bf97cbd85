"""Several machines, as several launches."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from places import ROOT
from script_fixtures import SCRIPT, environment, words


def free_port() -> int:
    """A port that must stay free until a launcher has started: below those that a system gives to connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return port


def launch(
    rank: int,
    address: str,
    port: int,
    flags: dict[str, Any],
    *before: str,
    layout: str = "ddp_two_nodes",
    program: Sequence[Path] = (SCRIPT,),
) -> subprocess.Popen[str]:
    """Starts the launcher of one machine with one process.

    Args:
        before: words in front of the interpreter.
        program: a script; or one that runs the next.
    """
    config = ROOT / "accelerate_configs" / f"{layout}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += [
        "--num_machines",
        "2",
        "--num_processes",
        "2",
        "--machine_rank",
        str(rank),
        "--main_process_ip",
        address,
    ]
    command += ["--main_process_port", str(port), "--mixed_precision", "no", *map(str, program), *words(**flags)]
    return subprocess.Popen(
        [*before, *command],
        cwd=ROOT,
        env=environment(**({} if layout.startswith("deepspeed") else {"ACCELERATE_USE_CPU": "true"})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
