"""What all tests share: no network, no shared cache, one thread."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
import threading

# Before anything heavy is imported: libraries read these once. Commands that tests start inherit them.
_HOME = tempfile.mkdtemp(prefix="sparse_accel-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=f"{_HOME}/huggingface",
    SPARSE_ACCEL_CACHE=f"{_HOME}/cache",
    WANDB_MODE="offline",
    TOKENIZERS_PARALLELISM="false",
    DS_ACCELERATOR="cpu",  # DeepSpeed, where it is installed, would guess and print so
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis  # noqa: E402
import torch  # noqa: E402
from durations import pytest_runtest_logreport, pytest_terminal_summary  # noqa: E402, F401

from sparse_accel.nn.dropout import use_compiled_dropout  # noqa: E402

# The same examples in every run, so that a failure is of the change that meets it; no deadline on a shared machine.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.load_profile("suite")
torch.set_num_threads(1)
# A suite started in the background inherits an ignored Ctrl-C; its tests, and the scripts that they start, do not.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_teardown() -> None:
    """A script that a test runs in this process takes the library's random numbers for dropout; the next test not."""
    use_compiled_dropout(False)
