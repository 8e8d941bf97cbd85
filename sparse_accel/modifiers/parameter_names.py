"""Finds the parameters that a recipe names: `__ALL__`, `__ALL_PRUNABLE__`, `re:PATTERN` and plain names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from sparse_accel.errors import UsageError
from sparse_accel.modifiers.base import FieldError

ALL = "__ALL__"
ALL_PRUNABLE = "__ALL_PRUNABLE__"


def check_patterns(key: str, patterns: str | list[str]) -> None:
    """Checks patterns before there is a model.

    Raises:
        FieldError: one is empty, or is not a regular expression; its key is `key`.
    """
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not pattern:
            raise FieldError(key, "contains an empty name: remove it")
        if pattern.startswith("re:"):
            try:
                re.compile(pattern.removeprefix("re:"))
            except re.error as error:
                raise FieldError(key, f"'{pattern}' is not a regular expression: {error}") from None


def match_parameter_names(
    patterns: str | list[str],
    names: Iterable[str],
    prunable: Iterable[str] = (),
    *,
    strict: bool = True,
    key: str = "params",
    kind: str = "parameter of this model",
) -> list[str]:
    """Returns the names that match at least one pattern, in the order of `names`.

    Args:
        patterns: `__ALL__` matches every name, `__ALL_PRUNABLE__` every name in `prunable`, `re:PATTERN` each name that
            the regular expression matches from its beginning (as re.match does), anything else the name itself.
        names: all parameter names of the model.
        prunable: the names that `__ALL_PRUNABLE__` matches.
        strict: True: a pattern that matches nothing is an error; False: it is ignored.
        key: the recipe key with the patterns, for messages.
        kind: what the names are, for messages.

    Raises:
        UsageError: a pattern matches nothing (the message lists similar names) or is not a regular expression.
    """
    listed = list(names)
    matched: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = _matches(pattern, listed, prunable, key)
        if strict and not found:
            raise UsageError(f"{key}: '{pattern}' matches no {kind}.{_near(pattern, listed)}")
        matched.update(found)
    return [name for name in listed if name in matched]


def _matches(pattern: str, names: list[str], prunable: Iterable[str], key: str) -> set[str]:
    if pattern == ALL:
        return set(names)
    if pattern == ALL_PRUNABLE:
        return set(names).intersection(prunable)
    if not pattern.startswith("re:"):
        return {pattern}.intersection(names)
    try:
        expression = re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise UsageError(f"{key}: '{pattern}' is not a regular expression: {error}") from None
    return {name for name in names if expression.match(name)}


def _near(pattern: str, names: list[str]) -> str:
    """Returns a hint: names that match later than at their beginning, or names with a similar spelling."""
    plain = pattern.removeprefix("re:")
    if not names:
        return " The model has no parameters."
    if pattern.startswith("re:"):
        inside = [name for name in names if re.search(plain, name)]
        if inside:
            return f" It matches inside {_few(inside)}; patterns match from the beginning of a name: put .* first"
    elif inside := [name for name in names if name.startswith(f"{plain}.")]:
        return f" It is a module with {_few(inside)}: write 're:{re.escape(plain)}[.]' for all its parameters"
    near = difflib.get_close_matches(re.sub(r"[\\^$*+?()\[\]|]", "", plain), names, n=3, cutoff=0.4)
    return f" Similar names: {', '.join(near)}" if near else f" The model has {_few(names)}"


def _few(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
