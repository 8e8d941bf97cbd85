"""Tokens: what they hold, that rows keep their order, and that they are made once."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from data_files import load, write
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sparse_accel.data import tokenizing
from sparse_accel.distributed.threads import Share
from sparse_accel.tasks.text_classification.data import TextClassificationData
from sparse_accel.tasks.text_classification.encoding import tokenize_texts

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"]


def make_tokenizer(words: list[str] = WORDS, **settings: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: position for position, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names: dict[str, Any] = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **names, **{"model_input_names": inputs, "model_max_length": 16} | settings
    )


@pytest.fixture
def data(tmp_path: Path) -> TextClassificationData:
    rows = [{"text": "a b", "label": "y"}, {"text": "c", "label": "x"}, {"text": "a b c d " * 9, "label": "y"}]
    file = write(tmp_path / "train.csv", rows)
    test = write(tmp_path / "test.csv", [{"text": "d"}])
    return load(train_file=file, test_file=test, do_train=True, do_predict=True, cache_dir=str(tmp_path / "cache"))


def test_tokens_and_labels(data: TextClassificationData) -> None:
    splits = tokenize_texts(data, make_tokenizer(), max_seq_length=6)
    train = splits["train"]
    assert set(train.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert train["input_ids"][:] == [[2, 4, 5, 3], [2, 6, 3], [2, 4, 5, 6, 7, 3]]
    assert train["attention_mask"][:] == [[1] * 4, [1] * 3, [1] * 6]
    assert train["labels"][:] == [1, 0, 1]
    assert set(splits["test"].column_names) == {"input_ids", "token_type_ids", "attention_mask"}


def test_labels_follow_the_order_of_names(data: TextClassificationData) -> None:
    tokenize_texts(data, make_tokenizer(), max_seq_length=6)
    turned = dataclasses.replace(data, label_names=data.label_names[::-1])
    assert tokenize_texts(turned, make_tokenizer(), max_seq_length=6)["train"]["labels"][:] == [0, 1, 0]


def test_only_the_inputs_that_the_tokenizer_makes(data: TextClassificationData) -> None:
    tokenizer = make_tokenizer(model_input_names=["input_ids", "attention_mask"])
    assert "token_type_ids" not in tokenize_texts(data, tokenizer, max_seq_length=6)["train"].column_names


def test_the_limit_of_the_model(data: TextClassificationData) -> None:
    assert max(map(len, tokenize_texts(data, make_tokenizer(), max_seq_length=512)["train"]["input_ids"])) == 16


def test_pairs_are_one_row_of_two_segments(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b c", "label": 0.5}, {"sentence1": "d", "sentence2": "a", "label": 2.25}]
    pairs = load(train_file=write(tmp_path / "train.jsonl", rows), do_train=True, cache_dir=str(tmp_path))
    train = tokenize_texts(pairs, make_tokenizer(), max_seq_length=16)["train"]
    assert train["input_ids"][0] == [2, 4, 3, 5, 6, 3]
    assert train["labels"][:] == [0.5, 2.25]


def test_multi_label_rows_become_indicators(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": ["y", "x"]}, {"text": "b", "label": []}, {"text": "c", "label": ["z"]}]
    multi = load(train_file=write(tmp_path / "train.jsonl", rows), do_train=True, cache_dir=str(tmp_path))
    assert tokenize_texts(multi, make_tokenizer(), 8)["train"]["labels"][:] == [
        [1.0, 1.0, 0.0],
        [0.0] * 3,
        [0.0, 0.0, 1.0],
    ]


def test_several_processes_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "ROWS_PER_PROCESS", 50)
    words = [*WORDS, *(f"w{row}" for row in range(150))]
    rows = [{"text": f"w{row}", "label": row % 2} for row in range(150)]
    many = load(train_file=write(tmp_path / "train.csv", rows), do_train=True, cache_dir=str(tmp_path))
    train = tokenize_texts(many, make_tokenizer(words), 8, num_workers=3)["train"]
    assert train["input_ids"][:] == [[2, len(WORDS) + row, 3] for row in range(150)]


@pytest.mark.parametrize(("asked", "cpus", "expected"), [(None, 8, 3), (None, 2, 2), (2, 8, 2), (8, 1, 7), (1, 8, 1)])
def test_processes_that_pay(
    asked: int | None, cpus: int, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no number given, as many as there are CPUs, but each has enough rows to pay; and the speed is shown once."""
    monkeypatch.setattr(tokenizing, "share", lambda: Share(cpus, "a test"))
    monkeypatch.setattr(tokenizing, "ROWS_PER_PROCESS", 20)
    monkeypatch.setattr(tokenizing, "_ROWS_PER_OWN_PROCESS", 50)
    rows = Dataset.from_dict({"text": ["a"] * 150})
    started = []

    def tokenized(self: Dataset, *_: Any, num_proc: int | None, **__: Any) -> Dataset:
        started.append(num_proc or 1)
        return self

    monkeypatch.setattr(Dataset, "map", tokenized)
    tokenizing.tokenize({"train": rows}, make_tokenizer(), tokenizing.model_inputs, {}, num_workers=asked)
    assert started == [expected]
    words = f"{expected} process{'es' * (expected > 1)}"
    assert re.fullmatch(rf"tokenized 150 train rows in \d+ s: [\d,]+ rows/s, {words}\n", capsys.readouterr().out)


# --- made once --------------------------------------------------------------------------------------------------------


def test_tokenized_once(
    data: TextClassificationData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer()
    monkeypatch.setattr(tokenizing, "ROWS_PER_PROCESS", 2)
    first = tokenize_texts(data, tokenizer, max_seq_length=6)["train"]
    assert "tokenized 3 train rows" in capsys.readouterr().out

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("tokenized again")

    # The tokenizer has been used in between, and is another object of the same content.
    tokenizer(["a"], truncation=True, max_length=3, padding="max_length")
    monkeypatch.setattr(tokenizing, "_encode", fail)
    for same in (tokenizer, make_tokenizer()):
        again: Dataset = tokenize_texts(data, same, max_seq_length=6)["train"]
        assert again[:] == first[:] and capsys.readouterr().out == ""
    with pytest.raises(AssertionError, match="tokenized again"):
        tokenize_texts(data, tokenizer, max_seq_length=6, overwrite_cache=True)
    with pytest.raises(AssertionError, match="tokenized again"):
        tokenize_texts(data, tokenizer, max_seq_length=5)
    with pytest.raises(AssertionError, match="tokenized again"):
        tokenize_texts(data, make_tokenizer([*WORDS, "e"]), max_seq_length=6)


@pytest.mark.parametrize("length", [0, 0.5, 1])
@pytest.mark.parametrize("processes", [1, 3])
def test_a_damaged_cache_is_made_again(
    length: float, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut by a power loss, or zeros of the right length."""
    monkeypatch.setattr(tokenizing, "ROWS_PER_PROCESS", 1)
    rows = [{"text": "a b c d"[: 1 + 2 * (row % 4)], "label": row % 2} for row in range(9)]
    data = load(train_file=write(tmp_path / "train.csv", rows), do_train=True, cache_dir=str(tmp_path / "cache"))
    first = tokenize_texts(data, make_tokenizer(), 6, num_workers=processes)["train"][:]
    files = [*(tmp_path / "cache").rglob("*.arrow")]
    assert len(files) == processes
    for file in files:
        size = file.stat().st_size
        file.write_bytes(bytes(size) if length == 1 else file.read_bytes()[: int(size * length)])
    capsys.readouterr()
    assert tokenize_texts(data, make_tokenizer(), 6, num_workers=processes)["train"][:] == first
    said = capsys.readouterr().out  # of another length, it is not taken for a file of these rows at all
    assert length < 1 or re.search(r"\.arrow is damaged \(.+\): train is tokenized again\n", said)
    assert tokenize_texts(data, make_tokenizer(), 6, num_workers=processes)["train"][:] == first
    assert capsys.readouterr().out == ""


def test_a_cache_that_may_not_be_on_disk_is_not_used(
    data: TextClassificationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files get their names before their bytes are on disk, the record of them after. Without it, a file that ends in
    zeros could be read as one with fewer rows."""
    encoded: list[int] = []
    encode = tokenizing._encode

    def counted(rows: Any, *arguments: Any, **options: Any) -> Any:
        encoded.append(len(rows["text"]))
        return encode(rows, *arguments, **options)

    monkeypatch.setattr(tokenizing, "_encode", counted)
    order: list[str] = []
    monkeypatch.setattr(tokenizing, "to_disk", lambda path: order.append(path.suffix))
    monkeypatch.setattr(tokenizing, "write_json", lambda path, _: order.append(path.name.partition(".")[2]))
    first = tokenize_texts(data, make_tokenizer(), 6)["train"][:]
    splits = len(encoded)
    assert order == [".arrow", "files.json"] * splits
    monkeypatch.undo()
    monkeypatch.setattr(tokenizing, "_encode", counted)
    assert tokenize_texts(data, make_tokenizer(), 6)["train"][:] == first and len(encoded) == 2 * splits
    assert tokenize_texts(data, make_tokenizer(), 6)["train"][:] == first and len(encoded) == 2 * splits
    monkeypatch.setattr(tokenizing, "ROWS_PER_PROCESS", 1)
    for file in [*(tmp_path / "cache").rglob("*.arrow")]:  # of a run with two processes, when the power went
        for rank in range(2):
            file.with_name(f"{file.stem}_{rank:05d}_of_00002.arrow").write_bytes(file.read_bytes()[:-8])
    for processes in (1, 2):
        assert tokenize_texts(data, make_tokenizer(), 6, num_workers=processes)["train"][:] == first
