"""Classify sentences with a deployment folder, as an application would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def classify(folder: str | Path, sentences: Sequence[str | tuple[str, str]]) -> list[tuple[str, float]]:
    """Returns the label of each sentence and its probability (softmax), computed by onnxruntime on the CPU, with the
    kernels of sparse_accel.runtime where this CPU has them.

    A model with one output gives its name and the score: of a reranker, from 0 to 1 (sigmoid); of a regression, the
    number itself.

    Args:
        folder: a deployment of a classifier with one label per sentence, of a reranker, or of a regression.
        sentences: the texts, or all of them pairs of texts, such as a query and a document; longer ones are truncated.

    Raises:
        ValueError: the model classifies tokens.
    """
    from transformers import AutoTokenizer

    from sparse_accel.runtime import session

    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    labels = config.get("id2label", {})
    model = session(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = model.get_inputs()[0].shape[1]  # a number if --sequence_length fixed it, else a name
    fixed = {"padding": "max_length", "max_length": length} if isinstance(length, int) else {"padding": True}
    paired = bool(sentences) and not isinstance(sentences[0], str)
    texts = [list(column) for column in zip(*sentences, strict=True)] if paired else [list(sentences)]
    encoded = tokenizer(*texts, truncation=True, return_tensors="np", **fixed)
    logits = model.run(["logits"], {entry.name: encoded[entry.name] for entry in model.get_inputs()})[0]
    if logits.ndim != 2:
        raise ValueError(f"{folder} is not a deployment of a text classifier: it has outputs for each token")
    if logits.shape[1] == 1:
        numbers = logits[:, 0].astype(np.float64)
        is_probability = config.get("problem_type") == "multi_label_classification"
        scores = (1 + np.tanh(numbers / 2)) / 2 if is_probability else numbers  # tanh: no overflow
        return [(labels.get("0", "LABEL_0"), float(score)) for score in scores]
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    # transformers leaves out labels without names of their own.
    return [(labels.get(str(row.argmax()), f"LABEL_{row.argmax()}"), float(row.max())) for row in probabilities]
