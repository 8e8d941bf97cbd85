"""Task and distillation losses, one value a row: pure functions of logits.

Rows are kept apart so that a batch can be weighted by its real rows, over processes and micro-batches too.
Shapes: R rows, C classes (1 for regression).
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
        problem_type: single_label_classification, multi_label_classification or regression, as transformers has it.
        label_smoothing: share of the target spread over all classes, 0 to 1; single-label classification only.
    """
    logits = logits.float()
    if problem_type == "regression":
        return (logits.squeeze(-1) - labels.float()).square()
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=-1)
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float, problem_type: str) -> Tensor:
    """Returns (R,) float32: how far the student's outputs lie from the teacher's.

    Single label: T^2 * KL(teacher || student), both softened by the temperature T (Hinton et al. 2015, arXiv
    1503.02531; T^2 keeps the gradient's size when T changes). Multi-label: T^2 times the mean over labels of the binary
    cross-entropy to the teacher's probabilities at T. Regression: squared error (KL over one logit is always 0).

    Args:
        student, teacher: (R, C) logits; the teacher's carry no gradient.
        temperature: > 0.
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
