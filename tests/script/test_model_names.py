"""Names of models on a command line: folders, ids short and full, weights of the older format."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from script_fixtures import Tiny, make_model, run, weights

from sparse_accel.errors import UsageError
from sparse_accel.hub import MODELS, dataset_address, model_address, not_found_error

pytest_plugins = ["script_fixtures"]


def test_short_ids_lead_to_todays(capsys: pytest.CaptureFixture[str]) -> None:
    assert model_address("--model_name_or_path", "bert-base-uncased") == "google-bert/bert-base-uncased"
    assert model_address("--model_name_or_path", "bert-base-uncased") == "google-bert/bert-base-uncased"
    assert capsys.readouterr().err == (
        "note: --model_name_or_path bert-base-uncased is now google-bert/bert-base-uncased on the Hub\n"
    )
    assert model_address("--distill_teacher", "owner/name") == "owner/name"
    assert dataset_address("conll2003") == "lhoestq/conll2003"
    assert MODELS["roberta-base"] == "FacebookAI/roberta-base"


def test_a_folder_comes_before_a_short_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bert-base-uncased").mkdir()
    monkeypatch.chdir(tmp_path)
    assert model_address("--model_name_or_path", "bert-base-uncased") == "bert-base-uncased"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "bert-base-uncasd",
            "such as google-bert/bert-base-uncased. Did you mean 'bert-base-uncased'?",
        ),
        ("./taecher", "there is no folder ./taecher. Did you mean 'teacher'?"),
        ("a/b/c", "there is no folder a/b/c."),
        ("~nobody_of_this_name/x", "there is no folder ~nobody_of_this_name/x."),
        ("x" * 300, "is neither a local folder nor a full Hub id"),
        ("zoo:a/b", "--distill_teacher zoo:a/b is not a stub."),
        ("teacher/config.json", "teacher/config.json is a file. Give the folder that contains the model: teacher"),
    ],
)
def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        model_address("--distill_teacher", name)
    assert words in str(error.value)


def test_what_was_tried() -> None:
    lines = str(not_found_error("--distill_teacher x/y", "x/y", "model", "no answer")).splitlines()
    assert lines[0] == "--distill_teacher x/y: the model was not found. Tried, in order:"
    assert [line.split(".")[0].strip() for line in lines[1:4]] == ["1", "2", "3"]
    assert lines[4].startswith("Ways to fix this: use a local folder; set HF_ENDPOINT") and "use another id" in lines[4]


# --- weights of the older format --------------------------------------------------------------------------------------


@pytest.fixture
def old_format(tmp_path: Path) -> Path:
    """A model's folder as they were before safetensors."""
    folder = make_model(tmp_path / "old", sparse=True)
    torch.save(weights(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_old_weights_are_read(old_format: Path, tiny: Tiny, tmp_path: Path) -> None:
    flags: dict[str, Any] = tiny.flags(model_name_or_path=old_format, output_dir=tmp_path / "out")
    done = run(**flags, max_train_samples=32)
    assert done.code == 0, done.all
    assert (tmp_path / "out" / "model.safetensors").is_file()


class Exploit:
    """Unpickled, it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_code_in_weights_does_not_run(old_format: Path, tiny: Tiny, tmp_path: Path) -> None:
    with open(old_format / "pytorch_model.bin", "wb") as stream:
        pickle.dump({"bert.pooler.dense.bias": Exploit(tmp_path / "it_ran")}, stream, protocol=2)
    refused = run(**tiny.flags(model_name_or_path=old_format, output_dir=tmp_path / "out"))
    assert refused.code == 2, refused.all
    assert "contains no readable model" in refused.err and "Traceback" not in refused.err
    assert not (tmp_path / "it_ran").exists()
