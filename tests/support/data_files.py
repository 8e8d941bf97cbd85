"""Data files: rows written as a file's ending says, and what loading them gives, or is refused with."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import strategies as st

from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.errors import UsageError
from sparse_accel.tasks import TextClassification
from sparse_accel.tasks.label_names import Head
from sparse_accel.tasks.text_classification.data import TextClassificationData

# No lone surrogates, which UTF-8 lacks, and no NUL; signs that mean something to a reader more often than others.
characters = st.sampled_from('""\',;\t\n\r \u2028') | st.characters(codec="utf-8", exclude_characters="\0")
any_texts = st.text(characters, max_size=12)


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as the file's ending says."""
    if file.suffix in (".csv", ".tsv"):
        with open(file, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def load(label_names: list[str] | None = None, head_type: str | None = None, **flags: Any) -> TextClassificationData:
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    arguments = TextClassificationArguments(model_name_or_path="model", output_dir="out", **flags)
    return TextClassification.load(arguments, Head(label_names, head_type) if label_names else None).data


def refusal(label_names: list[str] | None = None, **flags: Any) -> str:
    """The message that loading these data ends with."""
    with pytest.raises(UsageError) as caught:
        load(label_names, **flags)
    return str(caught.value)
