"""Text classification: one label a text, several, or a score."""
