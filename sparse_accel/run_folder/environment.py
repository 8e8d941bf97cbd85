"""What a run ran on: environment.json."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparse_accel import __version__
from sparse_accel.distributed.launch import describe, precision_name
from sparse_accel.distributed.threads import share, threads_in_use
from sparse_accel.files import write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

ENVIRONMENT = "environment.json"
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "deepspeed", "onnx", "onnxruntime")


def environment_of(accelerator: Accelerator) -> dict[str, Any]:
    """Returns versions, hardware, layout and command of this process."""
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "sparse_accel": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": packages,
        "hardware": {
            "cpu": _processor(),
            "cores": share().cpus,
            "memory_gb": _memory(),
            "gpus": gpus,
        },
        "layout": describe(accelerator),
        "processes": accelerator.num_processes,
        "precision": precision_name(accelerator),
        "threads": str(threads_in_use()),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": _command(),
    }


def record_environment(accelerator: Accelerator, folder: Path) -> None:
    """Writes environment.json; of a run that resumes, the start of the first command stays."""
    if not accelerator.is_main_process:
        return
    found = environment_of(accelerator)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found["started"] = str(json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))["started"])
    write_json(folder / ENVIRONMENT, found)


def _program() -> list[str]:
    """Returns the words before the flags: of `python FILE`, `python -m MODULE COMMAND`, or a command on PATH."""
    flags = sys.argv[1:]
    words = sys.orig_argv[1 : len(sys.orig_argv) - len(flags)]
    if not words or sys.orig_argv[len(words) + 1 :] != flags:  # started by another program
        return [Path(sys.argv[0]).name]
    while words[1:] and words[0].startswith("-") and words[0] != "-m":  # such as -u, which `accelerate launch` adds
        words = words[1:]
    if words[0] == "-m":
        return ["python", *words]
    path = Path(words[0])
    if path.suffix != ".py":
        return [path.name, *words[1:]]
    with contextlib.suppress(ValueError):
        path = path.resolve().relative_to(Path.cwd())
    return ["python", str(path), *words[1:]]


def _command() -> str:
    """Returns the command line as it can be typed again, without the value of --hub_token."""
    words = [*_program(), *sys.argv[1:]]
    for number, word in enumerate(words):
        if word == "--hub_token" and number + 1 < len(words):
            words[number + 1] = "..."
        elif word.startswith("--hub_token="):
            words[number] = "--hub_token=..."
    return shlex.join(words)


def _commit() -> str | None:
    """Returns the commit of the clone that this package runs from; None if it was installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    """Returns the memory of the machine in GB (1e9 bytes)."""
    with contextlib.suppress(OSError, ValueError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    return None
