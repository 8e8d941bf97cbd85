"""The memory of a run on a stream does not depend on how much text there is."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from language_fixtures import TinyTexts, start, texts
from script_fixtures import wait

pytest_plugins = ["language_fixtures"]

SECONDS_BETWEEN_LOOKS = 0.02


def corpus(path: Path, megabytes: int) -> Path:
    """Writes so many megabytes of the same sentences."""
    some = ("\n".join(texts(1000, seed=1)) + "\n").encode()
    path.write_bytes(some * (megabytes * 1_000_000 // len(some)))
    return path


def anonymous(process: str) -> float:
    """The memory of a process but for mapped files, in MiB; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith("RssAnon")), "RssAnon: 0 kB")
    return int(found.split()[1]) / 1024


def largest_of(process: subprocess.Popen[str]) -> float:
    """The largest memory that the process or one of its loader workers has, until it ends, in MiB."""
    largest, children = 0.0, Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        try:
            workers = children.read_text().split()
        except OSError:
            break
        largest = max(largest, *map(anonymous, (str(process.pid), *workers)))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return largest


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_does_not_depend_on_the_amount_of_text(language: TinyTexts, tmp_path: Path, workers: int) -> None:
    flags: dict[str, Any] = {"streaming": True, "stream_shards": 4, "per_device_train_batch_size": 8, "max_steps": 20}
    flags |= {"num_train_epochs": None, "do_eval": None, "validation_file": None, "dataloader_num_workers": workers}
    largest = {}
    for megabytes in (5, 150):
        train = corpus(tmp_path / f"{megabytes}.txt", megabytes)
        process = start(**language.flags(**flags, train_file=train, output_dir=tmp_path / f"out-{megabytes}"))
        largest[megabytes] = largest_of(process)
        done = wait(process)
        assert done.code == 0, done.all
    assert min(largest.values()) > 100, largest  # it was looked at
    assert largest[150] - largest[5] < 10, largest
