"""Measures the accuracy of sparse transfer on a complete dataset, over several seeds. Resumes after interruptions.

    python scripts/benchmark_accuracy.py --data rotten_tomatoes --seeds 42 43 44

`--data` is a folder with train.csv and validation.csv (columns text and label). Run it again after an interruption:
finished runs are skipped, an unfinished run resumes from its last checkpoint. results.json and results.md in
--output_dir contain the results so far. Per seed, each run is one command of scripts/text_classification.py:

    SparseML setting       one-shot start, no teacher: 4 epochs, INT8 from epoch 2, ranges frozen from 3, float32
    dense                  the tutorial's dense recipe for Rotten Tomatoes, 8 epochs: the teacher of the same seed
    START, with(out) it    the tutorial's sparse transfer to Rotten Tomatoes: 12 epochs, INT8 from 7, ranges frozen from
                           11; with --transfer_epochs 4, on the schedule of the first line

Both starts are MiniLM with 90% zeros in each encoder Linear: `one-shot` prunes the smallest weights at once, `IMDB`
prunes them gradually while the model trains on IMDB. All runs use 32 rows per step and at most 64 tokens per row, which
truncates almost nothing; float32 unless --bf16 is given.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparse_accel.cli.parser import expand_paths
from sparse_accel.demo.commands import ROOT, run_script
from sparse_accel.demo.samples import minilm_folder, write_movie_reviews
from sparse_accel.errors import UsageError
from sparse_accel.main import run_main

RECIPES = ROOT / "sparse_accel" / "zoo" / "recipes"
TRANSFER = {
    12: {"num_epochs": 12, "qat_start_epoch": 7.0, "observer_epoch": 11.0},  # the tutorial's
    4: {"num_epochs": 4, "qat_start_epoch": 2.0, "observer_epoch": 3.0},  # the schedule that SparseML was measured with
}
SPARSEML_ACCURACY = 0.7795  # SparseML 1.8.0 in its setting on Rotten Tomatoes' validation split


@dataclass(frozen=True)
class Run:
    """One training run: its name, start model and flags."""

    name: str
    model: Path
    recipe: str
    variables: dict[str, float] = field(default_factory=dict)
    teacher: Path | None = None
    seed: int = 42
    bf16: bool = False

    @property
    def folder(self) -> str:
        return f"{self.name.lower().replace(' ', '_').replace(',', '')}-seed{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder with train.csv and validation.csv")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[42], help="one run of each kind per seed (default: 42)"
    )
    parser.add_argument(
        "--output_dir",
        default=ROOT / "outputs" / "benchmark_accuracy",
        help="folder for runs and results (default: outputs/benchmark_accuracy)",
    )
    parser.add_argument("--model", help="folder of the dense BERT model (default: MiniLM)")
    parser.add_argument(
        "--imdb_rows", type=int, default=12000, help="training rows for the IMDB start (default: 12000)"
    )
    parser.add_argument("--max_train_samples", type=int, help="train on fewer rows, for a quick trial")
    parser.add_argument(
        "--transfer_epochs", type=int, choices=TRANSFER, default=12, help="epochs of sparse transfer (default: 12)"
    )
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16, except the SparseML setting")
    arguments = parser.parse_args()
    expand_paths(arguments, ("data", "output_dir", "model"))
    out, data = Path(arguments.output_dir).resolve(), Path(arguments.data).resolve()
    for name in ("train.csv", "validation.csv"):
        if not (data / name).is_file():
            raise UsageError(f"--data {arguments.data} contains no {name}")
    shared: dict[str, object] = {}
    if arguments.max_train_samples:
        shared["max_train_samples"] = arguments.max_train_samples

    dense = Path(arguments.model).resolve() if arguments.model else minilm_folder()
    one_shot = one_shot_start(dense, out / "start_one_shot")
    imdb: Path | None = None
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in arguments.seeds:
        teacher = Run("dense", dense, "sst2_dense", {"init_lr": 3e-5}, seed=seed, bf16=arguments.bf16)
        runs = [Run("SparseML setting", one_shot, "sst2_pruned90_quant", TRANSFER[4], seed=seed), teacher]
        for run in runs:
            results.setdefault(run.name, {})[seed] = train(run, data, out, shared)
            write_results(out, results)
        imdb = imdb or imdb_start(dense, out, arguments, shared)
        for name, start in (("IMDB start", imdb), ("one-shot start", one_shot)):
            for words, followed in (("with teacher", out / teacher.folder), ("without teacher", None)):
                name_of_run = f"{name}, {words}, {arguments.transfer_epochs} epochs"
                variables = TRANSFER[arguments.transfer_epochs]
                run = Run(name_of_run, start, "sst2_pruned90_quant", variables, followed, seed, arguments.bf16)
                if replace(run, name=runs[0].name) == runs[0]:
                    continue  # with 4 epochs in float32, this run equals the SparseML setting
                results.setdefault(run.name, {})[seed] = train(run, data, out, shared)
                write_results(out, results)
    print(write_results(out, results))


# --- runs -------------------------------------------------------------------------------------------------------------


def train(run: Run, data: Path, out: Path, shared: dict[str, object]) -> dict[str, Any]:
    """Trains, unless results exist already; returns the metrics of all_results.json."""
    results = out / run.folder / "all_results.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    if "eval_accuracy" in found:
        print(f"{run.folder}: already finished, accuracy {found['eval_accuracy']:.4f}")
        return found
    print(f"\n=== {run.folder}\n")
    run_script(
        "scripts/text_classification.py",
        {
            "model_name_or_path": run.model,
            "recipe": RECIPES / f"{run.recipe}.yaml",
            "recipe_args": json.dumps(run.variables),
            "distill_teacher": run.teacher or "disable",
            "train_file": data / "train.csv",
            "validation_file": data / "validation.csv",
            "input_column_names": "text",
            "label_column_name": "label",
            "output_dir": out / run.folder,
            "max_seq_length": 64,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 32,
            "do_train": True,
            "do_eval": True,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "save_total_limit": 1,
            "seed": run.seed,
            **({"bf16": True} if run.bf16 else {}),
            **shared,
        },
    )
    found = json.loads(results.read_text())
    return found


def one_shot_start(model: Path, target: Path) -> Path:
    """Writes the model with the smallest 90% of each encoder Linear's weights set to zero; returns the folder."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from sparse_accel.nn.layers import is_encoder_linear
    from sparse_accel.nn.masks import magnitude_mask

    network = AutoModel.from_pretrained(model)
    with torch.no_grad():
        for name, module in network.named_modules():
            if is_encoder_linear(name, module):
                module.weight.masked_fill_(~magnitude_mask(module.weight, 0.9), 0.0)
    network.save_pretrained(target)
    AutoTokenizer.from_pretrained(model).save_pretrained(target)
    return target


def imdb_start(model: Path, out: Path, arguments: argparse.Namespace, shared: dict[str, object]) -> Path:
    """Prunes the model gradually while it trains on IMDB, and writes it without its head; returns the folder."""
    from transformers import AutoModel, AutoTokenizer

    data = write_movie_reviews(out / "data", "imdb", train_rows=arguments.imdb_rows, held_out=1000, seed=0)
    run = Run("pruned on IMDB", model, "magnitude_pruned90", seed=0, bf16=arguments.bf16)
    train(run, data, out, shared)
    AutoModel.from_pretrained(out / run.folder).save_pretrained(out / "start_imdb")
    AutoTokenizer.from_pretrained(out / run.folder).save_pretrained(out / "start_imdb")
    return out / "start_imdb"


# --- results ----------------------------------------------------------------------------------------------------------


def write_results(out: Path, results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Writes results.json and results.md; returns the text of results.md."""
    summary: dict[str, Any] = {}
    lines = ["| run | accuracy | spread (seeds) | encoder zeros | INT8 Linears |", "|---|---|---|---|---|"]
    for name, by_seed in results.items():
        accuracies = [figures["eval_accuracy"] for figures in by_seed.values()]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
        last = next(reversed(by_seed.values()))
        summary[name] = {
            "mean_accuracy": statistics.mean(accuracies),
            "standard_deviation": spread,
            "accuracy_by_seed": {str(seed): figures["eval_accuracy"] for seed, figures in by_seed.items()},
            "encoder_sparsity": last["encoder_sparsity"],
            "quantized_linears": last["quantized_linears"],
        }
        spread_words = f"± {spread:.4f} ({len(accuracies)})" if spread is not None else "(1)"
        lines.append(
            f"| {name} | {summary[name]['mean_accuracy']:.4f} | {spread_words} | {last['encoder_sparsity']:.1%} "
            f"| {last['quantized_linears']} |"
        )
    lines.append(f"\nSparseML 1.8.0 in its setting, on Rotten Tomatoes, one seed: {SPARSEML_ACCURACY}.")
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
    (out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
