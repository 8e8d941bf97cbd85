"""The models and rows that this project and its peers train with, in files that all of them read."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sparse_accel.demo.peers import Inputs
from sparse_accel.demo.samples import minilm_folder
from sparse_accel.demo.step_contestants import make_encoder_sparse
from sparse_accel.errors import UsageError


def write_inputs(
    folder: Path, model: str | None, train_file: str, *, rows: int, min_tokens: int, length: int, phase_epochs: int
) -> Inputs:
    """Writes a dense and a sparse classifier, whose new heads are the same, and some rows of a file, drawn at random.

    Args:
        folder: to write to.
        model: folder or Hub id; None: MiniLM.
        train_file: CSV file with columns `text` and `label`, the latter 0 or 1.
        rows: number of rows to take.
        min_tokens: of each row.
        length: the most tokens of a row.
        phase_epochs: of each phase.

    Raises:
        UsageError: the file has too few rows of so many tokens.
    """
    source = model or minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(source)
    dense = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    sparse = copy.deepcopy(dense)
    make_encoder_sparse(sparse, 0.9)
    for name, each in (("dense", dense), ("sparse", sparse)):
        each.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    table = load_dataset("csv", data_files=train_file, split="train").shuffle(seed=0)
    chosen = []
    for row in table:
        if len(tokenizer(row["text"], truncation=True, max_length=length)["input_ids"]) >= min_tokens:
            chosen.append((row["text"], row["label"]))
        if len(chosen) == rows:
            break
    if len(chosen) < rows:
        raise UsageError(
            f"{train_file} has {len(chosen)} rows of {min_tokens} tokens or more, not {rows}: lower --peer_rows or "
            "--min_tokens"
        )
    with open(folder / "train.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *chosen])
    return Inputs(folder / "dense", folder / "sparse", folder / "train.csv", folder / "runs", length, phase_epochs)
