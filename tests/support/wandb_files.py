"""Reads W&B's own offline file: needs of its library only the format of the records."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def records(folder: Path) -> Iterator[Any]:
    """The records of the one offline run below a folder.

    The file is LevelDB's log format: blocks of 32 KiB; a chunk has a checksum (4 bytes), a length (2) and a kind (1: a
    whole record, 2 to 4: first, middle and last part). A W&B file begins with 7 bytes of its own.
    """
    record_type: Any = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    (file,) = folder.rglob("*.wandb")
    content, place, data = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if place % 32768 > 32768 - 7:  # too short for a chunk: padding
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record_type.FromString(data)
            data = b""


def wandb_run(folder: Path) -> tuple[dict[str, Any], dict[str, dict[int, float]], int]:
    """Configuration, values by step by name, and exit code of the one offline run below a folder.

    W&B's own process writes the file, and may do so a moment after the script's part has ended.
    """
    limit = time.monotonic() + 30
    while not any(record.WhichOneof("record_type") == "exit" for record in records(folder)):
        assert time.monotonic() < limit, "the run has no end"
        time.sleep(0.1)
    config: dict[str, Any] = {}
    found: dict[str, dict[int, float]] = {}
    code = -1
    for record in records(folder):
        kind = record.WhichOneof("record_type")
        if kind in ("run", "config"):
            for item in (record.run.config if kind == "run" else record.config).update:
                config[item.key] = json.loads(item.value_json)
        elif kind == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in items.items():
                found.setdefault(name, {})[int(items["_step"])] = value
        elif kind == "exit":
            code = record.exit.exit_code
    return config, found, code
