"""`recipe_args`: values that replace variables of a recipe before it is evaluated."""

from __future__ import annotations

import json
import re
from typing import Any

from sparse_accel.recipe.document import parse_scalar
from sparse_accel.recipe.errors import RecipeError

_PAIR = re.compile(r"\s*(?P<name>[^\s=:{}\[\],]+)\s*[=:](?P<value>.*)\s*\Z", re.DOTALL)


def parse_recipe_args(recipe_args: str | dict[str, Any] | None) -> dict[str, Any]:
    """Returns values by variable name.

    Args:
        recipe_args: a JSON object, `a=1,b:2`, a dict, or None.

    Raises:
        RecipeError: it cannot be read, or a name or value is not valid.
    """
    if recipe_args is None:
        return {}
    if isinstance(recipe_args, dict):
        return {_name(name): _plain(name, value) for name, value in recipe_args.items()}
    text = recipe_args.strip()
    if not text:
        return {}
    return _parse_json(text) if text[0] in "{[" else _parse_pairs(text)


def _parse_json(text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise RecipeError(f"recipe_args: duplicate name '{name}'")
        return dict(pairs)

    def refuse(constant: str) -> Any:
        raise RecipeError(f"recipe_args: the value {constant} is not supported in a recipe")

    try:
        values = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, and integers of thousands of digits
        raise RecipeError(
            f"recipe_args: not valid JSON ({error}): {text}\n"
            """Put names in double quotes, the object in single ones: --recipe_args '{"num_epochs": 12}'; """
            "or write --recipe_args num_epochs=12,init_lr=1e-4"
        ) from None
    if not isinstance(values, dict):
        raise RecipeError(f"""recipe_args: expected a JSON object such as '{{"num_epochs": 12}}', got {text}""")
    return values


def _parse_pairs(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in _split(text):
        pair = _PAIR.match(part)
        if not pair:
            raise RecipeError(f"recipe_args: '{part.strip()}' is not NAME=VALUE, as in num_epochs=12,init_lr=1e-4")
        name = pair["name"].strip("\"'")
        if name in values:
            raise RecipeError(f"recipe_args: duplicate name '{name}'")
        try:
            values[name] = parse_scalar(pair["value"].strip())
        except ValueError as error:
            raise RecipeError(f"recipe_args: the value of '{name}' cannot be read: {error}") from None
    return values


def _split(text: str) -> list[str]:
    """Splits `text` at its commas, except those inside brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and depth == 0 and not quote:
            parts.append("")
            continue
        if character == quote:
            quote = ""
        elif not quote:
            quote = character if character in "\"'" else ""
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        parts[-1] += character
    return parts


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise RecipeError(f"recipe_args: {name!r} is not the name of a variable")
    return name


def _plain(name: str, value: Any) -> Any:
    """Returns a Python value as a recipe's text would give it; NumPy numbers, for example, become plain."""
    if isinstance(value, dict):
        return {_plain(name, key): _plain(name, entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, entry) for entry in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise RecipeError(f"recipe_args: the value of '{name}' is {value!r}, which is not supported in a recipe", key=name)
