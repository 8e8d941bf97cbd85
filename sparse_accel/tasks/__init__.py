"""All tasks by name. A new task is a folder here and an entry in TASKS."""

from __future__ import annotations

from typing import Any

from sparse_accel.tasks.base import Task
from sparse_accel.tasks.label_names import Head, head_in
from sparse_accel.tasks.masked_language_modeling.task import MaskedLanguageModeling
from sparse_accel.tasks.other_head import OtherHead
from sparse_accel.tasks.question_answering.task import QuestionAnswering
from sparse_accel.tasks.sentence_embedding.task import SentenceEmbedding
from sparse_accel.tasks.text_classification.reranker import Reranker
from sparse_accel.tasks.text_classification.task import TextClassification
from sparse_accel.tasks.token_classification.task import TokenClassification

__all__ = [
    "TASKS",
    "MaskedLanguageModeling",
    "QuestionAnswering",
    "Reranker",
    "SentenceEmbedding",
    "Task",
    "TextClassification",
    "TokenClassification",
    "task_class",
    "task_of",
]

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        TextClassification,
        TokenClassification,
        QuestionAnswering,
        MaskedLanguageModeling,
        SentenceEmbedding,
    )
}


def task_class(config: Any) -> type[Task] | None:
    """Returns the task of a configuration's head, or of its pooling; None for another head or neither."""
    names = getattr(config, "architectures", None) or []
    return next((task for task in TASKS.values() if task.is_for(names, config)), None)


def task_of(model: Any) -> Task:
    """Returns the task of a model, without rows, by its class or else its configuration.

    Another head of a Hugging Face model is an OtherHead; a model without configuration is one for TextClassification.

    Raises:
        UsageError: the labels in its configuration are invalid.
    """
    config = getattr(model, "config", None)
    kinds = (task for task in TASKS.values() if task.is_for([type(model).__name__], config))
    known = next(kinds, None) or task_class(config)
    kind = known or (TextClassification if config is None else OtherHead)
    unnamed = Head(["0", "1"], getattr(config, "problem_type", None))
    head = head_in(config, "config.json") if hasattr(config, "id2label") else unnamed
    return kind.class_for(head)(head)
