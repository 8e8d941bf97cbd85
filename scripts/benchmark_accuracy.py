"""Measures the accuracy of sparse transfer on a complete dataset, over several seeds. Resumes after interruptions.

    python scripts/benchmark_accuracy.py --data rotten_tomatoes --seeds 42 43 44
    python scripts/benchmark_accuracy.py --data rotten_tomatoes --frontier          # which sparsity?

`--data` is a folder with train.csv and validation.csv (columns text and label). Run it again after an interruption:
finished runs are not trained again, an unfinished run resumes from its last checkpoint. results.json and results.md in
--output_dir contain the results so far. Per seed, each run is one command of scripts/text_classification.py, which
moves a finished run of other settings aside, or refuses the folder:

    SparseML setting       one-shot start, no teacher: 4 epochs, INT8 from epoch 2, ranges frozen from 3, float32
    dense                  the tutorial's dense recipe for Rotten Tomatoes, 8 epochs: the teacher of the same seed
    START, with(out) it    the tutorial's sparse transfer to Rotten Tomatoes: 12 epochs, INT8 from 7, ranges frozen from
                           11; with --transfer_epochs 4, on the schedule of the first line

Both starts are MiniLM with 90% zeros in each encoder Linear: `one-shot` prunes the smallest weights at once, `IMDB`
prunes them gradually while the model trains on IMDB. All runs use 32 rows per step and at most 64 tokens per row, which
truncates almost nothing; float32 unless --bf16 is given.

With --frontier, models of 0 to 95% zeros in INT8: accuracy of the exported file, its size, milliseconds in onnxruntime
and with the kernels. Their starts are pruned on IMDB by the recipe obert_pruned90, and transferred by
sst2_pruned90_quant. Then models without a part of their structure, by structured_half from the dense model of the same
task. --held_out judges by rows of train.csv that no run trains on: for choosing between recipes.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparse_accel.cli.parser import expand_paths
from sparse_accel.demo.closing_table import of_export
from sparse_accel.demo.commands import ROOT, export_once, run_script
from sparse_accel.demo.frontier import STRUCTURES, frontier_table, measure_speeds, sparsity_variables, structure_recipe
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
    max_length: int = 64

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
    parser.add_argument("--frontier", action="store_true", help="measure models of several sparsities instead")
    parser.add_argument(
        "--sparsities",
        type=int,
        nargs="+",
        default=[0, 70, 80, 90, 95],
        help="of --frontier, in percent (default: 0 70 80 90 95)",
    )
    parser.add_argument(
        "--structures",
        nargs="*",
        choices=STRUCTURES,
        default=list(STRUCTURES),
        help=f"of --frontier, none or some of: {', '.join(STRUCTURES)} (default: all)",
    )
    parser.add_argument("--held_out", type=int, help="judge by so many rows of train.csv, which are not trained on")
    arguments = parser.parse_args()
    expand_paths(arguments, ("data", "output_dir", "model"))
    out, data = Path(arguments.output_dir).resolve(), Path(arguments.data).resolve()
    for name in ("train.csv", "validation.csv"):
        if not (data / name).is_file():
            raise UsageError(f"--data {arguments.data} contains no {name}")
    shared: dict[str, object] = {}
    if arguments.max_train_samples:
        shared["max_train_samples"] = arguments.max_train_samples

    if arguments.held_out:
        data = hold_out(data, out / f"held_out_{arguments.held_out}", arguments.held_out)
    dense = Path(arguments.model).resolve() if arguments.model else minilm_folder()
    if arguments.frontier:
        print(frontier(dense, data, out, arguments, shared))
        return
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
    """Runs the training script and returns the metrics of all_results.json. A finished run is only shown again.

    Raises:
        UsageError: the script failed, or refused a folder that contains a run of other settings.
    """
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
            "max_seq_length": run.max_length,
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
    found: dict[str, Any] = json.loads((out / run.folder / "all_results.json").read_text())
    return found


def one_shot_start(model: Path, target: Path) -> Path:
    """Writes the model with the smallest 90% of each encoder Linear's weights set to zero; returns the folder."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from sparse_accel.nn.layers import is_encoder_linear
    from sparse_accel.nn.masks import magnitude_mask

    torch.manual_seed(0)  # a masked language model has no pooler: the new one must be the same each time
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
    data = write_movie_reviews(out / "data", "imdb", train_rows=arguments.imdb_rows, held_out=1000, seed=0)
    run = Run("pruned on IMDB", model, "magnitude_pruned90", seed=0, bf16=arguments.bf16)
    train(run, data, out, shared)
    return strip_head(out / run.folder, out / "start_imdb")


def strip_head(trained: Path, target: Path) -> Path:
    """Writes the encoder of a trained classifier, with its zeros, without its head; returns the folder."""
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(trained).save_pretrained(target)
    AutoTokenizer.from_pretrained(trained).save_pretrained(target)
    return target


def hold_out(data: Path, target: Path, rows: int) -> Path:
    """Writes train.csv in two parts, train.csv and a validation.csv of so many rows; returns the folder."""
    import pandas
    from sklearn.model_selection import train_test_split

    whole = pandas.read_csv(data / "train.csv")
    train_part, judged = train_test_split(whole, test_size=rows, stratify=whole["label"], random_state=0)
    target.mkdir(parents=True, exist_ok=True)
    train_part.to_csv(target / "train.csv", index=False)
    judged.to_csv(target / "validation.csv", index=False)
    return target


# --- frontier ---------------------------------------------------------------------------------------------------------


def frontier(model: Path, data: Path, out: Path, arguments: argparse.Namespace, shared: dict[str, object]) -> str:
    """Trains, exports and times a model of each sparsity; writes frontier.json and .md, and returns the table.

    Seeds are those of the transfer. All have the same teacher; the first seed's model is exported.
    """
    seed, bf16 = arguments.seeds[0], arguments.bf16
    imdb = write_movie_reviews(out / "data", "imdb", train_rows=arguments.imdb_rows, held_out=1000, seed=0)
    upstream = Run("dense on IMDB", model, "sst2_dense", {"init_lr": 5e-5, "num_epochs": 1}, bf16=bf16, max_length=48)
    dense = Run("dense", model, "sst2_dense", {"init_lr": 3e-5}, seed=seed, bf16=bf16)
    train(upstream, imdb, out, shared)
    rows: dict[str, dict[str, Any]] = {"dense": {"accuracies": [train(dense, data, out, shared)["eval_accuracy"]]}}
    of_structures = {STRUCTURES[kind].start for kind in arguments.structures} - {0, *arguments.sparsities}
    starts = {percent: model for percent in (*arguments.sparsities, *of_structures)}
    for percent in filter(None, starts):
        name, variables = f"{percent}% zeros, IMDB", sparsity_variables(percent)
        pruned = Run(name, out / upstream.folder, "obert_pruned90", variables, out / upstream.folder, 0, bf16, 48)
        train(pruned, imdb, out, shared)
        starts[percent] = strip_head(out / pruned.folder, out / f"start_{percent}")
    deployments: dict[str, Path] = {}

    def measure(name: str, run: Run) -> None:
        found = [train(replace(run, seed=each), data, out, shared)["eval_accuracy"] for each in arguments.seeds]
        deployments[name] = out / f"{run.folder}-deployment"
        exported = export(out / run.folder, deployments[name], data / "validation.csv")
        rows[name] = {"accuracies": [exported.pop("accuracy"), *found[1:]], **exported}

    for percent in arguments.sparsities:
        name, variables = f"{percent}% zeros, INT8", TRANSFER[arguments.transfer_epochs]
        measure(name, Run(name, starts[percent], "sst2_pruned90_quant", variables, out / dense.folder, seed, bf16))
        rows["dense"]["size"] = rows[name]["float"]
    for kind in arguments.structures:
        variant = STRUCTURES[kind]
        recipe = structure_recipe(kind, model, out / "recipes")
        variables, start = dict(variant.variables), starts[variant.start] if variant.start else out / dense.folder
        run = Run(f"without {kind}", start, recipe, variables, out / dense.folder, seed, bf16)
        measure(f"without {variant.words}, INT8", run)
    milliseconds = measure_speeds(deployments, seconds=20.0 * len(deployments))
    with (data / "validation.csv").open(encoding="utf-8", newline="") as stream:
        held_out = sum(1 for _ in csv.DictReader(stream))
    table = frontier_table(rows, milliseconds, held_out)
    (out / "frontier.json").write_text(json.dumps({"rows": rows, "milliseconds": milliseconds}, indent=2) + "\n")
    (out / "frontier.md").write_text(table + "\n", encoding="utf-8")
    return table


def export(trained: Path, deployment: Path, data: Path) -> dict[str, float]:
    """Exports a trained model, unless that is done; returns the accuracy of the INT8 file, and the sizes of that file,
    packed, and in float32, in 1e6 bytes."""
    found = of_export(export_once(trained, deployment, data))
    size = found["float_megabytes"]
    sizes = {"float": size, "size": found["onnx_size"] * size, "packed": found["onnx_archive_size"] * size}
    return {"accuracy": found["onnx_accuracy"], **sizes}


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
