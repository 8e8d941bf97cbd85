"""Reads the rows of CSV and TSV files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from sparse_accel.data.reading import Rows
from sparse_accel.errors import UsageError, shown


class _Row(NamedTuple):
    """One row: its first and last line, its fields, and the positions of the fields in double quotes."""

    begin: int
    line: int
    fields: list[str]
    quoted: tuple[int, ...]


def read_delimited(file: str, text: str, separator: str) -> Rows:
    r"""Returns the rows of a CSV or TSV file; the first line that is not blank is the header.

    CSV: fields may be in double quotes, and a literal double quote inside is written twice; blank lines are skipped.
    TSV exists in two variants: without quoting (GLUE: a double quote is a character, a line is a row) and as CSV. A TSV
    file is read

    - as CSV if all fields of its header are in double quotes;
    - else in the variant that gives every row as many fields as the header, if only one variant does;
    - else (both do) as CSV if exactly those fields are in quotes that a CSV writer quotes: fields with a quote (Excel:
      with a quote or comma). A line break in quotes is then not one field but two rows, each with one quote;
    - else without quoting.

    Args:
        file: name of the file, for messages.
        text: content of the file. Lines end with \n or \r\n, or with \r in a file without any \n.
        separator: "," or "\t".

    Raises:
        UsageError: no header, duplicate columns, another separator, a quote that is not closed, a row that does not
            have as many fields as the header, or a TSV file of one column whose quotes are ambiguous.
    """
    if "\n" not in text:
        text = text.replace("\r", "\n")
    header, *rows = _read_tsv(file, text) if separator == "\t" else _read_rows(file, text, separator, quoting=True)
    # Leave out columns without a name: pandas writes its index as such a first column.
    names = {name: place for place, name in enumerate(header.fields) if name}
    columns = {name: [row.fields[place] for row in rows] for name, place in names.items()}
    return Rows(columns, [row.line for row in rows])


def _read_tsv(file: str, text: str) -> list[_Row]:
    header = text.partition("\n")[0].rstrip("\r").split("\t")
    if all(len(name) > 1 and name[0] == name[-1] == '"' for name in header):
        return _read_rows(file, text, "\t", quoting=True)
    if '"' not in text:
        return _read_rows(file, text, "\t", quoting=False)
    try:
        quoted = _read_rows(file, text, "\t", quoting=True)
    except UsageError:
        return _read_rows(file, text, "\t", quoting=False)
    try:
        plain = _read_rows(file, text, "\t", quoting=False)
    except UsageError:
        return quoted
    return quoted if _is_csv(file, quoted) else plain


def _is_csv(file: str, rows: list[_Row]) -> bool:
    """Whether exactly those fields are in quotes that a CSV writer quotes; the file is also valid without quoting.

    A line break in quotes may also be two rows without quoting, of which the first begins with a quote and the second
    ends with one. In a file of one column this is ambiguous, unless other quotes decide.
    """
    quoted_for_comma, quoted_for_quote, comma_without_quotes = 0, 0, False
    doubtful: _Row | None = None
    for row in rows:
        for place, field in enumerate(row.fields):
            if place not in row.quoted:
                if '"' in field:
                    return False
                comma_without_quotes |= "," in field
            elif "\n" in field:
                if len(row.fields) > 1:
                    return False
                doubtful = doubtful or row
            elif '"' in field or "\r" in field or not field:  # some writers distinguish "" from a missing value
                quoted_for_quote += 1
            elif "," in field:
                quoted_for_comma += 1
            else:
                return False
    if quoted_for_comma and (comma_without_quotes or quoted_for_comma + quoted_for_quote == 1):
        return False  # a single field does not prove how the file was written
    if doubtful is not None:
        raise UsageError(
            f"{file}, line {doubtful.line}: this double quote may close the one in line {doubtful.begin} (one row), or "
            "be a character (several rows). Save the file as .csv or .jsonl."
        )
    return True


def _read_rows(file: str, text: str, separator: str, quoting: bool) -> list[_Row]:
    """Returns the header and all rows, each with as many fields as the header."""
    rows = _split_rows(file, text, separator, quoting)
    first = next(rows, _Row(1, 1, [], ()))
    header = first.fields
    if not any(header):
        raise UsageError(f"{file} has no header line: its first line must name the columns.")
    others = (mark for mark in (",;|" if separator == "\t" else ";\t|") if len(header) == 1 and mark in header[0])
    if (other := next(others, None)) is not None:
        raise UsageError(
            f"{file}, line {first.line}: {shown(header[0])} is one column. The separator seems to be {other!r}: save "
            "the file with commas, or with tabs as .tsv."
        )
    if twins := [name for name in header if name and header.count(name) > 1]:
        raise UsageError(f"{file}, line {first.line}: duplicate column {shown(twins[0])}.")
    result = [first]
    for row in rows:
        if len(row.fields) != len(header):
            unnamed = ", the last one without a name" if not header[-1] else ""
            what = "tab" if separator == "\t" else "comma, quote"
            raise UsageError(
                f"{file}, row {len(result)} (line {row.line}): {len(row.fields)} fields, but the header has "
                f"{len(header)}{unnamed}. A field that contains a {what} or line break must be in double quotes."
                + (f" The row begins in line {row.begin}, with a quote." if row.begin < row.line else "")
            )
        result.append(row)
    return result


def _split_rows(file: str, text: str, separator: str, quoting: bool) -> Iterator[_Row]:
    """Yields all lines that are not blank, split into fields; with quoting, like Python's csv reader in strict mode."""
    # A field in quotes, followed by a separator or the end of the line; or a field that does not begin with a quote.
    field = re.compile(rf'"([^"]*(?:""[^"]*)*)"(?={separator}|\r*(?:\n|\Z))|(?!")[^{separator}\n]*')
    position, line = 0, 1
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        fields: list[str] = []
        quoted: list[int] = []
        begin, first = position, line
        if not quoting or text.find('"', position, end) < 0:
            fields = text[position:end].rstrip("\r").split(separator)
        else:
            while True:
                match = field.match(text, position)
                if match is None:
                    raise _quote_fault(file, text, position, line + text.count("\n", begin, position))
                if match[1] is not None:
                    quoted.append(len(fields))
                fields.append(match[0] if match[1] is None else match[1].replace('""', '"'))
                position = match.end()
                if not text.startswith(separator, position):
                    break
                position += 1
            if match[1] is None:
                fields[-1] = fields[-1].rstrip("\r")
            end = text.find("\n", position)
            end = len(text) if end < 0 else end
            line += text.count("\n", begin, position)
        if fields != [""] or quoted:
            yield _Row(first, line, fields, tuple(quoted))
        position, line = end + 1, line + 1


def _quote_fault(file: str, text: str, position: int, line: int) -> UsageError:
    """Returns the error for the quoted field that begins at a position."""
    closed = re.compile(r'"[^"]*(?:""[^"]*)*"(?!")').match(text, position)
    if closed is None:
        what = "the double quote that opens a field here is never closed."
    else:
        last = line + text.count("\n", position, closed.end())
        rest = text[closed.end() :].partition("\n")[0]
        what = f"a double quote opens a field here, but after the closing one, in line {last}, comes {shown(rest)}."
    return UsageError(f'{file}, line {line}: {what} Write a quote inside a text twice: "".')
