"""The benchmarks run through on a tiny model and a few rows, and write what they print."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from script_fixtures import make_model, sentences, write_csv


def run(script: str, *flags: object) -> str:
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_step_times(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", sparse=False, head=True, max_position_embeddings=128)
    rows = write_csv(tmp_path / "train.csv", sentences(300, seed=0))
    printed = run(
        "benchmark.py", "--train_file", rows, "--model", model, "--rounds", 1, "--output", tmp_path / "benchmark.json"
    )
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(found["phases"]) == ["hand-written loop", "pruned", "pruned, distilled", "pruned, distilled, QAT"]
    assert all(entry["seconds"] > 0 for table in ("phases", "forms") for entry in found[table].values())
    assert 12 < found["checkpoint"]["bytes_per_weight"] < 24 and "A checkpoint takes" in printed
    assert "batches of similar lengths, table" in printed


@pytest.mark.slow
def test_accuracy(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", sparse=False)
    for name, count in (("train", 40), ("validation", 16)):
        write_csv(tmp_path / f"{name}.csv", sentences(count, seed=count))
    flags = ("--data", tmp_path, "--model", model, "--imdb_rows", 64, "--transfer_epochs", 4, "--seeds", 1)
    output = tmp_path / "results"
    run("benchmark_accuracy.py", *flags, "--output_dir", output)
    found = json.loads((output / "results.json").read_text())
    assert len(found) == 5  # the one-shot start without teacher is the SparseML setting
    assert found["dense"]["quantized_linears"] == 0
    assert all(entry["encoder_sparsity"] > 0.89 for name, entry in found.items() if name != "dense")

    again = run("benchmark_accuracy.py", *flags, "--output_dir", output)
    assert again.count("already finished") == 6  # the five, and the start on IMDB
