"""A run on a stream that was interrupted: it continues with the next row, or says what of its data or flags changed."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from data_files import write
from forked import children_of, forked, wait_for
from language_fixtures import SCRIPT, TinyTexts, run, start, texts, write_texts
from script_fixtures import assert_same_model, flat, read_json, trace, wait
from stream_watch import steps_in, watched, write_to

from sparse_accel.tasks.masked_language_modeling import streaming
from sparse_accel.training import loop

pytest_plugins = ["language_fixtures"]

STEPS = 12
SENTENCES = texts(120, seed=1)


def write_corpus(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(3):
        write_texts(folder / f"train-{number}.txt", SENTENCES[40 * number : 40 * (number + 1)])


@pytest.fixture(scope="module")
def flags(language: TinyTexts) -> Callable[..., dict[str, Any]]:
    settings: dict[str, Any] = {
        "streaming": True,
        "stream_shards": 4,
        "shuffle_window": 8,
        "train_file": None,
        "per_device_train_batch_size": 8,
        "num_train_epochs": None,
        "max_steps": STEPS,
        "do_eval": None,
        "validation_file": None,
        "save_strategy": "steps",
        "save_steps": 4,
    }
    return lambda **others: language.flags(**{**settings, **others})


@pytest.fixture(scope="module")
def whole(flags: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted; `rows` beside it are those of its steps."""
    folder = tmp_path_factory.mktemp("whole")
    write_corpus(folder / "corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", watched(loop.train_step, write_to(folder / "rows")))
        done = run(**flags(dataset_name=folder / "corpus", output_dir=folder / "out"))
    assert done.code == 0, done.all
    return folder / "out"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The files of `whole`, in another place."""
    write_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


def unfinished(whole: Path, folder: Path, step: int = 4) -> Path:
    """The folder as a kill after checkpoint `step` would have left it."""
    folder.mkdir()
    for path in whole.glob("checkpoint-*"):
        if int(path.name.partition("-")[2]) <= step:
            shutil.copytree(path, folder / path.name)
    record = (whole / "run.json").read_text().replace('"finished": true', '"finished": false')
    (folder / "run.json").write_text(record)
    return folder


@pytest.mark.parametrize(
    ("step", "layout"),
    [
        (4, {}),
        (8, {"dataloader_num_workers": 2}),
        (8, {"dataloader_num_workers": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
    ],
)
def test_any_layout_goes_on_with_the_next_row(
    flags: Callable[..., Any],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    layout: dict[str, int],
) -> None:
    output = unfinished(whole, tmp_path / "out", step)
    monkeypatch.setattr(loop, "train_step", watched(loop.train_step, write_to(tmp_path / "rows")))
    done = run(**flags(dataset_name=whole.parent / "corpus", output_dir=output, **layout))
    assert done.code == 0, done.all
    assert f"from step {step}" in done.out
    assert "the stream continues at its place: no row is read again but those of a window" in flat(done.out)
    found, expected = steps_in(tmp_path / "rows"), steps_in(whole.parent / "rows")
    assert found == {number: rows for number, rows in expected.items() if number > step}
    if not layout:
        assert_same_model(output, whole)
        assert trace(output, "train/loss") == trace(whole, "train/loss")


def test_a_checkpoint_without_its_place_is_damaged(flags: Callable[..., Any], whole: Path, tmp_path: Path) -> None:
    output = unfinished(whole, tmp_path / "out", 8)
    (output / "checkpoint-8" / "stream_state.json").unlink()
    done = run(**flags(dataset_name=whole.parent / "corpus", output_dir=output))
    assert done.code == 0 and "checkpoint-8 is damaged: stream_state.json is missing" in done.err, done.all
    assert "from step 4" in done.out
    assert_same_model(output, whole)


# --- real interruptions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_to_the_process_and_its_workers_saves(
    flags: Callable[..., Any], whole: Path, tmp_path: Path, number: int, code: int
) -> None:
    """As a terminal and a scheduler send it: workers must not die of it before the step is done."""
    settings = flags(dataset_name=whole.parent / "corpus", dataloader_num_workers=1, save_steps=1)
    output, log = tmp_path / "out", tmp_path / "log"
    process = forked(SCRIPT, log, **settings, output_dir=output)
    wait_for(lambda: list(output.glob("checkpoint-*")))
    for each in (*children_of(process.pid), process.pid):
        os.kill(each, number)
    process.join(60)
    assert process.exitcode == code, log.read_text()
    assert "Traceback" not in log.read_text() and not (output / "model.safetensors").exists()
    done = run(**settings, output_dir=output)
    assert done.code == 0 and "resuming from step" in flat(done.out), done.all
    assert_same_model(output, whole)


@pytest.mark.slow
def test_kills_at_any_moment(flags: Callable[..., Any], whole: Path, tmp_path: Path) -> None:
    """With a worker in every second start, which must not outlive its main process; it ends with the same bytes."""
    draw, output, unbroken = random.Random(0), tmp_path / "out", tmp_path / "unbroken"
    settings = flags(dataset_name=whole.parent / "corpus", max_steps=60, save_steps=1, save_total_limit=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", watched(loop.train_step, write_to(tmp_path / "unbroken-rows")))
        assert run(**settings, output_dir=unbroken).code == 0
    settings["output_dir"] = output
    resumed = 0
    for kill in range(6):
        known, log = {path.name for path in output.glob("checkpoint-*")}, tmp_path / f"log-{kill}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train_step", watched(loop.train_step, write_to(tmp_path / "rows")))
            process = forked(SCRIPT, log, **settings, dataloader_num_workers=kill % 2)
        wait_for(functools.partial(saved_or_ended, output, known, process))
        time.sleep(draw.uniform(0, 0.1))
        workers = children_of(process.pid)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        resumed += "resuming from step" in flat(log.read_text())
        wait_for(functools.partial(ended, workers), 30)
    done = run(**settings)
    assert done.code == 0 and resumed >= 3, done.all
    assert_same_model(output, unbroken)
    expected = steps_in(tmp_path / "unbroken-rows")
    assert all(rows == expected[step] for step, rows in steps_in(tmp_path / "rows").items())


def saved_or_ended(output: Path, known: set[str], process: Any) -> bool:
    return bool({path.name for path in output.glob("checkpoint-*")} - known) or not process.is_alive()


def ended(processes: list[int]) -> bool:
    return not any(Path(f"/proc/{process}").exists() for process in processes)


FAILS = """
import runpy, sys
from sparse_accel.training import loop
def fail(*_):
    raise ValueError("of this test")
loop.train_step = fail
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_an_error_ends_the_workers(flags: Callable[..., Any], whole: Path, tmp_path: Path) -> None:
    """The traceback of an unexpected error keeps what reads ahead; the process must end all the same."""
    settings = flags(dataset_name=whole.parent / "corpus", dataloader_num_workers=2, output_dir=tmp_path / "out")
    process = start(launcher=["-c", FAILS], **settings)
    done = wait(process, timeout=120)
    assert done.code == 1 and "ValueError: of this test" in done.err, done.all


# --- other data -------------------------------------------------------------------------------------------------------


def grow(folder: Path) -> str:
    with open(folder / "train-1.txt", "a") as stream:
        stream.write("anna went to paris .\n")
    return "train-1.txt was changed since this run began: it has"


def shrink(folder: Path) -> str:
    write_texts(folder / "train-1.txt", SENTENCES[40:79])
    return "train-1.txt was changed since this run began: it has"


def change(folder: Path) -> str:
    path = folder / "train-1.txt"
    path.write_bytes(path.read_bytes().replace(b"a", b"o"))
    return "bytes are not the same"


def exchange(folder: Path) -> str:
    first, second = ((folder / f"train-{number}.txt").read_bytes() for number in (0, 1))
    (folder / "train-0.txt").write_bytes(second)
    (folder / "train-1.txt").write_bytes(first)
    return "train-0.txt was changed since this run began"


def rename(folder: Path) -> str:
    (folder / "train-2.txt").rename(folder / "train-9.txt")
    return "train-2.txt is missing: this run began with it"


CHANGES = [grow, shrink, change, exchange, rename]


@pytest.mark.parametrize("harm", CHANGES)
def test_changed_files_are_named(
    flags: Callable[..., Any], tmp_path: Path, corpus: Path, place_of: Callable[[Path], Path], harm: Any
) -> None:
    output = place_of(corpus)
    said = harm(corpus)
    refused = run(**flags(dataset_name=corpus, output_dir=output))
    assert refused.code == 2 and said in refused.err and "start a new run in another --output_dir" in refused.err
    assert "Traceback" not in refused.err and refused.err.count("\n") < 10
    write_corpus(corpus)
    (corpus / "train-9.txt").unlink(missing_ok=True)
    assert run(**flags(dataset_name=corpus, output_dir=output)).code == 0


@pytest.fixture
def place_of(flags: Callable[..., Any], whole: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """Makes the folder of an unfinished run on files in another place than those of `whole`."""

    def make(corpus: Path) -> Path:
        done = run(**flags(dataset_name=corpus, output_dir=tmp_path / "made", max_steps=STEPS))
        assert done.code == 0, done.all
        return unfinished(tmp_path / "made", tmp_path / "out")

    return make


@pytest.mark.parametrize("lost", [True, False])
def test_a_folder_with_fewer_or_more_files_is_another_corpus(
    flags: Callable[..., Any], whole: Path, tmp_path: Path, corpus: Path, place_of: Callable[[Path], Path], lost: bool
) -> None:
    output = place_of(corpus)
    if lost:
        (corpus / "train-1.txt").unlink()
    else:
        write_texts(corpus / "train-3.txt", SENTENCES[:9])
    refused = run(**flags(dataset_name=corpus, output_dir=output))
    said = "train-1.txt is missing" if lost else "train-3.txt was not among the files that this run began with"
    assert refused.code == 2 and said in refused.err, refused.all


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_a_finished_run_on_other_files_is_not_this_one(
    flags: Callable[..., Any], whole: Path, tmp_path: Path, corpus: Path, kind: str
) -> None:
    """Neither of files that are read here, nor of those that `datasets` reads."""
    file = corpus / f"train-0.{kind}"
    write_texts(file, SENTENCES) if kind == "txt" else write(file, [{"text": text} for text in SENTENCES])
    settings = flags(train_file=file, stream_shards=1, max_steps=2, output_dir=tmp_path / "out")
    assert run(**settings).code == 0
    again = run(**settings)
    assert again.code == 0 and "finished: nothing is trained again" in again.out
    file.write_bytes(file.read_bytes().replace(b"a", b"o"))
    refused = run(**settings)
    assert refused.code == 2 and "would train another model: they differ in stream" in flat(refused.err), refused.all


def test_a_finished_run_on_another_column_is_not_this_one(
    flags: Callable[..., Any], tmp_path: Path, corpus: Path
) -> None:
    file = corpus / "train-0.jsonl"
    write(file, [{"text": text, "body": text.replace("film", "plot")} for text in SENTENCES])
    settings = flags(train_file=file, stream_shards=1, max_steps=2, output_dir=tmp_path / "out")
    assert run(**settings).code == 0
    other = run(**settings, text_column_name="body")
    assert other.code == 0 and "finished: nothing is trained again" not in other.out
    assert "differs in text_column_name" in flat(other.all), other.all


# --- other flags ------------------------------------------------------------------------------------------------------

OTHERS: list[dict[str, Any]] = [
    {"max_seq_length": 20},
    {"line_by_line": True},
    {"mlm_probability": 0.2},
    {"whole_word_mask": True},
    {"seed": 3},
    {"max_steps": 16},
    {"per_device_train_batch_size": 16},
    {"stream_shards": 2},
    {"shuffle_window": 9},
    {"steps_per_epoch": 6},
]
NAMES = {"per_device_train_batch_size": "global_batch_size", "max_steps": "total_steps"}


@pytest.mark.parametrize("others", OTHERS, ids=lambda others: next(iter(others)))
def test_other_flags_are_refused(
    flags: Callable[..., Any], whole: Path, tmp_path: Path, others: dict[str, Any]
) -> None:
    output = unfinished(whole, tmp_path / "out")
    before = sorted(path.name for path in output.iterdir())
    refused = run(**flags(dataset_name=whole.parent / "corpus", output_dir=output, **others))
    assert refused.code == 2 and "unfinished run that differs from this one in" in refused.err, refused.all
    (name,) = others
    assert NAMES.get(name, name) in refused.err
    assert sorted(path.name for path in output.iterdir()) == before


def test_another_tokenizer_is_refused(
    flags: Callable[..., Any], whole: Path, language: TinyTexts, tmp_path: Path
) -> None:
    other = tmp_path / "tokenizer"
    shutil.copytree(language.model, other)
    settings = read_json(other / "tokenizer_config.json")
    (other / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
    output = unfinished(whole, tmp_path / "out")
    refused = run(**flags(dataset_name=whole.parent / "corpus", output_dir=output, tokenizer_name=other))
    assert refused.code == 2 and "differs from this one in data" in refused.err, refused.all


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"seed": 1}, "--seed 1: this run began with 42"),
        ({"stream_shards": 2}, "--stream_shards 2: this run began with 4"),
        ({"shuffle_window": 9}, "--shuffle_window 9: this run began with 8"),
        ({"max_seq_length": 16}, "are not those that the run was trained with"),
        ({"line_by_line": True}, "are not those that the run was trained with"),
    ],
)
def test_a_named_checkpoint_of_another_order(
    flags: Callable[..., Any], whole: Path, tmp_path: Path, others: dict[str, Any], said: str
) -> None:
    corpus = whole.parent / "corpus"
    settings = flags(dataset_name=corpus, resume_from_checkpoint=whole / "checkpoint-4", output_dir=tmp_path / "out")
    refused = run(**{**settings, **others})
    assert refused.code == 2 and said in refused.err, refused.all


def test_a_checkpoint_of_a_run_without_a_stream(flags: Callable[..., Any], whole: Path, tmp_path: Path) -> None:
    plain: dict[str, Any] = {"streaming": None, "stream_shards": None, "shuffle_window": None, "max_steps": 4}
    file = whole.parent / "corpus" / "train-0.txt"
    assert run(**flags(train_file=file, **plain, output_dir=tmp_path / "plain")).code == 0
    start = tmp_path / "plain" / "checkpoint-4"
    refused = run(**flags(train_file=file, resume_from_checkpoint=start, output_dir=tmp_path / "out"))
    assert refused.code == 2 and "was not written by a run with --streaming: remove the flag" in refused.err


# --- sources that cannot begin in the middle --------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_passed_over_where_a_source_keeps_no_place(
    flags: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """A dataset of the Hub that is shuffled by a buffer, whose content no state has."""

    def rows(parts: list[int]) -> Any:
        for part in parts:
            for text in SENTENCES[30 * part : 30 * (part + 1)]:
                yield {"text": text}

    def load(split: str) -> Any:
        dataset = datasets.IterableDataset.from_generator(rows, gen_kwargs={"parts": [0, 1, 2, 3]})
        return dataset.shuffle(seed=1, buffer_size=10)

    builder = SimpleNamespace(as_streaming_dataset=load, config=SimpleNamespace(data_files=None))
    monkeypatch.setattr(streaming, "load_dataset_builder", lambda *_: builder)
    settings = flags(dataset_name="owner/name", dataloader_num_workers=workers)
    whole, steps = tmp_path / "whole", tmp_path / "steps"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", watched(loop.train_step, write_to(steps / "whole")))
        assert run(**settings, output_dir=whole).code == 0
    output = unfinished(whole, tmp_path / "out", 8)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", watched(loop.train_step, write_to(steps / "out")))
        done = run(**settings, output_dir=output)
    assert done.code == 0, done.all
    state = read_json(whole / "checkpoint-8" / "stream_state.json")["states"]
    passed = sum(each["skip"] for each in state.values())
    said = f"the stream continues at its place: {passed} rows must be read again and passed over"
    assert passed >= 16 and said in flat(done.out)
    expected = steps_in(steps / "whole")
    assert steps_in(steps / "out") == {step: each for step, each in expected.items() if step > 8}
    assert_same_model(output, whole)
