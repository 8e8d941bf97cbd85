"""Does a process grow, or slow down, in a long run?

    python tests/support/long_run.py --steps 50000       trains, evaluates, saves, tracks, reports
    python tests/support/long_run.py --sessions 1000     opens and closes sessions of sparse_accel.runtime

The run is of a tiny model, in one phase from begin to end: its masks tighten, its quantizers observe, it follows a
teacher's table. Prints a row for each twentieth of the run: memory, open files, threads, and the time of a step. A
machine has slow minutes: so another process, which does not grow, takes a step of its own now and then, and the time of
a step is told in steps of that one, too.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import re
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARTS, REFERENCES = 20, 5000
ROWS, BATCH = 400, 8
RECIPE = """
modifiers:
  - !EpochRangeModifier {{end_epoch: {epochs}}}
  - !LearningRateFunctionModifier {{lr_func: linear, init_lr: 0.0005, final_lr: 0.0, end_epoch: {epochs}}}
  - !MagnitudePruningModifier
      params: __ALL_PRUNABLE__
      end_epoch: {epochs}
      init_sparsity: 0.1
      final_sparsity: 0.9
      update_frequency: 0.5
  - !QuantizationModifier {{start_epoch: 0}}
  - !DistillationModifier {{hardness: 0.5, temperature: 2.0}}
"""


@dataclass(frozen=True)
class Usage:
    """What this process has.

    Attributes:
        memory: of its own, in MB.
        files, threads: how many are open, and run.
    """

    memory: float
    files: int
    threads: int

    @classmethod
    def now(cls) -> Usage:
        gc.collect()
        status = Path("/proc/self/status").read_text()
        own, threads = (int(re.findall(rf"^{name}:\s+(\d+)", status, re.M)[0]) for name in ("RssAnon", "Threads"))
        return cls(own / 1024, len(os.listdir("/proc/self/fd")), threads)


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        last: number of its last step.
        usage: after it.
        median: seconds from the end of a step, or a session, to the end of the next.
        mean: the same, with evaluating and saving.
        reference: median seconds of a step of the other process.
    """

    last: int
    usage: Usage
    median: float
    mean: float
    reference: float


class Watch:
    """Is called at the end of each step, and notes the parts of a run.

    Args:
        steps: of the run.
        reference: connection to the other process; see `reference_steps`.
    """

    def __init__(self, steps: int, reference: Any) -> None:
        self.steps, self.done = steps, 0
        self.parts: list[Part] = []
        self._reference = reference
        self._begin()

    def _begin(self) -> None:
        self._times: list[float] = []
        self._references: list[float] = []
        self._end = time.perf_counter()

    def step(self) -> None:
        self.done += 1
        self._times.append(time.perf_counter() - self._end)
        if self.done % max(1, self.steps // REFERENCES) == 0:
            self._reference.send(None)
            self._references.append(self._reference.recv())
        self._end = time.perf_counter()
        if self.done % max(1, self.steps // PARTS) == 0:
            found = statistics.median(self._times), statistics.mean(self._times)
            self.parts.append(Part(self.done, Usage.now(), *found, statistics.median(self._references)))
            self._begin()


@contextmanager
def reference_steps() -> Iterator[Any]:
    """Starts a process that takes a step for each object that it is sent, and sends back its seconds."""
    context = multiprocessing.get_context("fork")
    own, other = context.Pipe()
    process = context.Process(target=_take_reference_steps, args=(other,), daemon=True)
    process.start()
    other.close()  # so that its end is seen here, too
    try:
        yield own
    finally:
        process.kill()


def _take_reference_steps(asked: Any) -> None:
    import torch
    from tiny import make_bert

    model = make_bert(num_hidden_layers=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(1, 20, (BATCH, 16))
    while True:
        asked.recv()
        begin = time.perf_counter()
        model(ids, labels=ids[:, 0] % 2).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        asked.send(time.perf_counter() - begin)


def train(folder: Path, steps: int, reference: Any) -> list[Part]:
    """Trains by the script, in this process, with two trackers and a report; returns the parts of the run."""
    from script_fixtures import SCRIPT, make_model, sentences, words, write_csv

    from sparse_accel.training import loop

    epochs = -(-steps * BATCH // ROWS)
    (folder / "recipe.yaml").write_text(RECIPE.format(epochs=epochs))
    settings: dict[str, Any] = {
        "model_name_or_path": make_model(folder / "model", sparse=False, num_hidden_layers=1),
        "distill_teacher": make_model(folder / "teacher", sparse=False, head=True),
        "recipe": folder / "recipe.yaml",
        "train_file": write_csv(folder / "train.csv", sentences(ROWS, seed=1)),
        "validation_file": write_csv(folder / "validation.csv", sentences(20, seed=2)),
        "do_train": True,
        "do_eval": True,
        "per_device_train_batch_size": BATCH,
        "eval_strategy": "steps",
        "eval_steps": max(1, steps // 100),
        "save_strategy": "steps",
        "save_steps": max(1, steps // 100),
        "save_total_limit": 2,
        "logging_steps": 10,
        "report_to": "tensorboard,wandb",
        "output_dir": folder / "out",
        "cache_dir": folder / "cache",
    }
    watch, train_step = Watch(steps, reference), loop.train_step

    def watched(*arguments: Any) -> Any:
        found = train_step(*arguments)
        watch.step()
        return found

    os.environ |= {"WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
    sys.argv = [str(SCRIPT), *words(**settings)]
    loop.train_step = watched  # type: ignore[assignment]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as ended:
        assert not ended.code
    finally:
        loop.train_step = train_step
    assert (folder / "out" / "report.html").exists()
    return watch.parts


def open_sessions(folder: Path, count: int, reference: Any) -> list[Part]:
    """Opens a session with kernels, runs it and drops it, again and again."""
    import numpy as np
    import onnx
    from qdq_graphs import GraphBuilder

    from sparse_accel.runtime import explain, session
    from sparse_accel.runtime.library import load_library
    from sparse_accel.runtime.loading import VARIABLE

    build, width = GraphBuilder(), 128
    x = build.input("x", ["batch", "sequence", width])
    model = build.model(build.op("Identity", build.feed_forward("block", x, width, 4 * width), output="y"))
    onnx.save(model, folder / "model.onnx")
    os.environ.setdefault(VARIABLE, load_library().instruction_sets[0])  # where onnxruntime alone is used by default
    watch, inputs = Watch(count, reference), {"x": np.ones((1, 8, width), np.float32)}
    for _ in range(count):
        opened = session(folder)
        opened.run(None, inputs)
        assert explain(opened).instruction_set is not None, explain(opened).reason
        del opened
        watch.step()
    return watch.parts


def table(parts: list[Part]) -> str:
    lines = [f"{'last':>8}{'MB':>10}{'files':>8}{'threads':>9}{'median ms':>11}{'mean ms':>9}{'reference ms':>14}"]
    for part in parts:
        usage = part.usage
        counted = f"{part.last:>8}{usage.memory:>10.1f}{usage.files:>8}{usage.threads:>9}"
        lines.append(f"{counted}{part.median * 1000:>11.3f}{part.mean * 1000:>9.3f}{part.reference * 1000:>14.3f}")
    first, last = parts[1], parts[-1]  # the first part has all that is made once
    before, after = first.usage, last.usage
    grown = after.memory - before.memory, after.files - before.files, after.threads - before.threads
    lines.append("from {:,} to {:,}: {:+.1f} MB, {:+} files, {:+} threads".format(first.last, last.last, *grown))
    ratios: dict[str, Callable[[Part], float]] = {
        "in seconds": lambda part: part.median,
        "in steps of the reference": lambda part: part.median / part.reference,
        "the same, with evaluating and saving": lambda part: part.mean / part.reference,
    }
    for words, measured in ratios.items():
        one, other = (statistics.mean(map(measured, some)) for some in (parts[1:3], parts[-2:]))
        lines.append(f"a step of the last tenth over one of the first, {words}: {other / one:.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, help="of training")
    parser.add_argument("--sessions", type=int, help="of the runtime")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, reference_steps() as reference:
        if asked.steps:
            print(table(train(Path(name), asked.steps, reference)))
        if asked.sessions:
            print(table(open_sessions(Path(name), asked.sessions, reference)))


if __name__ == "__main__":
    main()
