"""Recipes in the training loops of other libraries: transformers' Trainer, and SentenceTransformerTrainer."""

from __future__ import annotations

from sparse_accel.integrations.callback import RecipeCallback
from sparse_accel.integrations.embedding_models import load_sentence_transformer
from sparse_accel.integrations.mixin import RecipeMixin
from sparse_accel.integrations.text_teacher import TextTeacher

__all__ = ["RecipeCallback", "RecipeMixin", "TextTeacher", "load_sentence_transformer"]
