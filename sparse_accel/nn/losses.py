"""Task and distillation losses, one value per row: pure functions of logits.

Rows are kept separate, so that a batch can be weighted by its real rows, also over processes and micro-batches.
Shapes: R rows, T tokens, C classes (1 for regression).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def task_loss(logits: Tensor, labels: Tensor, problem_type: str, label_smoothing: float = 0.0) -> Tensor:
    """Returns (R,) float32: cross-entropy, mean binary cross-entropy over labels, or squared error.

    Args:
        logits: (R, C).
        labels: (R,) int64 class numbers; (R, C) 0/1 for multi-label; (R,) float for regression.
        problem_type: single_label_classification, multi_label_classification or regression, as in transformers.
        label_smoothing: fraction of the target spread over all classes, 0 to 1; single-label classification only.
    """
    logits = logits.float()
    if problem_type == "regression":
        return (logits.squeeze(-1) - labels.float()).square()
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=-1)
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float, problem_type: str) -> Tensor:
    """Returns (R,) float32: the distance of the student's outputs from the teacher's.

    Single label: T^2 * KL(teacher || student), both softened by the temperature T (Hinton et al. 2015, arXiv
    1503.02531; T^2 keeps the gradient's size when T changes). Multi-label: T^2 times the mean over labels of the binary
    cross-entropy to the teacher's probabilities at T. Regression: squared error (KL over one logit is always 0).

    Args:
        student, teacher: (R, C) logits; those of the teacher have no gradient.
        temperature: above 0.
        problem_type: as for `task_loss`.
    """
    student, teacher = student.float(), teacher.float()
    if problem_type == "regression":
        return (student - teacher).square().mean(dim=-1)
    if problem_type == "multi_label_classification":
        target = torch.sigmoid(teacher / temperature)
        loss = F.binary_cross_entropy_with_logits(student / temperature, target, reduction="none")
        return temperature**2 * loss.mean(dim=-1)
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=-1)


# --- losses of tokens: the mean over the labelled ones of each row ----------------------------------------------------

# The label of tokens that are left out of losses and metrics, as in torch.nn.CrossEntropyLoss.
IGNORED = -100


def token_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Returns (R,) float32: the mean cross-entropy over each row's labelled tokens, 0 where it has none.

    Args:
        logits: (R, T, C).
        labels: (R, T) int64 class numbers; IGNORED for a token without a label.
        label_smoothing: fraction of the target spread over all classes, 0 to 1.
    """
    each = F.cross_entropy(
        logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED, label_smoothing=label_smoothing
    )
    return _mean_of_tokens(each, labels != IGNORED)


def token_distillation_loss(student: Tensor, teacher: Tensor, labelled: Tensor, temperature: float) -> Tensor:
    """Returns (R,) float32: the single-label `distillation_loss`, averaged over each row's labelled tokens.

    Padding and word pieces without a label do not count; otherwise results would depend on how rows are batched.

    Args:
        student, teacher: (R, T, C) logits; those of the teacher have no gradient.
        labelled: (R, T) bool, True for tokens with a label.
        temperature: above 0.
    """
    each = distillation_loss(student, teacher, temperature, "single_label_classification")
    return _mean_of_tokens(each.masked_fill(~labelled, 0.0), labelled)


def masked_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the same as `token_loss`, for outputs as many as a vocabulary: only those of labelled tokens are read."""
    labelled = labels != IGNORED
    each = F.cross_entropy(logits[labelled].float(), labels[labelled], reduction="none")
    return _mean_of_tokens(_in_rows(each, labelled), labelled)


def masked_token_distillation_loss(student: Tensor, teacher: Tensor, labelled: Tensor, temperature: float) -> Tensor:
    """Returns the same as `token_distillation_loss`, reading only the outputs of labelled tokens."""
    each = distillation_loss(student[labelled], teacher[labelled], temperature, "single_label_classification")
    return _mean_of_tokens(_in_rows(each, labelled), labelled)


def _in_rows(each: Tensor, places: Tensor) -> Tensor:
    """Returns the values of some tokens at their places, (R, T), and 0 elsewhere."""
    return each.new_zeros(places.shape).masked_scatter(places, each)


def _mean_of_tokens(each: Tensor, counted: Tensor) -> Tensor:
    return each.sum(dim=1) / counted.sum(dim=1).clamp(min=1)


# --- losses of answers: the first and the last token of each row's answer ---------------------------------------------


def answer_loss(logits: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Returns (R,) float32: the mean cross-entropy of the start and of the end over each row's tokens.

    As in transformers' models for question answering, but padding is left out of the softmax: the loss of a row does
    not depend on the longest row of its batch.

    Args:
        logits: (R, T, 2), of the start and of the end.
        positions: (R, 2) int64, of the answer's first and last token, counted from the row's first token.
        tokens: (R, T) bool, False for padding, on either side.
    """
    padding_before = tokens.int().argmax(dim=1, keepdim=True)
    found = logits.float().masked_fill(~tokens[..., None], -torch.inf)
    return F.cross_entropy(found, positions + padding_before, reduction="none").mean(dim=1)


def answer_distillation_loss(student: Tensor, teacher: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Returns (R,) float32: the single-label `distillation_loss` over each row's tokens, mean of start and end.

    Args:
        student, teacher: (R, T, 2) logits, or (R, T) those of the start or of the end alone; those of the teacher have
            no gradient.
        tokens: (R, T) bool, False for padding.
        temperature: above 0.
    """
    shape = (*tokens.shape, -1)
    outside = ~tokens[..., None]
    log_student, log_teacher = (
        F.log_softmax((logits.float().reshape(shape) / temperature).masked_fill(outside, -torch.inf), dim=1)
        for logits in (student, teacher)
    )
    each = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).masked_fill(outside, 0.0)
    return temperature**2 * each.sum(dim=1).mean(dim=1)


# --- losses of layers: the student's hidden states against the teacher's ----------------------------------------------


def layer_distance(
    student: Tensor,
    teacher: Tensor,
    counted: Tensor | None = None,
    mean_square: Tensor | None = None,
    epsilon: float = 1e-6,
) -> Tensor:
    """Returns (R,) float32: the mean squared error between an output of a layer and the teacher's, of each row.

    With `mean_square`, the error is relative to the size of the teacher's output, as in SparseML's per-layer
    distillation: layers then weigh the same, however large their outputs are.

    Args:
        student, teacher: (R, ...), of one shape; the teacher's has no gradient.
        counted: bool, False for what does not count, such as padding; its shape is the outputs' with 1 for axes that
            it does not depend on, such as (R, T, 1). None: all elements count.
        mean_square: () float32, what `square_sum` gives for the rows that are trained together; None: do not divide.
        epsilon: added to `mean_square`.
    """
    error = _mean_of_elements((student.float() - teacher.float()).square(), counted)
    return error if mean_square is None else error / (mean_square + epsilon)


def square_sum(teacher: Tensor, counted: Tensor | None = None) -> Tensor:
    """Returns (2,) float64: the sum of the squares of what counts, and its number of elements; their quotient over all
    rows that are trained together is the `mean_square` of `layer_distance`.

    Args:
        teacher, counted: as for `layer_distance`.
    """
    if counted is None:
        counted = torch.ones((), dtype=torch.bool, device=teacher.device).expand([1] * teacher.ndim)
    of_rows = teacher.float().square().masked_fill(~counted, 0.0).flatten(1).sum(dim=1)
    elements = counted.sum() * (teacher.numel() // counted.numel())
    return torch.stack([of_rows.double().sum(), elements.double()])


def _mean_of_elements(each: Tensor, counted: Tensor | None) -> Tensor:
    if counted is None:
        return each.flatten(1).mean(dim=1)
    elements = counted.flatten(1).sum(dim=1) * (each.numel() // counted.numel())
    return each.masked_fill(~counted, 0.0).flatten(1).sum(dim=1) / elements.clamp(min=1)
