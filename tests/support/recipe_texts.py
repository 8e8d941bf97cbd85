"""Recipes as texts: one that prunes gradually, the error that another meets, and the command that reads them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from places import ROOT

from sparse_accel.errors import UsageError
from sparse_accel.recipe import RecipeError, load_recipe

HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy")


def magnitude(keys: str, epochs: int = 3) -> str:
    return f"""
modifiers:
  - !EpochRangeModifier {{end_epoch: {epochs}}}
  - !MagnitudePruningModifier {{{keys}}}
"""


# Six steps of 8 rows; updates before steps 0 and 3, and at the end.
OBS_KEYS = (
    "params: ['re:bert.encoder.*(query|key|value|dense).weight'], end_epoch: 2, update_frequency: 1, "
    "init_sparsity: 0.3, final_sparsity: 0.8, num_grads: 4"
)


def obs(keys: str = OBS_KEYS, epochs: int = 2, *more: str) -> str:
    """Returns a recipe with OBSPruningModifier, and with `more` modifiers."""
    lines = [f"!EpochRangeModifier {{end_epoch: {epochs}}}", f"!OBSPruningModifier {{{keys}}}", *more]
    return "\n".join(["modifiers:", *(f"  - {line}" for line in lines)])


def error_of(text: Any, recipe_args: Any = None) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(text, recipe_args)
    assert isinstance(caught.value, UsageError)
    return caught.value


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m sparse_accel.recipe` and prints on a last line which heavy packages it imported."""
    code = f"""
import atexit, runpy, sys
atexit.register(lambda: print("imported:", [name for name in {HEAVY} if name in sys.modules]))
sys.argv[1:] = {list(arguments)}
runpy.run_module("sparse_accel.recipe", run_name="__main__", alter_sys=True)
"""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
