"""Where things are, and the figures of SparseML that tests compare with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = TESTS / "golden"
SUPPORT = TESTS / "support"
ROOT = TESTS.parent


def golden(name: str) -> Any:
    """Returns what golden/NAME.json holds."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
