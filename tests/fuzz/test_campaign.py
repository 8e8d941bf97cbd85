"""The campaign of changed inputs itself: what its oracle calls a fault, and a short campaign without one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from sparse_accel.errors import UsageError

FUZZ = ROOT / "tests" / "fuzz"


@pytest.fixture(autouse=True)
def own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FUZZ))


class Evil:
    def __reduce__(self) -> Any:
        return os.getpid, ()


def refuse(message: str) -> None:
    raise UsageError(message)


def divide() -> float:
    return 1 / (len("") or 0)


def write(path: Path) -> None:
    path.write_text("x")


def start() -> None:
    subprocess.run(["true"], check=True)


def end(code: int) -> None:
    raise SystemExit(code)


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (lambda folder: refuse("rows.csv, line 3: no"), "refused"),
        (lambda folder: write(folder / "a"), "accepted"),
        (lambda folder: end(0), "accepted"),
        (lambda folder: refuse("no"), "a message without its place"),
        (lambda folder: refuse("rows.csv" + 160 * 30 * "x"), "refused"),  # the commands cut it
        (lambda folder: divide(), "ZeroDivisionError at test_campaign.py:divide"),
        (lambda folder: end(3), "an exit code without a UsageError"),
        (lambda folder: write(folder.parent / "b"), "did what it must not"),
        (lambda folder: (folder.parent / "c").mkdir(), "did what it must not"),
        (lambda folder: (folder / "link").symlink_to("/etc"), "did what it must not"),
        (lambda folder: start(), "did what it must not"),
        (lambda folder: pickle.loads(pickle.dumps(Evil())), "did what it must not"),
        (lambda folder: time.sleep(5), "longer than 0.5 s"),
    ],
)
def test_the_oracle(
    action: Callable[[Path], object], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import oracle

    monkeypatch.setattr(oracle, "SECONDS", 0.5)
    for place in (tmp_path, oracle.fresh_folder()):  # the second is where a campaign has its inputs
        own = place / "own"
        own.mkdir()
        try:
            found = oracle.judge(lambda own=own: action(own), own, r"rows\.csv")
        except oracle.Fault as fault:
            found = fault.kind
        assert found.startswith(kind)


def test_a_seed_gives_one_change() -> None:
    from mutations import mutated

    inputs = [b"a: 1\nb: [2, 3]\n", b"c: x\n", b""]
    for data in inputs:
        found = [mutated(data, inputs, [b"key"], seed) for seed in range(300)]
        assert found == [mutated(data, inputs, [b"key"], seed) for seed in range(300)]
        assert len(set(found)) > 150


def test_kinds_are_refused_by_name() -> None:
    ended = subprocess.run(
        [sys.executable, str(FUZZ / "campaign.py"), "--only", "cvs"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2 and "no kind 'cvs': they are recipe" in ended.stderr


@pytest.mark.parametrize("kind", ["recipe_args", "settings", "parquet"])
def test_faults_of_before(kind: str, tmp_path: Path) -> None:
    """The corpus of what needs no model; a campaign reads all of it."""
    import campaign

    files = sorted((FUZZ / "corpus" / kind).iterdir())
    assert files
    for file in files:
        assert campaign.judged(kind, file.read_bytes()) == "refused", file.name


@pytest.mark.slow
def test_a_short_campaign_finds_nothing(tmp_path: Path) -> None:
    """Each kind gets its share of the time. A fault that is new here belongs into tests/fuzz/corpus."""
    words = ["--inputs", "1000", "--seconds", "90", "--jobs", "2", "--faults", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, str(FUZZ / "campaign.py"), *words], capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [line.split() for line in ended.stdout.splitlines() if " inputs" in line]
    assert len(rows) >= 30 and int(rows[-1][1].replace(",", "")) > 300
