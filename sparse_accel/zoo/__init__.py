"""Resolves `zoo:` stubs, the addresses of SparseZoo's models and recipes.

Scripts call `recipe_path` and `model_source`; `Model` is for code that was written for the `sparsezoo` package. See
`resolve.py` for the search order. Imports nothing heavy.
"""

from sparse_accel.zoo.known import RECIPES
from sparse_accel.zoo.model import Model
from sparse_accel.zoo.resolve import model_source, recipe_path
from sparse_accel.zoo.stubs import is_stub, parse_stub

__all__ = ["RECIPES", "Model", "is_stub", "model_source", "parse_stub", "recipe_path"]
