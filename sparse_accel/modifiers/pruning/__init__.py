"""Pruning: which weights are kept at zero, and from which epoch."""
