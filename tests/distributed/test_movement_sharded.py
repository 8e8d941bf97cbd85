"""Scores that are laid out as the weights (FSDP2) are those of one process, bit for bit, also when resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.multiprocessing
from movement_sharded import PROCESSES, check

pytestmark = pytest.mark.slow


def test_two_processes_score_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(check, args=(str(tmp_path),), nprocs=PROCESSES)  # type: ignore[attr-defined]
