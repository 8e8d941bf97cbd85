"""Sessions with kernels that several threads use at once, and processes that fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from kernel_models import ISAS, forced, one_operator, quantization, session_of, sparse_weight
from places import ROOT, SUPPORT

from sparse_accel.runtime.loading import VARIABLE

Array = np.ndarray
WIDTH, UNITS = 48, 100
every_isa = pytest.mark.parametrize("isa", ISAS)


def floats(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def feed_forward() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    up, down = sparse_weight(random, WIDTH, UNITS, 0.1), sparse_weight(random, UNITS, WIDTH, 0.1)
    scale = np.full(1, 0.01, np.float32)
    inputs = ["x", up, scale, floats(1, UNITS), down, scale, floats(2, WIDTH), floats(3, WIDTH), floats(4, WIDTH)]
    numbers = quantization("x", 0.03, 120) | quantization("hidden", 0.02, 10)
    return one_operator("FeedForward", inputs, activation=1, epsilon=1e-5, **numbers)


def attention(heads: int = 3) -> onnx.ModelProto:
    return one_operator("Attention", ["x", "x", "x", None], heads=heads, head_size=WIDTH // heads, scale=0.25)


MODELS = [feed_forward, attention]
# Few and many tokens: scratch memory grows while other threads use theirs.
INPUTS = [
    floats(rows * tokens, rows, tokens, WIDTH) for rows, tokens in [(1, 1), (2, 7), (1, 150), (5, 33), (1, 16), (9, 3)]
]


def run(session: onnxruntime.InferenceSession, x: Array) -> Array:
    found: Array = session.run(None, {"x": x})[0]
    return found


@every_isa
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("threads", [1, 2])
def test_one_session_in_several_threads(isa: str, model: Callable[[], onnx.ModelProto], threads: int) -> None:
    with forced(isa):
        session, alone = session_of(model(), threads), session_of(model())
    expected = [run(alone, x) for x in INPUTS]

    def several(first: int) -> None:
        for number in range(first, first + 4 * len(INPUTS)):
            number %= len(INPUTS)
            np.testing.assert_array_equal(run(session, INPUTS[number]), expected[number])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(several, range(4)))


def test_sessions_of_all_instruction_sets_at_once() -> None:
    """Each keeps the kernels that it was made with."""
    sessions = []
    for isa in ISAS:
        for model in MODELS:
            with forced(isa):
                sessions.append(session_of(model(), 2))
    expected = [[run(session, x) for x in INPUTS] for session in sessions]

    def several(number: int) -> None:
        for _ in range(3):
            for x, alone in zip(INPUTS, expected[number], strict=True):
                np.testing.assert_array_equal(run(sessions[number], x), alone)

    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(several, range(len(sessions))))


def test_threads_that_end_leave_no_memory_behind() -> None:
    """Scratch memory belongs to a thread: 800 kB for so many tokens."""
    with forced(ISAS[0]):
        session = session_of(attention(heads=1))
    x = floats(0, 1, 2000, WIDTH)

    def in_new_threads(count: int) -> int:
        for _ in range(count):
            thread = threading.Thread(target=run, args=(session, x))
            thread.start()
            thread.join()
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    before = in_new_threads(5)
    assert in_new_threads(60) - before < 20_000_000


PROGRAM = """
import os, runpy, sys
import numpy as np

own = runpy.run_path(sys.argv[1])
models, inputs, session_of, run = [model() for model in own["MODELS"]], own["INPUTS"], own["session_of"], own["run"]
expected = [[run(session, x) for x in inputs] for session in [session_of(model, 2) for model in models]]
child = os.fork()
for model, alone in zip(models, expected):
    session = session_of(model, 1)
    for x, y in zip(inputs, alone):
        np.testing.assert_array_equal(run(session, x), y)
if child == 0:
    os._exit(7)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_that_forks() -> None:
    """onnxruntime's threads do not live on in a child. It makes its own sessions, with what the parent has loaded."""
    variables = {**os.environ, VARIABLE: ISAS[0], "PYTHONPATH": os.pathsep.join(map(str, (ROOT, SUPPORT)))}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, __file__]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "child 7\n", done.stderr
