"""Shared by the readers of all data files: checks of the first bytes, decoding, and the type of the rows."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any, NamedTuple

from sparse_accel.errors import UsageError
from sparse_accel.files import lfs_pointer_error

# First bytes of files that get the name of a data file by mistake, and what they are.
_PARQUET = re.compile(rb"PAR1\x15")
_SIGNATURES = {
    re.compile(rb"\x1f\x8b"): "compressed with gzip: decompress it first",
    re.compile(rb"BZh\d1AY&SY"): "compressed with bzip2: decompress it first",
    re.compile(rb"\xfd7zXZ\0"): "compressed with xz: decompress it first",
    re.compile(rb"\x28\xb5\x2f\xfd"): "compressed with Zstandard: decompress it first",
    re.compile(rb"PK\x03\x04"): "a zip archive or an Excel workbook: unpack it first, or export the sheet as CSV",
    re.compile(rb"\xd0\xcf\x11\xe0"): "an Excel workbook: export the sheet as CSV",
    re.compile(rb"ARROW1\0"): "an Arrow file: save it as Parquet",
    _PARQUET: "a Parquet file: give it the suffix .parquet",
    re.compile(rb"\s*<(!doctype )?html", re.IGNORECASE): "a web page: download the data file itself",
}


class Rows(NamedTuple):
    """The rows of a file, as the reader found them.

    Attributes:
        columns: values of each column, row by row.
        lines: last line of each row, from 1; empty if the rows have no line numbers.
        index_columns: names of the columns that the file marks as row names, not data.
    """

    columns: dict[str, list[Any]]
    lines: list[int]
    index_columns: frozenset[str] = frozenset()


def check_signature(file: str) -> None:
    """Checks by the first bytes of a file that it is what its suffix says.

    An empty .csv or .tsv file passes: their reader reports the missing header line.

    Raises:
        UsageError: a Git LFS pointer, a compressed file, a workbook, a web page, another data format, an empty file.
        OSError: the file cannot be read.
    """
    if message := lfs_pointer_error(file):
        raise UsageError(message)
    suffix = Path(file).suffix.lower()
    with open(file, "rb") as stream:
        begin = stream.read(32)
    if not begin and suffix not in (".csv", ".tsv"):
        raise UsageError(f"{file} is empty.")
    for signature, what in _SIGNATURES.items():
        if signature.match(begin) and not (signature is _PARQUET and suffix == ".parquet"):
            raise UsageError(f"{file} is {what}.")


def read_text(file: str) -> str:
    """Returns the text of a UTF-8 file, without its byte order mark and with unchanged line ends.

    Raises:
        UsageError: the file has another encoding, or contains a NUL character.
        OSError: the file cannot be read.
    """
    content = Path(file).read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise UsageError(f"{file} is not UTF-8 text but UTF-16 or UTF-32: save it as UTF-8.")
    if (place := content.find(b"\0")) >= 0:
        raise UsageError(
            f"{file}, line {_line_of(content, place)}: contains a NUL character. The file is damaged or UTF-16: save "
            "it as UTF-8."
        )
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line = _line_of(error.object, error.start)
        raise UsageError(f"{file} is not UTF-8 text (line {line}: {error.reason}): save it as UTF-8.") from None


def _line_of(content: bytes, place: int) -> int:
    return content.count(b"\n", 0, place) + 1
