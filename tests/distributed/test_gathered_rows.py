"""Rows that processes gather, with gradients, and the table that they write together. Two real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.multiprocessing
from gathered_rows import PROCESSES, check

pytestmark = pytest.mark.slow


def test_two_processes_gather_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(check, args=(str(tmp_path),), nprocs=PROCESSES)  # type: ignore[attr-defined]
