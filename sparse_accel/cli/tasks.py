"""The flags of each training script, by the name of its task. Imports nothing heavy."""

from __future__ import annotations

from sparse_accel.cli.masked_language_modeling import MaskedLanguageModelingArguments
from sparse_accel.cli.question_answering import QuestionAnsweringArguments
from sparse_accel.cli.sentence_embedding import SentenceEmbeddingArguments
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.cli.token_classification import TokenClassificationArguments
from sparse_accel.cli.training import TrainingArguments

ARGUMENTS: dict[str, type[TrainingArguments]] = {
    "text_classification": TextClassificationArguments,
    "token_classification": TokenClassificationArguments,
    "question_answering": QuestionAnsweringArguments,
    "masked_language_modeling": MaskedLanguageModelingArguments,
    "sentence_embedding": SentenceEmbeddingArguments,
}
