"""The lines of text files, one at a time and with the place of each: for files of any size."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator

from sparse_accel.data.reading import check_signature
from sparse_accel.errors import UsageError, first_line, listed, shown

_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_BYTES_AT_ONCE = 1 << 16


def lines_from(file: str, offset: int = 0) -> Iterator[tuple[int, int | None, str]]:
    """Yields the lines of a UTF-8 file, from a byte on: of each its offset, its number and its text.

    Only a line feed ends a line; it is not part of the text, nor is a carriage return before it, nor a byte order mark
    at the start of the file. Blank lines are yielded too. At most one line is in memory.

    Args:
        file: its path.
        offset: first byte of a line, in bytes; 0 also checks the file.

    Returns:
        Tuples (offset of the line's first byte, number of the line from 1, text). The number is None if `offset` is
        not 0.

    Raises:
        UsageError: the file cannot be read, is empty, blank, compressed or of another format (`check_text`), a line is
            not UTF-8 or contains a NUL character, or no line begins at `offset`.
    """
    return texts_from(file, None, offset)


def json_texts_from(file: str, column: str, offset: int = 0) -> Iterator[tuple[int, int | None, str]]:
    """Yields the texts of a column of a file with one JSON object a line, as `lines_from`; no blank lines, no nulls.

    Raises:
        UsageError: as `lines_from`; a line is not a JSON object, has no such column, or its value is not text.
    """
    return texts_from(file, column, offset)


def texts_from(file: str, column: str | None, offset: int = 0) -> Iterator[tuple[int, int | None, str]]:
    """Yields what `lines_from` does, or for a column what `json_texts_from` does."""
    if offset == 0:
        check_text(file)
    for number, (start, line) in enumerate(raw_lines(file, offset), start=1):
        known = number if offset == 0 else None
        text = text_of(file, start, known, line, column)
        if text is not None:
            yield start, known, text


def raw_lines(file: str, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yields the offset of each line and its bytes, line feed included, from `offset` on.

    Raises:
        UsageError: the file cannot be read, or no line begins at `offset`.
    """
    try:
        with open(file, "rb") as stream:
            if offset:
                stream.seek(offset - 1)
                if stream.read(1) != b"\n":
                    raise UsageError(
                        f"{file} was changed: no line begins at byte {offset:,} any more. Restore the file, or start a "
                        "new run in another --output_dir."
                    )
            for line in stream:
                yield offset, line
                offset += len(line)
    except OSError as error:
        raise UsageError(f"{file} cannot be read (at byte {offset:,}): {first_line(error)}") from None


def text_of(file: str, offset: int, number: int | None, line: bytes, column: str | None = None) -> str | None:
    """Returns the text of a line, or of a column of the JSON object in it; None for null, and a blank line of JSON.

    Args:
        offset: of the line's first byte in the file.
        number: of the line from 1; None if not known. It is for messages, as the file's name.

    Raises:
        UsageError: see `lines_from` and `json_texts_from`.
    """
    place = f"{file}, line {number}" if number is not None else f"{file}, the line at byte {offset:,}"
    if offset == 0:
        line = line.removeprefix(codecs.BOM_UTF8)
    if b"\0" in line:
        raise UsageError(f"{place}: contains a NUL character. The file is damaged or UTF-16: save it as UTF-8.")
    try:
        text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{place}: not UTF-8 text ({error.reason} at byte {error.start + 1} of the line): save it as UTF-8."
        ) from None
    return text if column is None else _column_of(place, text, column)


def _column_of(place: str, text: str, column: str) -> str | None:
    if not text.strip():
        return None
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{place}, column {error.colno}: not valid JSON: {error.msg}.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: cannot be read as JSON: {error}.") from None
    if not isinstance(row, dict):
        raise UsageError(f"{place}: expected an object with columns as keys, got {shown(row)}.")
    if column not in row:
        raise UsageError(f"{place}: has no column '{column}'. Its columns: {listed(row) or 'none'}.")
    return None if row[column] is None else checked_text(f"{place}, column '{column}'", row[column])


def checked_text(place: str, value: object) -> str:
    """Returns a value that is text.

    Raises:
        UsageError: it is none, or has half of a surrogate pair, which JSON can spell but no encoding has.
    """
    if not isinstance(value, str):
        wrong = "has no text" if value is None else f"is {shown(value)}, which is not text"
        raise UsageError(f"{place}: {wrong}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{place}: has a lone surrogate (half of a \\u pair).") from None
    return value


def check_text(file: str) -> None:
    """Checks by its first bytes that a file is text, and that some line of it is not blank.

    Raises:
        UsageError: it cannot be read, is empty or blank, or is compressed or of another format or encoding.
    """
    try:
        check_signature(file)
        with open(file, "rb") as stream:
            piece = stream.read(_BYTES_AT_ONCE)
            if piece.startswith(_OTHER_ENCODINGS):
                raise UsageError(f"{file} is not UTF-8 text but UTF-16 or UTF-32: save it as UTF-8.")
            piece = piece.removeprefix(codecs.BOM_UTF8)
            while not piece.strip():
                piece = stream.read(_BYTES_AT_ONCE)
                if not piece:
                    raise UsageError(f"{file} has no text: all its lines are blank.")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {first_line(error)}") from None
