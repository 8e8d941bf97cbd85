"""Masked language modelling: the tokens that were hidden in a text."""
