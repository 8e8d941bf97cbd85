"""Tensors in, tensors out: no recipe, no files."""
