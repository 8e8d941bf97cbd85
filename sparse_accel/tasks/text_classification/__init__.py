"""Text classification: one label per text, several labels, or a score."""
