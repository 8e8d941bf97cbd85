"""What becomes of an output folder: continued, shown, refused or moved aside; nothing is ever deleted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny import make_bert, make_rows

from sparse_accel.errors import UsageError
from sparse_accel.files import write_text
from sparse_accel.fingerprints import fingerprint_of_rows, fingerprint_of_weights
from sparse_accel.recipe import load_recipe
from sparse_accel.run_folder.ownership import acquire_folder, move_aside
from sparse_accel.run_folder.record import RUN_FILE, difference, read_record, write_record

IDENTITY: dict[str, Any] = {"model": "a", "seed": 42, "recipe": "modifiers:\n  - !A {x: 1}\n", "teacher": None}
OTHER = {**IDENTITY, "seed": 43}


def claimed(folder: Path, *, finished: bool, identity: dict[str, Any] = IDENTITY) -> Path:
    """A folder that a run has claimed, with a file of it."""
    assert acquire_folder(folder, identity, overwrite=False) == "start"
    (folder / "kept.txt").write_text("mine")
    write_record(folder, identity, finished=finished)
    return folder


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("there", [None, "empty", "deep"])
def test_a_free_folder_is_started_in(tmp_path: Path, there: str | None) -> None:
    folder = tmp_path / "deep" / "er" if there == "deep" else tmp_path / "out"
    if there == "empty":
        folder.mkdir()
    assert acquire_folder(folder, IDENTITY, overwrite=there == "empty") == "start"
    assert read_record(folder) == {"identity": IDENTITY, "finished": False}


def test_an_unfinished_run_of_this_identity_is_continued(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "out", finished=False)
    assert acquire_folder(folder, dict(IDENTITY), overwrite=False) == "continue"
    assert tree(tmp_path) == {"out/kept.txt", f"out/{RUN_FILE}"}


def test_a_finished_run_of_this_identity_is_shown(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "out", finished=True)
    assert acquire_folder(folder, IDENTITY, overwrite=False) == "show"
    record = read_record(folder)
    assert record is not None and record["finished"] and tree(tmp_path) == {"out/kept.txt", f"out/{RUN_FILE}"}


def test_an_unfinished_run_of_another_identity_is_refused(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "out", finished=False)
    with pytest.raises(UsageError, match=r"unfinished run that differs from this one in seed \(42 there, 43 here\)"):
        acquire_folder(folder, OTHER, overwrite=False)
    assert read_record(folder) == {"identity": IDENTITY, "finished": False}


def test_a_finished_run_of_another_identity_is_moved_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = claimed(tmp_path / "out", finished=True)
    assert acquire_folder(folder, OTHER, overwrite=False) == "start"
    assert tree(tmp_path) == {"out.1/kept.txt", f"out.1/{RUN_FILE}", f"out/{RUN_FILE}"}
    said = capsys.readouterr().out
    assert str(tmp_path / "out.1") in said and "seed (42 there, 43 here)" in said
    (folder / "second.txt").write_text("mine too")
    write_record(folder, OTHER, finished=True)
    assert acquire_folder(folder, IDENTITY, overwrite=False) == "start"
    assert tree(tmp_path) >= {"out.1/kept.txt", "out.2/second.txt"}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("identity", [IDENTITY, OTHER])
def test_overwriting_moves_aside(tmp_path: Path, finished: bool, identity: dict[str, Any]) -> None:
    folder = claimed(tmp_path / "out", finished=finished)
    assert acquire_folder(folder, identity, overwrite=True) == "start"
    assert tree(tmp_path) == {"out.1/kept.txt", f"out.1/{RUN_FILE}", f"out/{RUN_FILE}"}


@pytest.mark.parametrize("content", [None, "", "[1, 2]", "{}", '{"identity": {}}', "{torn"])
def test_what_no_run_of_ours_wrote_is_not_touched(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    if content is not None:
        (folder / RUN_FILE).write_text(content)
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="is not empty and does not contain a run of this script"):
        acquire_folder(folder, IDENTITY, overwrite=False)
    assert tree(tmp_path) == before
    assert acquire_folder(folder, IDENTITY, overwrite=True) == "start"
    assert "out.1/thesis.tex" in tree(tmp_path)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UsageError, match="is a file"):
        acquire_folder(tmp_path / "out", IDENTITY, overwrite=False)
    assert (tmp_path / "out").read_text() == "precious"


def test_a_relative_folder_is_moved_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    assert move_aside(Path("out/"), "why") == Path("out.1")
    assert (tmp_path / "out.1").is_dir()


# --- identities -------------------------------------------------------------------------------------------------------


def test_an_identity_survives_its_file(tmp_path: Path) -> None:
    identity = {**IDENTITY, "rate": 1.5e-4, "none": None, "list": [1, "a"]}
    write_record(tmp_path, identity, finished=False)
    record = read_record(tmp_path)
    assert record is not None and record["identity"] == identity


def test_a_record_without_keys_that_are_new_is_of_the_same_run(tmp_path: Path) -> None:
    """A recipe is recorded with all defaults. A version with one more key must know the run again."""
    recipe = load_recipe(
        "modifiers:\n  - !EpochRangeModifier {end_epoch: 2}\n  - !QuantizationModifier {}\n"
    ).resolved()
    older = "".join(line for line in recipe.splitlines(keepends=True) if "tensorrt" not in line)
    assert older != recipe
    write_record(tmp_path, {"recipe": older}, finished=True)
    record = read_record(tmp_path)
    assert record is not None and record["identity"] == {"recipe": recipe}
    write_record(tmp_path, {"recipe": "modifiers:\n  - !NoSuchModifier {}\n"}, finished=True)
    unknown = read_record(tmp_path)
    assert unknown is not None and unknown["identity"]["recipe"].endswith("!NoSuchModifier {}\n")


@pytest.mark.parametrize("recorded", ["", "zoo:a/b", "x.yaml", "{\n", "- a\n- b\n", "a: !NoSuchModifier 1\n", None, 3])
def test_a_recorded_recipe_is_read_as_a_text_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Any
) -> None:
    """A damaged record is another run: no file or stub that it names is read, and it raises nothing."""
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("modifiers:\n  - !EpochRangeModifier {end_epoch: 2}\n")
    write_record(tmp_path, {"recipe": recorded}, finished=True)
    record = read_record(tmp_path)
    assert record is not None and record["identity"] == {"recipe": recorded}


def test_differences_are_named() -> None:
    assert difference(IDENTITY, IDENTITY) == ""
    changed = {**OTHER, "recipe": "modifiers:\n  - !A {x: 2}\n", "new": 1}
    found = difference(IDENTITY, changed)
    assert "seed (42 there, 43 here)" in found and "new (none there, 1 here)" in found
    assert "{x: 1} there" in found and "{x: 2} here" in found and "model" not in found
    longer = {**IDENTITY, "recipe": "modifiers:\n\n  - !A {x: 1}\n    y: 2\n"}
    assert (
        difference({**IDENTITY, "recipe": "modifiers:\n  - !A {x: 1}\n"}, longer) == "recipe (nothing there, y: 2 here)"
    )
    digests = {"model": "0" * 32}, {"model": "1" * 32}
    assert difference(*digests) == "model (other content)"
    assert difference(digests[0], {}) == "model (given there, none here)"
    assert difference(IDENTITY, {**IDENTITY, "recipe": None}) == "recipe (given there, none here)"


def test_fingerprints_follow_every_weight_and_token() -> None:
    model = make_bert()
    before = fingerprint_of_weights(model)
    assert before == fingerprint_of_weights(make_bert()) != fingerprint_of_weights(make_bert(seed=1))
    model.get_parameter("classifier.bias").data[0] += 1e-6
    assert fingerprint_of_weights(model) != before

    rows = make_rows(12)
    assert fingerprint_of_rows(rows) == fingerprint_of_rows(make_rows(12).select(range(12)))
    others = [rows.select(range(11)), rows.select([*range(10), 11, 10]), rows.remove_columns("labels")]
    assert len({fingerprint_of_rows(other) for other in [rows, *others]}) == 4


# --- files ------------------------------------------------------------------------------------------------------------


def test_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_text(path, "old, with ümläuts")
    assert path.read_text(encoding="utf-8") == "old, with ümläuts" and list(tmp_path.iterdir()) == [path]

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old, with ümläuts"


def test_records_are_readable_json(tmp_path: Path) -> None:
    write_record(tmp_path, IDENTITY, finished=True)
    assert json.loads((tmp_path / RUN_FILE).read_text()) == {"finished": True, "identity": IDENTITY}
