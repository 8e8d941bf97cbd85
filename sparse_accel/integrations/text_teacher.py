"""Distillation in a SentenceTransformerTrainer: the embeddings that a loss asks for, and those of a teacher.

Shapes: N texts of a batch, of all its columns; D the width of an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_accel.data.tokenizing import tokenizer_digest
from sparse_accel.errors import UsageError, with_article
from sparse_accel.integrations.embedding_models import load_sentence_transformer
from sparse_accel.models.teacher import Teacher
from sparse_accel.tasks import SentenceEmbedding
from sparse_accel.tasks.label_names import Head

TEXTS = "texts"  # the entry of a batch: the inputs of each forward


class TextTeacher(Teacher):
    """A frozen SentenceTransformer, whose embeddings a student follows.

    Args:
        model: of sentence-transformers, or its folder or Hub id.
        loss: `cosine` or `mse`, the distance of embeddings; see `nn.embedding_losses.embedding_distance`.

    Raises:
        UsageError: it is another model, which has no embeddings of texts.
    """

    def __init__(self, model: Any, loss: str = "cosine") -> None:
        found = load_sentence_transformer(model) if isinstance(model, str) else model
        if not isinstance(found, nn.Sequential):
            raise UsageError(
                f"teacher is {with_article(type(found).__name__)}, which has no embeddings of texts: pass a "
                "SentenceTransformer, or its folder or Hub id"
            )
        task = SentenceEmbedding(Head([]))
        task.embedding_loss = loss
        super().__init__(found, task=task)

    def check(self, student: Any) -> None:
        """Checks that the teacher reads the student's tokens, and that its embeddings can be compared.

        Raises:
            UsageError: width, tokenizer or length differ, or it is the student itself.
        """
        teacher: Any = self.model
        if teacher is student:
            raise UsageError("teacher is the model itself, which a teacher freezes: pass copy.deepcopy(model)")
        widths = [model.get_embedding_dimension() for model in (student, teacher)]
        if widths[0] != widths[1]:
            raise UsageError(f"teacher has embeddings of width {widths[1]}, the model of width {widths[0]}")
        lengths = [model.max_seq_length for model in (student, teacher)]
        is_shorter = lengths[1] is not None and (lengths[0] is None or lengths[1] < lengths[0])
        if is_shorter or len({tokenizer_digest(model.tokenizer) for model in (student, teacher)}) > 1:
            raise UsageError(
                "teacher reads the tokens of the model in a Trainer, but has another tokenizer, or a lower "
                "max_seq_length: use scripts/sentence_embedding.py, where it reads the texts by its own"
            )

    @torch.no_grad()
    def outputs(self, batch: dict[str, Any], keys: list[str]) -> dict[str, Tensor]:
        """Returns the embeddings (N, D) of a batch from `TextRecorder.take`, under each of the keys."""
        found = torch.cat([self.model(dict(texts))["sentence_embedding"] for texts in batch[TEXTS]])
        return dict.fromkeys(keys, found)


class TextRecorder:
    """Keeps inputs and embeddings of a SentenceTransformer's forwards in training, from `start` to `take`.

    A loss may embed each column of a batch in a forward of its own, or several together.
    """

    def __init__(self, model: Any) -> None:
        self._width = model.get_embedding_dimension()
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after)
        self._inputs: dict[str, Any] = {}
        self.start()

    def start(self) -> None:
        """Forgets what was recorded."""
        self._texts: list[dict[str, Any]] = []
        self._embeddings: list[Tensor] = []

    def _before(self, model: nn.Module, inputs: Any) -> None:
        self._inputs = dict(inputs[0])  # a copy, because modules write into the dict that they get

    def _after(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if model.training and output["sentence_embedding"].requires_grad:
            self._texts.append(self._inputs)
            self._embeddings.append(output["sentence_embedding"])

    def take(self, columns: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns batch and outputs for a recipe: the inputs of each forward, and `sentence_embedding` (N, D).

        Args:
            columns: the inputs of each column of texts of the batch.

        Raises:
            UsageError: the loss has not embedded each text once, with gradients.
        """
        texts, embeddings = self._texts, self._embeddings
        self.start()
        wanted = sum(len(column["input_ids"]) for column in columns)
        if sum(map(len, embeddings)) != wanted or any(each.shape[1] != self._width for each in embeddings):
            raise UsageError(
                f"distillation needs the loss to embed each of the {wanted} texts of a batch once, with gradients, "
                "but this loss embeds them in parts, several times or not completely (as Cached and Matryoshka losses "
                "do): use a plain one, such as MultipleNegativesRankingLoss"
            )
        return {TEXTS: texts}, {"sentence_embedding": torch.cat(embeddings)}
