"""`zoo:` stubs, the addresses of SparseZoo's models and recipes: what they lead to now.

`recipe_path` and `model_source` are what the scripts call; `Model` is for code that was written for the `sparsezoo`
package. The order in which places are tried stands in `resolve.py`. Imports nothing heavy.
"""

from sparse_accel.zoo.known import RECIPES
from sparse_accel.zoo.model import Model
from sparse_accel.zoo.resolve import model_source, recipe_path
from sparse_accel.zoo.stubs import is_stub, parse_stub

__all__ = ["RECIPES", "Model", "is_stub", "model_source", "parse_stub", "recipe_path"]
