"""`make test-gpu`: what of it shows without a GPU. The same rows run on a CPU, as far as one can run them."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import gpu_smoke
import pytest
import torch
import waits
from gpu_smoke import CPU_ROWS, GPU_ROWS, Bench, Failed
from places import ROOT, SUPPORT

from sparse_accel.models.teacher import Teacher
from sparse_accel.nn.losses import IGNORED
from sparse_accel.tasks.units import starts_of

PROGRAM = SUPPORT / "gpu_smoke.py"


def test_without_a_gpu_it_says_what_to_do() -> None:
    variables = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    done = subprocess.run([sys.executable, PROGRAM], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert "finds no GPU here" in done.stderr and "nvidia-smi" in done.stderr and "Traceback" not in done.stderr


def test_only_its_own_target_runs_it() -> None:
    rules = re.split(r"\n(?=[a-z-]+:)", (ROOT / "Makefile").read_text())
    assert [rule.partition(":")[0] for rule in rules if "gpu_smoke" in rule] == ["test-gpu"]


def test_every_configuration_for_one_machine_has_a_row() -> None:
    configurations = {
        path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml") if "two_nodes" not in path.stem
    }
    assert {row[1] for row in GPU_ROWS} - {"-"} == configurations
    assert {row[1] for row in CPU_ROWS} - {"-"} <= configurations
    assert GPU_ROWS[0] == CPU_ROWS[0]  # the reference
    in_all_phases = {row[2] for row in GPU_ROWS if row[3] is gpu_smoke.all_phases}
    assert in_all_phases == {"no", "bf16", "fp16"}
    assert len(GPU_ROWS) == len({row[:3] for row in GPU_ROWS})


def test_a_row_that_fails_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def passes(*_: object) -> list[float]:
        return [0.7, 0.6, 0.25]

    def fails(*_: object) -> list[float]:
        raise Failed("exit code 1\nand why")

    def breaks(*_: object) -> list[float]:
        raise ZeroDivisionError

    rows = [("one", "ddp", "bf16", passes), ("two", "ddp", "fp16", fails), ("three", "-", "no", breaks)]
    assert gpu_smoke.run_rows(rows[:1], on_cpu=True, minutes=1) == 0
    assert "1 of 1 passed" in capsys.readouterr().out
    assert gpu_smoke.run_rows(rows, on_cpu=True, minutes=1) == 1
    out = capsys.readouterr().out
    assert "1 of 3 passed" in out and "and why" in out and "ZeroDivisionError" in out
    table = [line.split() for line in out.rpartition("loss, first")[2].splitlines()[1:4]]
    assert [cells[:4] for cells in table] == [
        ["one", "ddp", "bf16", "passed"],
        ["two", "ddp", "fp16", "FAILED"],
        ["three", "-", "no", "FAILED"],
    ]
    assert table[0][5:] == ["0.7000", "0.2500"]
    assert gpu_smoke.run_rows(rows[:1], on_cpu=True, minutes=-1) == 1
    assert "no time" in capsys.readouterr().out


def test_a_row_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "__post_init__", lambda self: None)
    bench = Bench(tmp_path, on_cpu=True, deadline=0)
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = subprocess.Popen(program, stdout=-1, stderr=-1, text=True, start_new_session=True)
    with pytest.raises(Failed, match="not done after 1 seconds"):
        bench.finish(process)
    assert process.returncode == -9


# --- waiting for the GPU ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", waits.TASKS)
def test_a_plain_step_reads_nothing_back(task: str) -> None:
    """On the device `meta`, which has no numbers to read, and takes the ways through the code that a GPU takes."""
    found = waits.waits_by_phase("meta", task)
    assert tuple(found) == waits.PHASES
    assert not any(found.values()), found


def test_tokens_are_looked_up_by_their_labels() -> None:
    """The table holds labelled tokens alone; fillers and rows without labels have none, and get zeros."""
    training = waits.make_training("cpu", "token")
    teacher, batch = training.run.teacher, dict(training.batch.micro_batches[0])
    assert teacher is not None
    labels: torch.Tensor = batch["labels"].clone()
    labels[2], labels[7, -4:] = IGNORED, IGNORED
    counts = (labels != IGNORED).sum(dim=1)
    teacher.table, teacher._starts = torch.randn(int(counts.sum()), 2), starts_of(counts.numpy())
    row_id = batch["row_id"].clone()
    row_id[4] = -1
    found = teacher.outputs({**batch, "labels": labels, "row_id": row_id}, ["logits"])["logits"]
    expected = torch.zeros(*labels.shape, 2)
    for entry, (row, token) in enumerate((labels != IGNORED).nonzero().tolist()):
        if row != 4:
            expected[row, token] = teacher.table[entry]
    assert torch.equal(found, expected)


def test_what_reads_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    padded = waits.waits_by_phase("meta", "text", padded=True)
    assert all(waits.reason(place, "no") for places in padded.values() for place in places)
    assert all(len(places) == 1 for places in padded.values())

    def chosen(self: object, table: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return table[batch["row_id"]][batch["row_id"] >= 0] + torch.ones(2).to(table.device)

    monkeypatch.setattr(Teacher, "_look_up", chosen)
    found = waits.waits_by_phase("meta", "text")
    assert found["pruned"] == []
    assert all("tests/support/test_gpu_smoke.py" in places[0] for phase, places in found.items() if phase != "pruned")

    def copied(self: object, table: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return table[batch["row_id"]] + torch.ones(2).to(table.device)

    monkeypatch.setattr(Teacher, "_look_up", copied)
    found = waits.waits_by_phase("meta", "text")
    assert [len(places) for places in found.values()] == [0, 1, 1, 1]
    assert found["pruned, distilled"][0].endswith(" copied")


def test_what_pytorch_says_of_waiting_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with waits.waits_of_cuda() as places:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert modes == ["warn", "default"]
    assert len(places) == 2 and all("test_gpu_smoke.py" in place for place in places)
    assert waits.reason("site-packages/accelerate/optimizer.py:178 step", "fp16")
    assert not waits.reason("site-packages/accelerate/optimizer.py:178 step", "bf16")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_steps_that_are_taken_on_a_gpu(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here on a CPU, which never waits for itself: the way through the phases is the same."""
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    for task in waits.TASKS:
        found = waits.waits_by_phase("cpu", task, precision, padded=True)
        assert tuple(found) == waits.PHASES and not any(found.values())


def test_a_step_that_overflows_in_fp16_does_not_count() -> None:
    steps, lowered, moved = waits.step_after_overflow("cpu")
    assert lowered > 1 and steps == 1 and moved


@pytest.mark.slow
def test_the_rows_that_a_cpu_can_run() -> None:
    done = subprocess.run([sys.executable, PROGRAM, "--cpu"], cwd=ROOT, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CPU_ROWS)} of {len(CPU_ROWS)} passed" in done.stdout
