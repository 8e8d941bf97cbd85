"""The programs of scripts/ that start others, as modules whose functions a test calls; what they start runs in this
process, so nothing is imported twice."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from places import ROOT
from script_fixtures import run_program

from sparse_accel.demo import commands


def start_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, `commands.run_script` runs its script in this process and prints what it printed."""

    def run(command: Sequence[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        script, *arguments = command[1:]
        done = run_program(ROOT / script, arguments, cwd)
        print(done.out)
        return subprocess.CompletedProcess(command, done.code, stderr=done.err)

    monkeypatch.setattr(commands, "subprocess", SimpleNamespace(run=run))


def module_of(script: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of scripts/ as a module, until the end of the test."""
    path = ROOT / "scripts" / script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module
