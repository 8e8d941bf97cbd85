"""Global batches of a stream: the same in any layout, and after going on in another one."""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import IterableDataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from stream_rows import PADDING, LineMaker, Packer, collate, rows_in, steps_of

from sparse_accel.data.streams.layout import Layout
from sparse_accel.data.streams.loading import Stream, StreamLoader, _Part, gathered, rows_of_first_pass
from sparse_accel.data.streams.shards import DatasetShards, TextFiles
from sparse_accel.errors import UsageError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two files with 120 lines of 0 to 30 letters, of several bytes each."""
    folder = tmp_path_factory.mktemp("stream")
    files = [folder / "one.txt", folder / "two.txt"]
    lines = ["".join(chr(0x430 + (line * sign) % 32) for sign in range(line * 7 % 31)) for line in range(120)]
    files[0].write_text("\n".join(lines[:50]))
    files[1].write_text("\n".join(lines[50:]) + "\n")
    return [str(file) for file in files]


def stream_of(files: list[str], shards: int, window: int = 4, seed: int = 3) -> Stream:
    return Stream(TextFiles(files, shards), Packer, seed, window)


def loader_of(stream: Stream, batch_size: int, **layout: int) -> StreamLoader:
    return StreamLoader(stream, Layout(stream.corpus.shards, batch_size, **layout), collate, padding=PADDING)


layouts = st.fixed_dictionaries({"processes": st.integers(1, 3), "accumulation": st.integers(1, 3)})


@settings(deadline=None)
@given(layouts, layouts, st.integers(1, 4), st.integers(0, 12), st.integers(0, 6), st.data())
def test_global_batches_depend_on_no_layout(
    files: list[str], one: dict[str, Any], other: dict[str, Any], each: int, window: int, done: int, data: st.DataObject
) -> None:
    """Whether uninterrupted, or stopped after any step and continued in another layout."""
    shards = math.lcm(one["processes"], other["processes"]) * each
    splits = [layout["processes"] * layout["accumulation"] for layout in (one, other)]
    batch_size = math.lcm(shards, *splits) * data.draw(st.integers(1, 2))
    stream = stream_of(files, shards, window)
    expected, last = steps_of(stream, batch_size, done + 3)
    begun, state = steps_of(stream, batch_size, done, **one)
    rest, after = steps_of(stream, batch_size, 3, state, **other)
    assert begun + rest == expected
    assert after == last
    assert all({row_id % shards for _, row_id, _ in batch} == set(range(shards)) for batch in expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        {"workers": 1},
        {"workers": 2, "accumulation": 2},
        {"workers": 3, "accumulation": 2},
        {"workers": 2, "processes": 2, "accumulation": 3},
        {"workers": 3, "processes": 2},
    ],
    ids=str,
)
def test_loader_workers_give_the_same_batches_and_states(files: list[str], layout: dict[str, Any]) -> None:
    """In real processes, which have read ahead of the steps that were taken."""
    stream = stream_of(files, 12)
    expected, last = steps_of(stream, 24, 7)
    begun, state = steps_of(stream, 24, 4, **layout)
    assert (begun, state) == (expected[:4], steps_of(stream, 24, 4)[1])
    rest, after = steps_of(stream, 24, 3, state, processes=3)
    assert (rest, after) == (expected[4:], last)
    assert steps_of(stream, 24, 3, state, **layout) == (rest, after)


@pytest.mark.parametrize(
    "layout",
    [
        {"processes": 2},
        {"workers": 1},
        pytest.param({"workers": 4}, marks=pytest.mark.slow),
        pytest.param({"processes": 2, "workers": 2}, marks=pytest.mark.slow),
        pytest.param({"workers": 3}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_as_many_micro_batches_are_the_same_ones(files: list[str], layout: dict[str, int]) -> None:
    """Bit by bit, the order of rows too: one process with two micro-batches, or two with one each; any workers."""
    stream, processes = Stream(TextFiles(files, 12), LineMaker, 3, 10), layout.get("processes", 1)
    expected = list(islice(loader_of(stream, 24, accumulation=2), 5))
    loaders = [
        loader_of(stream, 24, accumulation=2 // processes, **{**layout, "process": process})
        for process in range(processes)
    ]
    found = [[batch for each in step for batch in each] for step in islice(zip(*loaders, strict=True), 5)]
    for micro_batches, others in zip(expected, found, strict=True):
        for batch, other in zip(micro_batches, others, strict=True):
            assert batch.keys() == other.keys() and all(torch.equal(batch[name], other[name]) for name in batch)


def test_micro_batches_have_rows_of_similar_length(files: list[str]) -> None:
    """With too few shards for shards of their own. The longest first; workers give rows of different lengths."""
    stream = Stream(TextFiles(files, 2), LineMaker, 3, 10)
    [micro_batches] = islice(loader_of(stream, 48, accumulation=4), 1)
    lengths = [batch["attention_mask"].sum(dim=1) for batch in micro_batches]
    assert torch.equal(torch.cat(lengths), torch.cat(lengths).sort(descending=True).values)
    [joined] = islice(loader_of(stream, 48, workers=2, accumulation=4), 1)
    assert sorted(row for batch in joined for row in rows_in(batch)) == sorted(
        row for batch in micro_batches for row in rows_in(batch)
    )


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_of_what_workers_give(files: list[str], side: str) -> None:
    loader = StreamLoader(stream_of(files, 2), Layout(2, 2, workers=2), collate, padding=PADDING, padding_side=side)
    parts = [_Part([(-2, 0, 5)], {"input_ids": torch.tensor([[1, 2]]), "row_id": torch.tensor([5])}), None]
    rows = {"input_ids": torch.tensor([[3, 4, 5], [6, 7, 8]]), "row_id": torch.tensor([6, 7])}
    parts += [_Part([(-3, 0, 6), (-3, 0, 7)], rows)]
    joined = loader._joined(parts)
    last = [1, 2, -1] if side == "right" else [-1, 1, 2]
    assert joined["input_ids"].tolist() == [[3, 4, 5], [6, 7, 8], last]
    assert joined["row_id"].tolist() == [6, 7, 5]
    loader.padding.clear()
    with pytest.raises(ValueError, match="input_ids"):
        loader._joined(parts)


def test_batches_are_placed(files: list[str]) -> None:
    stream = stream_of(files, 2)
    loader = StreamLoader(
        stream, Layout(2, 4), collate, padding=PADDING, place=lambda batch: {"rows": batch["row_id"].float()}
    )
    [[batch]] = islice(loader, 1)
    assert batch.keys() == {"rows"} and batch["rows"].dtype == torch.float32


def test_the_rows_of_the_first_pass(files: list[str]) -> None:
    """Known once all shards have begun their second pass."""
    stream = Stream(TextFiles(files, 2), LineMaker, 3, 0)
    known = [rows_of_first_pass(steps_of(stream, 4, steps)[1]) for steps in (1, 25, 40)]
    assert known == [None, None, 116]  # of 120 lines, 4 are blank


def test_what_may_not_change(files: list[str], tmp_path: Path) -> None:
    state = steps_of(stream_of(files, 4), 8, 2)[1]
    for stream, words in (
        (stream_of(files, 8), "--stream_shards 8: this run began with 4"),
        (stream_of(files, 4, seed=4), "--seed 4: this run began with 3"),
        (stream_of(files, 4, window=0), "--shuffle_window 0: this run began with 4"),
        (stream_of(files[:1], 4), "two.txt is missing"),
    ):
        with pytest.raises(UsageError, match=words):
            loader_of(stream, 8).load_state_dict(state)
    assert loader_of(stream_of(files, 4), 16).load_state_dict(state) == 0  # another batch size continues from the rows


def test_states_of_all_shards_after_one_step(files: list[str]) -> None:
    stream = stream_of(files, 4)
    loaders = [loader_of(stream, 8, processes=2, process=process) for process in (0, 1)]
    with pytest.raises(ValueError, match="all shards"):
        gathered([loaders[0].state_dict()])
    together = gathered([loader.state_dict() for loader in loaders])
    assert list(together["states"]) == ["0", "1", "2", "3"]
    list(islice(loaders[0], 1))
    with pytest.raises(ValueError, match="same step"):
        gathered([loader.state_dict() for loader in loaders])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_reading(tmp_path: Path, workers: int) -> None:
    """The steps before it are given, and the state stays that of the last of them; the message has no traceback."""
    file = tmp_path / "corpus.txt"
    file.write_bytes(b"line\n" * 40 + b"\xff\n" + b"line\n" * 20)
    stream = Stream(TextFiles([str(file)], 2), LineMaker, 3, 0)
    loader = loader_of(stream, 4, workers=workers)
    steps, before = 0, loader.state_dict()
    with pytest.raises(UsageError) as caught:
        for _ in loader:
            steps, before = steps + 1, loader.state_dict()
    assert "corpus.txt, the line at byte 200: not UTF-8" in str(caught.value) and "Traceback" not in str(caught.value)
    assert steps == 4 and before == loader.state_dict()


def generated(parts: list[int]) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield from ({"text": f"{part}.{row}"} for row in range(7))


@pytest.mark.parametrize("kind", ["generated", "shuffled", "parquet"])
def test_streams_of_datasets(tmp_path: Path, kind: str) -> None:
    """A worker reads all of its shards; a shuffled dataset continues by skipping rows, which is said."""
    if kind == "parquet":
        for part in range(8):
            rows = pyarrow.Table.from_pylist(list(generated([part])))
            pyarrow.parquet.write_table(rows, tmp_path / f"{part}.parquet")
        dataset = load_dataset(str(tmp_path), split="train", streaming=True)
    else:
        dataset = IterableDataset.from_generator(generated, gen_kwargs={"parts": list(range(8))})
    dataset = dataset.shuffle(seed=1, buffer_size=3) if kind == "shuffled" else dataset
    stream = Stream(DatasetShards(dataset, "text", 4, "corpus"), LineMaker, 3, 5)
    expected, last = steps_of(stream, 8, 9)
    first_pass = {"".join(map(chr, ids)) for batch in expected for epoch, _, ids in batch if epoch == 0}
    assert first_pass == {row["text"] for row in generated(list(range(8)))}
    begun, state = steps_of(stream, 8, 6, workers=2)
    rest, after = steps_of(stream, 8, 3, state, processes=2, workers=2)
    assert (begun + rest, after) == (expected, last)
    assert loader_of(stream, 8, processes=2).load_state_dict(state) == (2 * 10 if kind == "shuffled" else 0)


OPEN_AT_EXIT = """
import sys
sys.path += ["tests/support"]
from stream_rows import PADDING, Packer, collate
from sparse_accel.data.streams.layout import Layout
from sparse_accel.data.streams.loading import Stream, StreamLoader
from sparse_accel.data.streams.shards import TextFiles

stream = Stream(TextFiles(sys.argv[1:], 4), Packer, 3, 2)
steps = iter(StreamLoader(stream, Layout(4, 8, workers=2), collate, padding=PADDING))
kept = [next(steps), steps]
kept.append(kept)
raise SystemExit(7)
"""


@pytest.mark.slow
def test_a_process_ends_with_open_workers(files: list[str]) -> None:
    """Such as after an error whose traceback keeps the iterator."""
    result = subprocess.run([sys.executable, "-c", OPEN_AT_EXIT, *files], cwd=ROOT, timeout=120)
    assert result.returncode == 7


class Waiting:
    """What must not be collected in a worker: it belongs to the process that the worker was forked from."""

    def __init__(self, file: Path) -> None:
        self.file, self.cycle = file, self

    def __del__(self) -> None:
        with open(self.file, "a") as stream:
            stream.write(f"{os.getpid()}\n")


def collate_after_collecting(columns: dict[str, list[Any]]) -> dict[str, torch.Tensor]:
    gc.collect()
    return collate(columns)


def test_workers_leave_what_they_were_forked_with(files: list[str], tmp_path: Path) -> None:
    """An iterator of `datasets` that is collected in a forked process waits for threads that it does not have."""
    stream = stream_of(files, 2)
    loader = StreamLoader(stream, Layout(2, 4, workers=2), collate_after_collecting, padding=PADDING)
    gc.collect()
    gc.disable()
    try:
        Waiting(tmp_path / "collected")
        steps = list(islice(loader, 3))
    finally:
        gc.enable()
    gc.collect()
    assert len(steps) == 3
    assert (tmp_path / "collected").read_text() == f"{os.getpid()}\n"


def test_signals_that_stop_a_run_leave_its_workers(files: list[str]) -> None:
    """The main process ends its step, for which it may need another piece."""
    steps = iter(loader_of(stream_of(files, 4), 8, workers=2))
    next(steps)
    workers = [str(child.pid) for child in multiprocessing.active_children()]
    assert len(workers) >= 2
    for name in ("INT", "USR1", "TERM"):  # by another process, as a terminal or a scheduler does
        subprocess.run(["kill", f"-{name}", *workers], check=True)
    assert len(list(islice(steps, 20))) == 20


MEMORY = """
import sys
from itertools import islice

sys.path += ["tests/support"]
from stream_rows import PADDING, LineMaker, collate

from sparse_accel.data.streams.layout import Layout
from sparse_accel.data.streams.loading import Stream, StreamLoader
from sparse_accel.data.streams.shards import TextFiles


class FirstWords(LineMaker):
    def feed(self, text):
        return super().feed(text[:64])


def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1024


stream = Stream(TextFiles([sys.argv[1]], 4), FirstWords, 3, 200)
steps = iter(StreamLoader(stream, Layout(4, 256), collate, padding=PADDING))
next(steps)
begun = anonymous()
most = max(anonymous() for _ in islice(steps, int(sys.argv[2])))
print(most - begun, next(steps)[0]["epoch"].max().item())
"""


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path) -> None:
    """Of a process that reads a file of 200 MB, from its beginning into the second pass."""
    file = tmp_path / "large.txt"
    line = " ".join(f"word{number}" for number in range(300)) + "\n"
    lines = 200_000_000 // len(line)
    file.write_text(line * lines)
    command = [sys.executable, "-c", MEMORY, str(file), str(lines // 256 + 10)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    growth, epoch = result.stdout.split()
    assert float(growth) < 20 and epoch == "1", result.stdout  # MiB


def test_states_are_json(files: list[str]) -> None:
    loader = loader_of(stream_of(files, 4), 8, processes=2, process=1)
    for _ in islice(loader, 9):
        state = loader.state_dict()
        assert json.loads(json.dumps(state)) == state and list(state["states"]) == ["1", "3"]
