"""Finds out why an answer is not where its offset says, for messages: bytes for characters, off by one, elsewhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sparse_accel.errors import shown

# What to do, for each cause.
BYTES = "convert offsets from UTF-8 bytes to characters: len(context.encode()[:answer_start].decode())"
UTF16 = (
    "convert offsets from UTF-16 units to characters: len(context.encode('utf-16-le')[:2 * start].decode('utf-16-le'))"
)
OFF_BY_ONE = "correct the offsets; they count characters from 0, white space at the beginning of the context included"
WHITE_SPACE = "correct the offsets or the white space: text and context must be exactly the same"
ELSEWHERE = "correct the offsets; they count characters of the context from 0"
ALTERED = "copy the answers' texts from their contexts, character by character"
NOT_THERE = "delete answers that are not in their context, or give them the right context"

_ALTERATIONS: dict[str, Callable[[str], str]] = {
    "letter case": str.casefold,
    "white space": lambda text: " ".join(text.split()),
    "Unicode normalization": lambda text: unicodedata.normalize("NFC", text),
}


@dataclass(frozen=True)
class Fault:
    """What is wrong with a question or an answer.

    Attributes:
        what: for one row, such as "answer 1 is 'Paris' at 12, but the context has 'aris ' there".
        remedy: what to do; the same text for all faults with one cause.
    """

    what: str
    remedy: str


def find_fault(context: str, text: str, start: int) -> Fault | None:
    """Returns why an answer is not `context[start : start + len(text)]`; None if it is.

    Args:
        context: text that contains the answer.
        text: the answer; not only white space.
        start: its offset, in characters (code points) from 0; not negative.

    Returns:
        The most likely cause: the offset counts UTF-8 bytes or UTF-16 units; it is off by one, or by white space; the
        answer is at other offsets (the nearest one is named); the context has it in another spelling; or not at all.
    """
    found = context[start : start + len(text)]
    if found == text:
        return None
    there = f"has {shown(found)} there" if found else f"ends at {len(context)}"
    return _cause(f"{shown(text)} at {start}, but the context {there}", context, text, start)


def _cause(what: str, context: str, text: str, start: int) -> Fault:
    places = list(_places(context, text))
    for unit, encoding, size, remedy in (("UTF-8 bytes", "utf-8", 1, BYTES), ("UTF-16 units", "utf-16-le", 2, UTF16)):
        # Not the start of a character: no offset in this unit.
        before = context.encode(encoding)[: size * start].decode(encoding, errors="replace")
        if len(before) in places and context.startswith(before):
            return Fault(f"{what}: {start} counts {unit}; in characters it is {len(before)}", remedy)
    if places:
        nearest = min(places, key=lambda place: abs(place - start))
        between = context[min(nearest, start) : max(nearest, start)]
        if between and not between.strip():
            return Fault(f"{what}: it is at {nearest}, and white space is between", WHITE_SPACE)
        if abs(nearest - start) == 1:
            return Fault(f"{what}: it is at {nearest}, so the offset is off by one", OFF_BY_ONE)
        others = f"; {len(places)} places in all" if len(places) > 1 else ""
        return Fault(f"{what}: it is at {nearest}{others}", ELSEWHERE)
    stripped = list(_places(context, text.strip()))
    if stripped:
        nearest = min(stripped, key=lambda place: abs(place - start))
        return Fault(f"{what}: without the white space at its ends it is at {nearest}", WHITE_SPACE)
    for name, alter in _ALTERATIONS.items():
        if alter(text) in alter(context):
            return Fault(f"{what}: the context has it with another {name}", ALTERED)
    return Fault(f"{what}, and nowhere else", NOT_THERE)


def _places(context: str, text: str) -> Iterator[int]:
    """Yields every offset of a text in its context."""
    place = context.find(text)
    while place >= 0:
        yield place
        place = context.find(text, place + 1)
