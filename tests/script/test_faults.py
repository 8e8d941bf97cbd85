"""What may go wrong around a run: a model that breaks, two runs in one folder, going back, disks, and signals."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from script_fixtures import Tiny, assert_same_model, flat, read_json, run, start, wait

from sparse_accel.errors import UsageError
from sparse_accel.files import write_text
from sparse_accel.main import run_main
from sparse_accel.models import teacher
from sparse_accel.run_folder import ownership
from sparse_accel.run_folder.checkpoints import checkpoints_in
from sparse_accel.run_folder.record import change_record

pytest_plugins = ["script_fixtures"]


@pytest.fixture(scope="module")
def flags(tiny: Tiny) -> dict[str, Any]:
    """A run of 14 steps that saves each third one."""
    recipe_args = {"num_epochs": 2, "qat_start_epoch": 1.0, "observer_epoch": 1.5, "init_lr": 1e-2}
    return tiny.flags(recipe_args=recipe_args, save_strategy="steps", save_steps=3, logging_steps=1)


@pytest.fixture(scope="module")
def whole(flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    assert run(**flags, output_dir=output).code == 0
    return output


def unfinish(whole: Path, folder: Path, *steps: int) -> Path:
    """The folder of an interrupted run with the checkpoints of these steps."""
    folder.mkdir()
    for step in steps:
        shutil.copytree(whole / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    record = (whole / "run.json").read_text().replace('"finished": true', '"finished": false')
    (folder / "run.json").write_text(record)
    return folder


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints_in(folder)]


# --- a model that breaks ----------------------------------------------------------------------------------------------


def test_a_broken_model_does_not_push_out_the_last_good_checkpoint(
    flags: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step that breaks it is a number: it is that of the weights before."""
    step, taken = torch.optim.AdamW.step, 0

    def break_at_the_sixth(self: Any, *words: Any, **more: Any) -> Any:
        nonlocal taken
        taken += 1
        result = step(self, *words, **more)
        if taken == 6:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = float("nan")
        return result

    often = {**flags, "save_steps": 1, "save_total_limit": 1, "output_dir": tmp_path / "out"}
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", break_at_the_sixth)
        broken = run(**often)
    assert broken.code == 2 and "contains NaN or inf after step 6" in flat(broken.err), broken.all
    assert names(tmp_path / "out") == ["checkpoint-5"]
    again = run(**often)
    assert again.code == 0 and "from step 5" in again.out, again.all
    assert_same_model(whole, tmp_path / "out")


# --- one run a folder -------------------------------------------------------------------------------------------------


def test_two_runs_in_one_folder(
    flags: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = unfinish(whole, tmp_path / "out", 3, 6)
    (output / ".checkpoint-9.partial").mkdir()  # what the other one is writing
    monkeypatch.setattr(ownership.lock_folder, "__defaults__", (0.1,))
    lock = ownership.lock_folder(output)
    refused = run(**flags, output_dir=output)
    assert refused.code == 2 and "another process is training there" in refused.err, refused.all
    assert (output / ".checkpoint-9.partial").is_dir() and names(output) == ["checkpoint-3", "checkpoint-6"]
    lock.release()
    done = run(**flags, output_dir=output)
    assert done.code == 0 and not list(output.glob(".*")), done.all
    assert_same_model(whole, output)


def test_a_folder_that_is_moved_aside_leaves_no_lock(flags: dict[str, Any], tmp_path: Path) -> None:
    short = {
        **flags,
        "recipe_args": {"num_epochs": 1, "qat_start_epoch": 0.3, "observer_epoch": 0.6},
        "eval_strategy": "no",
    }
    for seed in (1, 2):
        done = run(**short, seed=seed, output_dir=tmp_path / "out")
        assert done.code == 0, done.all
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.1"]
    assert not list(tmp_path.rglob(".*"))


# --- going back, going on ---------------------------------------------------------------------------------------------


def test_going_back_to_a_named_checkpoint_and_on_by_the_same_command(
    flags: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    output = unfinish(whole, tmp_path / "out", 3, 6, 9, 12)
    back = {**flags, "save_total_limit": 1, "output_dir": output, "resume_from_checkpoint": output / "checkpoint-6"}
    process = start(**back)
    while "checkpoint-9" not in names(output) or (output / "checkpoint-12").is_dir():
        assert process.poll() is None or (output / "checkpoint-9").is_dir()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    stopped = wait(process)
    assert stopped.code in (0, 75), stopped.all
    assert "checkpoint-12 is newer than the checkpoint you resume from" in stopped.err
    assert "from step 6" in stopped.out and "checkpoint-6" not in names(output), "--save_total_limit 1"
    again = run(**back)
    assert again.code == 0, again.all
    if stopped.code == 75:
        assert "contains training done since" in again.out and "from step 6" not in again.out
    assert_same_model(whole, output)
    assert {"checkpoint-9.left.1", "checkpoint-12.left.1"} <= {path.name for path in output.iterdir()}


def test_overwriting_does_not_start_a_requeued_job_anew(
    flags: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = unfinish(whole, tmp_path / "out", 9)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    requeued = run(**flags, output_dir=output, overwrite_output_dir=True)
    assert requeued.code == 0 and "from step 9" in requeued.out, requeued.all
    assert not (tmp_path / "out.1").exists()


def test_what_a_full_disk_left_of_a_report_goes(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """It could not be removed then. A partial folder may be that of a running export."""
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    left, export = output / ".report.html.1.partial", output / ".deployment.1.partial"
    left.touch()
    export.mkdir()
    assert run(**flags, output_dir=output).code == 0 and not left.exists() and export.exists()


def test_a_write_that_fails_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_text(tmp_path / "report.html", "before")
    monkeypatch.setattr("sparse_accel.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "report.html", "after")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.html", "before")]


def test_a_finished_run_has_nothing_to_resume_from(flags: dict[str, Any], whole: Path) -> None:
    before = sorted(path.name for path in whole.iterdir())
    refused = run(**flags, output_dir=whole, resume_from_checkpoint=whole / "checkpoint-6")
    assert refused.code == 2 and "finished: there is nothing to resume from" in refused.err, refused.all
    assert sorted(path.name for path in whole.iterdir()) == before


def test_a_checkpoint_of_another_run_is_said_to_be_one(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    other = {**flags, "learning_rate": 1e-3, "seed": 7, "output_dir": tmp_path / "out"}
    resumed = run(**other, resume_from_checkpoint=whole / "checkpoint-12")
    assert resumed.code == 0, resumed.all
    assert "checkpoint-12 belongs to a run that differs from this one in" in resumed.err
    assert "seed (42 there, 7 here)" in resumed.err


def test_a_folder_in_which_nothing_was_trained_is_free(flags: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    failed = run(**flags, output_dir=output, resume_from_checkpoint=True)
    assert failed.code == 2 and "contains no checkpoint" in failed.err, failed.all
    assert ownership.acquire_folder(output, {"one": "run"}, overwrite=False) == "start"
    (output / "arguments.json").write_text("{}")  # it ended there
    assert ownership.acquire_folder(output, {"another": "run"}, overwrite=False) == "start"


@pytest.mark.parametrize("named", [True, False], ids=["a named checkpoint", "the newest"])
def test_a_finished_run_is_extended(flags: dict[str, Any], tmp_path: Path, named: bool) -> None:
    """It is moved aside complete, and the checkpoint to start from is in the new folder, too."""
    plain = {name: value for name, value in flags.items() if name not in ("recipe", "recipe_args", "distill_teacher")}
    output = tmp_path / "out"
    flags = {
        **plain,
        "output_dir": output,
        "eval_strategy": "no",
        "save_strategy": "epoch",
        "lr_scheduler_type": "constant",
    }
    assert run(**flags, num_train_epochs=1).code == 0
    (checkpoint,) = output.glob("checkpoint-*")
    longer = {**flags, "num_train_epochs": 2, "resume_from_checkpoint": checkpoint if named else True}

    weights = checkpoint / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1])
    refused = run(**longer)
    assert refused.code == 2 and not (tmp_path / "out.1").exists(), refused.all
    damaged = checkpoint if named else checkpoint.with_name(f"{checkpoint.name}.damaged")
    (damaged / "model.safetensors").write_bytes(sound)
    damaged.rename(checkpoint)

    done = run(**longer)
    assert done.code == 0, done.all
    assert f"resuming from step {checkpoint.name.partition('-')[2]}" in flat(done.out)
    assert "was moved to" in done.out and (tmp_path / "out.1" / "model.safetensors").is_file()
    assert (tmp_path / "out.1" / checkpoint.name).is_dir() and checkpoint.is_dir()
    straight = run(**{**flags, "output_dir": tmp_path / "straight"}, num_train_epochs=2)
    assert straight.code == 0
    again = run(**longer)
    assert again.code == 0 and "nothing is trained again" in again.out, again.all
    assert_same_model(tmp_path / "straight", output)


def test_a_checkpoint_of_another_recipe_moves_nothing(flags: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    other = tmp_path / "other.yaml"
    other.write_text("modifiers:\n  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 1.0}\n")
    plain = {**flags, "recipe": other, "recipe_args": None, "distill_teacher": None}
    for asked in (True, output / "checkpoint-6"):
        refused = run(**plain, output_dir=output, resume_from_checkpoint=asked)
        assert refused.code == 2 and "with another recipe or model" in refused.err, refused.all
    assert not (tmp_path / "out.1").exists() and read_json(output / "run.json")["finished"]
    same = run(**flags, output_dir=output, resume_from_checkpoint=True)
    assert same.code == 0 and "nothing is trained again" in same.out, same.all


def test_the_working_folder_as_output(flags: dict[str, Any], tmp_path: Path) -> None:
    short = {**flags, "recipe_args": {"num_epochs": 1, "qat_start_epoch": 0.3, "observer_epoch": 0.6}}
    folder = tmp_path / "here"
    folder.mkdir()
    inode = folder.stat().st_ino
    for seed in (1, 2):
        done = run(**short, seed=seed, output_dir=".", cwd=folder)
        assert done.code == 0, done.all
    assert f"was moved to {tmp_path / 'here.1'}" in done.out
    assert folder.stat().st_ino == inode, "it stays the folder that a shell is in"
    again = run(**short, seed=2, output_dir=".", cwd=folder)
    assert again.code == 0 and "nothing is trained again" in again.out
    for name, seed in (("here.1", 1), ("here", 2)):
        assert read_json(tmp_path / name / "arguments.json")["seed"] == seed
        assert (tmp_path / name / "all_results.json").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused = run(**short, output_dir=".", overwrite_output_dir=True, cwd=tmp_path / "mine")
    assert refused.code == 2 and "is your working folder" in refused.err, refused.all
    (folder / "inside").mkdir()
    refused = run(**short, seed=3, output_dir="..", cwd=folder / "inside")
    assert refused.code == 2 and "runs in it" in refused.err and "seed (2 there, 3 here)" in refused.err


def test_a_link_as_output(flags: dict[str, Any], tmp_path: Path) -> None:
    """What it leads to is moved aside there, on its own disk."""
    short = {**flags, "recipe_args": {"num_epochs": 1, "qat_start_epoch": 0.3, "observer_epoch": 0.6}}
    (tmp_path / "scratch" / "runs").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "scratch" / "runs")
    for seed in (1, 2):
        done = run(**short, seed=seed, output_dir=link)
        assert done.code == 0, done.all
    assert link.is_symlink() and not (tmp_path / "link.1").exists()
    assert sorted(path.name for path in (tmp_path / "scratch").iterdir()) == ["runs", "runs.1"]
    assert read_json(link / "arguments.json")["seed"] == 2


def test_an_output_that_is_no_folder(flags: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    moved = run(
        **{**flags, "do_eval": None, "eval_strategy": "no"}, output_dir=tmp_path / "file", overwrite_output_dir=True
    )
    assert moved.code == 0 and (tmp_path / "file.1").read_text() == "mine", moved.all
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused = run(**flags, output_dir=tmp_path / "link")
    assert refused.code == 2 and "is a link to" in refused.err and "does not exist" in refused.err, refused.all


def test_a_folder_that_cannot_be_moved(flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a disk is mounted, say."""
    output = tmp_path / "out"
    ownership.acquire_folder(output, {"another": "run"}, overwrite=False)
    change_record(output, finished=True)
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EBUSY, "Device or resource busy")))
    refused = run(**flags, output_dir=output)
    assert refused.code == 2 and "cannot be moved aside" in refused.err and "resource busy" in refused.err


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing(capsys: pytest.CaptureFixture[str], number: int) -> None:
    def write() -> None:
        raise OSError(number, os.strerror(number), "out/eval_results.json")

    with pytest.raises(SystemExit) as ended:
        run_main(write)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and os.strerror(number) in printed and "out/eval_results.json" in printed
    assert ("run the same command again" in printed) == (number == errno.ENOSPC) and "Traceback" not in printed


@pytest.mark.parametrize("place", ["a_file/out", "/proc/none/out"])
def test_a_place_for_no_folder(flags: dict[str, Any], tmp_path: Path, place: str) -> None:
    (tmp_path / "a_file").touch()
    refused = run(**flags, output_dir=place, cwd=tmp_path)
    assert refused.code == 2 and f"error: --output_dir {place} cannot be created" in refused.err, refused.all


def test_another_error_of_the_system_is_a_fault_of_ours() -> None:
    def read() -> None:
        raise FileNotFoundError("nothing there")

    with pytest.raises(FileNotFoundError):
        run_main(read)


def test_a_run_that_was_killed_before_it_was_recorded(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".run.json.17.partial").write_text("{")
    (tmp_path / "out" / ownership.LOCK_FILE).touch()
    assert ownership.acquire_folder(tmp_path / "out", {"model": "x"}, overwrite=False) == "start"
    assert not list((tmp_path / "out").glob(".*.partial"))


def test_logits_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("no space left on device")

    monkeypatch.setattr(teacher, "save_file", full)
    teacher._write(tmp_path / "table.safetensors", torch.zeros(2, 2))
    assert "teacher logits are not stored on disk" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_outside_of_training(capsys: pytest.CaptureFixture[str], number: int) -> None:
    def load() -> None:
        try:
            os.kill(os.getpid(), number)
        except Exception as error:  # as libraries do that try again
            raise UsageError("taken for an error of loading") from error

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        run_main(load)
    assert ended.value.code == 75 and signal.getsignal(number) == before
    assert f"stopped by {signal.Signals(number).name}: run the same command again to resume" in capsys.readouterr().err


def test_how_to_go_on_after_overwriting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["script", "--overwrite_output_dir"])
    with pytest.raises(SystemExit):
        run_main(interrupt)
    assert "run the same command again without --overwrite_output_dir (it starts a new run) to resume" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_the_end_of_a_launcher_saves(flags: dict[str, Any], tmp_path: Path) -> None:
    """The launcher of one process passes no signal on, and leaves it behind. The run is long enough to notice it."""
    output = tmp_path / "out"
    flags = {**flags, "eval_strategy": "no", "save_steps": 30}
    flags["recipe_args"] = {**flags["recipe_args"], "num_epochs": 30}
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    process = start(launcher=launcher, **flags, output_dir=output)
    while not (output / "checkpoint-30").is_dir():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    ended = wait(process)  # for the pipe, which the script's process holds
    assert "stopped by the end of its launcher: run the same command again to resume" in ended.err, ended.all
    saved = names(output)[-1].partition("-")[2]
    again = run(**flags, output_dir=output)
    assert again.code == 0 and f"from step {saved}" in flat(again.out), again.all
    assert read_json(output / "all_results.json")["global_step"] == 210
