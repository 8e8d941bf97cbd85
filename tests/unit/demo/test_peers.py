"""Programs that take turns: stand-ins speak the lines of `peers_launcher.py`, without a model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_accel.demo import peers
from sparse_accel.demo.peers import BFLOAT16, OURS, SPARSEML, TRAINER, Contestant, Epoch
from sparse_accel.demo.peers_launcher import quantizers
from sparse_accel.errors import UsageError
from sparse_accel.nn.fake_quantize import FakeQuantize, QuantizationScheme

# Logs when it works; its name is the fourth word, the number of the epoch in which it fails the fifth.
STAND_IN = """
import json, os, sys, time
_, kind, orders, reports, name, fails, shared = sys.argv
orders, reports = os.fdopen(int(orders)), os.fdopen(int(reports), "w", buffering=1)
def log(text):
    with open(shared, "a") as file:
        file.write(f"{name} {text}\\n")
log(f"started {os.getpid()}")
assert "GOMP_SPINCOUNT" not in os.environ and os.environ["NM_DISABLE_ANALYTICS"] == "1"
if kind == "table":
    print(json.dumps({"teacher_seconds": 3.0}), file=reports)
for epoch in range(9):
    print(json.dumps({"waits": epoch}), file=reports)
    orders.readline()
    log("begins")
    if epoch == int(fails):
        print("loading")
        sys.exit("no room for the gradients")
    time.sleep(0.01)
    log("ends")
    print(json.dumps(dict(epoch=epoch, rows=8, seconds=0.5, threads=2, rounding=0, observing=0)), file=reports)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Any:
    """Makes a contestant: its name in the log, and where it fails."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)

    def make(name: str, *, fails: int = -1, kind: str = "plain") -> Contestant:
        return Contestant((sys.executable, str(script), kind, name, str(fails), str(tmp_path / "log")))

    return make


def epoch(number: int, *, rows: int = 10, seconds: float = 1.0, threads: int = 2, **quantizers: int) -> Epoch:
    return Epoch(number, rows, seconds, threads, **{"rounding": 0, "observing": 0, **quantizers})


# --- turns ------------------------------------------------------------------------------------------------------------


def test_one_program_works_at_a_time_in_an_order_that_rotates(
    tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")  # as this package sets it, for itself
    programs = {"one": stand_in("one"), "two": stand_in("two", kind="table"), "three": stand_in("three")}
    seen: list[str] = []
    found, teacher = peers.take_turns(programs, 3, tmp_path, lambda name, done: seen.append(f"{name} {done.epoch}"))
    order = ["one", "two", "three", "two", "three", "one", "three", "one", "two"]
    assert seen == [f"{name} {number // 3}" for number, name in enumerate(order)]
    log = [line for line in (tmp_path / "log").read_text().splitlines() if "started" not in line]
    assert log == [f"{name} {what}" for name in order for what in ("begins", "ends")]
    assert found["two"] == [Epoch(number, 8, 0.5, 2, 0, 0) for number in range(3)]
    assert teacher == {"one": 0.0, "two": 3.0, "three": 0.0}


def test_a_program_that_fails_ends_all(tmp_path: Path, stand_in: Any) -> None:
    programs = {"one": stand_in("one"), "two": stand_in("two", fails=1)}
    with pytest.raises(UsageError, match=r"(?s)^two ended with exit code 1.*loading\nno room for the gradients$"):
        peers.take_turns(programs, 3, tmp_path, lambda *_: None)
    for line in (tmp_path / "log").read_text().splitlines():
        if "started" in line:
            with pytest.raises(ProcessLookupError):
                os.kill(int(line.split()[-1]), 0)


# --- the peer's Python ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prints", ["1.7.0", "no such package", None])
def test_a_wrong_environment_says_how_to_make_one(tmp_path: Path, prints: str | None) -> None:
    python = tmp_path / "python"
    if prints:
        python.write_text(f"#!/bin/sh\necho {prints}\nexit {int(not prints[0].isdecimal())}\n")
        python.chmod(0o755)
    with pytest.raises(UsageError, match=r"--peer_python .*python is no Python with SparseML 1\.8\.0") as error:
        peers.check_peer(python)
    assert "sparseml[torch,transformers]==1.8.0" in str(error.value) and "compressed-tensors==0.5.0" in str(error.value)


def test_the_right_environment(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 1.8.0\n")
    python.chmod(0o755)
    peers.check_peer(python)


# --- what was measured ------------------------------------------------------------------------------------------------


def right_epochs() -> dict[str, list[Epoch]]:
    """Two programs, two epochs of each phase: one by the recipe, one plain."""
    states = [(0, 0), (0, 0), (5, 5), (5, 5), (5, 0), (5, 0)]
    by_recipe = [epoch(number, rounding=each[0], observing=each[1]) for number, each in enumerate(states)]
    return {"recipe": by_recipe, "plain": [epoch(number) for number in range(6)]}


def test_the_same_work_is_fine() -> None:
    peers.check_epochs(right_epochs(), ["recipe"], 2)


@pytest.mark.parametrize(
    ("name", "wrong", "match"),
    [
        ("plain", {"threads": 1}, "different numbers of threads: recipe 2, plain 1, 2: set OMP_NUM_THREADS"),
        ("plain", {"rows": 9}, "different numbers of rows: recipe 10, plain 9, 10"),
        (
            "recipe",
            {"rounding": 5},
            "recipe: in epoch 1, which is of phase 'pruned, distilled', 5 fake quantizers round",
        ),
        ("recipe", {"observing": 5}, "0 fake quantizers round and 5 follow their ranges"),
    ],
)
def test_other_work_is_an_error(name: str, wrong: dict[str, int], match: str) -> None:
    epochs = right_epochs()
    epochs[name][1] = epoch(1, **wrong)
    with pytest.raises(UsageError, match=match):
        peers.check_epochs(epochs, ["recipe"], 2)


def test_a_recipe_without_quantizers_is_an_error() -> None:
    epochs = right_epochs()
    epochs["recipe"][3] = epoch(3)
    with pytest.raises(UsageError, match="in epoch 3, which is of phase 'QAT', 0 fake quantizers round"):
        peers.check_epochs(epochs, ["recipe"], 2)


@pytest.mark.parametrize(("unfrozen", "fine"), [(2, True), (40, False)])
def test_a_few_ranges_of_a_peer_may_stay_unfrozen(unfrozen: int, fine: bool) -> None:
    epochs = {"recipe": [epoch(0), epoch(1, rounding=82, observing=82), epoch(2, rounding=82, observing=unfrozen)]}
    if fine:
        return peers.check_epochs(epochs, ["recipe"], 1)
    with pytest.raises(UsageError, match="'QAT, ranges frozen', 82 fake quantizers round and 40 follow"):
        peers.check_epochs(epochs, ["recipe"], 1)


def test_rates_are_all_rows_over_all_seconds_of_a_phase() -> None:
    seconds = [1.0, 3.0, 4.0, 4.0, 1.0, 1.5]
    epochs = [epoch(number, seconds=each) for number, each in enumerate(seconds)]
    assert list(peers.rates(epochs, 2, True).values()) == [20 / 4, 20 / 8, 20 / 2.5]
    assert list(peers.rates(epochs, 2, False).values()) == [60 / 14.5] * 3


def test_the_table_divides_our_rate_by_theirs() -> None:
    phases = peers.PHASES
    by_program = {
        SPARSEML: dict(zip(phases, (20.0, 10.0, 12.0), strict=True)),
        BFLOAT16: dict(zip(phases, (200.0, 100.0, 110.0), strict=True)),
    }
    found: dict[str, Any] = {"rates": by_program, "teacher_seconds": {SPARSEML: 0.0, BFLOAT16: 13.0}}
    lines = peers.peers_table({**found, "rows": 100, "length": 128, "phase_epochs": 2, "threads": 2}).splitlines()
    assert lines[0] == "100 rows of at most 128 tokens, 32 per step; 2 epochs of each phase; 2 threads"
    # An epoch of 100 rows takes 1 s, and 1 s of the table in each of 13 epochs.
    assert lines[4:6] == [
        f"| {SPARSEML} | 20.0 | 10.0 | 12.0 | 10.00x | 5.00x |",
        f"| {BFLOAT16} | 200.0 | 100.0 | 110.0 | 1.00x | 0.50x |",
    ]
    assert f"({BFLOAT16}: 13.0 s)" in lines[-1] and SPARSEML not in lines[-1]


def test_quantizers_of_either_kind_are_counted() -> None:
    theirs = [torch.ao.quantization.FakeQuantize() for _ in range(3)]
    theirs[0].disable_observer()
    theirs[1].disable_fake_quant()
    ours = [FakeQuantize(QuantizationScheme()) for _ in range(2)]
    ours[0].enabled = ours[0].observing = True
    assert quantizers(torch.nn.ModuleList(theirs)) == {"rounding": 2, "observing": 2}
    assert quantizers(torch.nn.ModuleList(ours)) == {"rounding": 1, "observing": 1}
    assert quantizers(torch.nn.Linear(2, 2)) == {"rounding": 0, "observing": 0}


def test_all_train_on_the_same_files_by_the_same_recipe(tmp_path: Path) -> None:
    inputs = peers.Inputs(tmp_path / "dense", tmp_path / "sparse", tmp_path / "train.csv", tmp_path, 64, 2)
    programs = peers.contestants(tmp_path / "python", inputs)
    assert list(programs) == [SPARSEML, f"{SPARSEML}, not padded", TRAINER, f"{TRAINER}, bf16", OURS, BFLOAT16]
    outputs = set()
    for name, program in programs.items():
        flags = dict(zip(program.command, program.command[1:], strict=False))
        outputs.add(flags["--output_dir"])
        assert (flags["--train_file"], flags["--max_seq_length"]) == (str(tmp_path / "train.csv"), "64")
        assert flags["--per_device_train_batch_size"] == "32"
        assert ("--bf16" in flags) == name.endswith("bf16")
        if program.has_recipe:
            assert flags["--recipe_args"] == '{"num_epochs": 6, "qat_start_epoch": 2.0, "observer_epoch": 4.0}'
            assert flags["--model_name_or_path"] == str(tmp_path / "sparse")
            assert flags["--distill_teacher"] == str(tmp_path / "dense")
        else:
            assert flags["--num_train_epochs"] == "6"
    assert len(outputs) == len(programs)
