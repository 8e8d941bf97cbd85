"""Comparison of two runs of a model on the same real sentences: decisions, logits and metrics.

PyTorch (quantizers on) and onnxruntime; or onnxruntime alone and onnxruntime with kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sparse_accel.data.batches import Collator, GlobalBatchSampler, Rows, inputs_of
from sparse_accel.export.checks import Check
from sparse_accel.export.texts import Texts
from sparse_accel.tasks import task_of
from sparse_accel.tasks.units import starts_of, unit_numbers

_BATCH_ROWS = 32
# An exported graph computes attention as plain operations: (rows, heads, tokens, tokens) numbers. So many rows for so
# many tokens, and fewer for more.
_FULL_BATCH_TOKENS = 512
# Logits of so many rows run at once, where there are too many of them to keep those of all rows: 64 MiB in float32.
_MOST_LOGITS = 2**24
# Quantization rounds: a value between two integers may go either way, and so may a sentence between two labels. So this
# fraction of decisions may differ, and logits may differ by this fraction of their spread (mean absolute difference).
MAX_DISAGREEMENT = 0.005
MAX_LOGIT_DIFFERENCE_QUANTIZED, MAX_LOGIT_DIFFERENCE_FLOAT = 0.1, 1e-3
# Mean cosine of an embedding with itself in the other run.
LEAST_COSINE = 0.999
# Names of the checks of outputs, beside that of the figures, which a task names.
AGREEMENT, LOGITS, COSINE = "agreement", "logits", "cosine"

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Runner:
    """A way to run a model.

    Attributes:
        name: as messages name it.
        run: from padded rows, by the names of the model's inputs, to logits.
    """

    name: str
    run: Callable[[Tensors], np.ndarray]


@dataclass(frozen=True)
class Fidelity:
    """How much the logits of a second run differ from those of a first one.

    Attributes:
        names: of the two.
        rows: number of answers compared: one per sentence, per word, or per question.
        agreement: fraction of equal decisions: the label, or all labels of a multi-label task; None for a score.
        mean_difference, max_difference: of logits, absolute.
        spread: standard deviation of the first one's logits, the unit for the differences.
        metrics: of both; None without labels.
        gaps: of the decisions that differ, `Task.decision_gaps`.
        cosines: mean and least cosine between the two runs' logits of an answer, if they are vectors; else None.
    """

    names: tuple[str, str]
    rows: int
    agreement: float | None
    mean_difference: float
    max_difference: float
    spread: float
    metrics: tuple[dict[str, float], dict[str, float]] | None
    gaps: tuple[float, ...] = ()
    cosines: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as they are written to export_report.json; metrics are by name, lower-cased."""
        first, second = self.metrics or (None, None)
        return {
            "rows": self.rows,
            **({} if self.cosines is None else {"mean_cosine": self.cosines[0], "least_cosine": self.cosines[1]}),
            "agreement": self.agreement,
            "mean_difference": self.mean_difference,
            "max_difference": self.max_difference,
            "spread": self.spread,
            self.names[0].lower(): first,
            self.names[1].lower(): second,
        }


def in_pytorch(model: nn.Module) -> Runner:
    """Runs a model with its quantizers on."""

    task = task_of(model)

    def run(inputs: Tensors) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = task.logits(model(**inputs)).float().numpy()
        return found

    return Runner("PyTorch", run)


def in_session(session: Any, name: str = "onnxruntime") -> Runner:
    """Runs an onnxruntime.InferenceSession."""
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Tensors) -> np.ndarray:
        return session_logits(session, {name: inputs[name].numpy() for name in names})

    return Runner(name, run)


def session_logits(session: Any, inputs: Mapping[str, np.ndarray], rows: int | None = None) -> np.ndarray:
    """Returns the logits that an onnxruntime.InferenceSession computes: its output, or several on a last axis, such as
    start_logits and end_logits.

    Args:
        rows: how many of the inputs' rows run at once; None: all.
    """
    count = len(next(iter(inputs.values())))
    size = rows or max(count, 1)
    parts = [{name: x[at : at + size] for name, x in inputs.items()} for at in range(0, max(count, 1), size)]
    found = [session.run(None, part) for part in parts]
    outputs = [np.concatenate(each) for each in zip(*found, strict=True)]
    logits: np.ndarray = outputs[0] if len(outputs) == 1 else np.stack(outputs, axis=-1)
    return logits


def logits_of(runner: Runner, tokenizer: Any, texts: Texts, length: int | None = None) -> np.ndarray:
    """Runs a model on every sentence, and returns its logits, float32 [answers, labels]; of a task with few of them.

    Args:
        tokenizer: pads the batches.
        texts: tokenized sentences, with or without labels.
        length: the number of tokens that the model is fixed to; None: it takes any.
    """
    task = texts.task
    counts = task.unit_counts(texts.rows)
    starts = starts_of(counts)
    table = np.zeros((0, 0), dtype=np.float32)
    collator = Collator(tokenizer, length, token_columns=task.token_columns)
    lengths = [len(ids) for ids in texts.rows["input_ids"]]
    for batch in _batches(texts.rows, lengths, collator):
        inputs, units = inputs_of(batch), task.units(batch)
        logits = runner.run(inputs)
        if not table.size:
            table = np.zeros((int(counts.sum()), logits.shape[-1]), dtype=np.float32)
        table[unit_numbers(units, batch["row_id"], starts).numpy()] = logits[units.numpy()]
    return table


def rows_at_once(tokens: int, logits: int = 0) -> int:
    """Returns how many rows of so many tokens run as one batch: 32, and fewer where their attention would need more
    memory than that of 32 rows of 512 tokens, or their logits more than 64 MiB.

    Args:
        tokens: of a row.
        logits: of a token, where they are many.
    """
    most = min(_BATCH_ROWS * _FULL_BATCH_TOKENS**2 // tokens**2, _MOST_LOGITS // max(tokens * logits, 1))
    return min(_BATCH_ROWS, max(1, most))


def fixed_length(session: Any) -> int | None:
    """Returns the number of tokens that a session's rows must have; None: any."""
    length = session.get_inputs()[0].shape[1]
    return length if isinstance(length, int) else None


def compare_runs(
    first: Runner, second: Runner, tokenizer: Any, texts: Texts, length: int | None
) -> tuple[Fidelity, np.ndarray]:
    """Runs two models on every sentence, and returns their differences, and the logits of the second one; empty where
    the task has too many to keep. Arguments as for `logits_of`."""
    if not texts.task.has_few_logits:
        return _compare_batches(first, second, tokenizer, texts, length), np.zeros((0, 0), dtype=np.float32)
    ours, theirs = (logits_of(runner, tokenizer, texts, length) for runner in (first, second))
    return compare((first.name, second.name), ours, theirs, texts), theirs


def compare(names: tuple[str, str], ours: np.ndarray, theirs: np.ndarray, texts: Texts) -> Fidelity:
    """Returns the differences of two runs on the same sentences.

    Args:
        names: of the two.
        ours, theirs: their logits, float32 [answers, labels].
    """
    gaps = texts.task.decision_gaps(ours, theirs, texts.rows, texts.split)
    difference = np.abs(ours - theirs)
    return Fidelity(
        names=names,
        rows=len(ours) if gaps is None else len(gaps),
        agreement=None if gaps is None else float((gaps == 0).mean()),
        gaps=() if gaps is None else tuple(gaps[gaps > 0].tolist()),
        mean_difference=float(difference.mean()),
        max_difference=float(difference.max()),
        spread=float(ours.std()),
        metrics=_metrics(ours, theirs, texts),
        cosines=_cosines(ours, theirs) if texts.task.are_vectors else None,
    )


def _compare_batches(first: Runner, second: Runner, tokenizer: Any, texts: Texts, length: int | None) -> Fidelity:
    """`compare`, of a task whose decision is the highest logit: both run batch by batch, and what is kept of a decision
    is what an evaluation keeps, and how far the two runs are from the same one."""
    task = texts.task
    counts = task.unit_counts(texts.rows)
    starts = starts_of(counts)
    gaps = np.full(int(counts.sum()), np.inf)  # a decision that no batch has is not the same
    tables: list[np.ndarray] = [np.zeros((0, 0), dtype=np.float32)] * 2
    sums = _Sums()
    lengths = [len(ids) for ids in texts.rows["input_ids"]]
    collator = Collator(tokenizer, length, token_columns=task.token_columns)
    for padded in _batches(texts.rows, lengths, collator, len(tokenizer)):
        batch = task.prepare(padded, epoch=0)
        units = task.units(batch)
        places = unit_numbers(units, batch["row_id"], starts).numpy()
        found = []
        for number, runner in enumerate((first, second)):
            logits = torch.from_numpy(runner.run(inputs_of(batch)))
            kept = task.kept({"logits": logits}, batch)[units].numpy()
            if not tables[number].size:
                tables[number] = np.full((len(gaps), kept.shape[-1]), np.nan, dtype=np.float32)
            tables[number][places] = kept
            found.append(logits[units].numpy())
            del logits  # those of the other run take its place
        gaps[places] = _gaps(*found)
        sums.add(*found)
    return Fidelity(
        names=(first.name, second.name),
        rows=len(gaps),
        agreement=float((gaps == 0).mean()),
        gaps=tuple(gaps[gaps > 0].tolist()),
        mean_difference=sums.difference / sums.count,
        max_difference=sums.largest,
        spread=sums.spread(),
        metrics=_metrics(tables[0], tables[1], texts),
    )


@dataclass
class _Sums:
    """Of the logits of all batches so far.

    Attributes:
        count: number of logits.
        difference, largest: sum and largest of the absolute differences.
        total, squares: sums of the first run's logits and of their squares.
    """

    count: int = 0
    difference: float = 0.0
    largest: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        differences = np.abs(ours - theirs)
        self.count += ours.size
        self.difference += float(differences.sum(dtype=np.float64))
        self.largest = float(np.max(differences, initial=self.largest))  # NaN stays NaN
        self.total += float(ours.sum(dtype=np.float64))
        self.squares += float(np.square(ours, dtype=np.float64).sum())

    def spread(self) -> float:
        """Returns the standard deviation of the first run's logits."""
        return math.sqrt(max(self.squares / self.count - (self.total / self.count) ** 2, 0.0))


def _gaps(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Returns `Task.decision_gaps` (D,) where a decision is the highest of many logits (D, C)."""
    one, other = ours.argmax(axis=1), theirs.argmax(axis=1)
    answers = np.arange(len(ours))
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which is no tie
        both = [np.abs(logits[answers, one] - logits[answers, other]) for logits in (ours, theirs)]
    smallest: float = np.finfo(np.float64).tiny  # never 0, which says that they are the same
    return np.where(one == other, 0.0, np.maximum(np.minimum(*both), smallest))


def _metrics(ours: np.ndarray, theirs: np.ndarray, texts: Texts) -> tuple[dict[str, float], dict[str, float]] | None:
    """Returns the figures of two runs from what is kept of their logits; None without labels."""
    if not texts.has_labels:
        return None
    first, second = (dict(texts.task.figures(logits, texts.rows, texts.split)) for logits in (ours, theirs))
    return first, second


def _cosines(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Returns mean and least cosine between rows of two arrays [rows, width]; 0 where one is zero or not finite."""
    first, second = (each.astype(np.float64) for each in (ours, theirs))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=np.isfinite(lengths) & (lengths > 0))
    return float(cosines.mean()), float(cosines.min())


def check_fidelity(
    found: Fidelity, texts: Texts, quantized: bool, gap: float = MAX_DISAGREEMENT, tolerance: float | None = None
) -> list[Check]:
    """Returns the checks for the figures: same decisions, similar logits and, with labels, similar metrics.

    Args:
        quantized: whether both round to integers.
        gap: the largest difference of accuracies, unless it is that of one decision.
        tolerance: the largest mean difference of logits, as a fraction of their spread; None: as between PyTorch and
            onnxruntime.
    """
    if tolerance is None:
        tolerance = MAX_LOGIT_DIFFERENCE_QUANTIZED if quantized else MAX_LOGIT_DIFFERENCE_FLOAT
    # Two scores are compared, each a sum of logits.
    ties = sum(each <= 2 * texts.task.logits_of_a_score * tolerance * found.spread for each in found.gaps)
    checks: list[Check] = []
    where = f"{found.rows} {texts.task.decision_unit()} of {texts.source}"
    words = texts.task.proof_words
    if found.agreement is not None:
        allowed = max(math.floor(MAX_DISAGREEMENT * found.rows), 1 if quantized else 0)
        different = round((1 - found.agreement) * found.rows)
        tied = f", and {ties} whose scores nearly tie" if ties else ""
        detail = (
            f"{found.agreement:.2%} of {words.decisions} are the same on {where} (at most {allowed} may differ{tied})"
        )
        checks.append(Check(AGREEMENT, different - ties <= allowed, detail))
    near = found.mean_difference <= tolerance * max(found.spread, 1e-6)
    detail = (
        f"logits differ by {found.mean_difference:.2g} on average and {found.max_difference:.2g} at most; their "
        f"spread is {found.spread:.2g} (the average may be {tolerance:g} of it)"
    )
    checks.append(Check(LOGITS, near and math.isfinite(found.max_difference), detail))
    if found.cosines is not None:
        mean, least = found.cosines
        detail = f"{mean:.5f} on average (at least {LEAST_COSINE}), {least:.4f} at least, of an embedding in both runs"
        checks.append(Check(COSINE, mean >= LEAST_COSINE, detail))
    if found.metrics is None:
        checks.append(Check(words.figures, None, f"{texts.source} has no {words.truth}"))
    else:
        (first, second), (ours, theirs) = found.names, found.metrics
        values = [f"{name} {value:.4f} in {first}, {theirs[name]:.4f} in {second}" for name, value in ours.items()]
        support = texts.task.support(texts.rows, texts.split)
        near = all(
            abs(value - theirs[name])
            <= _allowed_gap(name, value, found.rows, support, gap, words.are_means) + ties / found.rows
            for name, value in ours.items()
        )
        checks.append(Check(words.figures, near, f"{'; '.join(values)} ({where})"))
    return checks


def _allowed_gap(metric: str, value: float, rows: int, support: int, gap: float, are_means: bool) -> float:
    """How much a metric may differ between two runs. An accuracy: by `gap`, or by one decision. Others: by more,
    because a few decisions change them more. Errors of a score have its unit, and the logits check covers them.

    Args:
        value: of the metric, in one run.
        rows: number of decisions.
        support: number of decisions that determine the other metrics.
        are_means: whether all metrics are means over decisions, as an accuracy is.
    """
    # The best thresholds of SQuAD 2.0 are in units of logits, and few of its questions may be of one kind; its exact
    # match and F1 are compared.
    if metric in ("mse", "mae") or metric.startswith(("best_", "has_answer_", "no_answer_")):
        return math.inf
    if are_means or metric.endswith("accuracy"):
        return max(gap, 1 / rows) + 1e-9
    allowed = max(gap, 1 / support) * 4 + 1e-9
    return allowed * value if metric == "perplexity" else allowed  # it is no fraction


def _batches(rows: Any, lengths: list[int], collator: Collator, logits: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    dataset = Rows(rows)
    for numbers in GlobalBatchSampler(lengths, _BATCH_ROWS, 1, seed=None):
        at_once = rows_at_once(collator.length or max(lengths[number] for number in numbers), logits)
        for start in range(0, len(numbers), at_once):
            yield collator(dataset.__getitems__(numbers[start : start + at_once]))
