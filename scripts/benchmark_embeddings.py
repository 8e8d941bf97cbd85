"""Measures sentence embeddings: a model, and itself made sparse and INT8, following its own embeddings on texts alone.

    python scripts/benchmark_embeddings.py --data stsb --sparsities 80 90 --epochs 10 --bf16

`--data` is a folder with train.csv and validation.csv (columns sentence1, sentence2, score from 0 to 5, as in the STS
benchmark). Training reads the distinct sentences of train.csv, without pairs and scores. Each run is one command of
scripts/sentence_embedding.py with the recipe embedding_pruned80_quant, and one of scripts/export_onnx.py. Run it again
after an interruption: finished runs and exports are not made again.

Figures are of the exported files on validation.csv: Spearman correlation of cosine and score; retrieval of the second
sentence of each pair scored 4 or more by its first one, among all distinct sentences; and the mean cosine of an
embedding with the dense model's. Times are of one interleaved run on one thread. --other NAME=FILE adds another ONNX
file of the model to them, such as the dynamic INT8 file of sentence-transformers (its mean pooling is added).
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sparse_accel.cli.parser import expand_paths
from sparse_accel.demo.commands import ROOT, export_once, run_script
from sparse_accel.demo.samples import minilm_folder
from sparse_accel.errors import UsageError
from sparse_accel.main import run_main

RECIPE = ROOT / "sparse_accel" / "zoo" / "recipes" / "embedding_pruned80_quant.yaml"
Embed = Callable[[dict[str, np.ndarray]], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder with train.csv and validation.csv")
    parser.add_argument("--model", help="folder of the dense embedding model (default: MiniLM)")
    parser.add_argument(
        "--output_dir",
        default=ROOT / "outputs" / "benchmark_embeddings",
        help="folder for runs and results (default: outputs/benchmark_embeddings)",
    )
    parser.add_argument("--sparsities", type=int, nargs="+", default=[80, 90], help="in percent (default: 80 90)")
    parser.add_argument("--epochs", type=int, default=10, help="of a run, at least 5 (default: 10)")
    parser.add_argument("--seed", type=int, default=42, help="of the runs (default: 42)")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16")
    parser.add_argument("--other", nargs="*", default=[], metavar="NAME=FILE", help="other ONNX files to measure")
    arguments = parser.parse_args()
    expand_paths(arguments, ("data", "output_dir", "model"))
    out, data = Path(arguments.output_dir).resolve(), Path(arguments.data).resolve()
    if arguments.epochs < 5:
        raise UsageError(f"--epochs {arguments.epochs}: pruning, recovery and quantization need at least 5")
    for name in ("train.csv", "validation.csv"):
        if not (data / name).is_file():
            raise UsageError(f"--data {arguments.data} contains no {name}")
    others = dict(split_name(each) for each in arguments.other)
    dense = Path(arguments.model).resolve() if arguments.model else minilm_folder()
    texts = write_texts(data / "train.csv", out / "texts.txt")

    deployments = {"dense": out / "dense-deployment"}
    export_once(dense, deployments["dense"], data / "validation.csv", task="sentence_embedding")
    for percent in arguments.sparsities:
        name = f"{percent}% zeros, INT8"
        trained = out / f"zeros{percent}-seed{arguments.seed}"
        train(dense, texts, data / "validation.csv", trained, percent, arguments)
        deployments[name] = trained.with_name(f"{trained.name}-deployment")
        export_once(trained, deployments[name], data / "validation.csv", task="sentence_embedding")
    print(compare(deployments, others, data / "validation.csv", out))


def split_name(text: str) -> tuple[str, Path]:
    """Returns name and file of a value of --other.

    Raises:
        UsageError: it has another form, or there is no such file.
    """
    name, _, file = text.partition("=")
    if not name or not Path(file).is_file():
        raise UsageError(f"--other {text}: expected NAME=FILE, an existing ONNX file")
    return name, Path(file)


def write_texts(pairs: Path, target: Path) -> Path:
    """Writes the distinct sentences of pairs, one per line, and returns the file."""
    with pairs.open(encoding="utf-8", newline="") as stream:
        found = dict.fromkeys(row[name] for row in csv.DictReader(stream) for name in ("sentence1", "sentence2"))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(" ".join(text.split()) + "\n" for text in found), encoding="utf-8")
    return target


def train(dense: Path, texts: Path, validation: Path, trained: Path, percent: int, arguments: Any) -> None:
    """Prunes and quantizes the model while it follows its own dense embeddings on the texts."""
    epochs = arguments.epochs
    schedule = {"pruning_end_epoch": 0.5 * epochs, "qat_start_epoch": 0.7 * epochs, "observer_epoch": 0.85 * epochs}
    variables = {"num_epochs": epochs, "final_sparsity": percent / 100, **schedule}
    run_script(
        "scripts/sentence_embedding.py",
        {
            "model_name_or_path": dense,
            "distill_teacher": dense,
            "recipe": RECIPE,
            "recipe_args": json.dumps({name: round(value, 4) for name, value in variables.items()}),
            "train_file": texts,
            "validation_file": validation,
            "output_dir": trained,
            "max_seq_length": 64,
            "per_device_train_batch_size": 32,
            "do_train": True,
            "do_eval": True,
            "save_strategy": "epoch",
            "save_total_limit": 1,
            "seed": arguments.seed,
            **({"bf16": True} if arguments.bf16 else {}),
        },
    )


def compare(deployments: dict[str, Path], others: dict[str, Path], validation: Path, out: Path) -> str:
    """Measures all models, writes results.json and results.md, and returns the table.

    Args:
        deployments: folders by name; the first is the dense model's.
        others: other ONNX files of the dense model, by name.
        validation: the pairs with scores.
    """
    from transformers import AutoTokenizer

    from sparse_accel.runtime.loading import explain, session
    from sparse_accel.runtime.timing import interleaved, plain_session, random_inputs
    from sparse_accel.tasks.sentence_embedding.metrics import correlations, retrieval, unit_length

    pairs = read_pairs(validation)
    first = next(iter(deployments.values()))
    tokenizer = AutoTokenizer.from_pretrained(first)
    runs: dict[str, Embed] = {}
    for name, folder in deployments.items():
        runs[name] = embedding_of(plain_session(folder / "model.onnx", threads=1))
        if folder != first and explain(fast := session(folder, threads=1)).instruction_set:
            runs[f"{name} + kernels"] = embedding_of(fast)
    runs |= {name: embedding_of(plain_session(file, threads=1)) for name, file in others.items()}
    vectors = {name: unit_length(embed_all(run, tokenizer, pairs.texts)) for name, run in runs.items()}
    milliseconds = interleaved(dict(runs), random_inputs(first / "model.onnx", 1, 128), seconds=10.0 * len(runs))
    batch = tokenizer(pairs.texts[:32], padding=True, return_tensors="np")
    of_batch = interleaved(dict(runs), dict(batch), seconds=10.0 * len(runs))
    rows: dict[str, dict[str, float]] = {}
    for name, found in vectors.items():
        scores = {} if pairs.scores is None else correlations(pairs.cosines(found), pairs.scores)
        rows[name] = {
            **scores,
            **retrieval(found, pairs.relevant),
            "mean_cosine": float((found * vectors["dense"]).sum(axis=1).mean()),
            "milliseconds": milliseconds[name],
            "sentences_per_second": 32 / (of_batch[name] / 1000),
        }
    lines = [
        "| | Spearman | recall@10 | nDCG@10 | cosine to dense | ms | speed | sentences/s |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {100 * row['spearman']:.2f} | {100 * row['recall_at_10']:.2f} | "
            f"{100 * row['ndcg_at_10']:.2f} | {row['mean_cosine']:.4f} | {row['milliseconds']:.1f} | "
            f"{milliseconds['dense'] / row['milliseconds']:.1f}x | {row['sentences_per_second']:.0f} |"
            for name, row in rows.items()
        ),
        "",
        f"{pairs.count} pairs, {len(pairs.texts)} sentences. One thread; ms: a row of 128 tokens; sentences/s: the "
        "first 32 sentences as one batch.",
    ]
    (out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    (out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "\n".join(lines)


def read_pairs(file: Path) -> Any:
    """Returns the scored pairs of a file; the second sentence of a pair scored 4 or more is relevant for the first."""
    from datasets import Dataset

    from sparse_accel.tasks.sentence_embedding.data import SCORE, TEXTS
    from sparse_accel.tasks.sentence_embedding.pairs import pairs_of

    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = {name: [row[own] for row in rows] for name, own in zip(TEXTS, ("sentence1", "sentence2"), strict=False)}
    return pairs_of(Dataset.from_dict({**columns, SCORE: [float(row["score"]) for row in rows]}), least=4.0)


def embedding_of(session: Any) -> Embed:
    """Returns a function from padded rows to embeddings [rows, width]; tokens are averaged if the file does not."""
    names = [entry.name for entry in session.get_inputs()]
    outputs = [entry.name for entry in session.get_outputs()]
    output = "sentence_embedding" if "sentence_embedding" in outputs else outputs[0]

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        # A file may ask for token types, of which texts alone have one.
        zeros = np.zeros_like(inputs["input_ids"])
        found: np.ndarray = session.run([output], {name: inputs.get(name, zeros) for name in names})[0]
        if found.ndim == 3:
            mask = inputs["attention_mask"][..., None]
            found = (found * mask).sum(axis=1) / mask.sum(axis=1)
        return found

    return run


def embed_all(run: Embed, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """Returns the embeddings of all texts, [texts, width], in batches of 32."""
    parts = []
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start : start + 32], padding=True, truncation=True, return_tensors="np")
        parts.append(run(dict(batch)))
    return np.concatenate(parts)


if __name__ == "__main__":
    run_main(main)
