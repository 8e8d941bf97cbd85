"""Messages: never too long, and printed whatever the encoding of the output."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from script_fixtures import SCRIPT, environment

from sparse_accel.console import table, warn
from sparse_accel.errors import UsageError, listed, shortened, shown
from sparse_accel.main import run_main
from sparse_accel.recipe import load_recipe

RECIPE = """
modifiers:
  - !EpochRangeModifier {end_epoch: 2}
  - !TrainableParamsModifier {params: ['re:größe – α.*'], trainable: false}
"""


# --- length -----------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_characters="\n"), max_size=5000))
def test_a_message_is_short_or_says_what_it_left_out(text: str) -> None:
    found = shortened(text)
    assert len(found) <= 2000
    if len(text) <= 2000:
        assert found == text
    else:
        assert found == f"{text[:1400]} ... [{len(text) - 1800:,} characters left out] ... {text[-400:]}"


@given(st.lists(st.text(alphabet="ab ", max_size=9), min_size=1, max_size=60))
def test_a_message_fits_a_screen(lines: list[str]) -> None:
    found = shortened("\n".join(lines)).split("\n")
    assert found == lines if len(lines) <= 20 else len(found) == 20
    if len(lines) > 20:
        assert found[:14] == lines[:14] and found[15:] == lines[-5:]
        assert found[14] == f"... [{len(lines) - 19} lines left out] ..."


@given(st.lists(st.text(alphabet="abc", min_size=1), max_size=40), st.integers(1, 20))
def test_a_list_of_names(names: list[str], most: int) -> None:
    found = listed(names, most)
    if len(names) <= most:
        assert found == ", ".join(names)
    else:
        assert found == f"{', '.join(names[:most])} ... ({len(names)} in all)"


def test_a_value() -> None:
    assert shown("a film") == "'a film'"
    assert shown([1, 2]) == "[1, 2]"
    assert shown("x" * 100, most=10) == "'xxxxxxxxx..."
    assert shown(1 << 20000) == "an int with thousands of digits"


def test_what_is_printed_is_short(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UsageError("first " + "x" * 50_000 + " last")

    monkeypatch.setattr(sys, "argv", ["program"])
    warn("first " + "x" * 50_000 + " last")
    with pytest.raises(SystemExit):
        run_main(fail)
    warning, error = capsys.readouterr().err.splitlines()
    for line, kind in ((warning, "warning"), (error, "error")):
        assert line.startswith(f"{kind}: first x") and line.endswith("x last")
        assert len(line) < 2020 and "48,211 characters left out" in line


def test_debug_shows_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UsageError("x" * 50_000)

    monkeypatch.setattr(sys, "argv", ["program", "--debug"])
    with pytest.raises(SystemExit):
        run_main(fail)
    assert "x" * 50_000 in capsys.readouterr().err


# --- encoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "cp437", "utf-8"])
def test_a_table_fits_the_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict"))
    found = table("run", [("model", "bert")])
    assert ("─" in found) == (encoding in ("cp437", "utf-8"))
    print(found)  # in that encoding, strictly
    assert {len(line) for line in found.splitlines()[::2]} == {len(found.splitlines()[0])}


def test_a_table_for_an_output_without_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert "─" in table("run", [("model", "bert")])


def run_program(*words: str | Path, encoding: str, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    variables = environment(PYTHONIOENCODING=encoding)
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd or ROOT, env=variables, capture_output=True)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_programs_print_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    plain = run_program("-m", "sparse_accel.recipe", file, encoding=encoding)
    assert plain.returncode == 0, plain.stderr
    assert b"2 modifiers" in plain.stdout
    # What is meant for a file is a recipe: UTF-8, and no character is lost.
    resolved = run_program("-m", "sparse_accel.recipe", file, "--resolved", encoding=encoding)
    assert resolved.returncode == 0, resolved.stderr
    assert load_recipe(resolved.stdout.decode("utf-8")) == load_recipe(file)
    mistyped = run_program(SCRIPT, "--größe–α", "1", encoding=encoding)
    assert mistyped.returncode == 2 and mistyped.stderr.startswith(b"error: --gr"), mistyped.stderr


def test_every_program_goes_through_run_main() -> None:
    programs = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "sparse_accel").rglob("__main__.py")]
    assert len(programs) >= 7
    for program in programs:
        end = program.read_text(encoding="utf-8").rpartition('if __name__ == "__main__":\n')[2]
        assert end in ("    run_main(main)\n", "    run_main(main, resumes=False)\n"), program
