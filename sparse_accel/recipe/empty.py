"""The error for a recipe without modifiers: which line to look at, and what to do."""

from __future__ import annotations

import re

from sparse_accel.errors import listed
from sparse_accel.recipe.document import Mapping, front_matter, normalized
from sparse_accel.recipe.errors import RecipeError
from sparse_accel.recipe.recipe import is_group, is_stage

_EMPTY = "the recipe has no modifiers, so it would change nothing"
_HOW = "List modifiers under a key with 'modifiers' in its name, each as `- !Name` with its keys below"
# A line that begins a list of modifiers or one of its entries; and an entry that is a comment.
_BEGINS = re.compile(
    r"^[ \t]*(?:[\w.-]*modifiers[\w.-]*[ \t]*:[ \t]*(?:[#\[].*)?|-[ \t]+!\S*Modifier\b.*)$", re.MULTILINE
)
_COMMENT = re.compile(r"^[ \t]*#[#\t ]*-[ \t]+!\S*Modifier\b.*$", re.MULTILINE)


def empty_recipe_error(parsed: Mapping, text: str, source: str) -> RecipeError:
    """Returns the error for a recipe without modifiers.

    Args:
        parsed: what `parse` returned for `text`.
        text: the recipe as given.
        source: its path, or `<text>`.
    """
    text = normalized(text)
    start, end = 0, len(text)
    keys = listed(parsed)
    if found := front_matter(text, source):
        start, end = found.span("yaml")
        first, last = _line(text, found.start("mark")), _line(text, end)
        held = f"keys there: {keys}" if parsed else "it is empty"
        where = f" Only the YAML between the two `{found['mark']}` lines ({first} and {last}) is read; {held}."
        if below := _BEGINS.search(text, end):
            message = f"{_quoted(below)} is below the front matter.{where} Move the recipe, with its variables, there"
            return RecipeError(f"{_EMPTY}: {message}", source, _line(text, below.start()))
    else:
        where = f" Keys in it: {keys}." if parsed else " It is empty."
    if comment := _COMMENT.search(text, start, end):
        message = f"{_quoted(comment)} is a comment.{where} Remove the # from the lines that you want"
        return RecipeError(f"{_EMPTY}: {message}", source, _line(text, comment.start()))
    for level in (parsed, *(value for value in parsed.values() if is_stage(value))):
        for key, value in level.items():
            if is_group(key, value):
                message = f"'{key}' is an empty list.{where} Write each modifier there as `- !Name` with its keys below"
                return RecipeError(f"{_EMPTY}: {message}", source, level.line_of(key), key)
    return RecipeError(f"{_EMPTY}.{where} {_HOW}", source)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _quoted(line: re.Match[str]) -> str:
    return f"`{line[0].strip()[:60]}`"


def below_front_matter(text: str, source: str) -> str | None:
    """Returns a warning if there are modifiers below a front matter that has others; None if there are none."""
    text = normalized(text)
    found = front_matter(text, source)
    below = _BEGINS.search(text, found.span("yaml")[1]) if found else None
    if below is None:
        return None
    return (
        f"{source}:{_line(text, below.start())}: {_quoted(below)} is below the front matter and is not read: only "
        "the YAML between its two marker lines is"
    )
