"""Errors for people: exit codes, and which process of a run speaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_accel.console import rank
from sparse_accel.errors import Stopped, UsageError, counted, nearest, with_article
from sparse_accel.main import run_main


def fail() -> None:
    raise UsageError("mend this")


@pytest.mark.parametrize("rank", ["0", "", None])
def test_the_first_process_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str | None
) -> None:
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as ended:
        run_main(fail)
    assert ended.value.code == 2 and capsys.readouterr().err == "error: mend this\n"


def test_an_error_of_another_process_alone_is_said_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a while, in which the launcher would have ended it had the first one met the same."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SystemExit):
        run_main(fail)
    assert waited == [10.0] and capsys.readouterr().err == "error (process 3): mend this\n"


def test_exit_codes_that_a_launcher_loses_are_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stop() -> None:
        raise Stopped("SIGTERM")

    monkeypatch.setenv("SPARSE_ACCEL_EXIT_CODES", str(tmp_path / "codes"))
    for main in (fail, stop, lambda: None):
        with pytest.raises(SystemExit):
            run_main(main)
    assert (tmp_path / "codes").read_text() == "2\n75\n0\n"
    monkeypatch.setenv("SPARSE_ACCEL_EXIT_CODES", str(tmp_path / "no folder" / "codes"))
    with pytest.raises(SystemExit) as ended:
        run_main(fail)
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "count", "expected"),
    [("1", "2", 1), ("0", "1", 0), ("1", None, 0), ("2", "2", 0), ("abc", "2", 0), ("1", "x", 0), ("-1", "2", 0)],
)
def test_what_is_left_over_of_another_launch_silences_nobody(
    monkeypatch: pytest.MonkeyPatch, number: str, count: str | None, expected: int
) -> None:
    monkeypatch.setenv("RANK", number)
    if count is None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("WORLD_SIZE", count)
    assert rank() == expected


def test_numbers_with_their_noun() -> None:
    found = [counted(number, "shard") for number in (0, 1, 2, 16_000)]
    assert found == ["0 shards", "1 shard", "2 shards", "16,000 shards"]


@pytest.mark.parametrize(
    "said",
    [
        "a bert",
        "an albert",
        "an electra",
        "a distilbert",
        "an xlm-roberta",
        "an mpnet",
        "a modernbert",
        "an MT5Model",
        "a deberta-v2",
        "an ElectraLayer",
        "a tuple",
        "an int",
        "a NoneType",
        "a unet",
    ],
)
def test_articles(said: str) -> None:
    assert with_article(said.partition(" ")[2]) == said


def test_the_nearest_names() -> None:
    known = ["pruned80", "pruned90", "base", "pruned97"]
    assert nearest("pruned9", known) == " Did you mean 'pruned97'?" or nearest("pruned9", known).endswith("'pruned90'?")
    assert nearest("pruned9", known, 3).count("'") == 6
    assert nearest("something else", known, 3) == ""
