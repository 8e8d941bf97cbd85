"""Comparison of PyTorch (quantizers on) and onnxruntime on the same real sentences: decisions, logits and metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sparse_accel.data.batches import Collator, GlobalBatchSampler, Rows, inputs_of
from sparse_accel.export.checks import Check
from sparse_accel.export.texts import Texts
from sparse_accel.tasks.base import starts_of, unit_numbers

_BATCH_ROWS = 32
# Quantization rounds: a value between two integers may go either way, and so may a sentence between two labels. So this
# fraction of decisions may differ, and logits may differ by this fraction of their spread (mean absolute difference).
MAX_DISAGREEMENT = 0.005
MAX_LOGIT_DIFFERENCE_QUANTIZED, MAX_LOGIT_DIFFERENCE_FLOAT = 0.1, 1e-3


@dataclass(frozen=True)
class Fidelity:
    """How much the file's logits differ from the model's.

    Attributes:
        rows: number of answers compared: one per sentence, or one per word.
        agreement: fraction of equal decisions: the label, or all labels of a multi-label task; None for a score.
        mean_difference, max_difference: of logits, absolute.
        spread: standard deviation of the model's logits, the unit for the differences.
        pytorch, onnxruntime: metrics of both; None without labels.
    """

    rows: int
    agreement: float | None
    mean_difference: float
    max_difference: float
    spread: float
    pytorch: dict[str, float] | None
    onnxruntime: dict[str, float] | None


def compare(model: nn.Module, session: Any, tokenizer: Any, texts: Texts) -> Fidelity:
    """Runs both on every sentence and returns their differences.

    Args:
        model: with its quantizers on.
        session: an onnxruntime.InferenceSession of the file.
        tokenizer: pads the batches.
        texts: tokenized sentences, with or without labels.
    """
    task = texts.task
    counts = task.unit_counts(texts.rows)
    starts, names = starts_of(counts), [entry.name for entry in session.get_inputs()]
    tables: list[np.ndarray] = []
    fixed = session.get_inputs()[0].shape[1]
    collator = Collator(tokenizer, fixed if isinstance(fixed, int) else None, token_columns=task.token_columns)
    lengths = [len(ids) for ids in texts.rows["input_ids"]]
    for batch in _batches(texts.rows, lengths, collator):
        inputs, units = inputs_of(batch), task.units(batch)
        with torch.no_grad():
            ours = model(**inputs)["logits"].float().numpy()
        theirs = session.run(["logits"], {name: inputs[name].numpy() for name in names})[0]
        if not tables:
            tables = [np.zeros((int(counts.sum()), ours.shape[-1]), dtype=np.float32) for _ in range(2)]
        places = unit_numbers(units, batch["row_id"], starts).numpy()
        for table, logits in zip(tables, (ours, theirs), strict=True):
            table[places] = logits[units.numpy()]
    return _figures(tables[0], tables[1], texts)


def check_fidelity(found: Fidelity, texts: Texts, quantized: bool) -> list[Check]:
    """Returns the checks for the figures: same decisions, similar logits and, with labels, similar metrics."""
    checks: list[Check] = []
    where = f"{found.rows} {texts.task.unit} of {texts.source}"
    if found.agreement is not None:
        allowed = max(math.floor(MAX_DISAGREEMENT * found.rows), 1 if quantized else 0)
        different = round((1 - found.agreement) * found.rows)
        detail = f"{found.agreement:.2%} of decisions are the same on {where} (at most {allowed} may differ)"
        checks.append(Check("agreement", different <= allowed, detail))
    tolerance = MAX_LOGIT_DIFFERENCE_QUANTIZED if quantized else MAX_LOGIT_DIFFERENCE_FLOAT
    near = found.mean_difference <= tolerance * max(found.spread, 1e-6)
    detail = (
        f"logits differ by {found.mean_difference:.2g} on average and {found.max_difference:.2g} at most; their "
        f"spread is {found.spread:.2g} (the average may be {tolerance:g} of it)"
    )
    checks.append(Check("logits", near and math.isfinite(found.max_difference), detail))
    if found.pytorch is None or found.onnxruntime is None:
        checks.append(Check("accuracy", None, f"{texts.source} has no labels"))
    else:
        pairs, theirs = found.pytorch, found.onnxruntime
        words = [f"{name} {value:.4f} in PyTorch, {theirs[name]:.4f} in onnxruntime" for name, value in pairs.items()]
        support = texts.task.support(texts.rows, texts.split)
        near = all(
            abs(value - theirs[name]) <= _allowed_gap(name, found.rows, support) for name, value in pairs.items()
        )
        checks.append(Check("accuracy", near, f"{'; '.join(words)} ({where})"))
    return checks


def _allowed_gap(metric: str, rows: int, support: int) -> float:
    """How much a metric of the file may differ from the model's. An accuracy: by the fraction of decisions that may
    differ. Others: by more, because a few decisions change them more. Errors of a score have its unit, and the logits
    check covers them.

    Args:
        rows: number of decisions.
        support: number of decisions that determine the other metrics.
    """
    if metric in ("mse", "mae"):
        return math.inf
    if metric.endswith("accuracy"):
        return max(MAX_DISAGREEMENT, 1 / rows) + 1e-9
    return max(MAX_DISAGREEMENT, 1 / support) * 4 + 1e-9


def _batches(rows: Any, lengths: list[int], collator: Collator) -> Iterator[dict[str, torch.Tensor]]:
    dataset = Rows(rows)
    for numbers in GlobalBatchSampler(lengths, _BATCH_ROWS, 1, seed=None):
        yield collator(dataset.__getitems__(numbers))


def _figures(ours: np.ndarray, theirs: np.ndarray, texts: Texts) -> Fidelity:
    decided = [texts.task.decisions(logits) for logits in (ours, theirs)]
    agreement: float | None = None
    if decided[0] is not None and decided[1] is not None:
        agreement = float((decided[0] == decided[1]).all(axis=1).mean())
    metrics: list[dict[str, float] | None] = [None, None]
    if texts.has_labels:
        metrics = [dict(texts.task.figures(logits, texts.rows, texts.split)) for logits in (ours, theirs)]
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
