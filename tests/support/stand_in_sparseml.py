"""Stands in for the environment of SparseML 1.8.0: its command trains with a subclass of transformers.Trainer, whose
model has one quantizer, switched as the recipe's variables say."""

from __future__ import annotations

import sys
from pathlib import Path

_COMMAND = """
import argparse, json
import transformers
from datasets import load_dataset, load_metric

parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("model_name_or_path", "train_file", "output_dir", "recipe_args"):
    parser.add_argument(f"--{name}", required=True)
asked, others = parser.parse_known_args()
assert {"--distill_teacher", "--recipe", "--do_train"} <= set(others)
variables = json.loads(asked.recipe_args)
load_metric("accuracy")  # SparseML 1.8.0 fetches it
tokenizer = transformers.AutoTokenizer.from_pretrained(asked.model_name_or_path)
model = transformers.AutoModelForSequenceClassification.from_pretrained(asked.model_name_or_path)
rows = load_dataset("csv", data_files=asked.train_file, split="train").map(
    lambda row: tokenizer(row["text"], padding="max_length", truncation=True, max_length=16)
)

class FakeQuantize(transformers.TrainerCallback):
    def on_epoch_begin(self, args, state, control, **_):
        quantizer.enabled = state.epoch >= variables["qat_start_epoch"]
        quantizer.observing = quantizer.enabled and state.epoch < variables["observer_epoch"]

class OwnTrainer(transformers.Trainer):
    def train(self):
        return super().train()

import torch
quantizer = type("FakeQuantize", (torch.nn.Identity,), {})()
model.quantizer = quantizer
arguments = transformers.TrainingArguments(
    asked.output_dir, num_train_epochs=variables["num_epochs"], per_device_train_batch_size=32, use_cpu=True,
    save_strategy="no", report_to="none",
)
OwnTrainer(model, arguments, train_dataset=rows, callbacks=[FakeQuantize()]).train()
"""


def make_peer_python(folder: Path) -> Path:
    """Returns a program that is this Python, with a stand-in for SparseML."""
    package = folder / "sparseml" / "transformers"
    package.mkdir(parents=True)
    for place in (package.parent, package):
        (place / "__init__.py").touch()
    (package / "text_classification.py").write_text(_COMMAND)
    about = folder / "sparseml-1.8.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sparseml\nVersion: 1.8.0\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python
