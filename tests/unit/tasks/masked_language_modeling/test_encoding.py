"""Rows of lines and of blocks: every token is in its place, with the special tokens of its tokenizer around."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, are_progress_bars_disabled
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from sparse_accel.data.tokenizing import tokenize
from sparse_accel.errors import UsageError
from sparse_accel.tasks.masked_language_modeling.encoding import (
    WORDS,
    Block,
    Packer,
    check_maskable,
    check_splits_words,
    encode_lines,
    encode_texts,
    mask_token_id,
    pack,
    pack_dataset,
    random_ids,
    separator_id,
)
from sparse_accel.tasks.masked_language_modeling.masking import NO_WORD

KINDS = ("bert", "roberta", "types")


@functools.cache
def make(kind: str) -> Any:
    """A tokenizer: BERT's, RoBERTa's, one with special tokens of their own type, or one that does not split words."""
    if kind == "bert":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "##s", "good", "##ly", "!"]
        return BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    if kind == "roberta":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = ["<s>", "<pad>", "</s>", "<unk>", *letters, "Ġa", "lm", "<mask>"]
        vocabulary = {word: number for number, word in enumerate(words)}
        merges: Any = [("Ġ", "a"), ("l", "m")]
        return RobertaTokenizer(vocab=vocabulary, merges=merges)
    pieces = ["<pad>", "<unk>", "<cls>", "<eos>", "▁", *"afilmsgody!", "▁a", "lm"]
    backend = Tokenizer(models.Unigram([(piece, -float(len(piece) < 2) - 1) for piece in pieces], unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=kind != "unsplit")
    backend.post_processor = processors.TemplateProcessing(
        single="<cls>:2 $A:1 <eos>:1", special_tokens=[("<cls>", 2), ("<eos>", 3)]
    )
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "cls", "eos")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **{"model_input_names": inputs})


TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "films", "goodly", "!", "é", " ", "  ", "film", "[SEP]", "</s>"]), max_size=12).map(
        "".join
    ),
    min_size=1,
    max_size=8,
)


def encoded(kind: str, texts: list[str]) -> list[dict[str, Any]]:
    columns = encode_texts({"text": texts}, make(kind), "text")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def parts(words: list[int]) -> list[tuple[int, int]]:
    """Where the words are: runs of one number."""
    found: list[tuple[int, int]] = []
    for place, word in enumerate(words):
        if word != NO_WORD:
            same = found and found[-1][1] == place and words[place - 1] == word
            found[-1:] = [(found[-1][0], place + 1)] if same else [*found[-1:], (place, place + 1)]
    return found


# --- lines ------------------------------------------------------------------------------------------------------------


def test_words_of_bert() -> None:
    found = encode_lines({"text": ["A films goodly zz!", "", " \n", "film [SEP] a"]}, make("bert"), "text", 7)
    assert found["input_ids"] == [[2, 5, 6, 7, 8, 9, 3], [2, 6, 3, 5, 3]]
    assert found[WORDS] == [[NO_WORD, 0, 1, 1, 2, 2, NO_WORD], [NO_WORD, 0, NO_WORD, 2, NO_WORD]]
    assert found["token_type_ids"] == [[0] * 7, [0] * 5] and found["attention_mask"] == [[1] * 7, [1] * 5]
    assert encode_lines({"text": ["a zz"]}, make("bert"), "text", 7)[WORDS] == [[NO_WORD, 0, NO_WORD, NO_WORD]]


def test_words_of_roberta() -> None:
    found = encode_lines({"text": ["a film a é"]}, make("roberta"), "text", 99)
    tokens = make("roberta").convert_ids_to_tokens(found["input_ids"][0])
    assert tokens == ["<s>", "a", "Ġ", "f", "i", "lm", "Ġa", "Ġ", "Ã", "©", "</s>"]
    assert found[WORDS] == [[NO_WORD, 0, 1, 1, 1, 1, 2, 3, 3, 3, NO_WORD]]
    assert sorted(found) == ["attention_mask", "input_ids", "words"]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(texts=TEXTS, length=st.integers(3, 20))
def test_lines_are_those_of_the_tokenizer(kind: str, texts: list[str], length: int) -> None:
    tokenizer = make(kind)
    found = encode_lines({"text": texts}, tokenizer, "text", length)
    kept = [text for text in texts if tokenizer(text, add_special_tokens=False)["input_ids"]]
    for name in tokenizer.model_input_names:
        assert found[name] == [tokenizer(text, truncation=True, max_length=length)[name] for text in kept]
    for ids, words in zip(found["input_ids"], found[WORDS], strict=True):
        assert len(ids) == len(words) <= length
        assert [word == NO_WORD for word in words] == [token in tokenizer.all_special_ids for token in ids]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(texts=TEXTS)
def test_rows_do_not_depend_on_the_batch(kind: str, texts: list[str]) -> None:
    for encode, options in ((encode_lines, {"length": 9}), (encode_texts, {})):
        together = encode({"text": texts}, make(kind), "text", **options)
        alone: dict[str, list[Any]] = {name: [] for name in together}
        for text in texts:
            for name, values in encode({"text": [text]}, make(kind), "text", **options).items():
                alone[name] += values
        assert alone == together


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(texts=TEXTS, length=st.integers(3, 20))
def test_blocks_hold_every_token_in_order(kind: str, texts: list[str], length: int) -> None:
    tokenizer = make(kind)
    found = list(pack(encoded(kind, texts), tokenizer, length))
    separator = separator_id(tokenizer)
    expected: list[int | None] = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids and len(expected) % (length - 2):
            expected.append(separator)
        expected += ids
    assert [token for row in found for token in row["input_ids"][1:-1]] == expected
    assert [len(row["input_ids"]) for row in found[:-1]] == [length] * len(found[:-1])
    around = tokenizer("a")
    for row in found:
        assert 2 < len(row["input_ids"]) <= length
        assert (row["input_ids"][0], row["input_ids"][-1]) == (around["input_ids"][0], around["input_ids"][-1])
        assert set(row) == {*tokenizer.model_input_names, WORDS}
        assert {len(column) for column in row.values()} == {len(row["input_ids"])}
        assert set(row["attention_mask"]) == {1}
        if kind == "types":
            assert row["token_type_ids"] == [2] + [1] * (len(row["input_ids"]) - 1)
        marks = [token in tokenizer.all_special_ids for token in row["input_ids"]]
        assert [word == NO_WORD for word in row[WORDS]] == marks


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(texts=TEXTS, length=st.integers(3, 20))
def test_words_of_blocks_are_those_of_their_texts(kind: str, texts: list[str], length: int) -> None:
    """Also if no token is between two texts; only the ends of blocks cut words."""
    room = length - 2
    for separator in (separator_id(make(kind)), None):
        packer, expected = Packer(room, separator), []
        blocks, end = [], 0
        for text in encoded(kind, texts):
            end += separator is not None and end % room != 0
            for begin, stop in parts(text[WORDS]):
                cuts = [begin, *(cut for cut in range(begin + 1, stop) if (end + cut) % room == 0), stop]
                expected += [(end + left, end + right) for left, right in itertools.pairwise(cuts)]
            end += len(text["input_ids"])
            blocks += packer.feed(text["input_ids"], text[WORDS])
        blocks += packer.flush()
        found = [
            (number * room + begin, number * room + stop)
            for number, block in enumerate(blocks)
            for begin, stop in parts(block.words)
        ]
        assert found == expected
        assert all(min([word for word in block.words if word >= 0], default=0) == 0 for block in blocks)


def test_blocks_as_an_example() -> None:
    texts = ["a films", "goodly film", "zz", "! a a"]
    rows = list(pack(encoded("bert", texts), make("bert"), 7))
    assert [row["input_ids"] for row in rows] == [[2, 5, 6, 7, 3, 8, 3], [2, 9, 6, 3, 1, 3, 3], [2, 10, 5, 5, 3]]
    assert [row[WORDS] for row in rows] == [
        [NO_WORD, 0, 1, 1, NO_WORD, 2, NO_WORD],
        [NO_WORD, 0, 1, NO_WORD, NO_WORD, NO_WORD, NO_WORD],
        [NO_WORD, 0, 1, 2, NO_WORD],
    ]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(5, 9), st.integers(-1, 3)), max_size=12), max_size=8),
    st.integers(1, 6),
    st.sampled_from([3, None]),
    st.integers(0, 8),
)
def test_a_packer_goes_on_where_another_stopped(
    texts: list[list[tuple[int, int]]], room: int, separator: int | None, stop: int
) -> None:
    def feed(packer: Packer, some: list[list[tuple[int, int]]]) -> list[Block]:
        ids = [([token for token, _ in text], sorted(word for _, word in text)) for text in some]
        return [block for text, words in ids for block in packer.feed(text, words)]

    one, first = Packer(room, separator), Packer(room, separator)
    expected = feed(one, texts) + one.flush()
    before = feed(first, texts[:stop])
    state = json.loads(json.dumps(first.rest))
    assert len(state["ids"]) == len(state["words"]) < room
    second = Packer(room, separator, state)
    assert before + feed(second, texts[stop:]) + second.flush() == expected
    assert second.flush() == [] and second.rest == {"ids": [], "words": []}


def test_the_state_of_a_packer_is_a_copy() -> None:
    packer = Packer(4, None)
    packer.feed([5, 6], [0, 1])
    state = packer.rest
    for other in (packer, Packer(4, None, state)):
        other.feed([7], [0])
        assert other.rest == {"ids": [5, 6, 7], "words": [0, 1, 2]}
        assert state == {"ids": [5, 6], "words": [0, 1]}


def test_a_text_without_tokens_changes_nothing() -> None:
    packer = Packer(4, 3)
    packer.feed([5], [0])
    assert packer.feed([], []) == [] and packer.rest == {"ids": [5], "words": [0]}


def test_wrong_use_of_a_packer() -> None:
    with pytest.raises(ValueError, match="room must be at least 1, got 0"):
        Packer(0, None)
    with pytest.raises(ValueError, match="2 tokens, but words of 1"):
        Packer(3, None).feed([5, 6], [0])


def test_the_separator() -> None:
    assert [separator_id(make(kind)) for kind in KINDS] == [3, 2, 3]
    assert separator_id(PreTrainedTokenizerFast(tokenizer_object=make("types").backend_tokenizer)) is None


# --- datasets ---------------------------------------------------------------------------------------------------------


def test_blocks_of_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks cross the 1,000 texts that Dataset.map tokenizes together; the second time they come from the cache."""
    texts = ["a films goodly"[: 1 + row % 14] for row in range(1500)]
    tokenizer, folder = make("bert"), str(tmp_path)
    rows = tokenize(
        {"train": Dataset.from_dict({"text": texts})}, tokenizer, encode_texts, {"column": "text"}, cache_dir=folder
    )["train"]
    capsys.readouterr()
    found = pack_dataset(rows, tokenizer, 16, cache_dir=folder)
    assert "Generating" not in capsys.readouterr().err and not are_progress_bars_disabled()
    expected = list(pack(encoded("bert", texts), tokenizer, 16))
    assert found.to_list() == expected and len(expected) > 300
    check_maskable(found, "train.txt")

    def fail(*_: Any) -> None:
        raise AssertionError("the blocks are made again")

    with monkeypatch.context() as patched:
        patched.setattr("sparse_accel.tasks.masked_language_modeling.encoding.pack", fail)
        assert pack_dataset(rows, tokenizer, 16, cache_dir=folder).to_list() == expected
    # Other texts and another length are not taken from it.
    fewer = rows.select(range(10))
    assert pack_dataset(fewer, tokenizer, 16, cache_dir=folder).to_list() == list(pack(fewer, tokenizer, 16))
    assert len(pack_dataset(rows, tokenizer, 17, cache_dir=folder)) < len(expected)
    with monkeypatch.context() as patched:
        patched.setattr("sparse_accel.tasks.masked_language_modeling.encoding.pack", fail)
        with pytest.raises(Exception, match="An error occurred"):
            pack_dataset(rows, tokenizer, 16, cache_dir=folder, overwrite_cache=True)


def test_empty_texts_first(tmp_path: Path) -> None:
    """Dataset.map takes the types of its columns from the first 1,000 rows."""
    texts = [""] * 1200 + ["a film"]
    for encode, settings_ in ((encode_texts, {}), (encode_lines, {"length": 8})):
        rows = Dataset.from_dict({"text": texts})
        found = tokenize(
            {"train": rows}, make("bert"), encode, {"column": "text", **settings_}, cache_dir=str(tmp_path)
        )["train"]
        assert len(found) == 1 and found[0][WORDS][-2:] in ([0, 1], [1, NO_WORD])
        check_maskable(found, "train.txt")


def test_texts_without_a_token_to_mask() -> None:
    with pytest.raises(UsageError, match=r"train\.txt: there is no text"):
        check_maskable(Dataset.from_dict({"text": []}), "train.txt")
    unknown = Dataset.from_dict(encode_lines({"text": ["zz", "zz zz"]}, make("bert"), "text", 9))
    assert len(unknown) == 2
    with pytest.raises(UsageError, match=r"train\.txt: no token can be masked"):
        check_maskable(unknown, "train.txt")
    with pytest.raises(ValueError, match="no texts"):
        pack_dataset(Dataset.from_dict({"input_ids": [], WORDS: []}), make("bert"), 9)


def test_a_tokenizer_that_was_saved_with_truncation_and_padding() -> None:
    backend = Tokenizer.from_str(make("roberta").backend_tokenizer.to_str())
    names = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    texts = {"text": ["a film a goodly a", "a"]}
    expected = encode_texts(texts, tokenizer, "text"), encode_lines(texts, tokenizer, "text", 9)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=30)
    assert (encode_texts(texts, tokenizer, "text"), encode_lines(texts, tokenizer, "text", 9)) == expected
    assert [len(ids) for ids in expected[0]["input_ids"]] == [14, 1]


# --- the vocabulary ---------------------------------------------------------------------------------------------------


def test_random_ids_are_those_of_the_vocabulary_without_special_tokens() -> None:
    assert random_ids(make("bert")).tolist() == [5, 6, 7, 8, 9, 10]
    found = random_ids(make("roberta"))
    assert found.dtype == torch.int64 and found.tolist() == list(range(4, 262))


def test_the_mask_token() -> None:
    assert mask_token_id(make("bert")) == 4 and mask_token_id(make("roberta")) == 262
    with pytest.raises(UsageError, match="has no mask token"):
        mask_token_id(make("types"))


def test_tokenizers_that_do_not_split_words() -> None:
    for kind in KINDS:
        check_splits_words(make(kind))
    with pytest.raises(UsageError, match="does not split texts into words"):
        check_splits_words(make("unsplit"))


class Slow:
    """A tokenizer that is not a fast one."""

    is_fast = False


def test_slow_tokenizers() -> None:
    slow: Any = Slow()
    for call in (
        lambda: encode_lines({"text": ["a"]}, slow, "text", 9),
        lambda: encode_texts({"text": ["a"]}, slow, "text"),
        lambda: check_splits_words(slow),
    ):
        with pytest.raises(UsageError, match="Slow cannot map tokens to words"):
            call()


def test_no_room_for_text(tmp_path: Path) -> None:
    rows = Dataset.from_dict(encode_texts({"text": ["a film"]}, make("bert"), "text"))
    for call in (
        lambda: encode_lines({"text": ["a"]}, make("bert"), "text", 2),
        lambda: list(pack(rows, make("bert"), 2)),
        lambda: pack_dataset(rows, make("bert"), 2, cache_dir=str(tmp_path)),
    ):
        with pytest.raises(UsageError, match=r"a row of 2 tokens has no room for text.*more than 2"):
            call()
