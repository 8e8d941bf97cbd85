"""Does the file decide as the model does? PyTorch, quantizers on, and onnxruntime on the same real sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sparse_accel.data.batches import Collator, GlobalBatchSampler, Rows
from sparse_accel.export.checks import Check
from sparse_accel.export.texts import Texts
from sparse_accel.tasks import compute_metrics

_BATCH_ROWS = 32
# Quantization rounds; a value that lies on the edge of two integers may fall either way, and a sentence on the edge of
# two labels with it. So many decisions may differ, and so far may logits lie apart, in parts of their own spread.
MOST_DIFFERENT = 0.005
FARTHEST_QUANTIZED, FARTHEST_FLOAT = 0.1, 1e-3


@dataclass(frozen=True)
class Fidelity:
    """How far the file's logits lie from the model's.

    Attributes:
        rows: sentences compared.
        agreement: share of decisions that are the same: the label, or each label of several; None for a score.
        mean_difference, max_difference: of logits, absolute.
        spread: standard deviation of the model's logits, which the differences are measured by.
        pytorch, onnxruntime: metrics of both, None where there are no labels.
    """

    rows: int
    agreement: float | None
    mean_difference: float
    max_difference: float
    spread: float
    pytorch: dict[str, float] | None
    onnxruntime: dict[str, float] | None


def compare(model: nn.Module, session: Any, tokenizer: Any, texts: Texts, problem_type: str) -> Fidelity:
    """Runs both on every sentence, in batches of like lengths.

    Args:
        model: the classifier with its quantizers on.
        session: an onnxruntime.InferenceSession of the file.
        texts: tokenized sentences, with labels or without.
    """
    logits: list[np.ndarray] = [np.zeros((0, 0))] * 2
    names = [entry.name for entry in session.get_inputs()]
    fixed = session.get_inputs()[0].shape[1]
    collator = Collator(tokenizer, length=fixed if isinstance(fixed, int) else None)
    lengths = [len(ids) for ids in texts.rows["input_ids"]]
    for number, batch in enumerate(_batches(texts.rows, lengths, collator)):
        rows = batch.pop("row_id").numpy()
        batch.pop("labels", None)
        with torch.no_grad():
            ours = model(**batch)["logits"].float().numpy()
        theirs = session.run(["logits"], {name: batch[name].numpy() for name in names})[0]
        if number == 0:
            logits = [np.zeros((len(lengths), ours.shape[1]), dtype=np.float32) for _ in range(2)]
        logits[0][rows], logits[1][rows] = ours, theirs
    return _figures(logits[0], logits[1], texts, problem_type)


def check_fidelity(found: Fidelity, texts: Texts, quantized: bool) -> list[Check]:
    """Turns figures into checks: same decisions, near logits; same accuracy where there are labels."""
    checks: list[Check] = []
    where = f"{found.rows} sentences of {texts.source}"
    if found.agreement is not None:
        allowed = max(math.floor(MOST_DIFFERENT * found.rows), 1 if quantized else 0)
        different = round((1 - found.agreement) * found.rows)
        detail = f"{found.agreement:.2%} of decisions are the same on {where} (at most {allowed} may differ)"
        checks.append(Check("agreement", different <= allowed, detail))
    farthest = FARTHEST_QUANTIZED if quantized else FARTHEST_FLOAT
    near = found.mean_difference <= farthest * max(found.spread, 1e-6)
    detail = (
        f"logits differ by {found.mean_difference:.2g} in the mean and {found.max_difference:.2g} at most; their "
        f"spread is {found.spread:.2g} (the mean may be {farthest:g} of it)"
    )
    checks.append(Check("logits", near and math.isfinite(found.max_difference), detail))
    if found.pytorch is None or found.onnxruntime is None:
        checks.append(Check("accuracy", None, f"{texts.source} has no labels"))
    else:
        pairs, theirs = found.pytorch, found.onnxruntime
        words = [f"{name} {value:.4f} in PyTorch, {theirs[name]:.4f} in onnxruntime" for name, value in pairs.items()]
        near = all(abs(value - theirs[name]) <= _allowed_gap(name, found.rows) for name, value in pairs.items())
        checks.append(Check("accuracy", near, f"{'; '.join(words)} ({where})"))
    return checks


def _allowed_gap(metric: str, rows: int) -> float:
    """How far a metric of the file may lie from the model's: an accuracy by the decisions that may differ; others by
    more, since a few decisions move them further; errors of a score have its unit: the logits check judges them."""
    if metric in ("mse", "mae"):
        return math.inf
    return max(MOST_DIFFERENT, 1 / rows) * (1 if metric.endswith("accuracy") else 4) + 1e-9


def _batches(rows: Any, lengths: list[int], collator: Collator) -> Iterator[dict[str, torch.Tensor]]:
    dataset = Rows(rows)
    for numbers in GlobalBatchSampler(lengths, _BATCH_ROWS, 1, seed=None):
        yield collator(dataset.__getitems__(numbers))


def _figures(ours: np.ndarray, theirs: np.ndarray, texts: Texts, problem_type: str) -> Fidelity:
    agreement: float | None = None
    if problem_type == "multi_label_classification":
        agreement = float(((ours >= 0) == (theirs >= 0)).all(axis=1).mean())
    elif problem_type == "single_label_classification":
        agreement = float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
    metrics: list[dict[str, float] | None] = [None, None]
    if texts.has_labels:
        labels = np.asarray(texts.rows["labels"])
        metrics = [
            dict(compute_metrics(texts.metrics, problem_type, logits, labels, texts.positive))
            for logits in (ours, theirs)
        ]
    difference = np.abs(ours - theirs)
    return Fidelity(
        rows=len(ours),
        agreement=agreement,
        mean_difference=float(difference.mean()),
        max_difference=float(difference.max()),
        spread=float(ours.std()),
        pytorch=metrics[0],
        onnxruntime=metrics[1],
    )
