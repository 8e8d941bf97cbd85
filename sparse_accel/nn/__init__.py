"""Functions and layers on tensors. Nothing here reads recipes or files."""
