"""The command that environment.json and the report name: one that can be typed again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sparse_accel.run_folder.environment import _command


@pytest.mark.parametrize(
    "started, flags, expected",
    [
        (["python3.11", "scripts/train.py"], ["--seed", "1"], "python scripts/train.py --seed 1"),
        (["/venv/bin/python", "-u", "{here}/scripts/train.py"], ["--seed", "1"], "python scripts/train.py --seed 1"),
        (["python", "/other/train.py"], [], "python /other/train.py"),
        (["python", "-m", "sparse_accel", "train", "x"], ["--do_eval"], "python -m sparse_accel train x --do_eval"),
        (["python", "/venv/bin/sparse_accel", "train", "x"], ["--do_eval"], "sparse_accel train x --do_eval"),
        (["python", "train.py"], ["--text", "two words"], "python train.py --text 'two words'"),
        (["python", "train.py"], ["--hub_token", "secret", "--x"], "python train.py --hub_token ... --x"),
        (["python", "train.py"], ["--hub_token=secret"], "python train.py --hub_token=..."),
    ],
)
def test_the_command(
    started: list[str], flags: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started = [word.format(here=tmp_path) for word in started]
    monkeypatch.setattr(sys, "orig_argv", [*started, *flags])
    monkeypatch.setattr(sys, "argv", ["a/program.py", *flags])
    assert _command() == expected


def test_a_program_that_another_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest", "tests"])
    monkeypatch.setattr(sys, "argv", ["/place/scripts/train.py", "--seed", "1"])
    assert _command() == "train.py --seed 1"
