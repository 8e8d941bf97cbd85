"""The record of an output folder's run, run.json: its identity, whether it is finished, what was measured."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sparse_accel.files import write_text

RUN_FILE = "run.json"


def read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record: Any = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"identity", "finished"} <= record.keys() else None


def write_record(folder: Path, identity: dict[str, Any], *, finished: bool, **others: Any) -> None:
    """Writes a run's record: its identity, whether it is finished, and what `change_record` may add."""
    record = {"finished": finished, "identity": identity, **others}
    write_text(folder / RUN_FILE, json.dumps(record, indent=2) + "\n")


def change_record(folder: Path, **entries: Any) -> None:
    """Sets entries of the record of a folder's run, where there is one:

    finished: whether its result is complete. resumed_from: the checkpoint that was named to start from. trained_with:
    its settings. measured: what its figures and predictions were measured on, by the name of their file.
    """
    record = read_record(folder)
    if record is not None and record != {**record, **entries}:
        write_text(folder / RUN_FILE, json.dumps({**record, **entries}, indent=2) + "\n")


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Returns the entries in which two identities differ, in words: of a recipe, its first line that differs."""
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return "; ".join(f"{key} ({_in_words(old.get(key), new.get(key))})" for key in keys)


def _in_words(old: Any, new: Any) -> str:
    if isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        pairs = zip_longest(old.splitlines(), new.splitlines(), fillvalue="nothing")
        old, new = next((pair for pair in pairs if pair[0] != pair[1]), (old, new))
    old, new = ("none" if value is None else _shortened(str(value).strip()) for value in (old, new))
    return f"{old} there, {new} here"


def _shortened(text: str) -> str:
    first = text.partition("\n")[0]
    return first if len(first) <= 60 else first[:57] + "..."
