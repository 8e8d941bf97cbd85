"""Runs a script, and writes down the rows that each of its steps trains on, masked as the model gets them.

    STREAM_ROWS=FOLDER accelerate launch ... tests/support/stream_watch.py SCRIPT FLAGS

Each process of each start writes a file of its own, a line a step, so that what a kill cut off is missing, not wrong.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

# (epoch, row_id, input_ids, labels), without padding.
Row = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def rows_of(batch: Any) -> list[Row]:
    """The rows of a process's micro-batches."""
    found: list[Row] = []
    for part in batch.micro_batches:
        for number, mask in enumerate(part["attention_mask"].bool()):
            ids, labels = (tuple(part[name][number][mask].tolist()) for name in ("input_ids", "labels"))
            found.append((int(part["epoch"][number]), int(part["row_id"][number]), ids, labels))
    return found


def watched(train_step: Callable[..., Any], write: Callable[[int, list[Row]], None]) -> Callable[..., Any]:
    """Returns a `train_step` that writes down the number and the rows of each step before it is taken."""

    @functools.wraps(train_step)
    def step(accelerator: Any, model: Any, optimizer: Any, run: Any, batch: Any, options: Any) -> Any:
        write(run.progress.step + 1, rows_of(batch))
        return train_step(accelerator, model, optimizer, run, batch, options)

    return step


def write_to(folder: Path) -> Callable[[int, list[Row]], None]:
    """Returns what writes the steps of this process into a folder."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(step: int, rows: list[Row]) -> None:
        with open(folder / f"{os.getpid()}.jsonl", "a") as stream:
            stream.write(json.dumps([step, rows]) + "\n")

    return write


def steps_in(folder: Path) -> dict[int, list[Row]]:
    """The rows of each step over all processes, sorted; a step that was taken again after a kill counts once, unless
    its rows were others."""
    found: dict[int, set[Row]] = defaultdict(set)
    for file in folder.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            step, rows = json.loads(line)
            found[step] |= {(epoch, row, tuple(ids), tuple(labels)) for epoch, row, ids, labels in rows}
    return {step: sorted(rows) for step, rows in sorted(found.items())}


def main() -> None:
    from sparse_accel.training import loop

    loop.train_step = watched(loop.train_step, write_to(Path(os.environ["STREAM_ROWS"])))
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
