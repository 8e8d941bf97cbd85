"""Models whose head belongs to no task here (question answering, masked language modelling, ...), in your own loop."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sparse_accel.nn.losses import distillation_loss, token_distillation_loss
from sparse_accel.tasks.label_names import REGRESSION, SINGLE_LABEL
from sparse_accel.tasks.text_classification.task import TextClassification


class OtherHead(TextClassification):
    """Distills any outputs: of a row, (R, C), or of its tokens, (R, T, C), where padding does not count.

    The last axis is what the softmax is over: classes, the tokens of `start_logits`, the words of a vocabulary.
    Each row counts the same.
    """

    name: ClassVar[str] = "other"
    purpose: ClassVar[str] = "have this head"

    def distance(self, student: Tensor, teacher: Tensor, batch: dict[str, Any], temperature: float) -> Tensor:
        if student.ndim == 3:
            mask = batch.get("attention_mask")
            counted = torch.ones_like(student[..., 0]) if mask is None else mask
            return token_distillation_loss(student, teacher, counted.bool(), temperature)
        # Labels in its configuration say nothing about a head like that for answers: only the shape does.
        kind = self.head.problem_type or (REGRESSION if student.shape[-1] == 1 else SINGLE_LABEL)
        return distillation_loss(student, teacher, temperature, kind)

    def agreement(self, student: Tensor, teacher: Tensor, batch: dict[str, Any]) -> Tensor | None:
        if student.ndim != 3:
            return None if student.shape[-1] == 1 else (student.argmax(dim=-1) == teacher.argmax(dim=-1)).float()
        same = (student.argmax(dim=-1) == teacher.argmax(dim=-1)).float()
        mask = batch.get("attention_mask")
        counted = torch.ones_like(same) if mask is None else mask.float()
        return (same * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
