"""What is uploaded: files by name, and nothing of this machine in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.cli.training import check_repository
from sparse_accel.errors import UsageError
from sparse_accel.publish.uploads import deployment_files, model_files

STAYS = (
    "arguments.json",
    "run.json",
    "trainer_state.json",
    "evaluation.json",
    "environment.json",
    ".lock",
    "notes.txt",
)
GOES: tuple[str, ...] = (
    "config.json",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "quantization.json",
)
GOES += ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "merges.txt", "recipe.yaml", "sparsity.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*STAYS, *GOES, "report.html", "README.md"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "model.safetensors").write_text("x")
    (tmp_path / "tracking").mkdir()
    return tmp_path


def test_files_are_named_one_by_one(folder: Path) -> None:
    notes: list[str] = []
    assert set(model_files(folder, False, notes)) == set(GOES)  # a report has paths, flags and texts of rows
    assert "--hub_report" in notes[0] and len(notes) == 1
    assert set(model_files(folder, True, notes)) == {*GOES, "report.html"} and len(notes) == 1


def test_a_configuration_does_not_name_a_folder(folder: Path) -> None:
    (folder / "config.json").write_text('{"_name_or_path": "/srv/me/model", "model_type": "bert"}')
    (folder / "tokenizer_config.json").write_text('{"name_or_path": "who/model"}')
    found = model_files(folder, False, [])
    content, other = found["config.json"], found["tokenizer_config.json"]
    assert isinstance(content, bytes) and json.loads(content) == {"model_type": "bert"}
    assert other == folder / "tokenizer_config.json"


def test_a_report_of_the_export_names_the_repository(tmp_path: Path) -> None:
    source, rows = "/srv/me/my model/run", "/data/secret place/rows.csv"
    report = {"source": {"folder": source}, "texts": {"source": rows}, "checks": [{"detail": f"21 rows of {rows} (x)"}]}
    (tmp_path / "export_report.json").write_text(json.dumps(report))
    (tmp_path / "export_report.md").write_text(f"made from `{source}`, {rows}")
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "mine.txt").write_text("x")
    found = deployment_files(tmp_path, "who/model")
    assert set(found) == {"export_report.json", "export_report.md", "model.onnx"}
    assert found["export_report.md"] == b"made from `who/model`, rows.csv"
    content = found["export_report.json"]
    assert isinstance(content, bytes) and b"/home" not in content and b"secret" not in content
    assert json.loads(content)["checks"] == [{"detail": "21 rows of rows.csv (x)"}]


@pytest.mark.parametrize(
    "name", ["", "a/b/c", ".a", "a.", "-a", "a--b", "a..b", "a.git", "a b", "ä", "/a", "a/", "x" * 97]
)
def test_names_that_the_hub_does_not_allow(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    with pytest.raises(UsageError, match="OWNER/NAME"):
        check_repository("--hub_model_id", name)
    with pytest.raises(HFValidationError):
        validate_repo_id(name)


@pytest.mark.parametrize("name", ["a", "owner/name", "Owner-1/name_2.x", "x" * 96])
def test_names_that_the_hub_allows(name: str) -> None:
    check_repository("--hub_model_id", name)


def test_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"output_dir": "out", "model_name_or_path": "model", "task_name": "sst2"}
    with pytest.raises(UsageError, match=r"add --do_train.*python -m sparse_accel.publish out"):
        TextClassificationArguments(**flags, do_eval=True, push_to_hub=True)  # type: ignore[arg-type]
    arguments = TextClassificationArguments(**flags, do_train=True, hub_token="x", hub_private_repo=False)  # type: ignore[arg-type]
    assert (
        "hub_token" not in arguments.to_dict() and len([line for line in arguments.warnings() if "hub_" in line]) == 2
    )
