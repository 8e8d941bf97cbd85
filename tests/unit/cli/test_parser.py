"""Flags as they are read: paths in the home folder, and which flags were given."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from places import ROOT

from sparse_accel.cli.export import ExportArguments
from sparse_accel.cli.parser import expand_paths, expanded, flag, given, parse_arguments
from sparse_accel.cli.question_answering import QuestionAnsweringArguments
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.errors import UsageError

SETTINGS: dict[str, Any] = {"model_name_or_path": "model", "output_dir": "out", "do_train": True, "task_name": "sst2"}
TRAIN = ("--model_name_or_path", "model", "--output_dir", "out", "--do_train", "--task_name", "sst2")


def parse(*words: str) -> TextClassificationArguments:
    return parse_arguments(TextClassificationArguments, words)


def refusal(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    return str(caught.value)


def write_settings(folder: Path, content: dict[str, Any]) -> str:
    file = folder / "settings.json"
    file.write_text(json.dumps(content))
    return str(file)


# --- the home folder --------------------------------------------------------------------------------------------------

PATHS: tuple[str, ...] = (
    "model_name_or_path",
    "recipe",
    "distill_teacher",
    "config_name",
    "tokenizer_name",
    "cache_dir",
    "output_dir",
)
PATHS += ("resume_from_checkpoint",)
FILES = ("train_file", "validation_file", "test_file")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder that has three data files."""
    for name in FILES:
        (tmp_path / f"{name.removesuffix('_file')}.csv").write_text("text,label\nfine,1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_every_path_may_begin_with_the_home_folder(home: Path) -> None:
    """No shell sees to it after `=`, nor in a file of settings, nor in Python."""
    settings: dict[str, Any] = {name: f"~/{name}" for name in PATHS} | {
        "train_file": "~/train.csv",
        "validation_file": "~/validation.csv",
        "test_file": "~/test.csv",
        "do_train": True,
        "do_predict": True,
    }
    by_flags = parse(*(f"--{name}={value}".removesuffix("=True") for name, value in settings.items()))
    assert {name: getattr(by_flags, name) for name in PATHS} == {name: f"{home}/{name}" for name in PATHS}
    assert {Path(str(getattr(by_flags, name))).parent for name in FILES} == {home}
    write_settings(home, settings)
    assert parse("~/settings.json") == by_flags
    assert TextClassificationArguments(**settings) == by_flags
    assert (
        parse("--model_name_or_path=m", "--output_dir=o", "--do_train", "--dataset_name=~/rows").dataset_name
        == f"{home}/rows"
    )


def test_export_paths_too(home: Path) -> None:
    names = ("model_path", "output_dir", "data", "deepsparse_python")
    found = parse_arguments(ExportArguments, [f"--{name}=~/{name}" for name in names])
    assert {name: getattr(found, name) for name in names} == {name: f"{home}/{name}" for name in names}


def test_every_flag_that_names_a_path_is_one() -> None:
    """A flag whose help speaks of a file or folder expands `~`; so a new one is not forgotten."""
    for cls in (TextClassificationArguments, QuestionAnsweringArguments, ExportArguments):
        for field in dataclasses.fields(cls):
            names_one = re.search(r"\b(folder|file|folders|files)\b", field.metadata["help"]) and "str" in str(
                field.type
            )
            assert field.metadata["path"] or not names_one, field.name


@pytest.mark.parametrize("value", ["who/model", "self", "zoo:a/b/c", "./~odd", "a~b", "folder/~/x"])
def test_other_names_stay(value: str, home: Path) -> None:
    assert parse(*TRAIN, "--recipe", "r.yaml", "--distill_teacher", value).distill_teacher == value


@drawn(st.text(alphabet="~/.ab:", min_size=1))
def test_only_a_leading_tilde_is_replaced(path: str) -> None:
    if not path.startswith("~"):
        assert expanded(path, "--x") == path
    elif path == "~" or path.startswith("~/"):
        found = expanded(path, "--x")
        assert not found.startswith("~") and found.rstrip("/").endswith(path[1:].rstrip("/"))


def test_a_home_folder_that_is_not_there(home: Path) -> None:
    nobody = "~nobody-of-that-name/runs"
    error = refusal(*TRAIN, f"--output_dir={nobody}")
    assert error.startswith(f"--output_dir: {nobody}: there is no user 'nobody-of-that-name'.")
    assert f"write ./{nobody}" in error
    file = write_settings(home, SETTINGS | {"output_dir": nobody})
    assert refusal(file).startswith(f"{file}: --output_dir: {nobody}: ")


def test_argparse_programs_and_several_paths(home: Path) -> None:
    found = argparse.Namespace(data=("~/a", "b"), output="~/c", model=None, rows=3, other="~/d")
    expand_paths(found, ("data", "output", "model", "rows"))
    assert vars(found) == {"data": (f"{home}/a", "b"), "output": f"{home}/c", "model": None, "rows": 3, "other": "~/d"}


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "sparse_accel.recipe", "~/no.yaml"],
        ["scripts/prefetch.py", *TRAIN, "--recipe=~/no.yaml"],
        ["scripts/export_onnx.py", "--model_path=~nobody-of-that-name/model"],
    ],
)
def test_programs_know_the_home_folder(command: list[str], home: Path) -> None:
    root = ROOT
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.returncode == 2, done.stderr
    assert f"{home}/no.yaml" in done.stderr or "--model_path: ~nobody-of-that-name/model" in done.stderr


# --- which flags were given -------------------------------------------------------------------------------------------


def test_which_flags_were_given(tmp_path: Path) -> None:
    by_flags = parse(*TRAIN, "--learning_rate", "5e-5", "--evaluation_strategy", "no")
    assert given(by_flags, "learning_rate") and given(by_flags, "eval_strategy"), "with their defaults too"
    assert not given(by_flags, "warmup_ratio")
    # A recorded file of settings holds every flag, given or not.
    recorded = write_settings(tmp_path, SETTINGS | {"learning_rate": 5e-5, "warmup_ratio": 0.1})
    by_file = parse(recorded, "--weight_decay", "0")
    assert not given(by_file, "learning_rate") and given(by_file, "warmup_ratio") and given(by_file, "weight_decay")
    in_python = TextClassificationArguments(**SETTINGS, warmup_steps=3, learning_rate=5e-5)
    assert given(in_python, "warmup_steps") and not given(in_python, "learning_rate")


# --- secrets ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class WithSecret:
    name: str | None = flag(None, "a name")
    token: str | None = flag(None, "a token", secret=True)


@pytest.mark.parametrize("words", [["--token", "s3cret"], ["--token=s3cret"]])
def test_a_secret_is_hidden_from_whoever_reads_the_command_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--name", "x", *words, "--name", "y"])
    arguments = parse_arguments(WithSecret)
    assert (arguments.token, arguments.name) == ("s3cret", "y")
    assert "s3cret" not in " ".join(sys.argv) and sys.argv[:3] == ["program", "--name", "x"]
    assert "s3cret" not in repr(arguments)


def test_a_secret_is_not_in_messages(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_arguments(WithSecret, ["--token", "s3cret", "--token", "s3cret2"]).token == "s3cret2"
    with pytest.raises(UsageError) as several:
        parse_arguments(WithSecret, ["--token", "s3cret", "s3cret"])
    assert "takes one value" in str(several.value)
    assert "s3cret" not in capsys.readouterr().err + str(several.value)
