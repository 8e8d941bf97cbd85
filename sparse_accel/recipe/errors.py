"""The error for everything that can be wrong with a recipe."""

from __future__ import annotations

from sparse_accel.errors import UsageError


class RecipeError(UsageError):
    """A recipe that cannot be read or is not valid.

    Attributes:
        source: file of the recipe, or `<text>`; empty if the error is not in a recipe's text.
        line: line in it, from 1; None if the error is not in one line.
        key: the key that is wrong; None if there is none.
    """

    def __init__(self, message: str, source: str = "", line: int | None = None, key: str | None = None) -> None:
        place = f"{source}:{line}" if source and line else source
        super().__init__(f"{place}: {message}" if place else message)
        self.source = source
        self.line = line
        self.key = key
