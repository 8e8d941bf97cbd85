"""The command `sparse_accel`: what it starts, what it answers itself, and how fast it knows a typing error."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

import sparse_accel
from sparse_accel import __main__ as command
from sparse_accel import entry_points
from sparse_accel.cli.tasks import ARGUMENTS
from sparse_accel.errors import UsageError

HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "onnx")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with these words in this process; returns exit code, output and errors."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparse_accel", *words])
        with pytest.raises(SystemExit) as ended:
            command.command()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command starts, with its words, instead of starting it."""
    found: list[Any] = []
    monkeypatch.setattr(runpy, "run_path", lambda path, run_name: found.append([Path(path), *sys.argv[1:]]))
    monkeypatch.setattr(runpy, "run_module", lambda name, **_: found.append([name, *sys.argv[1:]]))
    for name in ("RANK", "LOCAL_RANK", "ACCELERATE_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", "/nowhere")
    return found


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["train", "text-classification", "--do_train"], ["text_classification.py", "--do_train"]),
        (["train", "token_classification", "run.json"], ["token_classification.py", "run.json"]),
        (["export", "--model_path", "x"], ["export_onnx.py", "--model_path", "x"]),
        (["train", "question-answering", "--do_train"], ["question_answering.py", "--do_train"]),
        (["prefetch", "--task_name", "sst2"], ["prefetch.py", "--task_name", "sst2"]),
        (["prefetch", "token-classification", "--do_eval"], ["prefetch.py", "token_classification", "--do_eval"]),
        (["prefetch", "question-answering", "--do_eval"], ["prefetch.py", "question_answering", "--do_eval"]),
        (["train", "masked-language-modeling", "--do_eval"], ["masked_language_modeling.py", "--do_eval"]),
        (["train", "sentence-embedding", "--do_eval"], ["sentence_embedding.py", "--do_eval"]),
        (["recipe", "a.yaml", "--resolved"], ["sparse_accel.recipe", "a.yaml", "--resolved"]),
        (["runtime", "explain", "x"], ["sparse_accel.runtime", "explain", "x"]),
        (["report", "a", "b"], ["sparse_accel.report", "a", "b"]),
        (["publish", "a", "--help"], ["sparse_accel.publish", "a", "--help"]),
    ],
)
def test_a_command_starts_its_program_with_the_words_after_it(
    words: list[str], program: list[str], started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sparse_accel", *words])
    command.main()
    name = ROOT / "scripts" / program[0] if program[0].endswith(".py") else program[0]
    assert started == [[name, *program[1:]]]


def test_a_program_answers_signals_itself(typed: Run, started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers send SIGTERM twice; the program has answered the first."""
    found: list[Any] = []
    monkeypatch.setattr(runpy, "run_module", lambda *_, **__: found.append(signal.getsignal(signal.SIGTERM)))
    assert typed("recipe", "a.yaml")[0] == 0 and found == [signal.SIG_DFL]


def test_every_program_exists() -> None:
    for name in command.MODULES:
        assert find_spec(f"sparse_accel.{name}.__main__"), name
    for name in (*ARGUMENTS, "export_onnx", "prefetch"):
        assert entry_points.script_path(f"{name}.py").is_file()
    assert [task.replace("-", "_") for task in command.TRAIN] == [*ARGUMENTS]
    words = {name.partition(" ")[0] for name in command.COMMANDS}
    assert words == {"train", "export", "prefetch", "launch-files", *command.MODULES}
    assert {f"train {task}" for task in command.TRAIN} <= command.COMMANDS.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs a command"),
        (["trian"], "Did you mean 'train'?"),
        (["text_classification", "--do_train"], "Did you mean 'train text_classification'?"),
        (["lunch-files"], "Did you mean 'launch-files'?"),
        (["--versoin"], "'--versoin' is not a command"),
        (["train"], "needs a task, before all flags"),
        (["train", "--do_train"], "needs a task, before all flags"),
        (["train", "txt-classification"], "Did you mean 'text-classification'?"),
        (["train", "question-answring"], "Did you mean 'question-answering'?"),
        (["launch-files", "a", "b"], "takes one folder and no flags"),
        (["launch-files", "--force"], "takes one folder and no flags"),
    ],
)
def test_typing_errors_name_what_was_meant(words: list[str], said: str, typed: Run) -> None:
    code, out, err = typed(*words)
    assert code == 2 and out == "" and said in err and len(err.splitlines()) == 1


def test_help_and_version(typed: Run) -> None:
    for words in (["--help"], ["-h"], ["train", "--help"]):
        code, out, _ = typed(*words)
        assert code == 0 and all(name in out for name in command.COMMANDS)
    assert max(map(len, command.HELP.splitlines())) <= 120
    assert typed("--version") == (0, f"sparse_accel {sparse_accel.__version__}\n", "")
    assert typed("launch-files", "--help")[1] == command.LAUNCH_FILES_HELP


def test_as_a_process_it_loads_nothing_heavy(tmp_path: Path) -> None:
    """Time is not asserted: this is what makes it short."""
    code = (
        "import runpy, sys; sys.argv = ['sparse_accel', '--help']\n"
        "try: runpy.run_module('sparse_accel', run_name='__main__', alter_sys=True)\n"
        f"finally: print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == command.HELP and found.stderr.split() == []
    here: dict[str, Any] = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "cwd": tmp_path}
    wrong = subprocess.run([sys.executable, "-m", "sparse_accel", "recpie"], capture_output=True, text=True, **here)
    assert wrong.returncode == 2 and "Did you mean 'recipe'?" in wrong.stderr


# --- launch files -----------------------------------------------------------------------------------------------------


def test_launch_files_are_copied_once(typed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = typed("launch-files")
    source = ROOT / "accelerate_configs"
    expected = {file.relative_to(source) for file in source.rglob("*") if file.is_file()}
    copied = {
        file.relative_to("accelerate_configs") for file in Path("accelerate_configs").rglob("*") if file.is_file()
    }
    assert code == 0 and copied == expected and f"{len(expected)} files copied" in out
    assert {Path("ddp.yaml"), Path("elastic.sh"), Path("slurm/one_node.sbatch"), Path("kubernetes/job.yaml")} <= copied
    assert all((source / name).read_bytes() == (tmp_path / "accelerate_configs" / name).read_bytes() for name in copied)
    assert os.access("accelerate_configs/elastic.sh", os.X_OK)
    Path("accelerate_configs/cpu.yaml").unlink()
    assert "1 file copied" in typed("launch-files")[1]
    assert "has all files already" in typed("launch-files", str(tmp_path / "accelerate_configs"))[1]


def test_files_of_others_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "own"
    target.mkdir()
    (target / "ddp.yaml").write_text("num_processes: 8\n")
    with pytest.raises(UsageError, match=r"other files of these names: ddp\.yaml\. Nothing was copied"):
        command.copy_launch_files(target)
    assert [file.name for file in target.iterdir()] == ["ddp.yaml"]
    assert (target / "ddp.yaml").read_text() == "num_processes: 8\n"
    with pytest.raises(UsageError, match=r"ddp\.yaml is not a folder"):
        command.copy_launch_files(target / "ddp.yaml" / "below")
    (target / "ddp.yaml").unlink()
    (target / "slurm").touch()
    with pytest.raises(UsageError, match="slurm is not a folder"):
        command.copy_launch_files(target)


def test_a_version_in_one_place() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in text and sparse_accel.__version__ not in text
