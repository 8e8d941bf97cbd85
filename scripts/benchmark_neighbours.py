"""Measures what two trainings on one machine cost each other, with this package's way of waiting and with libgomp's.

    python scripts/benchmark_neighbours.py --train_file train.csv

`train.csv` has the columns text and label. A round is, for each way of waiting, in an order that rotates: one run of
scripts/text_classification.py alone, then two that start together, with the number of threads that they choose. Times
are of training alone, without start and saving. Two runs that share the machine without a loss take twice the time of
one alone: 1.00 in the last column; less where one run alone leaves a part of it idle.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from sparse_accel.cli.parser import expand_paths
from sparse_accel.demo.commands import ROOT
from sparse_accel.demo.samples import minilm_folder
from sparse_accel.errors import UsageError
from sparse_accel.main import run_main
from sparse_accel.zoo import RECIPES

ROWS = 32  # of a step
# Variables of a run, by the way of waiting: 300,000 is what libgomp takes where nothing is set.
WAITING = {"package": {}, "libgomp": {"GOMP_SPINCOUNT": "300000"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train_file", required=True, help="CSV file with the columns text and label")
    parser.add_argument("--model", help="folder of the model (default: MiniLM)")
    parser.add_argument("--steps", type=int, default=200, help="of a run, an even number (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--waiting", nargs="+", choices=WAITING, default=list(WAITING), help="default: both")
    arguments = parser.parse_args()
    expand_paths(arguments, ("train_file", "model"))
    with open(arguments.train_file, encoding="utf-8", newline="") as stream:
        rows = sum(1 for _ in csv.reader(stream)) - 1
    epochs = max(2, 2 * -(-arguments.steps * ROWS // (2 * rows)))  # the second half of them quantized
    recipe = {"num_epochs": epochs, "qat_start_epoch": epochs / 2, "observer_epoch": epochs - 0.5}
    command = [
        *(sys.executable, str(ROOT / "scripts" / "text_classification.py"), "--do_train"),
        *("--model_name_or_path", str(arguments.model or minilm_folder())),
        *("--recipe", str(RECIPES / "sst2_pruned90_quant.yaml"), "--recipe_args", json.dumps(recipe)),
        *("--distill_teacher", "disable", "--train_file", arguments.train_file),
        *("--max_train_samples", str(arguments.steps * ROWS // epochs), "--max_seq_length", "128"),
        *("--input_column_names", "text", "--label_column_name", "label"),
        *("--per_device_train_batch_size", str(ROWS), "--save_strategy", "no", "--log_level", "error"),
    ]
    alone: dict[str, list[float]] = {waiting: [] for waiting in arguments.waiting}
    beside: dict[str, list[float]] = {waiting: [] for waiting in arguments.waiting}
    for number in range(arguments.rounds):
        turn = number % len(alone)
        for waiting in [*list(alone)[turn:], *list(alone)[:turn]]:
            alone[waiting] += seconds_of(command, 1, WAITING[waiting])
            beside[waiting] += seconds_of(command, 2, WAITING[waiting])
    print("waiting   alone, s (median)   beside another, s (median)   beside / (2 x alone)")
    for waiting in alone:
        one, two = statistics.median(alone[waiting]), statistics.median(beside[waiting])
        print(f"{waiting:7} {one:19.1f} {two:28.1f} {two / one / 2:22.2f}")


def seconds_of(command: list[str], runs: int, variables: dict[str, str]) -> list[float]:
    """Starts runs together, waits for all, and returns the seconds that each one trained.

    Raises:
        UsageError: a run failed; the message has its last line.
    """
    # As in a shell where nobody has set threads or waiting.
    chosen = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [*command, "--output_dir", f"{folder}/{number}"],
                env={**chosen, "HF_HUB_OFFLINE": "1", **variables},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(runs)
        ]
        said = [run.communicate()[1] for run in started]
        for run, text in zip(started, said, strict=True):
            if run.returncode:
                last = (text.strip().splitlines() or ["no message"])[-1]
                raise UsageError(f"a run ended with exit code {run.returncode}: {last}")
        results = [Path(folder, str(number), "train_results.json") for number in range(runs)]
        return [float(json.loads(file.read_text())["train_runtime"]) for file in results]


if __name__ == "__main__":
    run_main(main, resumes=False)
