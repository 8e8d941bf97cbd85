"""What a run prints: its bar, its evaluation lines, and --log_level."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from script_fixtures import SHORT, Outcome, Tiny, history, make_model, run

from sparse_accel import console

pytest_plugins = ["script_fixtures"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "teacher", sparse=False, head=True)


@pytest.fixture(scope="module")
def printed(tiny: Tiny, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    output = tmp_path_factory.mktemp("run") / "out"
    return run(**tiny.flags(distill_teacher=teacher), output_dir=output), output


def test_evaluation_lines_compare(printed: tuple[Outcome, Path]) -> None:
    done, output = printed
    lines = [line for line in done.out.splitlines() if line.startswith("epoch ")]
    scores = [entry["eval_accuracy"] for entry in history(output) if "eval_accuracy" in entry]
    assert len(lines) == SHORT["num_epochs"] == len(scores)
    teacher = re.search(r"teacher (\d\.\d{4})\)", lines[0])
    assert teacher and "best" not in lines[0]
    for number, line in enumerate(lines[1:], start=1):
        best = max(scores[:number])
        epoch = scores.index(best) + 1
        assert f"(best accuracy before {best:.4f} in epoch {epoch:.2f}, teacher {teacher[1]})" in line
    assert lines[-1].endswith("[distilled, pruned, QAT, ranges frozen]")


def test_the_bar_has_its_figures_first(printed: tuple[Outcome, Path]) -> None:
    done, _ = printed
    (last,) = [line for line in done.err.splitlines() if "28/28" in line and "epoch" in line]
    assert re.search(
        r"epoch 4\.00 100% \|.{10}\| 28/28 \[.*, loss \d\.\d{4}, zeros 90%, lr \d\.\de-\d\d, distilled", last
    )


def test_the_bar_of_a_terminal_without_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True, fileno=lambda: 2))
    for columns, expected in ((0, 100), (57, None)):
        monkeypatch.setattr(os, "get_terminal_size", lambda _, columns=columns: os.terminal_size((columns, 0)))
        made: dict[str, Any] = {}
        monkeypatch.setattr(console, "tqdm", lambda made=made, **options: made.update(options))
        console.progress_bar(None, 3, "train", "steps")
        assert made["ncols"] == expected and made["dynamic_ncols"] == (expected is None)


def test_the_run_names_its_pages(printed: tuple[Outcome, Path]) -> None:
    done, output = printed
    assert f"report: {output / 'report.html'}" in done.out and f"model card: {output / 'README.md'}" in done.out


def test_no_escape_codes_in_a_file(printed: tuple[Outcome, Path]) -> None:
    assert "\x1b" not in printed[0].out + printed[0].err


@pytest.mark.parametrize("level", ["warning", "error"])
def test_quiet(tiny: Tiny, tmp_path: Path, level: str) -> None:
    done = run(**tiny.flags(), output_dir=tmp_path / "out", log_level=level)
    assert done.code == 0 and done.out == "", done.all
    assert "steps" not in done.err and "evaluate" not in done.err and "epoch" not in done.err
    # The next run in this process prints again.
    again = run(**tiny.flags(), output_dir=tmp_path / "out")
    assert "── results" in again.out


def test_errors_alone(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        for level, printed in (("warning", "warning: beware\n"), ("error", "")):
            console.set_log_level(level)
            console.warn("beware")
            assert capsys.readouterr().err == printed
    finally:
        console.set_log_level("info")


def test_an_unknown_level(tiny: Tiny, tmp_path: Path) -> None:
    done = run(**tiny.flags(), output_dir=tmp_path / "out", log_level="quiet")
    assert done.code == 2 and "--log_level" in done.err and "debug, info, warning, error" in done.err
