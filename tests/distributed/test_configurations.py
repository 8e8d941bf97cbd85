"""What launch configurations ask for is what a script gets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

# One write a process: a pipe keeps it whole, where print's separate words could mix with the other process's.
REPORT_WORLD = """
import sys

from accelerate import Accelerator

accelerator = Accelerator()
sys.stdout.write(f"world {accelerator.num_processes} {accelerator.device.type} {accelerator.mixed_precision}\\n")
"""


def launch(config: str, tmp_path: Path, *flags: str, **environment: str) -> list[str]:
    """Launches a script under a configuration; returns the line that each of its processes printed."""
    script = tmp_path / "report_world.py"
    script.write_text(REPORT_WORLD)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml"]
    result = subprocess.run(
        [*command, *flags, str(script)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    # Processes write to one pipe: their lines may run together.
    return re.findall(r"world \d+ \w+ (?:no|bf16|fp16)", result.stdout)


def test_cpu_configuration_runs_one_process_on_the_cpu(tmp_path: Path) -> None:
    assert launch("cpu", tmp_path) == ["world 1 cpu no"]


@pytest.mark.slow
def test_ddp_configuration_runs_two_processes(tmp_path: Path) -> None:
    found = launch("ddp", tmp_path, "--main_process_port", "0", ACCELERATE_USE_CPU="true")
    assert found == ["world 2 cpu bf16"] * 2
