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
    names = [
        "hand-written loop",
        "pruned",
        "pruned, distilled",
        "pruned, distilled, QAT",
        "pruned, hidden states distilled",
        "pruned by movement",
    ]
    assert list(found["phases"]) == names
    assert all(entry["seconds"] > 0 for table in ("phases", "forms") for entry in found[table].values())
    assert 12 < found["checkpoint"]["bytes_per_weight"] < 24 and "A checkpoint takes" in printed
    assert "batches of similar lengths, table" in printed


@pytest.mark.slow
def test_the_cost_of_second_order_pruning(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", sparse=False, head=True, max_position_embeddings=128)
    rows = write_csv(tmp_path / "train.csv", sentences(300, seed=0))
    output = tmp_path / "obs.json"
    printed = run("benchmark.py", "--train_file", rows, "--model", model, "--obs", "--output", output)
    found = json.loads(output.read_text())
    assert list(found) == ["model", "BERT-base, made-up gradients"] and "seconds per sample" in printed
    assert all(value > 0 for row in found.values() for value in row.values())
    assert found["BERT-base, made-up gradients"]["weights"] == 84934656
    assert " 84,934,656\n" in printed and "peak GB" in printed and "bytes" not in printed
    cost = found["model"]
    assert cost["epochs_per_update"] == pytest.approx(cost["seconds_of_1024_samples"] / cost["seconds_of_epoch"])
    starred = [line.strip().split("  ")[0] for line in printed.split("BERT-base")[0].splitlines() if line.endswith("*")]
    assert starred == ["seconds of 1024 samples", "seconds of epoch", "epochs per update"]


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


@pytest.mark.slow
def test_frontier(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", sparse=False, max_position_embeddings=128)
    for name, count in (("train", 60), ("validation", 16)):
        write_csv(tmp_path / f"{name}.csv", sentences(count, seed=count))
    flags = ("--data", tmp_path, "--model", model, "--imdb_rows", 260, "--transfer_epochs", 4, "--held_out", 20)
    output = tmp_path / "results"
    printed = run("benchmark_accuracy.py", *flags, "--output_dir", output, "--frontier", "--sparsities", 0, 90)
    found = json.loads((output / "frontier.json").read_text())
    assert list(found["rows"]) == ["dense", "0% zeros, INT8", "90% zeros, INT8"]
    assert {"float", "0% zeros, INT8", "90% zeros, INT8"} <= found["milliseconds"].keys()
    assert all(0 < found["rows"][name]["packed"] < 1.5 for name in list(found["rows"])[1:])
    table = (output / "frontier.md").read_text()
    assert table in printed and table.count("\n| ") == 3
    assert f"| 1.00 | - | {found['milliseconds']['float']:.1f} | 1.0x | - | - |" in table
    assert (output / "held_out_20" / "validation.csv").read_text().count("\n") == 21
    results = json.loads((output / "90%_zeros_int8-seed42" / "all_results.json").read_text())
    assert results["encoder_sparsity"] > 0.89 and results["quantized_linears"] > 0
