"""Shards of text files and of datasets: together they are the corpus, and each can be read from any text on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from data_files import any_texts
from datasets import Dataset, IterableDataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from sparse_accel.data.lines import lines_from
from sparse_accel.data.streams.shards import Corpus, DatasetShards, ShardSource, TextFiles
from sparse_accel.errors import UsageError

contents = st.lists(any_texts, min_size=1, max_size=8).map("\n".join).filter(str.strip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


def texts_in(source: ShardSource, state: Any = None) -> list[str]:
    return [text for _, text in source.texts(state)]


def all_texts(corpus: Corpus) -> list[str]:
    return [text for number in range(corpus.shards) for text in texts_in(corpus.shard(number))]


def check_each_state(corpus: Corpus) -> None:
    """Reading from the state of a text gives that text and those after it; so do the states that this reading gives."""
    for number in range(corpus.shards):
        source = corpus.shard(number)
        found = list(source.texts())
        texts = [text for _, text in found]
        for place, (state, _) in enumerate(found):
            resumed = list(source.texts(json.loads(json.dumps(state))))
            assert [text for _, text in resumed] == texts[place:]
            for later, (second, _) in [*enumerate(resumed, start=place)][::3]:
                assert texts_in(source, json.loads(json.dumps(second))) == texts[later:]


# --- text files -------------------------------------------------------------------------------------------------------


@given(st.lists(contents, min_size=1, max_size=3), st.integers(1, 12))
def test_the_shards_of_files_are_their_lines_once(folder: Path, parts: list[str], shards: int) -> None:
    """In order, whatever characters the boundaries fall into; so many shards as an error names work, and no more."""
    files = [str(folder / f"{number}.txt") for number in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        Path(file).write_bytes(part.encode())
    try:
        corpus = TextFiles(files, shards)
    except UsageError as error:
        assert f"--stream_shards {shards}:" in str(error)
        largest = int(re.findall(r"at most (\d+)", str(error))[0])
        assert not any(all_have_text(files, more) for more in range(largest + 1, shards + 1))
        assert all_have_text(files, largest)
        corpus = TextFiles(files, largest)
    assert all_texts(corpus) == [text for file in files for *_, text in lines_from(file)]
    check_each_state(corpus)


def all_have_text(files: list[str], shards: int) -> bool:
    try:
        corpus = TextFiles(files, shards)
    except UsageError:
        return False
    return all("".join(texts_in(corpus.shard(number))).encode().strip() for number in range(shards))


def test_shards_are_ranges_of_bytes(tmp_path: Path) -> None:
    """A line is in the shard of its first byte, also if most of it lies in the next one's range."""
    files = [str(tmp_path / name) for name in ("one.txt", "two.txt")]
    Path(files[0]).write_text("aaaa\nbbbbbbb\n")  # begin at bytes 0 and 5 of 19
    Path(files[1]).write_text("ccc\ndd")  # begin at bytes 13 and 17

    def shards(number: int) -> list[list[str]]:
        corpus = TextFiles(files, number)
        return [texts_in(corpus.shard(shard)) for shard in range(number)]

    assert shards(4) == [["aaaa"], ["bbbbbbb"], ["ccc"], ["dd"]]  # ranges from bytes 0, 4, 9 and 14
    assert shards(2) == [["aaaa", "bbbbbbb"], ["ccc", "dd"]]
    with pytest.raises(UsageError, match=r"no line begins in shard 1 .*one.txt, .*two.txt: 19 bytes.* at most 2"):
        shards(3)  # from bytes 0, 6 and 12: no line begins from 6 to 11


def test_long_lines(tmp_path: Path) -> None:
    """Lines longer than what is read at once, and than several ranges."""
    file = tmp_path / "long.txt"
    lines = ["a" * 100_000, "b", "c" * 20_000, "d" * 100_000]
    file.write_text("\n".join(lines))
    corpus = TextFiles([str(file)], 2)
    assert [texts_in(corpus.shard(number)) for number in range(2)] == [lines[:3], lines[3:]]
    with pytest.raises(UsageError, match="at most 2"):
        TextFiles([str(file)], 100)
    file.write_text("\n".join(lines * 2))
    with pytest.raises(UsageError, match="to fewer"):
        TextFiles([str(file)], 100)


def test_json_lines_and_text_together(tmp_path: Path) -> None:
    files = [tmp_path / "one.jsonl", tmp_path / "two.txt"]
    files[0].write_text('{"body": "one"}\n\n{"body": "two"}\n')
    files[1].write_text('{"three": 3}\n\n')
    corpus = TextFiles([str(file) for file in files], 2, "body")
    assert all_texts(corpus) == ["one", "two", '{"three": 3}', ""]
    check_each_state(corpus)
    with pytest.raises(UsageError, match=r"one\.jsonl"):
        TextFiles([str(file) for file in files], 2)


def test_line_numbers_in_errors(tmp_path: Path) -> None:
    """From the beginning of a file they are known, in other shards the place is a byte of the file."""
    file = tmp_path / "corpus.txt"
    file.write_bytes(b"one\ntwo\n\xff\nfour\n")
    with pytest.raises(UsageError, match="line 3"):
        texts_in(TextFiles([str(file)], 1).shard(0))
    with pytest.raises(UsageError, match="line at byte 8"):
        texts_in(TextFiles([str(file)], 2).shard(1))


@pytest.mark.parametrize(
    ("shards", "change", "given"),
    [
        pytest.param(1, b"one\ntwo\n", ["one", "two"], id="ends at a line"),
        pytest.param(1, b"one\ntwo\nthr", ["one", "two"], id="ends in a line"),
        pytest.param(1, b"one\ntwo\nthree and more", ["one", "two"], id="the last line has grown"),
        pytest.param(2, b"one\nand two\nthree", ["one"], id="a line over the end of the shard"),
        pytest.param(2, b"", [], id="empty"),
    ],
)
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, shards: int, change: bytes, given: list[str]) -> None:
    """A line that is not complete is not given."""
    file = tmp_path / "corpus.txt"
    file.write_bytes(b"one\ntwo\nthree")
    texts = TextFiles([str(file)], shards).shard(0).texts()
    file.write_bytes(change)
    found = []
    with pytest.raises(UsageError, match=r"corpus\.txt was changed while it was read.*Restore the file"):
        for _, text in texts:
            found.append(text)
    assert found == given


def test_a_file_that_changed_before_the_place_of_a_state(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_bytes(b"one\ntwo\nthree")
    shard = TextFiles([str(file)], 1).shard(0)
    states = [state for state, _ in shard.texts()]
    file.write_bytes(b"ones\ntwo\nthree")
    with pytest.raises(UsageError, match="no line begins at byte 4"):
        texts_in(shard, states[1])


# --- identity ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    files = [str(tmp_path / f"{name}.txt") for name in ("a", "b", "c")]
    for file in files:
        Path(file).write_text(f"{Path(file).stem}\n" * 10)
    return files


def difference(files: list[str], identity: Any) -> str:
    with pytest.raises(UsageError) as caught:
        TextFiles(files, 2).check(json.loads(json.dumps(identity)))
    assert "--output_dir" in str(caught.value)
    return str(caught.value)


def test_the_same_files_in_another_folder(files: list[str], tmp_path: Path) -> None:
    identity = TextFiles(files, 2).identity
    (tmp_path / "moved").mkdir()
    moved = [Path(file).rename(tmp_path / "moved" / Path(file).name) for file in files]
    TextFiles([str(file) for file in moved], 2).check(json.loads(json.dumps(identity)))


def test_files_that_are_not_those_of_the_run(files: list[str]) -> None:
    identity = TextFiles(files, 2).identity
    assert "c.txt is missing" in difference(files[:2], identity)
    assert "another order" in difference(files[::-1], identity)
    assert f"{files[2]} was not among" in difference(files, identity[:2])
    Path(files[1]).write_text("b\n" * 9)
    assert f"{files[1]} was changed since this run began: it has 18 bytes, and had 20" in difference(files, identity)
    Path(files[1]).write_text("b\n" * 9 + "x\n")
    message = difference(files, identity)
    assert f"{files[1]} was changed" in message and "not the same" in message
    Path(files[1]).unlink()
    with pytest.raises(UsageError, match=re.escape(f"{files[1]} cannot be read")):
        TextFiles(files, 2)


@pytest.mark.parametrize("place", [0, 65_535, 1_000_000, 1_999_999])
def test_changes_of_equal_length_in_the_pieces_of_a_large_file(tmp_path: Path, place: int) -> None:
    """Ends and places between count; the middle of 2 MB lies in no piece only if it is between two of them."""
    file = tmp_path / "large.txt"
    content = bytearray(b"0123456\n" * 250_000)
    file.write_bytes(content)
    identity = TextFiles([str(file)], 1).identity
    start = (2_000_000 - 65_536) * 4 // 9 if place == 1_000_000 else place
    content[start] = ord("x")
    file.write_bytes(content)
    assert "not the same" in difference([str(file)], identity)


# --- datasets ---------------------------------------------------------------------------------------------------------


def generated(parts: list[int]) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield from ({"text": f"{part}.{row}", "id": row} for row in range(part + 2))


def from_generator(folder: Path) -> IterableDataset:
    return IterableDataset.from_generator(generated, gen_kwargs={"parts": list(range(5))})


def from_memory(folder: Path) -> IterableDataset:
    rows = [row for part in range(5) for row in generated([part])]
    return Dataset.from_list(rows).to_iterable_dataset(num_shards=5)


def from_parquet(folder: Path) -> IterableDataset:
    """Files with row groups of three rows."""
    for part in range(5):
        table = pyarrow.Table.from_pylist(list(generated([part])))
        pyarrow.parquet.write_table(table, folder / f"{part}.parquet", row_group_size=3)
    return load_dataset(str(folder), split="train", streaming=True)


def from_json(folder: Path) -> IterableDataset:
    for part in range(5):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in generated([part])))
    return load_dataset(str(folder), split="train", streaming=True)


def mapped(folder: Path) -> IterableDataset:
    return from_parquet(folder).map(lambda row: {"text": row["text"]}).filter(lambda row: bool(row["text"]))


KINDS = [from_generator, from_memory, from_parquet, from_json, mapped]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_the_shards_of_a_dataset_are_its_rows_once(tmp_path: Path, kind: Any, shards: int) -> None:
    """Shard s has the own shards i with i % shards == s, in their order; from any state on, and again and again."""
    dataset = kind(tmp_path)
    corpus = DatasetShards(dataset, "text", shards, "corpus")
    expected = [row["text"] for row in dataset]
    if kind is not from_memory:  # which cuts the rows into shards by itself
        for number in range(shards):
            own = generated(list(range(number, 5, shards)))
            assert texts_in(corpus.shard(number)) == [row["text"] for row in own]
    assert sorted(all_texts(corpus)) == sorted(expected) and len(expected) == 20
    assert all(corpus.shard(number).resumable for number in range(shards))
    check_each_state(corpus)


def test_a_shuffled_dataset_keeps_no_state() -> None:
    """Its state would lack the rows of its buffer, but its order is the same each time."""
    dataset = from_generator(Path()).shuffle(seed=1, buffer_size=4)
    shard = DatasetShards(dataset.map(lambda row: row), "text", 2, "corpus").shard(1)
    assert not shard.resumable
    assert {state for state, _ in shard.texts()} == {None}
    assert texts_in(shard) == texts_in(shard)


def test_datasets_that_cannot_be_streams() -> None:
    dataset = from_generator(Path())
    with pytest.raises(UsageError, match=r"--stream_shards 6.*corpus has only 5.*at most 5"):
        DatasetShards(dataset, "text", 6, "corpus")
    with pytest.raises(UsageError, match=r"no column 'body'.*text, id"):
        DatasetShards(from_memory(Path()), "body", 2, "corpus")
    with pytest.raises(UsageError, match=r"shard 1 of 2, row 1: has no column 'body'.*text, id"):
        texts_in(DatasetShards(dataset, "body", 2, "corpus").shard(1))  # columns not known before
    with pytest.raises(UsageError, match=r"shard 1 of 2, row 1, column 'id': is 0"):
        texts_in(DatasetShards(dataset, "id", 2, "corpus").shard(1))


def failing(parts: list[int]) -> Iterator[dict[str, str]]:
    yield {"text": "one"}
    yield {"text": "two"}
    raise ConnectionError("the server is away\nTraceback")


def test_a_dataset_that_fails_names_the_place() -> None:
    """Also after it went on from a state."""
    shard = DatasetShards(IterableDataset.from_generator(failing, gen_kwargs={"parts": [0, 1]}), "text", 2, "C").shard(
        1
    )
    texts, states = shard.texts(), []
    pattern = r"C, shard 1 of 2, row 3 cannot be read: the server is away\. .*same command resumes"
    with pytest.raises(UsageError, match=pattern):
        for state, _ in texts:
            states.append(state)
    assert len(states) == 2
    with pytest.raises(UsageError, match=pattern):
        texts_in(shard, states[1])


def test_another_dataset_than_that_of_the_run() -> None:
    corpus = DatasetShards(from_generator(Path()), "text", 2, "corpus")
    corpus.check(json.loads(json.dumps(corpus.identity)))
    with pytest.raises(UsageError, match=r"corpus with 5 .*corpus with 6"):
        corpus.check({"name": "corpus", "own_shards": 6})


def test_rows_without_a_text_are_left_out() -> None:
    """Their places count: each state still gives what follows."""
    rows = {"text": ["one", None, "", "two", None, "three"]}
    corpus = DatasetShards(Dataset.from_dict(rows).to_iterable_dataset(num_shards=2), "text", 2, "corpus")
    assert [texts_in(corpus.shard(number)) for number in (0, 1)] == [["one", ""], ["two", "three"]]
    check_each_state(corpus)
