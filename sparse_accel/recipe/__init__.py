"""Recipes: text -> typed modifiers. Imports no torch and loads in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparse_accel.modifiers import KNOWN_LATER, REGISTRY
from sparse_accel.recipe.build import build
from sparse_accel.recipe.document import parse, read_source
from sparse_accel.recipe.errors import RecipeError
from sparse_accel.recipe.overrides import parse_recipe_args
from sparse_accel.recipe.recipe import Recipe
from sparse_accel.zoo import recipe_path

__all__ = ["Recipe", "RecipeError", "load_recipe"]


def load_recipe(
    source: str | Path,
    recipe_args: str | dict[str, Any] | None = None,
    resolve_stub: Callable[[str], Path] = recipe_path,
) -> Recipe:
    """Returns a recipe with its variables evaluated and its modifiers built.

    Args:
        source: path of a .yaml, .yml or .md file; a `zoo:` stub; or the text of a recipe, which contains a newline.
        recipe_args: values that replace variables of the recipe before it is evaluated: a JSON object, `a=1,b:2`, or
            a dict.
        resolve_stub: returns the path of the recipe that a `zoo:` stub names.

    Raises:
        RecipeError: the recipe cannot be read or is not valid; the message has file, line and key.
        UsageError: the stub does not exist.
    """
    arguments = parse_recipe_args(recipe_args)
    text, name = read_source(source, resolve_stub)
    try:
        return build(parse(text, name), arguments, REGISTRY, KNOWN_LATER, text=text, source=name)
    except RecursionError:
        raise RecipeError("variables or values are nested too deeply", name) from None
