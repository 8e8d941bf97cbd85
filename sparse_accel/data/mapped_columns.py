"""Text columns of large Parquet files as files of Arrow that are mapped into memory, and shared by all processes.

Parquet is compressed, so that reading a column takes memory for all of its texts. A file of Arrow has them as they are:
what is mapped are its pages, which the system drops when memory is short.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import Dataset

from sparse_accel.errors import UsageError, first_line
from sparse_accel.files import digest_of, to_disk

# A file with fewer rows and bytes of content is read into memory.
_MANY_ROWS, _MANY_BYTES = 1_000_000, 1 << 28


def is_large(file: pyarrow.parquet.ParquetFile) -> bool:
    """Whether the content of a file should not be in memory."""
    known = file.metadata
    content = sum(known.row_group(group).total_byte_size for group in range(known.num_row_groups))
    return known.num_rows >= _MANY_ROWS or content >= _MANY_BYTES


def mapped_column(
    file: pyarrow.parquet.ParquetFile, path: str, column: str, type_: pyarrow.DataType, folder: Path
) -> Dataset:
    """Returns a column as a dataset of its own. It is written once, under a digest of the file's content.

    Args:
        file: opened.
        path: of the file.
        column: its name.
        type_: of the column in the result.
        folder: for the file that is mapped.

    Raises:
        UsageError: the folder has no room.
        OSError, ArrowException: the Parquet file cannot be read.
    """
    name = hashlib.sha256(f"{digest_of(Path(path))} {column} {type_}".encode()).hexdigest()[:32]
    target = folder / f"{name}.column.arrow"
    if target.exists():
        with contextlib.suppress(OSError, pyarrow.ArrowInvalid):  # damaged: it is written again
            found = Dataset.from_file(str(target))
            if len(found) == file.metadata.num_rows:
                return found
    _write(target, pyarrow.schema({column: type_}), lambda write: _read(file, column, type_, write))
    return Dataset.from_file(str(target))


def _read(
    file: pyarrow.parquet.ParquetFile,
    column: str,
    type_: pyarrow.DataType,
    write: Callable[[pyarrow.RecordBatch], None],
) -> None:
    for batch in file.iter_batches(columns=[column]):  # with it come columns of which this name is only the beginning
        write(pyarrow.record_batch({column: batch.column(column).cast(type_)}))


def _write(target: Path, schema: pyarrow.Schema, read: Callable[[Callable[[pyarrow.RecordBatch], None]], None]) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with pyarrow.OSFile(str(partial), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:

            def write(batch: pyarrow.RecordBatch) -> None:
                try:
                    writer.write_batch(batch)
                except OSError as error:
                    raise UsageError(
                        f"{target.parent} has no room for the texts: {first_line(error)}. Free some, or name another "
                        "folder with --cache_dir"
                    ) from None

            read(write)
        to_disk(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
