"""Changes of an input: of its bytes, its lines and its words. The same seed gives the same change."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

# What programs trip over, whatever the format.
ODD = (
    *(
        b"",
        b"-1",
        b"0",
        b"-0.0",
        b"1e400",
        b"nan",
        b"NaN",
        b"inf",
        b"-inf",
        b"null",
        b"~",
        b"true",
        b"no",
        b"2147483648",
    ),
    *(b"99999999999999999999", b"0x10", b"1_000", b"0.1e-400", b"[]", b"{}", b"[[[[[[[[", b"{{", b"}}", b"*a", b"&a x"),
    *(
        b"!!python/object/apply:os.system ['touch x']",
        b"<<: *a",
        b"../../x",
        b"/etc/passwd",
        b"~root",
        b"%s%n",
        b"\\ud800",
    ),
    *(b"\xef\xbb\xbf", b"\x00", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"\r\n", b"\r", b"\t"),
    *(
        b'"',
        b"'",
        b"\\",
        b",",
        b";",
        b":",
        b"#",
        b"---",
        b"...",
        b"|",
        b">",
        b"a" * 5000,
        b"1" * 400,
        b"1" * 5000,
        b"0x" + b"f" * 5000,
        b"\n" * 300,
    ),
)
_WORD = re.compile(rb"[^\s,:;{}\[\]\"'=]+")


def mutated(data: bytes, others: Sequence[bytes], words: Sequence[bytes], seed: int) -> bytes:
    """Returns a changed input.

    Args:
        data: any bytes.
        others: inputs of the same kind, whose parts may be taken over.
        words: of the format, such as its keys.
        seed: of the changes, 1 to 4 of them.
    """
    draw = random.Random(seed)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice((_word, _word, _word, _lines, _lines, _bytes, _splice))(data, others, words, draw)
    return data


def _word(data: bytes, others: Sequence[bytes], words: Sequence[bytes], draw: random.Random) -> bytes:
    found = list(_WORD.finditer(data))
    if not found:
        return data + draw.choice(ODD)
    place, other = draw.choice(found), draw.choice(found).group()
    new = draw.choice((draw.choice(ODD), draw.choice(words) if words else other, other, other[:-1], other + other))
    return data[: place.start()] + new + data[place.end() :]


def _lines(data: bytes, others: Sequence[bytes], words: Sequence[bytes], draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    if len(lines) < 2:
        return _bytes(data, others, words, draw)
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    kind = draw.randrange(5)
    if kind == 0:
        del lines[one]
    elif kind == 1:
        lines.insert(other, lines[one])
    elif kind == 2:
        lines[one], lines[other] = lines[other], lines[one]
    elif kind == 3:
        lines[one] = draw.choice((b" ", b"  ", b"\t", b"- ")) + lines[one]
    else:
        lines[one] = lines[one].lstrip()
    return b"".join(lines)


def _bytes(data: bytes, others: Sequence[bytes], words: Sequence[bytes], draw: random.Random) -> bytes:
    if not data:
        return bytes(draw.randrange(256) for _ in range(draw.randrange(1, 64)))
    place, kind = draw.randrange(len(data)), draw.randrange(5)
    if kind == 0:
        return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + draw.choice(ODD) + data[place:]
    end = min(len(data), place + draw.choice((1, 2, 4, 8, 64)))
    return data[:place] + (
        data[end:] if kind == 3 else bytes(draw.randrange(256) for _ in range(end - place)) + data[end:]
    )


def _splice(data: bytes, others: Sequence[bytes], words: Sequence[bytes], draw: random.Random) -> bytes:
    other = draw.choice(others) if others else data
    if not data or not other:
        return data or other
    begin = draw.randrange(len(other))
    part = other[begin : begin + draw.randrange(1, 200)]
    place = draw.randrange(len(data))
    return data[:place] + part + data[place + (len(part) if draw.random() < 0.5 else 0) :]
