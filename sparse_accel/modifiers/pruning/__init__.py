"""Pruning: which weights are held at zero, and from when."""
