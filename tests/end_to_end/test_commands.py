"""SparseML's command names: from a built wheel in an empty folder, and how they are launched."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compilers import without_compilers
from places import ROOT
from script_fixtures import Tiny, environment, words

from sparse_accel import entry_points
from sparse_accel.cli.tasks import ARGUMENTS

pytest_plugins = ["script_fixtures"]


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "ACCELERATE_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


def test_without_settings_it_is_one_process() -> None:
    assert entry_points.launch_settings() is None


def test_what_accelerate_config_wrote_is_launched_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "home" / "accelerate" / "default_config.yaml"
    written.parent.mkdir(parents=True)
    written.write_text("num_processes: 2\n")
    assert entry_points.launch_settings() == written
    named = tmp_path / "ddp.yaml"
    named.touch()
    monkeypatch.setenv("ACCELERATE_CONFIG_FILE", str(named))
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: started.append(words))
    typed = ["--task_name", "sst2", "--do_train", "--model_name_or_path", "model", "--output_dir", "out"]
    monkeypatch.setattr(sys, "argv", ["sparseml.transformers.text_classification", *typed])
    entry_points.text_classification()
    assert started[0][1:] == [
        *("-m", "accelerate.commands.launch", "--config_file", str(named)),
        *(str(ROOT / "scripts" / "text_classification.py"), *typed),
    ]
    # A mistake ends it before a launcher starts, which would add a traceback.
    for mistake, said in ((["--nonsense"], "--nonsense is not a known flag"), (["--recipe", "no.yaml"], "no.yaml")):
        monkeypatch.setattr(sys, "argv", ["sparseml.transformers.text_classification", *typed, *mistake])
        with pytest.raises(SystemExit) as ended:
            entry_points.text_classification()
        assert ended.value.code == 2 and len(started) == 1
        assert said in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "0")  # launched already
    assert entry_points.launch_settings() is None


def test_settings_that_are_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ACCELERATE_CONFIG_FILE", "nowhere.yaml")
    with pytest.raises(SystemExit) as ended:
        entry_points.text_classification()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: ACCELERATE_CONFIG_FILE=nowhere.yaml: there is no such file\n"


@pytest.mark.parametrize("task", ARGUMENTS)
def test_every_task_is_launched_with_its_flags_checked(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ddp.yaml").touch()
    monkeypatch.setenv("ACCELERATE_CONFIG_FILE", str(tmp_path / "ddp.yaml"))
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: started.append(words))
    typed = ["--dataset_name", "rows", "--do_train", "--model_name_or_path", "model", "--output_dir", "out"]
    for mistake in ([], ["--nonsense"]):
        monkeypatch.setattr(sys, "argv", [f"sparseml.transformers.{task}", *typed, *mistake])
        with pytest.raises(SystemExit) if mistake else contextlib.nullcontext():
            getattr(entry_points, task)()
    assert started == [[*started[0][: -len(typed) - 1], str(ROOT / "scripts" / f"{task}.py"), *typed]]
    assert "--nonsense is not a known flag" in capsys.readouterr().err


@pytest.mark.slow
def test_from_a_wheel_in_an_empty_folder(tmp_path: Path) -> None:
    """The wheel alone, beside the libraries of this environment; what pip needs to build it comes from the index."""

    def ran(*words: object, code: int = 0, **more: str) -> str:
        done = subprocess.run(
            [str(word) for word in words], cwd=empty, env=os.environ | more, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    empty = tmp_path / "empty"
    empty.mkdir()
    sources = tmp_path / "sources"  # building leaves a folder beside what it builds
    subprocess.run(["git", "clone", "-q", str(ROOT), str(sources)], check=True)
    words = ("-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path / "wheels", sources)
    ran(sys.executable, *words, PATH=without_compilers())  # for the runtime's library see test_wheel.py
    ran(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    ran(
        sys.executable,
        "-m",
        "pip",
        "--python",
        tmp_path / "venv" / "bin" / "python",
        "install",
        "-q",
        "--no-deps",
        wheel,
    )
    (site / "libraries.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n")
    packed = {str(file.relative_to(site)) for file in (site / "sparse_accel").rglob("*") if file.suffix != ".pyc"}
    tracked = subprocess.run(
        ["git", "ls-files", "sparse_accel", "scripts/*.py"], cwd=sources, check=True, capture_output=True, text=True
    )
    for file in tracked.stdout.split():
        assert "/runtime/csrc/" in file or (f"sparse_accel/{file}" if file.startswith("scripts/") else file) in packed
    for name in ("text_classification", "train.text_classification", "export_onnx"):
        command = tmp_path / "venv" / "bin" / f"sparseml.transformers.{name}"
        assert "usage:" in ran(command, "--help", PYTHONPATH="")
        assert "is not a known flag" in ran(command, "--modle", "x", code=2, PYTHONPATH="")


@pytest.mark.slow
def test_two_processes_as_accelerate_is_configured(tiny: Tiny, tmp_path: Path) -> None:
    written = tmp_path / "home" / "accelerate" / "default_config.yaml"
    written.parent.mkdir(parents=True)
    settings = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nmixed_precision: 'no'\n"
    written.write_text(settings + "num_machines: 1\nnum_processes: 2\nmachine_rank: 0\nmain_process_port: 0\n")
    flags = words(**tiny.flags(output_dir=tmp_path / "out", recipe_args="num_epochs=1,qat_start_epoch=0.5"))
    command = Path(sys.executable).with_name("sparseml.transformers.text_classification")
    variables = environment(ACCELERATE_USE_CPU="true", HF_HOME=str(tmp_path / "home"))
    done = subprocess.run([str(command), *flags], env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cpu:0 (DDP, 2 processes)" in done.stdout
