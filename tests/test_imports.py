"""What is read before anything is loaded loads nothing heavy itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "pandas", "sklearn")


@pytest.mark.parametrize(
    "module", ["sparse_accel", "modifiers", "recipe", "cli.text_classification", "training.tracking", "zoo", "progress"]
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    name = module if module == "sparse_accel" else f"sparse_accel.{module}"
    code = f"import sys, {name}; print(*[name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.split() == []
