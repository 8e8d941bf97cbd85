"""Losses of sentence embeddings, one value per row: pure functions.

Shapes: R rows, D the width of an embedding, C candidates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_accel.nn.pooling import normalized

LOSSES = ("cosine", "mse")


def embedding_distance(student: Tensor, teacher: Tensor, loss: str) -> Tensor:
    """Returns (R,) float32: how far embeddings are from a teacher's, the mean over the texts of a row.

    `cosine`: 1 - cosine, 0 to 2. `mse`: the mean squared difference of their components (Reimers and Gurevych 2020,
    arXiv 2004.09813), which needs embeddings of the same scale.

    Args:
        student, teacher: (R, D), or (R, K, D) of rows with K texts; the teacher's have no gradient.
        loss: one of LOSSES.
    """
    student, teacher = student.float(), teacher.float()
    if loss == "mse":
        each = (student - teacher).square().mean(dim=-1)
    else:
        each = 1 - (normalized(student) * normalized(teacher)).sum(dim=-1)
    return each if each.ndim == 1 else each.mean(dim=1)


def score_loss(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """Returns (R,) float32: the squared difference of each pair's cosine from its score (CosineSimilarityLoss of
    sentence-transformers).

    Args:
        first, second: (R, D).
        scores: (R,), 0 to 1.
    """
    cosines = (normalized(first.float()) * normalized(second.float())).sum(dim=-1)
    return (cosines - scores.float()).square()


def in_batch_loss(anchors: Tensor, candidates: Tensor, own: Tensor, left_out: Tensor, scale: float) -> Tensor:
    """Returns (R,) float32: the cross-entropy of scale * cosine over all candidates, the own positive being the class
    (Henderson et al. 2017, arXiv 1705.00652; MultipleNegativesRankingLoss of sentence-transformers).

    Args:
        anchors: (R, D).
        candidates: (C, D): positives and negatives of all rows.
        own: (R,) int64, the number of each row's positive.
        left_out: (R, C) bool, True for what is neither the own positive nor a negative of a row.
        scale: of cosines, which are too small for a softmax.
    """
    cosines = normalized(anchors.float()) @ normalized(candidates.float()).T
    return F.cross_entropy((scale * cosines).masked_fill(left_out, -torch.inf), own, reduction="none")


def not_negatives(anchors: Tensor, positives: Tensor, candidates: Tensor, of_rows: Tensor) -> Tensor:
    """Returns which candidates are no negatives of which rows, (R, C) bool; the own positive is one of them.

    These are texts equal to the anchor or to its positive, and the positives of other rows with an equal anchor.

    Args:
        anchors, positives: (R,) int64, numbers of the texts: equal texts have equal ones.
        candidates: (C,) likewise.
        of_rows: (C,) the anchor's number of the row whose positive the candidate is; that of its own text for a hard
            negative, which is a negative of its own row.
    """
    same_text = (candidates == anchors[:, None]) | (candidates == positives[:, None])
    return same_text | (of_rows == anchors[:, None])
