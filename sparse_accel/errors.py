"""Errors for users: what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


class UsageError(Exception):
    """An error that the user can fix: in a flag, a recipe, a file, a column.

    The message says what is wrong, where, and what to do. Scripts print it without a traceback and exit with 2.

    Attributes:
        exit_code: of the script.
        of_one_process: whether only this process has the error, so that it must print it itself.
    """

    exit_code = 2
    of_one_process = False


class NoLabels(UsageError):
    """A file of rows whose labels are needed has no label column."""


class Stopped(BaseException):
    """A scheduler's signal ended the run: in training after the current step and a checkpoint, otherwise at once.

    Scripts exit with 75, which means "try again later" (EX_TEMPFAIL of sysexits.h). Like KeyboardInterrupt, it is not
    an Exception: it may be raised anywhere, and libraries that catch Exception to retry must not catch it.
    """

    exit_code = 75
    unsaved = ""  # why no checkpoint was written, if there should be one
    agreed = True  # raised on all processes between two steps; False: at once, on this process only


def nearest(name: str, known: Iterable[str], count: int = 1) -> str:
    """Returns ` Did you mean 'x'?` with at most `count` known names similar to `name`; empty if none is similar."""
    lowered = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(lowered[each]) for each in found)}?" if found else ""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, at most 200 characters; without a message, its class name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def listed(names: Iterable[object], most: int = 12) -> str:
    """Returns at most `most` names for a message: `a, b, c ... (57 in all)`."""
    words = [str(name) for name in names]
    return ", ".join(words) if len(words) <= most else f"{', '.join(words[:most])} ... ({len(words)} in all)"


def counted(number: int, noun: str) -> str:
    """Returns a number with a noun that forms its plural with an s: `1 shard`, `16 shards`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def with_article(noun: str) -> str:
    """Returns a noun, such as the name of an architecture or a class, with its article: `a bert`, `an AlbertModel`."""
    return f"{'an' if _SPOKEN_WITH_A_VOWEL.match(noun) else 'a'} {noun}"


def shown(value: object, most: int = 60) -> str:
    """Returns the repr of a value for a message, cut after `most` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        text = f"{with_article(type(value).__name__)} with thousands of digits"
    return text if len(text) <= most else f"{text[:most]}..."


def shortened(text: str) -> str:
    """Returns a message of at most 2,000 characters and 20 lines: a longer one keeps its beginning and its end."""
    lines = text.split("\n")
    if len(lines) > _MOST_LINES:
        head, tail = lines[: _MOST_LINES - 6], lines[-5:]
        text = "\n".join([*head, f"... [{len(lines) - len(head) - len(tail):,} lines left out] ...", *tail])
    left_out = len(text) - _BEGINNING - _END
    if len(text) <= _LONGEST_MESSAGE:
        return text
    return f"{text[:_BEGINNING]} ... [{left_out:,} characters left out] ... {text[-_END:]}"


def in_order(steps: Sequence[tuple[str, str]]) -> str:
    """Returns (place, outcome) pairs as numbered, aligned lines."""
    width = max(len(place) for place, _ in steps)
    return "\n".join(f"  {number}. {place:<{width}}  {outcome}" for number, (place, outcome) in enumerate(steps, 1))


# Letters that are read one by one count too: an xlm-roberta, an mpnet, an MT5.
_SPOKEN_WITH_A_VOWEL = re.compile("[aeiox]|m[pt]", re.IGNORECASE)
# Nobody reads a longer message, and it hides what was printed before.
_LONGEST_MESSAGE, _BEGINNING, _END, _MOST_LINES = 2000, 1400, 400, 20
