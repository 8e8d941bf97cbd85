"""`make bench-gpu` and the benchmark of scaling: what of them a CPU can run, on a tiny model."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from demo_scripts import module_of
from places import ROOT

from sparse_accel.demo.step_contestants import RECIPE
from sparse_accel.errors import UsageError
from sparse_accel.recipe import load_recipe

VARIABLES = ("qat_start_epoch", "observer_epoch")


def run(script: str, *flags: object, **variables: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    return module_of("benchmark_gpu.py", monkeypatch)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "finds no GPU here.*nothing was measured"),
        (["--device", "cpu", "--precisions", "fp16"], "fp16 needs a GPU"),
    ],
)
def test_without_a_gpu_it_says_so_in_one_line(
    flags: list[str], message: str, program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmark_gpu.py", *flags, "--output", str(tmp_path / "out" / "gpu.json")])
    with pytest.raises(UsageError, match=message) as raised:
        program.main()
    assert "\n" not in str(raised.value) and raised.value.exit_code == 2 and not (tmp_path / "out").exists()


def test_only_its_own_target_runs_it() -> None:
    rules = re.split(r"\n(?=[a-z-]+:)", (ROOT / "Makefile").read_text())
    assert [rule.partition(":")[0] for rule in rules if "benchmark_gpu" in rule] == ["bench-gpu"]


def test_the_epochs_of_each_phase_are_those_of_the_recipe(program: Any) -> None:
    recipe = load_recipe(RECIPE)
    starts = [float(re.findall(rf"^{name}: .*?([\d.]+)$", RECIPE.read_text(), re.MULTILINE)[0]) for name in VARIABLES]
    assert sum(program.EPOCHS.values()) == recipe.max_epochs
    assert list(np.cumsum(list(program.EPOCHS.values()))[:2]) == starts


def test_a_schedule_is_the_sum_of_its_phases(program: Any) -> None:
    seconds = {program.DISTILLED: 1.0, program.ALL: 10.0, program.FROZEN: 5.0, program.TABLE: 0.25}
    table = {name: {"seconds": value} for name, value in seconds.items()}
    assert program.schedule_seconds(table, 67_349, 512, "") == 132 * (8 * 1 + 4 * 10 + 1 * 5 + 0.25)
    assert program.schedule_seconds(table, 67_349, 512, ", compiled") is None
    compiled = {f"{name}, compiled": row for name, row in table.items() if name in (program.DISTILLED, program.ALL)}
    assert program.schedule_seconds(table | compiled, 512, 512, ", compiled") == 8 + 5 * 10 + 0.25


def test_made_up_rows_are_as_long_as_said(program: Any) -> None:
    lengths = program.made_up_lengths(67_349)
    assert (min(lengths), max(lengths)) == (3, 66) and round(sum(lengths) / len(lengths)) == 13
    (batch,) = program.made_up_batches(lengths, [[5, 9, 2]], torch.device("cpu"))
    assert batch["attention_mask"].sum(dim=1).tolist() == [lengths[row] for row in (5, 9, 2)]
    assert batch["row_id"].tolist() == [5, 9, 2] and batch["input_ids"].max() < program.WORDS


@pytest.mark.slow
def test_the_gpu_benchmark_on_a_cpu(tmp_path: Path, program: Any) -> None:
    output = tmp_path / "gpu.json"
    flags = ["--device", "cpu", "--tiny", "--rounds", 2, "--batch_sizes", 4, "--minutes", 10]
    flags += ["--compile_backend", "eager"]
    printed = run("benchmark_gpu.py", *flags, "--peak_tflops", 0.5, "--output", output, OMP_NUM_THREADS="1")
    found = json.loads(output.read_text())
    assert found["not_measured"] == [] and found["model"] == "tiny"
    names = [program.PLAIN, "pruned", program.DISTILLED, "QAT", program.ALL, program.FROZEN, program.TABLE]
    compiled = [f"{name}, compiled" for name in (program.PLAIN, program.DISTILLED, program.ALL)]
    assert [row["name"] for row in found["steps"]] == [*names, *compiled]
    for row in found["steps"]:
        assert row["samples_per_second"] == pytest.approx(4 / row["seconds"]) and row["ratio"] > 0
        if row["name"] != program.TABLE:
            assert row["share_of_peak"] == pytest.approx(row["tflops"] / 0.5) and 0 < row["tflops"] < 0.5
    assert [row["compiled"] for row in found["schedules"]] == [False, True]
    table = {row["name"]: row for row in found["steps"]}
    assert found["schedules"][0]["seconds"] == pytest.approx(program.schedule_seconds(table, 16, 4, ""))
    assert printed == output.with_suffix(".md").read_text()
    assert f"| bf16 | 4 | {program.ALL} |" in printed and "| bf16, compiled | 4 |" in printed
    assert sorted(tmp_path.iterdir()) == [output, output.with_suffix(".md")]


def test_what_there_is_no_time_for_is_named(
    program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the figures of what was done before are kept."""
    row = {"precision": "bf16", "batch_size": 4, "name": program.PLAIN, "seconds": 0.5, "samples_per_second": 8.0}
    row |= {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "tflops": 494.5, "peak_bytes": 2e9}
    part = {"steps": [row], "schedules": [], "not_measured": ["bf16, pruned: no"], "planned": ["QAT", "more"]}

    class Process:
        """The first one hangs, the second one ends after it wrote."""

        exitcode, started = 3, 0

        def __init__(self, target: Any, args: Any) -> None:
            Process.started += 1
            self.hangs, self.path = Process.started == 1, args[2]
            assert (args[1], args[3]) == (("fp16", False) if self.hangs else ("bf16", True))

        def start(self) -> None:
            if not self.hangs:
                self.path.write_text(json.dumps(part))

        def join(self, seconds: float = math.inf) -> None:
            assert seconds > 0

        def is_alive(self) -> bool:
            return self.hangs

        def kill(self) -> None: ...

    monkeypatch.setattr(program.multiprocessing, "get_context", lambda kind: SimpleNamespace(Process=Process))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(sys, "argv", ["benchmark_gpu.py", "--output", str(tmp_path / "gpu.json")])
    assert program.main() == 0
    words = capsys.readouterr().out
    code = "its process ended with exit code 3"
    for line in ("fp16, all: no time", "bf16, pruned: no", f"bf16, QAT: {code}", f"bf16, more: {code}"):
        assert f"\n- {line}\n" in words
    assert "peak 989 TFLOPS" in words and f"| bf16 | 4 | {program.PLAIN} | 500.0 | 8 | 494.5 | 50.0% |" in words
    assert "| 2.0 |" in words and json.loads((tmp_path / "gpu.json").read_text())["steps"] == [
        row | {"share_of_peak": 0.5}
    ]


@pytest.mark.slow
def test_the_benchmark_of_scaling(tmp_path: Path) -> None:
    output = tmp_path / "scaling.json"
    flags = ["--rounds", 1, "--launches", 1, "--width", 32, "--output", output]
    printed = run("benchmark_scaling.py", *flags, OMP_NUM_THREADS="1")
    found = json.loads(output.read_text())
    assert len(found["steps"]) == 10 and all(row["seconds"] > 0 for row in found["steps"].values())
    assert {number: len(seconds) for number, seconds in found["processes"].items()} == {"1": 1, "2": 1}
    for heading in ("rows", "tokens", "layers", "processes"):
        assert f"| {heading} | time" in printed
    assert "| 32 | 1.00 (1.00 to 1.00) | 1.00 |" in printed and "Base: 32 rows, 32 tokens, 6 layers" in printed
