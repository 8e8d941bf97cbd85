"""The benchmarks run through on a tiny model and a few rows, and write what they print. Figures of earlier settings are
never shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from demo_scripts import module_of, start_in_process
from embedding_fixtures import make_encoder, scored
from places import ROOT
from script_fixtures import make_model, sentences, write_csv
from stand_in_sparseml import make_peer_python

from sparse_accel.demo import commands, peers
from sparse_accel.demo.peers_inputs import write_inputs
from sparse_accel.errors import UsageError


def run(script: str, *flags: object) -> str:
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a benchmark, and the scripts that it starts, in this process, and returns what it printed."""
    start_in_process(monkeypatch)

    def run_in_process(script: str, *flags: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        capsys.readouterr()
        module_of(script, monkeypatch).main()
        return capsys.readouterr().out

    return run_in_process


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


def test_tokens_of_streams(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", sparse=False, head=True)
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{row}\n" for row, _ in sentences(300, seed=0)))
    flags = ["--train_file", texts, "--model", model, "--steps", 2, "--rounds", 2, "--batch_size", 16]
    printed = run("benchmark_streams.py", *flags, "--max_seq_length", 16, "--workers", 0, 1)
    lines = printed.strip().splitlines()[-3:]
    assert lines[0].startswith("loader workers") and [line.split()[0] for line in lines[1:]] == ["0", "1"]
    assert lines[1].endswith("1.00x") and all(int(line.split()[1].replace(",", "")) > 0 for line in lines[1:])


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
def test_beside_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for SparseML, hooked as the real one is: each trains and quantizes in its turn."""
    model = make_model(tmp_path / "model", sparse=False, max_position_embeddings=128)
    rows = write_csv(tmp_path / "train.csv", sentences(100, seed=0))
    inputs = write_inputs(tmp_path / "inputs", str(model), str(rows), rows=40, min_tokens=8, length=16, phase_epochs=1)
    assert inputs.train_file.read_text().count("\n") == 41
    programs = peers.contestants(make_peer_python(tmp_path / "peer"), inputs)
    kept = (peers.SPARSEML, peers.TRAINER, peers.BFLOAT16)
    monkeypatch.setattr(peers, "contestants", lambda *_: {name: programs[name] for name in kept})
    monkeypatch.setattr(peers, "OURS", peers.BFLOAT16)
    found = peers.compare_with_peers(Path("python"), inputs)
    assert found["rows"] == 40 and list(found["rates"]) == list(kept)
    assert all(rate > 0 for row in found["rates"].values() for rate in row.values())
    assert found["teacher_seconds"][peers.BFLOAT16] > 0 == found["teacher_seconds"][peers.SPARSEML]
    assert "| 1.00x |" in peers.peers_table(found)


def test_beside_a_peer_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_csv(tmp_path / "train.csv", sentences(10, seed=0))
    flags = ["--train_file", str(rows), "--peer_python", str(tmp_path / "python")]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags])
    benchmark = module_of("benchmark.py", monkeypatch)
    with pytest.raises(SystemExit) as ended:
        benchmark.run_main(benchmark.main)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: --peer_python") and "python3.10 -m venv peer" in said


def test_too_few_long_rows(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", sparse=False)
    rows = write_csv(tmp_path / "train.csv", sentences(10, seed=0))
    with pytest.raises(UsageError, match=r"has 0 rows of 30 tokens or more, not 5: lower --peer_rows or --min_tokens"):
        write_inputs(tmp_path / "inputs", str(model), str(rows), rows=5, min_tokens=30, length=32, phase_epochs=1)


@pytest.mark.slow
def test_accuracy(tmp_path: Path, run_here: Callable[..., str]) -> None:
    model = make_model(tmp_path / "model", sparse=False)
    for name, count in (("train", 40), ("validation", 16)):
        write_csv(tmp_path / f"{name}.csv", sentences(count, seed=count))
    flags = ("--data", tmp_path, "--model", model, "--imdb_rows", 64, "--transfer_epochs", 4, "--seeds", 1)
    output = tmp_path / "results"
    run_here("benchmark_accuracy.py", *flags, "--output_dir", output)
    found = json.loads((output / "results.json").read_text())
    assert len(found) == 5  # the one-shot start without teacher is the SparseML setting
    assert found["dense"]["quantized_linears"] == 0
    assert all(entry["encoder_sparsity"] > 0.89 for name, entry in found.items() if name != "dense")

    again = run_here("benchmark_accuracy.py", *flags, "--output_dir", output)
    assert again.count("already contains this run, finished") == 6  # the five, and the start on IMDB
    assert json.loads((output / "results.json").read_text()) == found


@pytest.mark.slow
def test_embeddings(tmp_path: Path, run_here: Callable[..., str]) -> None:
    """The dense model is like itself, the exports are measured, and another file is pooled by the benchmark."""
    pooling: dict[str, Any] = {"sentence_embedding": {"pooling": "mean", "normalize": True}}
    model = make_encoder(tmp_path / "model", max_position_embeddings=160, **pooling)
    for name, seed in (("train", 1), ("validation", 2)):
        write_csv(tmp_path / f"{name}.csv", scored(40, seed))
    output = tmp_path / "out"
    flags = ["--data", tmp_path, "--model", model, "--output_dir", output, "--sparsities", 50, "--epochs", 5]
    printed = run_here("benchmark_embeddings.py", *flags)
    found = json.loads((output / "results.json").read_text())
    assert list(found)[:2] == ["dense", "50% zeros, INT8"] and "40 pairs" in printed
    assert found["dense"]["mean_cosine"] == pytest.approx(1) and 0 < found["50% zeros, INT8"]["mean_cosine"] < 1
    report = json.loads((output / "dense-deployment" / "export_report.json").read_text())
    for name in ("spearman", "ndcg_at_10", "recall_at_10"):
        assert found["dense"][name] == pytest.approx(report["fidelity"]["onnxruntime"][name], abs=1e-6)
    other = f"twin={output / 'dense-deployment' / 'model.onnx'}"
    again = run_here("benchmark_embeddings.py", *flags, "--other", other)
    assert "nothing is trained again" in again and "| twin |" in again
    twin = json.loads((output / "results.json").read_text())["twin"]
    assert twin["spearman"] == found["dense"]["spearman"] and twin["mean_cosine"] == pytest.approx(1)


@pytest.mark.slow
def test_frontier(tmp_path: Path, run_here: Callable[..., str]) -> None:
    model = make_model(tmp_path / "model", sparse=False, max_position_embeddings=128)
    for name, count in (("train", 60), ("validation", 16)):
        write_csv(tmp_path / f"{name}.csv", sentences(count, seed=count))
    flags = ("--data", tmp_path, "--model", model, "--imdb_rows", 260, "--transfer_epochs", 4, "--held_out", 20)
    output = tmp_path / "results"
    printed = run_here(
        "benchmark_accuracy.py",
        *flags,
        "--output_dir",
        output,
        "--frontier",
        "--sparsities",
        0,
        90,
        "--structures",
        "half_80",
    )
    found = json.loads((output / "frontier.json").read_text())
    structure = "without half of heads and neurons, 80% zeros in the rest, INT8"
    assert list(found["rows"]) == ["dense", "0% zeros, INT8", "90% zeros, INT8", structure]
    assert {"float", "0% zeros, INT8", "90% zeros, INT8"} <= found["milliseconds"].keys()
    dense = found["rows"]["dense"]["size"]
    files = {"90% zeros, INT8": "90%_zeros_int8", structure: "without_half_80"}
    for name, folder in files.items():
        for key, file in (("size", "model.onnx"), ("packed", "model.onnx.xz")):
            there = (output / f"{folder}-seed42-deployment" / file).stat().st_size / 1e6
            assert found["rows"][name][key] == pytest.approx(there, abs=1e-4 * dense)
    table = (output / "frontier.md").read_text()
    assert table in printed and table.count("\n| ") == 4
    assert f"| {dense:.1f} | - | {found['milliseconds']['float']:.1f} | 1.0x | - | - |" in table
    assert (output / "held_out_20" / "validation.csv").read_text().count("\n") == 21
    results = json.loads((output / "90%_zeros_int8-seed42" / "all_results.json").read_text())
    assert results["encoder_sparsity"] > 0.89 and results["quantized_linears"] > 0
    report = json.loads((output / "without_half_80-seed42-deployment" / "export_report.json").read_text())
    before, after = (report["structure"][each]["multiply_adds"] for each in ("before", "after"))
    assert after == before / 2


# --- settings that change between two commands ------------------------------------------------------------------------


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/benchmark_accuracy.py, whose runs are in this process."""
    start_in_process(monkeypatch)
    return module_of("benchmark_accuracy.py", monkeypatch)


def write_rows(folder: Path, *, train: int = 40, labels: tuple[int, int] = (0, 1)) -> None:
    """Rows to train on, and 15 to judge by, so that no accuracy is a half; `labels` are those of the latter, bad and
    good."""
    write_csv(folder / "train.csv", sentences(train, seed=40))
    write_csv(folder / "validation.csv", sentences(15, seed=15, labels=labels))


def test_a_finished_run_is_shown_for_its_own_settings_alone(
    tmp_path: Path, accuracy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "model", sparse=False, head=True)
    write_rows(tmp_path)

    def figures(shared: Mapping[str, object] = {}, epochs: int = 1, **settings: Any) -> tuple[float, int, bool]:
        """Accuracy, steps, and whether the run was only shown."""
        run = accuracy.Run("dense", model, "sst2_dense", {"num_epochs": epochs}, **settings)
        found = accuracy.train(run, tmp_path, tmp_path / "out", shared)
        shown = "already contains this run, finished" in capsys.readouterr().out
        return found["eval_accuracy"], found["global_step"], shown

    first = figures()[0]
    assert figures() == (first, 2, True)
    with pytest.raises(UsageError, match="exit code 2"):
        figures(bf16=True)
    assert figures() == (first, 2, True)
    write_rows(tmp_path, labels=(1, 0))
    judged, *rest = figures()
    assert judged == pytest.approx(1 - first) and rest == [2, True]  # the same model, judged by other rows
    assert figures(epochs=2)[1:] == (4, False)
    assert figures({"max_train_samples": 32}, epochs=2)[1:] == (2, False)
    write_rows(tmp_path, train=70)
    assert figures(epochs=2)[1:] == (6, False)


def test_the_same_start_from_a_model_without_pooler(tmp_path: Path, accuracy: ModuleType) -> None:
    """Otherwise no later command would find the runs that began with it."""
    model, found = make_model(tmp_path / "model", sparse=False), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append((accuracy.one_shot_start(model, tmp_path / "start") / "model.safetensors").read_bytes())
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_exported_accuracy_is_of_the_rows_of_the_run(
    tmp_path: Path, accuracy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "ROOT", tmp_path)  # paths are typed relative to it
    model = make_model(tmp_path / "model", sparse=True, head=True, max_position_embeddings=128)
    variables = {"num_epochs": 2, "qat_start_epoch": 1.0, "observer_epoch": 1.7}
    run = accuracy.Run("INT8", model, "sst2_pruned90_quant", variables)
    found = []
    for labels in ((0, 1), (0, 1), (1, 0)):
        write_rows(tmp_path, labels=labels)
        accuracy.train(run, tmp_path, tmp_path / "out", {})
        exported = accuracy.export(tmp_path / "out" / run.folder, tmp_path / "deployment", tmp_path / "validation.csv")
        found.append((exported["accuracy"], "already contains this model, proven" in capsys.readouterr().out))
    first = found[0][0]
    assert found == [(first, False), (first, True), (pytest.approx(1 - first), False)]


def test_an_export_is_made_again_for_another_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, deployment, made = tmp_path / "trained", tmp_path / "deployment", []
    report, evaluation = deployment / "export_report.json", trained / "eval_results.json"
    content: dict[str, Any] = {"files": {"model.onnx.xz": {}}, "sparse_kernels": {}}

    def export(script: str, flags: Mapping[str, object]) -> None:
        made.append(flags["data"])
        deployment.mkdir(exist_ok=True)
        texts = {"source": commands.typed(flags["data"])}
        report.write_text(json.dumps({"source": {"folder": str(flags["model_path"])}, "texts": texts, **content}))
        os.utime(report, (made_at := evaluation.stat().st_mtime + 1, made_at))

    monkeypatch.setattr(commands, "run_script", export)
    monkeypatch.setattr(commands, "ROOT", tmp_path)  # so that paths are typed relative to it
    trained.mkdir()
    evaluation.touch()
    rows, others = tmp_path / "validation.csv", tmp_path / "others.csv"
    for data, count in ((rows, 1), (rows, 1), (others, 2), (others, 2)):
        commands.export_once(trained, deployment, data)
        assert len(made) == count
    later = report.stat().st_mtime + 1
    os.utime(evaluation, (later, later))  # another model, or the same file has other rows
    assert commands.export_once(trained, deployment, others)["texts"] == {"source": "others.csv"}
    assert made == [rows, others, others]
    del content["sparse_kernels"]  # as an older version wrote it
    report.unlink()
    for count in (4, 5):
        commands.export_once(trained, deployment, others)
        assert len(made) == count
