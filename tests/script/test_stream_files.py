"""What a stream is read from: text files, files and datasets that `datasets` reads, and what is wrong with them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_files import write
from language_fixtures import RECIPES, SCRIPT, TinyTexts, run, texts, write_texts
from places import ROOT
from script_fixtures import Outcome, flat, trace, words
from stand_in_hub import StandInHub
from stream_watch import Row, steps_in, watched
from transformers import AutoTokenizer

from sparse_accel.nn.losses import IGNORED
from sparse_accel.training import loop

pytest_plugins = ["language_fixtures"]

SENTENCES = texts(120, seed=1)
ROWS = [{"body": text, "number": number} for number, text in enumerate(SENTENCES)]


@pytest.fixture(scope="module")
def flags(language: TinyTexts) -> Callable[..., dict[str, Any]]:
    settings: dict[str, Any] = {
        "streaming": True,
        "stream_shards": 4,
        "shuffle_window": 8,
        "per_device_train_batch_size": 8,
        "num_train_epochs": None,
        "max_steps": 2,
        "do_eval": None,
        "validation_file": None,
    }
    return lambda **others: language.flags(**{**settings, **others})


def assert_refused(done: Outcome, *said: str) -> None:
    """One paragraph, and no traceback."""
    assert done.code == 2 and "Traceback" not in done.err, done.all
    assert all(each in flat(done.err) for each in said), done.all
    (error,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(error) < 800


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "tsv", "parquet", "json"])
def test_all_forms_give_the_same_rows(
    flags: Callable[..., Any], language: TinyTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """In the order of the texts. Blank texts are no rows, and texts that look like numbers or nothing are texts."""
    lines = [*SENTENCES[:15], "", "1984", "NA", "anna, boris", *SENTENCES[15:30]]
    file = tmp_path / f"train.{ending}"
    write_texts(file, lines) if ending == "txt" else write(file, [{"body": line, "n": 7} for line in lines])
    found: dict[int, list[Row]] = {}
    monkeypatch.setattr(loop, "train_step", watched(loop.train_step, lambda step, rows: found.update({step: rows})))
    settings = flags(train_file=file, text_column_name=None if ending == "txt" else "body", line_by_line=True)
    settings |= {"stream_shards": 1, "shuffle_window": 0, "per_device_train_batch_size": 11, "max_steps": 3}
    done = run(**settings, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    rows = sorted((row for step in found.values() for row in step), key=lambda row: row[1])
    unmasked = [
        [token if label == IGNORED else label for token, label in zip(ids, labels, strict=True)]
        for _, _, ids, labels in rows
    ]
    tokenizer = AutoTokenizer.from_pretrained(language.model)
    texts_of_rows = [line for line in lines if line]
    assert unmasked == tokenizer(texts_of_rows, truncation=True, max_length=24)["input_ids"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_files(flags: Callable[..., Any], language: TinyTexts, tmp_path: Path, workers: int) -> None:
    """All files named train are one stream; the validation files beside them are rows as ever."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(4):
        write(folder / f"train-{number}.parquet", ROWS[30 * number : 30 * (number + 1)])
    write(folder / "validation.parquet", ROWS[:40])
    settings = flags(train_file=None, dataset_name=folder, text_column_name="body", do_eval=True, eval_strategy="steps")
    done = run(**settings, eval_steps=1, dataloader_num_workers=workers, output_dir=tmp_path / "out")
    assert done.code == 0 and "a stream of" in flat(done.out), done.all
    assert set(trace(tmp_path / "out", "eval_loss")) == {1, 2}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_a_line_that_is_no_text(flags: Callable[..., Any], tmp_path: Path, workers: int, ending: str) -> None:
    lines = SENTENCES if ending == "txt" else [json.dumps({"text": text}) for text in SENTENCES]
    before = "\n".join([*lines[:50], ""]).encode()
    bad = b"caf\xe9" if ending == "txt" else b'{"text": "caf'
    file = tmp_path / f"bad.{ending}"
    file.write_bytes(before + bad + b"\n" + "\n".join([*lines[50:], ""]).encode())
    settings = flags(train_file=file, max_steps=40, dataloader_num_workers=workers, output_dir=tmp_path / "out")
    wrong = "not UTF-8 text" if ending == "txt" else "not valid JSON"
    assert_refused(run(**settings), f"{file}, the line at byte {len(before):,}", wrong)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_column_that_is_not_there(flags: Callable[..., Any], tmp_path: Path, ending: str) -> None:
    file = write(tmp_path / f"train.{ending}", ROWS)
    settings = flags(train_file=file, stream_shards=1, output_dir=tmp_path / "out")
    columns = "olumns: body, number."
    assert_refused(run(**settings), "no column 'text'", columns, "Name the column of texts: --text_column_name.")
    assert_refused(run(**settings, text_column_name="bodi"), "no column 'bodi'", columns)
    if ending != "csv":
        assert_refused(run(**settings, text_column_name="number"), "column 'number': is 0, which is not text")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \n\n", "has no text: all its lines are blank"),
        (b"\x1f\x8b\x08" + bytes(50), "is compressed with gzip: decompress it first"),
        ("anna went\n".encode("utf-16"), "save it as UTF-8"),
        (b"anna went to paris . " * 300 + b"\n", "Set --stream_shards to at most 1."),
        (b"anna went\n" + b"\n" * 3000 + b"to paris\n", "gives no row: it has only blank lines"),
    ],
)
def test_files_without_a_stream(flags: Callable[..., Any], tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "train.txt").write_bytes(content)
    settings = flags(train_file=tmp_path / "train.txt", output_dir=tmp_path / "out")
    assert_refused(run(**settings), "train.txt", said)
    assert_refused(run(**settings, dataloader_num_workers=2), "train.txt", said)


def test_folders_without_a_stream(flags: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    settings = flags(train_file=None, dataset_name=folder, output_dir=tmp_path / "out")
    assert_refused(run(**settings), "no file in", "is named train. It contains: nothing")
    write_texts(folder / "notes.txt", SENTENCES)
    assert_refused(run(**settings), "is named train. It contains: notes.txt")
    write_texts(folder / "train-1.txt", SENTENCES)
    write(folder / "train-2.csv", ROWS)
    assert_refused(run(**settings), "a stream is of files of one kind; got .csv, .txt")
    (folder / "train-2.csv").unlink()
    assert_refused(run(**{**settings, "do_eval": True}), "--do_eval: no file in", "is named validation")
    write(folder / "train-1.parquet", ROWS)
    (folder / "train-1.txt").unlink()
    assert_refused(run(**settings, text_column_name="body"), "Set --stream_shards to at most 1.")


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"max_steps": None}, "it never ends: add --steps_per_epoch N, or --max_steps N."),
        ({"max_steps": None, "num_train_epochs": 2}, "it never ends: add --steps_per_epoch N"),
        ({"save_strategy": "epoch"}, "--save_strategy epoch needs its length: add --steps_per_epoch N."),
        ({"recipe": RECIPES / "magnitude_pruned90.yaml"}, "the epochs of the recipe need its length"),
        ({"streaming": None, "steps_per_epoch": 3}, "add --streaming, or remove it"),
        ({"max_train_samples": 5}, "--max_train_samples needs all training rows"),
        ({"stream_shards": 3}, ("--stream_shards 3 does not divide the global batch of 8 rows", "2 or 4")),
        ({"stream_shards": 16}, ("does not divide the global batch of 8 rows", "Set --stream_shards to 8.")),
        ({"dataloader_num_workers": 3}, ("not a multiple of 3", "set --dataloader_num_workers to 2 or 4")),
        ({"dataloader_num_workers": 8}, ("is not a multiple of 8", "Set --stream_shards to 8.")),
    ],
    ids=lambda value: " ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else "",
)
def test_flags_that_do_not_fit(
    flags: Callable[..., Any], tmp_path: Path, others: dict[str, Any], said: str | tuple[str, ...]
) -> None:
    settings = {**flags(train_file=write_texts(tmp_path / "train.txt", SENTENCES)), **others}
    assert_refused(run(**settings, output_dir=tmp_path / "out"), *([said] if isinstance(said, str) else said))
    assert not list((tmp_path / "out").glob("checkpoint-*"))


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dataset_of_the_hub(flags: Callable[..., Any], tmp_path: Path) -> None:
    """Several files, read as it trains; a resumed run reads on in each of them. Two workers give the same rows."""
    files: dict[str, Any] = {}
    for number in range(4):
        part = write(tmp_path / f"{number}.parquet", ROWS[30 * number : 30 * (number + 1)])
        files[f"data/train-0000{number}-of-00004.parquet"] = part
    hub = StandInHub(tmp_path / "hub")
    hub.add_dataset("owner/name", files)
    settings = flags(train_file=None, dataset_name="owner/name", text_column_name="body", max_steps=8)
    settings |= {"save_strategy": "steps", "save_steps": 4}
    watch = str(ROOT / "tests" / "support" / "stream_watch.py")

    def train(rows: str, **others: Any) -> subprocess.CompletedProcess[str]:
        variables = {**hub.environment(tmp_path / "home"), "STREAM_ROWS": str(tmp_path / rows), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, watch, str(SCRIPT), *words(**{**settings, **others})]
        return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)

    with hub:
        done = train("whole", output_dir=tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert "a stream of owner/name in 4 shards" in flat(done.stdout)
        for path in (tmp_path / "out").iterdir():
            if path.name not in ("checkpoint-4", "run.json"):
                path.rename(tmp_path / path.name)
        record = tmp_path / "out" / "run.json"
        record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
        again = train("again", output_dir=tmp_path / "out", dataloader_num_workers=2)
    assert again.returncode == 0, again.stderr
    assert "no row is read again but those of a window" in flat(again.stdout)
    expected = steps_in(tmp_path / "whole")
    assert len(expected) == 8
    assert steps_in(tmp_path / "again") == {step: rows for step, rows in expected.items() if step > 4}
