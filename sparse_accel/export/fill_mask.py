"""Fill in masked tokens with a deployment folder, as an application would: in the form of transformers' pipeline
`fill-mask`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_accel.errors import UsageError, shown


def fill_mask(folder: str | Path, texts: str | Sequence[str], *, top_k: int = 5) -> list[Any]:
    """Returns the most likely tokens at the masks of texts, computed by onnxruntime on the CPU, with the kernels of
    sparse_accel.runtime where this CPU has them. The model is loaded by each call: give it many texts at once.

    Args:
        folder: a deployment of a masked language model.
        texts: a text, or several, each with at least one mask token, such as `[MASK]`.
        top_k: number of tokens to return for a mask, best first.

    Returns:
        For a text: `score` (the probability, a softmax over the vocabulary), `token` (its id), `token_str`, and
        `sequence` (the text with it), one dict for each of the top_k tokens; for several masks, a list of these lists.
        For several texts, a list with an entry for each; unlike in the pipeline, for a list of one text too.

    Raises:
        UsageError: the folder has another kind of model; a text has no mask token, or is too long.
        ValueError: top_k is not at least 1.
        FileNotFoundError: there is no model.onnx.
    """
    from transformers import AutoTokenizer

    from sparse_accel.runtime import session

    if top_k < 1:
        raise ValueError(f"top_k is {top_k}: expected at least 1")
    model, tokenizer = session(folder), AutoTokenizer.from_pretrained(folder)
    shape, mask = model.get_outputs()[0].shape, tokenizer.mask_token_id
    if len(shape) != 3 or not isinstance(shape[2], int) or mask is None or shape[2] < len(tokenizer):
        raise UsageError(f"{folder} is not a deployment of a masked language model: its outputs are not its tokens")
    fixed = model.get_inputs()[0].shape[1]  # a number if --sequence_length fixed it, else a name
    longest = fixed if isinstance(fixed, int) else tokenizer.model_max_length
    padding = {"padding": "max_length", "max_length": fixed} if isinstance(fixed, int) else {}
    found = []
    for number, text in enumerate([texts] if isinstance(texts, str) else texts):
        encoded = tokenizer(text, return_tensors="np", **padding)
        ids = encoded["input_ids"][0]
        if not (places := np.flatnonzero(ids == mask)).size:
            raise UsageError(f"text {number} (from 0) has no {tokenizer.mask_token}: {shown(text)}")
        if len(ids) > longest:
            raise UsageError(f"text {number} (from 0) has {len(ids)} tokens, and the model reads {longest}: shorten it")
        logits = model.run(["logits"], {entry.name: encoded[entry.name] for entry in model.get_inputs()})[0][0, places]
        filled: list[list[dict[str, Any]]] = []
        for place, row in zip(places, logits.astype(np.float64), strict=True):
            scores = np.exp(row - row.max())
            scores /= scores.sum()
            filled.append([])
            for token in np.argsort(-scores, kind="stable")[:top_k].tolist():
                tokens = np.where(np.arange(len(ids)) == place, token, ids)
                tokens = tokens[tokens != tokenizer.pad_token_id]
                answer = {"score": float(scores[token]), "token": token, "token_str": tokenizer.decode([token])}
                sequence = tokenizer.decode(tokens, skip_special_tokens=len(places) == 1)
                filled[-1].append({**answer, "sequence": sequence})
        found.append(filled[0] if len(filled) == 1 else filled)
    return found[0] if isinstance(texts, str) else found
