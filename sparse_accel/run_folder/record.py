"""The record of an output folder's run, run.json: its identity, whether it is finished, and what was measured."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from sparse_accel.errors import UsageError
from sparse_accel.files import write_text
from sparse_accel.recipe import load_recipe

RUN_FILE = "run.json"
# What `fingerprints` gives: it says that contents differ, not how.
_DIGEST = re.compile("[0-9a-f]{32}")


def read_record(folder: Path) -> dict[str, Any] | None:
    """Returns the run.json of a folder; None if it is missing, cannot be read, or has no identity.

    A recipe that an older version recorded gets the defaults of keys that are new since: it is still the same run.
    """
    try:
        record: Any = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not {"identity", "finished"} <= record.keys():
        return None
    identity = record["identity"]
    recipe = identity.get("recipe") if isinstance(identity, dict) else None
    if isinstance(recipe, str) and "\n" in recipe:  # a text; one line could name a file or a stub
        with suppress(UsageError):
            identity["recipe"] = load_recipe(recipe).resolved()
    return record


def write_record(folder: Path, identity: dict[str, Any], *, finished: bool, **others: Any) -> None:
    """Writes a new run.json: the identity, whether the run is finished, and other entries (see `change_record`)."""
    record = {"finished": finished, "identity": identity, **others}
    write_text(folder / RUN_FILE, json.dumps(record, indent=2) + "\n")


def change_record(folder: Path, **entries: Any) -> None:
    """Sets entries in the run.json of a folder, if there is one:

    finished: whether its result is complete. resumed_from: the checkpoint given to start from. trained_with: its
    settings. measured: for each file of figures or predictions, a digest of what they were measured on.
    """
    record = read_record(folder)
    if record is not None and record != {**record, **entries}:
        write_text(folder / RUN_FILE, json.dumps({**record, **entries}, indent=2) + "\n")


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Returns the entries in which two identities differ, as text; for two recipes, the first line that differs."""
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return "; ".join(f"{key} ({_described(old.get(key), new.get(key))})" for key in keys)


def _described(old: Any, new: Any) -> str:
    if all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in (old, new)):
        return "other content"
    if isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        lines = [[line for line in text.splitlines() if line.strip()] for text in (old, new)]
        old, new = (next((line for line in one if line not in other), "nothing") for one, other in (lines, lines[::-1]))
    old, new = ("none" if value is None else _shortened(str(value).strip()) for value in (old, new))
    return f"{old} there, {new} here"


def _shortened(text: str) -> str:
    if _DIGEST.fullmatch(text) or "\n" in text:
        return "given"
    return text if len(text) <= 60 else text[:57] + "..."
