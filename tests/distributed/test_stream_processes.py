"""Streams under several processes: each reads shards of its own, and together they train on the rows of one process.

One process takes two micro-batches a step, two take one each: they are the same ones, with the same dropout, and a sum
of two does not depend on their order. So the weights are the same, bit by bit; but for FSDP2, whose processes compute
the norm of all gradients from their shards.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from forked import wait_for
from language_fixtures import RECIPES, SCRIPT, TinyTexts, run, start, texts, write_texts
from layouts import launcher, masks_of, run_program_under
from machines import free_port, launch
from places import SUPPORT
from script_fixtures import Outcome, assert_same_model, flat, make_model, read_json, trace, wait, weights, words
from stream_watch import Row, steps_in, watched, write_to
from token_fixtures import NO_DROPOUT, VOCABULARY

from sparse_accel.training import loop

pytest_plugins = ["language_fixtures"]
pytestmark = pytest.mark.slow

STEPS = 12
SHORT = "the stream has 46 rows: an epoch of 12 steps reads it 2.1 times"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


@pytest.fixture(scope="module")
def flags(folder: Path, language: TinyTexts) -> dict[str, Any]:
    """A run of two processes: the global batch has 8 rows."""
    settings: dict[str, Any] = {
        "model_name_or_path": make_model(folder / "with-dropout", sparse=False, vocabulary=VOCABULARY),
        "streaming": True,
        "stream_shards": 4,
        "shuffle_window": 8,
        "train_file": write_texts(folder / "train.txt", texts(90, seed=1)),
        "per_device_train_batch_size": 4,
        "num_train_epochs": None,
        "max_steps": STEPS,
        "do_eval": None,
        "validation_file": None,
        "save_strategy": "steps",
        "save_steps": 4,
    }
    return language.flags(**settings)


def run_one(rows: Path, **flags: Any) -> Outcome:
    """Runs one process with two micro-batches a step, and writes down its rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", watched(loop.train_step, write_to(rows)))
        return run(**flags, gradient_accumulation_steps=2)


def run_two(rows: Path, layout: str = "ddp", **flags: Any) -> Outcome:
    program = SUPPORT / "stream_watch.py"
    return run_program_under(layout, program, str(SCRIPT), *words(**flags), STREAM_ROWS=str(rows))


@pytest.fixture(scope="module")
def one(folder: Path, flags: dict[str, Any]) -> Path:
    """The folder of a run of one process, beside `one-rows`."""
    done = run_one(folder / "one-rows", **flags, output_dir=folder / "one")
    assert done.code == 0, done.all
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder: Path, flags: dict[str, Any]) -> tuple[Path, Outcome]:
    """The folder of a run of two processes, with two workers each, beside `two-rows`."""
    done = run_two(folder / "two-rows", **flags, dataloader_num_workers=2, output_dir=folder / "two")
    assert done.code == 0, done.all
    return folder / "two", done


@pytest.fixture(scope="module")
def rows(one: Path) -> dict[int, list[Row]]:
    return steps_in(one.with_name("one-rows"))


def assert_same_training(found: Path, expected: Path) -> None:
    """Losses and weights are the same but for sums in another order."""
    losses = trace(found, "train/loss")
    assert losses == pytest.approx(trace(expected, "train/loss"), abs=1e-6)
    first, second = weights(expected), weights(found)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        # Softmax does not depend on the bias of keys: its gradient is rounding error, which Adam scales up.
        if not name.endswith("key.bias"):
            assert float((weight - second[name]).abs().max()) < 1e-6, name


def unfinished(whole: Path, folder: Path, step: int) -> Path:
    """The folder as a kill after checkpoint `step` would have left it."""
    folder.mkdir()
    shutil.copytree(whole / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    record = (whole / "run.json").read_text().replace('"finished": true', '"finished": false')
    (folder / "run.json").write_text(record)
    return folder


def test_two_processes(one: Path, two: tuple[Path, Outcome], rows: dict[int, list[Row]]) -> None:
    folder, done = two
    assert len(rows) == STEPS and steps_in(folder.with_name("two-rows")) == rows
    assert_same_training(folder, one)
    assert_same_model(folder, one)
    assert done.err.count("the stream has") == 1 and SHORT in flat(done.err), done.all
    places = [read_json(each / "checkpoint-8" / "stream_state.json") for each in (one, folder)]
    assert places[0] == places[1]


def test_fully_sharded(one: Path, flags: dict[str, Any], rows: dict[int, list[Row]], tmp_path: Path) -> None:
    done = run_two(tmp_path / "rows", "fsdp2", **flags, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert steps_in(tmp_path / "rows") == rows
    assert_same_training(tmp_path / "out", one)


def test_two_machines(one: Path, flags: dict[str, Any], tmp_path: Path) -> None:
    port, settings = free_port(), {**flags, "output_dir": tmp_path / "out"}
    machines = [launch(rank, "127.0.0.1", port, settings, program=(SCRIPT,)) for rank in (0, 1)]
    ended = [wait(machine) for machine in machines]
    assert [each.code for each in ended] == [0, 0], ended[0].all + ended[1].all
    assert_same_training(tmp_path / "out", one)
    assert_same_model(tmp_path / "out", one)


def test_one_process_goes_on_where_two_stopped(
    two: tuple[Path, Outcome], one: Path, flags: dict[str, Any], rows: dict[int, list[Row]], tmp_path: Path
) -> None:
    output = unfinished(two[0], tmp_path / "out", 4)
    done = run_one(tmp_path / "rows", **flags, output_dir=output)
    assert done.code == 0 and "from step 4" in done.out, done.all
    assert steps_in(tmp_path / "rows") == {step: each for step, each in rows.items() if step > 4}
    assert_same_model(output, one)


def test_two_processes_go_on_where_one_stopped(
    one: Path, flags: dict[str, Any], rows: dict[int, list[Row]], tmp_path: Path
) -> None:
    output = unfinished(one, tmp_path / "out", 8)
    done = run_two(tmp_path / "rows", **flags, output_dir=output)
    assert done.code == 0 and done.out.count("the stream continues at its place") == 1, done.all
    assert steps_in(tmp_path / "rows") == {step: each for step, each in rows.items() if step > 8}
    assert_same_model(output, one)


def test_kills_at_any_moment_of_one_and_of_two_processes(flags: dict[str, Any], tmp_path: Path) -> None:
    """A run that goes on in turn in two processes and in one, and ends with the bytes of one that was never killed."""
    draw, output = random.Random(0), tmp_path / "out"
    settings = {**flags, "max_steps": 60, "save_steps": 1, "save_total_limit": 2}
    assert run_one(tmp_path / "rows", **settings, output_dir=tmp_path / "unbroken").code == 0
    resumed = 0
    for kill in range(4):
        known = {path.name for path in output.glob("checkpoint-*")}
        if kill % 2:
            process = start(**settings, output_dir=output, gradient_accumulation_steps=2)
        else:
            launch, variables = launcher("ddp")
            process = start(launcher=launch, env=variables, **settings, output_dir=output)
        wait_for(functools.partial(_saved_or_ended, output, known, process))
        time.sleep(draw.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        ended = wait(process)
        assert ended.code == -signal.SIGKILL, ended.all
        resumed += "resuming from step" in flat(ended.all)
    done = run_two(tmp_path / "last-rows", **settings, output_dir=output)
    assert done.code == 0 and resumed >= 2, done.all
    assert_same_model(output, tmp_path / "unbroken")


def _saved_or_ended(output: Path, known: set[str], process: Any) -> bool:
    return bool({path.name for path in output.glob("checkpoint-*")} - known) or process.poll() is not None


def test_a_line_that_one_process_cannot_read(flags: dict[str, Any], tmp_path: Path) -> None:
    """In a shard of the second process, read by its worker: the run ends, and says so once."""
    lines = "\n".join(texts(90, seed=1)).encode().splitlines(keepends=True)
    place = sum(len(line) for line in lines[:40])  # in the second of four shards
    (tmp_path / "bad.txt").write_bytes(b"".join([*lines[:40], b"caf\xe9 lima\n", *lines[40:]]))
    settings = {**flags, "train_file": tmp_path / "bad.txt", "dataloader_num_workers": 1}
    done = run_two(tmp_path / "rows", **settings, output_dir=tmp_path / "out")
    said = f"bad.txt, the line at byte {place:,}: not UTF-8 text"
    assert done.code != 0 and done.err.count(said) == 1 and "save it as UTF-8" in done.err, done.all


def test_gradient_samples_are_the_same_on_all_processes(
    flags: dict[str, Any], folder: Path, rows: dict[int, list[Row]], tmp_path: Path
) -> None:
    """oBERT's recipe with a live teacher, on rows of shards of both processes."""
    teacher = make_model(tmp_path / "teacher", sparse=False, vocabulary=VOCABULARY, **NO_DROPOUT)
    settings: dict[str, Any] = {**flags, "max_steps": None, "steps_per_epoch": 4, "save_steps": 100}
    settings |= {"recipe": RECIPES / "obert_pruned90.yaml", "recipe_args": {"num_grads": 4}}
    settings["distill_teacher"] = teacher
    outputs = [tmp_path / "one", tmp_path / "two"]
    for done in (
        run_one(tmp_path / "one-rows", **settings, output_dir=outputs[0]),
        run_two(tmp_path / "two-rows", **settings, output_dir=outputs[1]),
    ):
        assert done.code == 0, done.all
    assert steps_in(tmp_path / "two-rows") == steps_in(tmp_path / "one-rows") == rows
    losses = [trace(output, "train/loss") for output in outputs]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    first, second = map(masks_of, outputs)
    assert first.keys() == second.keys() and len(first) == 12
    different = sum(int((mask != second[name]).sum()) for name, mask in first.items())
    assert different <= 1e-3 * sum(mask.numel() for mask in first.values())
