"""Embed texts with a deployment folder, as an application would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_accel.errors import UsageError, shown

_OUTPUT = "sentence_embedding"


def embed(folder: str | Path, texts: str | Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
    """Returns the embeddings of texts, computed by onnxruntime on the CPU, with the kernels of sparse_accel.runtime
    where this CPU has them. The model is loaded by each call: give it many texts at once.

    Pooling and, if the model has it, normalization are in the file: the cosine of two normalized embeddings is their
    product. Texts of similar length run together, so that little is padded.

    Args:
        folder: a deployment of an embedding model.
        texts: a text, or several; longer ones are truncated to the model's length.
        batch_size: texts that run together.

    Returns:
        (texts, width) float32, in the order of the texts; (width,) for one text.

    Raises:
        UsageError: the folder has another kind of model, or a text is empty or not a text.
        ValueError: batch_size is not at least 1.
        FileNotFoundError: there is no model.onnx.
    """
    from transformers import AutoTokenizer

    from sparse_accel.runtime import session

    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
    several = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(several):
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"text {number} (from 0) is {shown(text)}: expected a text that is not empty")
    model = session(folder)
    outputs = model.get_outputs()
    if [entry.name for entry in outputs] != [_OUTPUT]:
        names = [entry.name for entry in outputs]
        raise UsageError(f"{folder} is not a deployment of an embedding model: its outputs are {names}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = model.get_inputs()[0].shape[1]  # a number if --sequence_length fixed it, else a name
    fixed = {"padding": "max_length", "max_length": length} if isinstance(length, int) else {"padding": True}
    found = np.zeros((len(several), outputs[0].shape[1]), dtype=np.float32)
    order = sorted(range(len(several)), key=lambda number: len(several[number]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        encoded = tokenizer([several[number] for number in numbers], truncation=True, return_tensors="np", **fixed)
        found[numbers] = model.run([_OUTPUT], {entry.name: encoded[entry.name] for entry in model.get_inputs()})[0]
    return found[0] if isinstance(texts, str) else found
