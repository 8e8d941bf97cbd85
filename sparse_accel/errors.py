"""Errors for people: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UsageError(Exception):
    """Something that the user can mend: a flag, a recipe, a file, a column.

    The message says what is wrong, where, and what to do. Scripts print it without a traceback and exit with 2.
    """

    exit_code = 2
    of_one_process = False


class Stopped(BaseException):
    """A scheduler's signal ended the run: after the step under way, and saved, or at once where it was not training.

    Scripts exit with 75, the code that asks to be tried again later (EX_TEMPFAIL of sysexits.h). As KeyboardInterrupt
    it is no Exception: it may be raised anywhere, and libraries that try again or make do must not take it for theirs.
    """

    exit_code = 75
    agreed = True  # between two steps, on all processes; otherwise at once, on this one


def nearest(name: str, known: Iterable[str], count: int = 1) -> str:
    """Returns ` Did you mean 'x'?` for the known names nearest to `name`, `count` at most; empty when none is near."""
    lowered = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(lowered[each]) for each in found)}?" if found else ""


def first_line(error: BaseException) -> str:
    """Returns what an error says first, at most 200 characters; the name of its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def listed(names: Iterable[object], most: int = 12) -> str:
    """Returns names for a message, at most `most` of them: `a, b, c ... (57 in all)`."""
    words = [str(name) for name in names]
    return ", ".join(words) if len(words) <= most else f"{', '.join(words[:most])} ... ({len(words)} in all)"


def shown(value: object, most: int = 60) -> str:
    """Returns a value for a message: its repr, cut after `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def shortened(text: str) -> str:
    """Returns a message of at most 2,000 characters: a longer one keeps its beginning and its end."""
    left_out = len(text) - _BEGINNING - _END
    if len(text) <= _LONGEST_MESSAGE:
        return text
    return f"{text[:_BEGINNING]} ... [{left_out:,} characters left out] ... {text[-_END:]}"


def in_order(steps: Sequence[tuple[str, str]]) -> str:
    """Returns (place, outcome) of what was tried as numbered lines of a table."""
    width = max(len(place) for place, _ in steps)
    return "\n".join(f"  {number}. {place:<{width}}  {outcome}" for number, (place, outcome) in enumerate(steps, 1))


# A longer message is not read, and hides what was printed before it.
_LONGEST_MESSAGE, _BEGINNING, _END = 2000, 1400, 400
