"""Millions of rows: digests, lengths, labels and orders as before, but without a Python object for each row."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from hypothesis import given, settings
from tiny import make_tokenizer

from sparse_accel import fingerprints
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.data import mapped_columns, tokenizing
from sparse_accel.data.arrow_columns import largest_in, lengths_of
from sparse_accel.data.batches import GlobalBatchSampler, longest_text
from sparse_accel.data.distinct import distinct_in, distinct_of
from sparse_accel.data.splitting import hold_out
from sparse_accel.data.tables import read_table
from sparse_accel.data.tokenizing import digest_of_rows
from sparse_accel.errors import UsageError
from sparse_accel.fingerprints import fingerprint_of_rows
from sparse_accel.tasks import TextClassification
from sparse_accel.tasks.text_classification.encoding import tokenize_texts

whole = st.integers(-(2**31), 2**31 - 1)
columns = st.one_of(
    *(
        st.lists(each, min_size=1, max_size=30)
        for each in (whole, st.lists(whole), st.none() | whole, st.floats(), st.booleans(), st.text(max_size=3))
    ),
    st.lists(st.lists(st.lists(whole, max_size=2), max_size=2), min_size=1, max_size=5),
)


# --- digests ----------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(columns, st.data())
def test_digests_of_tokens_are_those_that_runs_have_recorded(values: list[Any], data: st.DataObject) -> None:
    rows = Dataset.from_dict({"values": values})
    if data.draw(st.booleans()):  # some of the rows of a file, in another order
        rows = rows.select(data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1)))
    found = hashlib.sha256(b"values" + json.dumps(rows["values"][:]).encode()).hexdigest()[:32]
    assert fingerprint_of_rows(rows) == found


def test_digests_of_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond the first piece; and lists that are too long for the fast way."""
    monkeypatch.setattr(fingerprints, "_ROWS_AT_ONCE", 4)
    values = [[7, 30521, 0], [], [5], [1, -100], [2], [], [], [3, 4], [6]]
    pieces = b"".join(json.dumps(values[start : start + 4]).encode() for start in (0, 4, 8))
    expected = hashlib.sha256(b"input_ids" + pieces).hexdigest()[:32]
    assert fingerprint_of_rows(Dataset.from_dict({"input_ids": values})) == expected
    monkeypatch.setattr(fingerprints, "_MOST_VALUES", 1)
    assert fingerprint_of_rows(Dataset.from_dict({"input_ids": values})) == expected


def test_a_digest_of_cached_tokens_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokenized(again: bool = False) -> Dataset:
        rows = {"train": Dataset.from_dict({"text": ["good film", "bad"]})}
        options: dict[str, Any] = {"cache_dir": str(tmp_path), "overwrite_cache": again}
        return tokenizing.tokenize(rows, make_tokenizer(), encode, {}, **options)["train"]

    first = fingerprint_of_rows(tokenized())
    monkeypatch.setattr(fingerprints, "_as_json", lambda column: b"computed again")
    assert fingerprint_of_rows(tokenized()) == first
    assert fingerprint_of_rows(tokenized().select([1, 0])) != first, "other rows of the same files"
    assert fingerprint_of_rows(tokenized().remove_columns("attention_mask")) != first
    (file,) = (tmp_path / "sparse_accel").glob("*.arrow")
    os.utime(file, ns=(1, 1))
    assert fingerprint_of_rows(tokenized()) != first, "the file has changed"


def encode(rows: Any, tokenizer: Any) -> dict[str, list[Any]]:
    return dict(tokenizer(rows["text"]))


texts = st.lists(st.none() | st.text(max_size=4), min_size=1, max_size=20)


@settings(max_examples=20)
@given(texts, st.data())
def test_digests_of_texts_do_not_depend_on_chunks_and_widths(values: list[str | None], data: st.DataObject) -> None:
    table = pyarrow.table({"text": pyarrow.array(values, pyarrow.string()), "label": range(len(values))})
    cut = data.draw(st.integers(0, len(values)))
    parts = pyarrow.concat_tables([table.slice(0, cut), table.slice(cut)])
    wide = pyarrow.table({"label": table["label"].cast("int16"), "text": table["text"].cast(pyarrow.large_string())})
    whole = pyarrow.concat_tables([table.slice(0, 1), table])
    digests = [digest_of_rows(Dataset(each)) for each in (table, parts, wide)]
    digests += [
        digest_of_rows(Dataset(whole).select(range(1, len(values) + 1))),
        digest_of_rows(Dataset(whole.slice(1))),
    ]
    assert len(set(digests)) == 1


def test_digests_of_texts_tell_rows_apart() -> None:
    rows: list[list[Any]] = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", None], [None, "ab"], ["ab", ""], ["abc"]]
    rows += [
        [["ab"], ["c"]],
        [["ab", "c"], []],
        [["ab", "c"]],
        [1, 2],
        [1.0, 2.0],
        [True, False],
        [{"a": 1}],
        [{"a": 2}],
    ]
    digests = [digest_of_rows(Dataset.from_dict({"text": values})) for values in rows]
    digests.append(digest_of_rows(Dataset.from_dict({"other": rows[0]})))
    assert len(set(digests)) == len(rows) + 1


# --- lengths, orders, draws, labels -----------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=20), st.data())
def test_lengths_and_the_largest_token(values: list[list[int]], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1))
    rows = Dataset.from_dict({"input_ids": values}).select(kept)
    assert lengths_of(rows).tolist() == [len(values[row]) for row in kept]
    assert longest_text(rows) == max(len(values[row]) for row in kept)
    assert largest_in(rows, "input_ids") == max((number for row in kept for number in values[row]), default=0)


@given(st.integers(1, 400), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_the_order_of_rows_is_that_of_earlier_versions(rows: int, size: int, seed: int, epoch: int) -> None:
    random = np.random.default_rng(rows)
    lengths, weights = random.integers(1, 30, rows), random.integers(0, 4, rows)
    sampler = GlobalBatchSampler(lengths.astype(np.int32), size, 1, seed, weights)
    sampler.epoch = epoch
    # As it was computed: a list of batches.
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(rows)
    full, batches = rows // size * size, []
    for start in range(0, full, 50 * size):
        pool = order[start : min(start + 50 * size, full)]
        pool = pool[np.argsort(-lengths[pool], kind="stable")]
        batches += np.split(pool, len(pool) // size)
    expected = [batches[number] for number in generator.permutation(len(batches))]
    expected += [order[full:]] if full < rows else []
    assert sampler.order().tolist() == np.concatenate(expected).tolist()
    assert sampler.weights_of_steps() == [max(int(weights[batch].sum()), 1) for batch in expected]


def test_held_out_rows_are_those_of_earlier_versions() -> None:
    classes = np.asarray([2, 0, 2, 1, 0, 2, 1, 2, 0, 0, 2, 1])
    assert [rows.tolist() for rows in hold_out(classes, 0.4, 7)] == [[2, 6, 7, 8, 9, 10, 11], [0, 1, 3, 4, 5]]


@given(st.lists(st.sampled_from([None, "a", "b", ""]) | st.sampled_from([0.0, -0.0, 1.5]) | st.integers(0, 2)))
def test_different_values_and_their_rows(values: list[Any]) -> None:
    found = distinct_of(values)
    assert [repr(found.values[number]) for number in found.numbers] == list(map(repr, values))
    assert found.rows.tolist() == sorted(found.rows.tolist()) and len(set(map(repr, found.values))) == len(found.values)


@given(
    st.lists(st.none() | st.sampled_from(["a", "b"])) | st.lists(st.none() | st.sampled_from([0.0, -0.0, 1.5])),
    st.integers(0, 9),
)
def test_different_values_of_arrow_are_the_same(values: list[Any], cut: int) -> None:
    kind = pyarrow.string() if any(isinstance(value, str) for value in values) else pyarrow.float64()
    column = pyarrow.chunked_array([pyarrow.array(part, kind) for part in (values[:cut], values[cut:])])
    expected = distinct_of(values)
    different, rows, numbers = distinct_in(column)
    assert list(map(repr, different.to_pylist())) == list(map(repr, expected.values))
    assert rows.tolist() == expected.rows.tolist() and numbers.tolist() == expected.numbers.tolist()


# --- texts on disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary("int8", "string")])
def test_texts_of_a_large_file_are_mapped(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "train.parquet", tmp_path / "cache"
    values = ["a film", "", "naïve 🙂", "a film"]
    rows = pyarrow.table({"text": pyarrow.array(values, "string").cast(kind), "text.2": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(rows, file, row_group_size=3)
    small = read_table(str(file)).texts(("text",))
    assert not small.cache_files
    monkeypatch.setattr(mapped_columns, "_MANY_ROWS", 4)
    table = read_table(str(file), str(cache))
    assert table.unusable_text(("text",)) is None and len(list(cache.rglob("*"))) == 2
    large = table.texts(("text",))
    assert large["text"][:] == values and large.features == small.features and len(large.cache_files) == 1
    assert digest_of_rows(large) == digest_of_rows(small)
    written = os.stat(large.cache_files[0]["filename"]).st_mtime_ns
    assert os.stat(read_table(str(file), str(cache)).texts(("text",)).cache_files[0]["filename"]).st_mtime_ns == written

    mapped = Path(large.cache_files[0]["filename"])
    for damaged in (b"", mapped.read_bytes()[:-100], bytes(mapped.stat().st_size)):
        mapped.unlink()  # `large` keeps its own
        mapped.write_bytes(damaged)
        assert read_table(str(file), str(cache)).texts(("text",))["text"][:] == values

    pyarrow.parquet.write_table(rows.slice(0, 3), file)
    monkeypatch.setattr(mapped_columns, "_MANY_ROWS", 3)
    assert read_table(str(file), str(cache)).texts(("text",))["text"][:] == values[:3]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "train.parquet")
    monkeypatch.setattr(mapped_columns, "_MANY_ROWS", 1)

    class Full:
        def __init__(self, *_: Any) -> None: ...
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: Any) -> None: ...
        def write_batch(self, batch: Any) -> None:
            raise OSError("No space left on device")

    monkeypatch.setattr(pyarrow.ipc, "new_stream", Full)
    with pytest.raises(UsageError, match=r"no room for the texts: No space left on device.*--cache_dir"):
        read_table(str(tmp_path / "train.parquet"), str(tmp_path)).texts(("text",))
    assert list((tmp_path / "sparse_accel").iterdir()) == []


# --- a start ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_start_has_no_object_for_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python and NumPy take for a row in each part of a start. A list takes 8 bytes for an entry, and more for
    those that are not small numbers; one with the 12 tokens of each row takes 200."""
    monkeypatch.setattr(mapped_columns, "_MANY_ROWS", 1)
    monkeypatch.setattr(mapped_columns, "digest_of", str)  # else its buffer is the largest of all
    few, many = (_peaks_of_second_start(tmp_path, rows) for rows in (10_000, 20_000))
    grown = {part: (many[part] - few[part]) / 10_000 for part in few}
    assert grown.pop("labels") < 30 and grown.pop("order") < 50 and max(grown.values()) < 8, grown
    assert many["digest"] < 500_000  # nor for a part of them


def _peaks_of_second_start(folder: Path, rows: int) -> dict[str, int]:
    file = folder / f"{rows}.parquet"
    values = [f"{['good', 'bad', 'fine', 'a'][row % 4]} film plot good bad the is very a film" for row in range(rows)]
    pyarrow.parquet.write_table(pyarrow.table({"text": values, "label": [f"x{row % 3}" for row in range(rows)]}), file)
    flags: Any = {"train_file": str(file), "cache_dir": str(folder)}
    arguments = TextClassificationArguments(model_name_or_path="model", output_dir="out", do_train=True, **flags)
    peaks: dict[str, int] = {}

    def peak(part: str, work: Callable[..., Any], *inputs: Any) -> Any:
        tracemalloc.start()
        try:
            found = work(*inputs)
            peaks[part] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        return found

    tokenize_texts(TextClassification.load(arguments, None).data, make_tokenizer(), 16)
    for _ in range(2):  # the first time, modules are imported
        data = peak("labels", TextClassification.load, arguments, None).data
        train = peak("tokens", tokenize_texts, data, make_tokenizer(), 16)["train"]
        lengths = peak("lengths", lengths_of, train)
        assert peak("largest", largest_in, train, "input_ids") > 7
        assert peak("order", GlobalBatchSampler(lengths, 8, 1, seed=0).weights_of_steps) == [8] * (rows // 8)
        for known in folder.rglob("*.digest.json"):
            known.unlink()
        assert len(peak("digest", fingerprint_of_rows, train)) == 32
    return peaks
