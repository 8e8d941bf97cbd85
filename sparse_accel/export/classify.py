"""Classify sentences with a deployment folder, as an application would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def classify(folder: str | Path, sentences: Sequence[str]) -> list[tuple[str, float]]:
    """Returns the label of each sentence and its probability (softmax), computed by onnxruntime on the CPU.

    Args:
        folder: a deployment of a classifier with one label per sentence.
        sentences: the texts; longer ones are truncated.

    Raises:
        ValueError: the model classifies tokens.
    """
    import onnxruntime
    from transformers import AutoTokenizer

    folder = Path(folder)
    labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = session.get_inputs()[0].shape[1]  # a number if --sequence_length fixed it, else a name
    fixed = {"padding": "max_length", "max_length": length} if isinstance(length, int) else {"padding": True}
    encoded = tokenizer(list(sentences), truncation=True, return_tensors="np", **fixed)
    logits = session.run(["logits"], {entry.name: encoded[entry.name] for entry in session.get_inputs()})[0]
    if logits.ndim != 2:
        raise ValueError(f"{folder} is not a deployment of a text classifier: it has outputs for each token")
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return [(labels[str(row.argmax())], float(row.max())) for row in probabilities]
