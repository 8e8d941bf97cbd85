"""Writes what tests/golden/old_run holds, with the scripts of an older checkout: inputs, a finished run, a killed one,
and a deployment of the finished one.

    git worktree add /tmp/base 1364ade
    python tests/support/make_old_run.py /tmp/base tests/golden/old_run      # the last must not be there yet
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from run_trace import TUTORIAL, finish, flags, start
from script_fixtures import make_model, sentences, write_csv

# Runs are made here under relative names: their files then name no folder of somebody's machine.
NEUTRAL = Path("/tmp/old_run")
KILLED_AT = 10  # of 16 steps: in the middle of an epoch, while ranges are observed


def make_inputs(checkout: Path) -> None:
    tiny: dict[str, Any] = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 20,
    }
    make_model(NEUTRAL / "start", sparse=True, **tiny)
    make_model(NEUTRAL / "teacher", sparse=False, head=True, num_hidden_layers=1, **tiny)
    write_csv(NEUTRAL / "train.csv", sentences(61, seed=1))
    write_csv(NEUTRAL / "validation.csv", sentences(21, seed=2))
    shutil.copy(checkout / TUTORIAL, NEUTRAL / "recipe.yaml")


def kill_after_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    expected = [f"checkpoint-{KILLED_AT}"]
    while saved(run) != expected and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    if saved(run) != expected:
        raise RuntimeError(f"killed too late, or in the middle of a save: {saved(run)}. Delete {NEUTRAL}, try again")


def saved(run: Path) -> list[str]:
    """Names of what a run has saved, whole or half, and has not deleted."""
    return sorted(path.name for path in run.glob("*") if "checkpoint" in path.name or path.suffix == ".safetensors")


def main() -> None:
    checkout, target = (Path(word).resolve() for word in sys.argv[1:])
    if target.exists():
        raise SystemExit(f"{target} is there already")
    NEUTRAL.mkdir()
    make_inputs(checkout)

    def train(name: str) -> Any:
        return start(checkout, "text_classification.py", cwd=NEUTRAL, **flags(Path()), output_dir=name)

    finish(train("finished"))
    kill_after_checkpoint(train("unfinished"), NEUTRAL / "unfinished")
    finish(start(checkout, "export_onnx.py", cwd=NEUTRAL, model_path="finished", task="text_classification"))
    shutil.rmtree(NEUTRAL / "caches", ignore_errors=True)
    shutil.move(NEUTRAL, target)


if __name__ == "__main__":
    main()
