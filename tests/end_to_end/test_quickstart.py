"""The quickstart's whole story on a tiny model and few rows, and the pieces that it is told with."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from demo_scripts import module_of, start_in_process
from places import ROOT
from script_fixtures import make_model, run_program, sentences, write_csv

from sparse_accel.demo import commands
from sparse_accel.demo.closing_table import closing_table
from sparse_accel.demo.samples import minilm_folder, write_movie_reviews
from sparse_accel.errors import UsageError
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.wilson_interval import wilson_interval


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two narrow layers that reads MiniLM's vocabulary."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny_bert")
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def flags_of(output: Path, model: Path) -> list[str]:
    return ["--output_dir", str(output), "--model", str(model), "--rows", "96"]


def check(output: Path, said: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    assert summary["encoder_sparsity"] == pytest.approx(0.9, abs=0.002)
    assert summary["quantized_linears"] == summary["linears"] == 14
    for kind in ("dense", "dense_int8", "sparse"):
        low, high = summary[f"{kind}_interval"]
        assert 0 <= low <= summary[f"{kind}_accuracy"] <= high <= 1
    assert summary["seconds"] > 0
    for prefix, kind in (("", "sparse"), ("dense_int8_", "dense_int8")):
        assert set(summary[f"{prefix}onnx_checks"].values()) == {"pass"}
        assert summary[f"{prefix}onnx_accuracy"] == pytest.approx(summary[f"{kind}_accuracy"], abs=0.011)
        assert 0.1 < summary[f"{prefix}onnx_archive_size"] < summary[f"{prefix}onnx_size"] < 0.5
    assert said.count("positive") + said.count("negative") >= 3  # three sentences, classified by the ONNX file
    return summary


@pytest.mark.slow
def test_in_processes_of_their_own(tmp_path: Path, tiny_bert: Path) -> None:
    result = subprocess.run(
        [sys.executable, "scripts/quickstart.py", *flags_of(tmp_path / "quickstart", tiny_bert)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    check(tmp_path / "quickstart", result.stdout)


@pytest.mark.slow
def test_all_steps_and_the_same_command_again(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_in_process(monkeypatch)
    monkeypatch.setenv(VARIABLE, "portable")  # kernels, whatever this CPU would choose
    output = tmp_path / "quickstart"
    first = run_program(ROOT / "scripts" / "quickstart.py", flags_of(output, tiny_bert))
    assert first.code == 0, first.all
    summary = check(output, first.out)
    assert summary["kernels_reason"] == "" and summary["kernels_agreement"] >= 0.98
    assert summary["kernels_accuracy"] == pytest.approx(summary["onnx_accuracy"], abs=0.011)
    without = closing_table(summary | {"kernels_reason": "there is no library"})
    assert "Without kernels here: there is no library." in without and "sparse INT8 + kernels" not in without
    # Four trainings and a one-shot run, shown as they can be typed; the start never sees Rotten Tomatoes.
    runs = [part for part in first.out.split("===") if "scripts/text_classification.py" in part]
    dense, int8, upstream, start, transfer = runs
    assert "--one_shot" in int8 and "--distill_teacher disable" in dense and "dense_teacher" in transfer
    assert "obert_pruned90" in start and "imdb_dense" in start.split("--distill_teacher")[1].split("\n")[0]
    for run in (upstream, start):
        data = run.split("--train_file")[1].split("\n")[0]
        assert "imdb" in data and "rotten_tomatoes" not in data
    assert "classifier" not in json.dumps(list((output / "sparse_start").iterdir()), default=str)
    for row in ("dense ", "dense INT8 ", "sparse INT8 ", "sparse INT8 + kernels "):
        assert f"\n{row}" in first.out

    # The same command again trains nothing and prints the same figures.
    trained = (output / "sparse_quantized" / "model.safetensors").stat().st_mtime_ns
    again = run_program(ROOT / "scripts" / "quickstart.py", flags_of(output, tiny_bert))
    assert again.code == 0, again.all
    assert (output / "sparse_quantized" / "model.safetensors").stat().st_mtime_ns == trained
    assert again.out.count("already contains this model, proven") == 2
    assert json.loads((output / "summary.json").read_text()) == summary


# --- the seconds of each step -----------------------------------------------------------------------------------------


class Clock:
    """A clock that moves only where a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_seconds_are_of_the_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickstart, clock = module_of("quickstart.py", monkeypatch), Clock()
    monkeypatch.setattr(quickstart, "time", clock)
    run = tmp_path / "run"

    def take(seconds: float, *, finished: bool | None) -> dict[str, float]:
        """The record after a command that leaves the folder finished or not, or, with None, as it was."""
        with quickstart.recorded_seconds(run):
            clock.now += seconds
            if finished is not None:
                run.mkdir(exist_ok=True)
                (run / "run.json").write_text(json.dumps({"finished": finished}))
        found: dict[str, float] = quickstart.read_json(tmp_path / "seconds.json")
        return found

    assert take(1, finished=None) == {}  # a command that failed before it made a folder
    assert take(2, finished=False) == {"run": 2.0}  # interrupted
    assert take(4, finished=True) == {"run": 6.0}  # resumed
    assert take(8, finished=None) == {"run": 6.0}  # only shown
    with pytest.raises(KeyboardInterrupt), quickstart.recorded_seconds(run):  # other settings: moved aside, interrupted
        clock.now += 16
        run.rename(tmp_path / "run.1")
        run.mkdir()
        raise KeyboardInterrupt
    assert quickstart.read_json(tmp_path / "seconds.json") == {"run": 16.0}
    assert take(32, finished=True) == {"run": 48.0}


def test_seconds_of_a_repeated_export_replace_those_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickstart, clock = module_of("quickstart.py", monkeypatch), Clock()
    monkeypatch.setattr(quickstart, "time", clock)
    target, seconds = tmp_path / "deployment", []
    for number in (1, 2, 4):
        with quickstart.recorded_seconds(target):
            clock.now += number
            if number < 4:  # as the export does: the old folder is deleted when the new one is in place
                (tmp_path / "partial").mkdir()
                (tmp_path / "partial" / "export_report.json").touch()
                if target.exists():
                    target.rename(tmp_path / "replaced")
                (tmp_path / "partial").rename(target)
        seconds.append(quickstart.read_json(tmp_path / "seconds.json"))
    assert seconds == [{"deployment": 1.0}, {"deployment": 2.0}, {"deployment": 2.0}]


def test_a_run_of_other_settings_has_its_own_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the training script: the old run is moved aside, the new one is timed."""
    quickstart, clock = module_of("quickstart.py", monkeypatch), Clock()
    monkeypatch.setattr(quickstart, "time", clock)
    start_in_process(monkeypatch)
    run_script, seconds = quickstart.run_script, iter((1.0, 2.0, 4.0))

    def timed(script: str, flags: dict[str, object]) -> None:
        clock.now += next(seconds)
        run_script(script, flags)

    monkeypatch.setattr(quickstart, "run_script", timed)
    model, output = make_model(tmp_path / "model", sparse=False), tmp_path / "out" / "dense"
    for name, count in (("train", 40), ("validation", 16)):
        write_csv(tmp_path / f"{name}.csv", sentences(count, seed=count))
    found = []
    for epochs in (1, 1, 2):
        variables = {"num_epochs": epochs}
        figures = quickstart.train(output, model, tmp_path, quickstart.RECIPES / "sst2_dense.yaml", variables)
        found.append((figures["epoch"], quickstart.read_json(tmp_path / "out" / "seconds.json")["dense"]))
    assert found == [(1, 1.0), (1, 1.0), (2, 4.0)]


# --- the pieces -------------------------------------------------------------------------------------------------------


def test_hold_out_is_stratified_seeded_and_apart(tmp_path: Path) -> None:
    first = write_movie_reviews(tmp_path / "a", "rotten_tomatoes", train_rows=None, held_out=1066, seed=0)
    again = write_movie_reviews(tmp_path / "b", "rotten_tomatoes", train_rows=None, held_out=1066, seed=0)
    rows = {}
    for name in ("train.csv", "validation.csv"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
        with open(first / name, encoding="utf-8", newline="") as file:
            rows[name] = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    assert len(rows["train.csv"]) + len(rows["validation.csv"]) == 8530
    assert sum(label == "1" for _, label in rows["validation.csv"]) == 533


@pytest.mark.parametrize(
    ("share", "rows", "expected"),
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20 (method 3).
    [(81 / 263, 263, (0.2553, 0.3662)), (15 / 148, 148, (0.0624, 0.1605)), (0.0, 20, (0.0, 0.1611))],
)
def test_wilson_interval(share: float, rows: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(share, rows) == pytest.approx(expected, abs=1e-4)


def test_a_failing_command_is_reported(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(UsageError, match="exit code 2"):
        commands.run_script("scripts/text_classification.py", {"no_such_flag": 1})
    assert "--no_such_flag 1" in capfd.readouterr().out
