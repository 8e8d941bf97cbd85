"""Measures how the time of a training step grows with rows, tokens, layers and processes, for a model of MiniLM's size.

    python scripts/benchmark_scaling.py --output outputs/benchmark_scaling.json

The step is that of the tutorial's recipe before quantization: pruned, distilled from the teacher's table. Weights and
tokens are random. Rows, tokens and layers vary one at a time, all steps in turn; times are shown over that of the base.
Processes are started by `accelerate launch` with accelerate_configs/ddp.yaml on the CPU, one thread each, each with the
rows of the base: one process and two, in turn.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Before torch is imported: it sets how threads wait.
from sparse_accel.main import run_main

# isort: split

import torch
from accelerate import Accelerator
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from sparse_accel.cli.parser import expand_paths
from sparse_accel.demo.commands import ROOT
from sparse_accel.demo.step_contestants import Batch, Step, compare, make_encoder_sparse, recipe_step, shown_ratio
from sparse_accel.distributed.launch import check_launch, launch_options
from sparse_accel.errors import UsageError
from sparse_accel.files import write_json
from sparse_accel.models.teacher import Teacher

BASE = {"rows": 32, "tokens": 32, "layers": 6}
OTHERS = {"rows": (8, 16, 64, 128), "tokens": (16, 64, 128), "layers": (3, 12)}
MOST_ROWS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default: 15)")
    parser.add_argument("--launches", type=int, default=3, help="of one process and of two; 0: none (default: 3)")
    parser.add_argument("--width", type=int, default=384, help="of the model (default: 384, that of MiniLM)")
    parser.add_argument("--base_only", action="store_true", help="measure the base alone, also in several processes")
    parser.add_argument(
        "--output", default="outputs/benchmark_scaling.json", help="default: outputs/benchmark_scaling.json"
    )
    asked = parser.parse_args()
    expand_paths(asked, ("output",))
    accelerator = Accelerator(cpu=True, kwargs_handlers=launch_options())
    check_launch(accelerator)
    points = (
        [BASE]
        if asked.base_only
        else [BASE] + [{**BASE, name: value} for name, values in OTHERS.items() for value in values]
    )
    steps = {layers: make_step(accelerator, layers, asked.width) for layers in {point["layers"] for point in points}}
    contestants = {shown(point): (steps[point["layers"]], [make_batch(point)]) for point in points}
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "steps": compare(contestants, asked.rounds)}
    if not accelerator.is_main_process:
        return
    output = Path(asked.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, found)
    if asked.base_only:
        return
    print(of_steps(found))
    if asked.launches:
        found["processes"] = launched(asked)
        write_json(output, found)
        print(of_processes(found["processes"]))


def make_step(accelerator: Accelerator, layers: int, width: int) -> Step:
    """Returns the recipe's step with a BERT of this many layers, whose heads have the width of MiniLM's."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    model: nn.Module = BertForSequenceClassification(BertConfig(num_hidden_layers=layers, **sizes))
    make_encoder_sparse(model, 0.9)
    teacher = Teacher(copy.deepcopy(model))
    teacher.table = torch.randn(MOST_ROWS, 2)  # the values do not affect the time
    return recipe_step(accelerator, model, teacher)


def make_batch(point: dict[str, int]) -> Batch:
    rows, shape = point["rows"], (point["rows"], point["tokens"])
    inputs = {"input_ids": torch.randint(1, 1000, shape), "attention_mask": torch.ones(shape, dtype=torch.int64)}
    return {**inputs, "labels": torch.randint(2, (rows,)), "row_id": torch.arange(rows)}


def launched(asked: argparse.Namespace) -> dict[str, list[float]]:
    """Returns the seconds of a step of the base by the number of processes, one of each launch.

    Raises:
        UsageError: a launch failed; it has printed its own message.
    """
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    settings = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for _ in range(asked.launches):
        for number, found in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "found.json"
                command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", number]
                command += ["--config_file", str(ROOT / "accelerate_configs" / "ddp.yaml"), "--mixed_precision", "no"]
                command += ["--main_process_port", "0", __file__, "--base_only", "--output", str(output)]
                command += ["--rounds", str(asked.rounds), "--width", str(asked.width)]
                done = subprocess.run(command, env=os.environ | settings)
                if done.returncode != 0:
                    raise UsageError(f"accelerate launch ended with exit code {done.returncode}: see its message above")
                found.append(json.loads(output.read_text())["steps"][shown(BASE)]["seconds"])
    return seconds


def shown(point: dict[str, int]) -> str:
    return ", ".join(f"{value} {name}" for name, value in point.items())


def of_steps(found: dict[str, Any]) -> str:
    """Returns a table for each quantity: time over that of the base, and the same for each row, token or layer."""
    base = found["steps"][shown(BASE)]["seconds"]
    lines = [f"Base: {shown(BASE)}, {1000 * base:.0f} ms a step, {found['threads']} threads"]
    for name, values in OTHERS.items():
        lines += ["", f"| {name} | time (quartiles) | time for each |", "|---|---|---|"]
        for value in sorted((*values, BASE[name])):
            row = found["steps"][shown({**BASE, name: value})]
            lines.append(f"| {value} | {shown_ratio(row)} | {row['ratio'] * BASE[name] / value:.2f} |")
    return "\n".join(lines)


def of_processes(seconds: dict[str, list[float]]) -> str:
    """Returns the table of processes: time over that of one, median over pairs of launches, and the same for a row."""
    ratios = [two / one for one, two in zip(seconds["1"], seconds["2"], strict=True)]
    ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
    lines = ["", "| processes | time (range of launches) | time for each row |", "|---|---|---|", "| 1 | 1.00 | 1.00 |"]
    return "\n".join([*lines, f"| 2 | {ratio:.2f} ({low:.2f} to {high:.2f}) | {ratio / 2:.2f} |"])


if __name__ == "__main__":
    run_main(main, resumes=False)
