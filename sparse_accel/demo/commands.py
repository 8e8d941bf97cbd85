"""Runs the project's scripts as a user would, and prints each command."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_accel.distributed.threads import share
from sparse_accel.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent.parent
# More threads do not help with batches of a few dozen sentences.
_MOST_THREADS = 8


def run_script(script: str, flags: Mapping[str, object]) -> None:
    """Prints and runs `python SCRIPT --NAME VALUE ...` in the project's folder, offline, and waits for it.

    Args:
        script: path relative to the project's folder.
        flags: value by name; True gives a flag without a value. Paths are printed relative to the project's folder.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when the script has saved its checkpoint and ended.
        UsageError: the script failed; it has printed its own message.
    """
    parts = [[f"--{name}"] if value is True else [f"--{name}", typed(value)] for name, value in flags.items()]
    print(
        " \\\n    ".join([f"{typed(Path(sys.executable))} {script}", *(shlex.join(part) for part in parts)]) + "\n",
        flush=True,
    )
    arguments = [text for part in parts for text in part]
    settings = {"OMP_NUM_THREADS": str(min(share().cpus, _MOST_THREADS)), "HF_HUB_OFFLINE": "1"}
    # Ctrl-C reaches the script too, and it needs time to save: wait for it instead of killing it.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.run([sys.executable, script, *arguments], cwd=ROOT, env=settings | os.environ).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if code != 0:
        raise UsageError(f"{script} ended with exit code {code}: see its message above")


def export_once(trained: Path, deployment: Path, data: Path, task: str = "text_classification") -> dict[str, Any]:
    """Exports a model with its archive, unless that is done, and returns the content of export_report.json.

    A report is taken over only if it names this model and these rows, and is newer than the model's last evaluation:
    the training script evaluates again if the model or the content of the rows has changed. Without an evaluation, it
    must be newer than the rows.

    Args:
        trained: the output folder of a training script with --do_eval, or a folder of a model that no run changes.
        data: the validation file of that run.
        task: of the model.

    Raises:
        KeyboardInterrupt, UsageError: see `run_script`.
    """
    report = deployment / "export_report.json"
    known = json.loads(report.read_text()) if report.exists() else {"source": {}, "texts": {}, "files": {}}
    complete = "model.onnx.xz" in known["files"] and "sparse_kernels" in known  # older versions wrote less
    same = (known["source"].get("folder"), known["texts"].get("source")) == (str(trained.resolve()), typed(data))
    evaluation = trained / "eval_results.json"
    changed = evaluation if evaluation.exists() else data
    if complete and same and report.stat().st_mtime > changed.stat().st_mtime:
        print(f"{typed(deployment)} already contains this model, proven: see {typed(deployment / 'export_report.md')}")
    else:
        flags = {"model_path": trained, "task": task, "output_dir": deployment, "data": data}
        run_script("scripts/export_onnx.py", {**flags, "compress": True})
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def typed(value: object) -> str:
    """Returns a value as a user would type it: paths inside the project's folder relative to it."""
    if isinstance(value, Path) and value.is_absolute() and value.is_relative_to(ROOT):
        value = value.relative_to(ROOT)
    return str(value)
