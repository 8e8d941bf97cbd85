"""An interrupted run goes on where it stopped, and ends as if nothing had happened, bit by bit."""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import resource
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from script_fixtures import (
    SCRIPT,
    SHORT,
    Tiny,
    assert_same_model,
    flat,
    history,
    make_model,
    read_json,
    run,
    start,
    trace,
    wait,
    words,
)

from sparse_accel.run_folder.checkpoints import checkpoints_in, verify

pytest_plugins = ["script_fixtures"]

# 7 steps an epoch, 28 in all; QAT begins at 14, ranges freeze at 21. Labels and teacher both count.
DISTILLED = {**SHORT, "distill_hardness": 0.5}


@pytest.fixture(scope="module")
def flags(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    teacher = make_model(tmp_path_factory.mktemp("models") / "teacher", sparse=False, head=True)
    return tiny.flags(
        recipe_args=DISTILLED, distill_teacher=teacher, save_strategy="steps", save_steps=5, logging_steps=4
    )


@pytest.fixture(scope="module")
def whole(flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert run(**flags, output_dir=output).code == 0
    return output


def assert_same_run(one: Path, other: Path) -> None:
    """Models and figures are the same; durations may differ, and means of losses since the last log."""
    assert_same_model(one, other)
    first, second = (read_json(folder / "all_results.json") for folder in (one, other))
    assert {**first, "train_runtime": 0, "train_loss": 0} == {**second, "train_runtime": 0, "train_loss": 0}
    assert trace(one, "eval_loss") == trace(other, "eval_loss")
    assert trace(one, "train/learning_rate") == trace(other, "train/learning_rate")


def unfinished(whole: Path, folder: Path, step: int) -> Path:
    """The folder as a kill after checkpoint `step` would have left it."""
    folder.mkdir()
    for path in whole.glob("checkpoint-*"):
        if int(path.name.partition("-")[2]) <= step:
            shutil.copytree(path, folder / path.name)
    record = (whole / "run.json").read_text().replace('"finished": true', '"finished": false')
    (folder / "run.json").write_text(record)
    return folder


# Mid-epoch in the float phase, at the last step before QAT, after its start, after the freeze, and at the very end.
@pytest.mark.parametrize("step", [5, 10, 15, 25, 28])
def test_going_on_from_any_checkpoint(flags: dict[str, Any], whole: Path, tmp_path: Path, step: int) -> None:
    output = unfinished(whole, tmp_path / "out", step)
    resumed = run(**flags, output_dir=output)
    assert resumed.code == 0, resumed.all
    assert f"from step {step}" in resumed.out
    assert_same_run(output, whole)
    assert [entry["step"] for entry in history(output)] == [entry["step"] for entry in history(whole)]


def test_what_a_kill_left_half_written_is_deleted(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    output = unfinished(whole, tmp_path / "out", 20)
    shutil.copytree(output / "checkpoint-20", output / ".checkpoint-23.partial")
    (output / ".run.json.123.partial").write_text("{")
    assert run(**flags, output_dir=output).code == 0
    assert not list(output.glob(".*"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("recipe_state.safetensors", lambda path: path.write_bytes(b"torn")),
        ("training_state.safetensors", flip_a_bit),
        ("model.safetensors", flip_a_bit),
        ("trainer_state.json", Path.unlink),
        ("checksums.json", Path.unlink),
        ("checksums.json", lambda path: path.write_text("[")),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    flags: dict[str, Any], whole: Path, tmp_path: Path, name: str, harm: Any
) -> None:
    output = unfinished(whole, tmp_path / "out", 10)
    harm(output / "checkpoint-10" / name)
    resumed = run(**flags, output_dir=output)
    assert resumed.code == 0, resumed.all
    assert f"checkpoint-10 is damaged: {name}" in resumed.err and "from step 5" in resumed.out
    assert (output / "checkpoint-10.damaged").is_dir()  # nothing is thrown away
    assert_same_run(output, whole)


def test_with_every_checkpoint_damaged_it_starts_anew(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    output = unfinished(whole, tmp_path / "out", 10)
    for step in (5, 10):
        flip_a_bit(output / f"checkpoint-{step}" / "training_state.safetensors")
    resumed = run(**flags, output_dir=output)
    assert resumed.code == 0 and resumed.err.count("is damaged") == 2, resumed.all
    assert_same_run(output, whole)
    named = run(**flags, output_dir=tmp_path / "new", resume_from_checkpoint=output / "checkpoint-5.damaged")
    assert named.code == 2 and "is damaged" in named.err and "Name another" in named.err


def test_resuming_from_a_named_checkpoint(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """A path relative to the working directory; the newest checkpoint of the folder is not meant then."""
    output = unfinished(whole, tmp_path / "out", 20)
    resumed = run(**flags, output_dir="out", resume_from_checkpoint="out/checkpoint-10", cwd=tmp_path)
    assert resumed.code == 0, resumed.all
    assert "from step 10" in resumed.out
    assert_same_run(output, whole)


def test_resuming_from_what_is_not_there(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    output = unfinished(whole, tmp_path / "out", 10)
    missing = run(**flags, output_dir=output, resume_from_checkpoint=output / "checkpoint-11")
    assert missing.code == 2 and "checkpoint-11: the folder does not exist" in missing.err
    assert "Checkpoints next to it: checkpoint-5, checkpoint-10" in missing.err
    empty = run(**flags, output_dir=tmp_path / "new", resume_from_checkpoint=True)
    assert empty.code == 2 and "contains no checkpoint" in empty.err
    other_recipe = {**flags, "recipe_args": {**DISTILLED, "quantize_embeddings": 0}}
    foreign = run(**other_recipe, output_dir=tmp_path / "other", resume_from_checkpoint=output / "checkpoint-10")
    assert foreign.code == 2 and "another recipe or model" in foreign.err


def test_an_unfinished_run_of_other_settings_is_refused(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    output = unfinished(whole, tmp_path / "out", 10)
    refused = run(**flags, output_dir=output, seed=1)
    assert refused.code == 2
    assert "unfinished run" in refused.err and "seed (42 there, 1 here)" in refused.err
    assert [path.name for path in sorted(output.iterdir())] == ["checkpoint-10", "checkpoint-5", "run.json"]
    aside = run(
        **{**flags, "recipe_args": {**DISTILLED, "num_epochs": 3}}, output_dir=output, overwrite_output_dir=True
    )
    assert aside.code == 0, aside.all
    assert (tmp_path / "out.1" / "checkpoint-10").is_dir()
    assert "out.1: --overwrite_output_dir" in flat(aside.out) and read_json(output / "all_results.json")["epoch"] == 3


def test_a_folder_of_something_else_is_not_touched(flags: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("chapter 1")
    refused = run(**flags, output_dir=tmp_path)
    assert refused.code == 2 and "not contain a run of this script" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_evaluating_beside_an_unfinished_run_does_not_finish_it(
    flags: dict[str, Any], tiny: Tiny, whole: Path, tmp_path: Path
) -> None:
    output = unfinished(whole, tmp_path / "out", 10)
    evaluated = run(
        model_name_or_path=output / "checkpoint-10", output_dir=output, validation_file=tiny.validation, do_eval=True
    )
    assert evaluated.code == 0, evaluated.all
    assert run(**flags, output_dir=output).code == 0
    assert_same_run(output, whole)


# --- real interruptions -----------------------------------------------------------------------------------------------


def wait_for(condition: Any, timeout: float = 120) -> None:
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 75, "stopped by SIGTERM"),
        pytest.param(signal.SIGUSR1, 75, "stopped by SIGUSR1", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    flags: dict[str, Any], whole: Path, tmp_path: Path, number: int, code: int, words: str
) -> None:
    output = tmp_path / "out"
    process = start(**flags, output_dir=output)
    wait_for(lambda: list(output.glob("checkpoint-*")))
    process.send_signal(number)
    stopped = wait(process)
    assert stopped.code == code, stopped.all
    assert stopped.err.rstrip().splitlines()[-1] == f"{words}: run the same command again to resume"
    assert "Traceback" not in stopped.err
    assert not (output / "model.safetensors").exists()
    assert run(**flags, output_dir=output).code == 0
    assert_same_run(output, whole)


def test_a_full_disk_leaves_the_last_checkpoint(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a disk without room: the second checkpoint meets it, half written."""
    output = unfinished(whole, tmp_path / "out", 5)
    largest = (whole / "checkpoint-10" / "training_state.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, resource.RLIM_INFINITY))
    try:
        full = run(**flags, output_dir=output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert full.code == 2, full.all
    assert "checkpoint-10 cannot be written" in full.err and "Free disk space" in full.err
    assert sorted(path.name for path in output.glob("*checkpoint*")) == ["checkpoint-5"]
    assert not list(output.glob(".*"))
    assert run(**flags, output_dir=output).code == 0
    assert_same_run(output, whole)


KILLS = 27  # every third inside a save


@pytest.mark.slow
def test_kills_at_any_moment(flags: dict[str, Any], tmp_path: Path) -> None:
    """Each kill comes after a random while, every third while a checkpoint is being written; what gets through them all
    ends as the run that was never killed, bit by bit."""
    recipe_args = {**DISTILLED, "num_epochs": 30, "qat_start_epoch": 4.0, "observer_epoch": 8.0}
    flags = {**flags, "recipe_args": recipe_args, "save_steps": 1, "save_total_limit": 2}
    whole, output, draw = tmp_path / "whole", tmp_path / "out", random.Random(0)
    assert run(**flags, output_dir=whole).code == 0
    in_a_save = resumed = 0
    for kill in range(KILLS):
        known = {path.name for path in output.glob("checkpoint-*")}
        log, began = tmp_path / f"log-{kill}", time.time_ns()
        process = forked(log, **flags, output_dir=output)
        if kill % 3 == 0:
            wait_for(functools.partial(writing_or_ended, output, began, process))
            time.sleep(draw.uniform(0, 0.005))
        else:
            wait_for(functools.partial(saved_or_ended, output, known, process))
            time.sleep(draw.uniform(0, 0.2))  # a few steps, so that no run comes to its end
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        in_a_save += writing(output, began)
        resumed += "resuming from step" in flat(log.read_text())
        assert [verify(checkpoint) for checkpoint in checkpoints_in(output)].count("") == len(checkpoints_in(output))
    last = run(**flags, output_dir=output)
    assert last.code == 0, last.all
    print(f"\n{KILLS} kills, {in_a_save} of them inside a save; {resumed} resumes, and the last to the end")
    assert in_a_save >= 8 and resumed >= KILLS // 2
    assert_same_model(output, whole)
    assert trace(output, "eval_loss") == trace(whole, "eval_loss")
    assert not list(output.glob(".*")), "leftovers of what was being written"


def saved_or_ended(output: Path, known: set[str], process: Any) -> bool:
    return bool({path.name for path in output.glob("checkpoint-*")} - known) or not process.is_alive()


def writing_or_ended(output: Path, began: int, process: Any) -> bool:
    return writing(output, began) or not process.is_alive()


def writing(output: Path, began: int) -> bool:
    """True while a checkpoint is half written, and after a kill that left it so; what an earlier kill left is older."""
    try:
        return any(path.stat().st_mtime_ns > began for path in output.glob(".checkpoint-*.partial"))
    except FileNotFoundError:  # whole by now, or removed
        return False


def forked(log: Path, **flags: Any) -> Any:
    """Starts the script as a process of its own that has imported everything already."""

    def main() -> None:
        with open(log, "w", buffering=1) as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            sys.stdout = sys.stderr = stream  # pytest's own are not these two
            sys.argv = [str(SCRIPT), *words(**flags)]
            runpy.run_path(str(SCRIPT), run_name="__main__")

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process
