"""sparse_accel: recipe-driven sparse transfer learning, quantization-aware training and distillation for encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_accel.export.answer import answer
    from sparse_accel.export.archive import expand
    from sparse_accel.export.embed import embed
    from sparse_accel.export.fill_mask import fill_mask
    from sparse_accel.models.files import load
    from sparse_accel.models.teacher import Teacher
    from sparse_accel.recipe import load_recipe
    from sparse_accel.recipe_run import RecipeRun

__all__ = ["RecipeRun", "Teacher", "answer", "embed", "expand", "fill_mask", "load", "load_recipe"]
__version__ = "0.1.0"

_HOME = {
    "RecipeRun": "recipe_run",
    "Teacher": "models.teacher",
    "answer": "export.answer",
    "embed": "export.embed",
    "expand": "export.archive",
    "fill_mask": "export.fill_mask",
    "load": "models.files",
    "load_recipe": "recipe",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import sparse_accel` and recipe errors do not need torch.
    if name not in _HOME:
        raise AttributeError(f"module 'sparse_accel' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"sparse_accel.{_HOME[name]}"), name)
