"""Sentence embeddings: one vector per text, so that near texts have near vectors."""
