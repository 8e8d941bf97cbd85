"""Windows over contexts: they are those of tokenizers' overflow, cover everything, and hold answers as a whole."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sparse_accel.data.tokenizing import tokenize
from sparse_accel.errors import UsageError
from sparse_accel.tasks.question_answering.encoding import (
    CONTEXT_MASK,
    NO_ANSWER,
    NO_OFFSET,
    OFFSETS,
    QUESTION_ROW,
    answer_tokens,
    answers_in_no_window,
    encode,
    no_answer_position,
    windows,
)

KINDS = ("words", "bytes", "pieces", "left")


@functools.cache
def make(kind: str) -> Any:
    """A tokenizer: of words as BERT's, of bytes as RoBERTa's, of pieces, or with the context first as XLNet's."""
    if kind == "words":
        return make_tokenizer()
    special = ["<pad>", "<unk>", "<cls>", "<sep>"]
    if kind == "bytes":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE({word: number for number, word in enumerate(special + letters)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.RobertaProcessing(("<sep>", 3), ("<cls>", 2), add_prefix_space=False)
    else:
        pieces = [*special, "▁", *"abcdeé", "▁a", "bc"]
        backend = Tokenizer(models.Unigram([(piece, -float(len(piece) < 2) - 1) for piece in pieces], unk_id=1))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        single, pair = ("<cls> $A <sep>", "<cls> $A <sep> $B <sep>")
        if kind == "left":
            single, pair = ("$A <sep> <cls>", "$A <sep> $B:1 <sep>:1 <cls>:2")
        backend.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[("<cls>", 2), ("<sep>", 3)]
        )
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "cls", "sep")}
    inputs = ["input_ids", *(["token_type_ids"] if kind == "left" else []), "attention_mask"]
    side = "left" if kind == "left" else "right"
    options: dict[str, Any] = {"model_input_names": inputs, "padding_side": side, "model_max_length": 64}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **options)


def rows_of(*questions: tuple[str, str, str | None, int]) -> dict[str, list[Any]]:
    """Columns of questions: question, context, answer (None: no answer), and its offset."""
    return {
        "id": [f"q{number}" for number in range(len(questions))],
        "question": [question for question, *_ in questions],
        "context": [context for _, context, *_ in questions],
        "answer_texts": [[] if text is None else [text, "z"] for *_, text, _ in questions],
        "answer_starts": [[] if text is None else [start, 0] for *_, text, start in questions],
        QUESTION_ROW: list(range(7, 7 + len(questions))),
    }


def plain(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns as lists, to compare them."""
    return {name: [np.asarray(each).tolist() for each in column] for name, column in columns.items()}


@st.composite
def questions(draw: st.DrawFn) -> tuple[str, str, str | None, int]:
    words = st.sampled_from(["a", "bc", "é", "😀", "film", "the", "good", " ", "  ", "\n", "x", "."])
    context = draw(st.lists(words, min_size=1, max_size=30).map("".join))
    question = draw(st.lists(st.sampled_from([" ", "a", "film", "bc"]), max_size=3).map("".join))
    start = draw(st.integers(0, len(context) - 1))
    answer = context[start : draw(st.integers(start + 1, len(context)))]
    return question, context, draw(st.sampled_from([answer, answer, answer, None])), start


def whole(kind: str, question: str, context: str) -> tuple[Any, list[int]]:
    """The pair in one row, not truncated, and its tokens that are context."""
    first = kind != "left"
    pair = ([question.lstrip()], [context]) if first else ([context], [question.lstrip()])
    found = make(kind)(*pair, return_offsets_mapping=True)
    tokens = [token for token, of in enumerate(found.sequence_ids(0)) if of == int(first)]
    return {name: column[0] for name, column in found.items()}, tokens


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "room", "stride", "expected"),
    [
        (0, 3, 1, [(0, 0)]),
        (3, 3, 1, [(0, 3)]),
        (3, 3, 9, [(0, 3)]),
        (4, 3, 0, [(0, 3), (3, 4)]),
        (4, 3, 2, [(0, 3), (1, 4)]),
        (7, 4, 2, [(0, 4), (2, 6), (4, 7)]),
        (8, 4, 1, [(0, 4), (3, 7), (6, 8)]),
    ],
)
def test_windows(count: int, room: int, stride: int, expected: list[tuple[int, int]]) -> None:
    assert list(windows(count, room, stride)) == expected


def test_windows_that_would_never_end() -> None:
    with pytest.raises(ValueError, match="stride must be less than room, got 3 and 3"):
        list(windows(4, 3, 3))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(st.lists(questions(), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 8))
def test_properties(kind: str, asked: list[Any], room: int, stride: int) -> None:
    stride = min(stride, room - 1)
    tokenizer, first = make(kind), kind != "left"
    rows = rows_of(*asked)
    found_whole = [whole(kind, question, context) for question, context, *_ in asked]
    length = max(len(pair["input_ids"]) - len(of_context) for pair, of_context in found_whole) + room
    found = encode(rows, tokenizer, length=length, doc_stride=stride)

    # The windows of run_qa.py.
    pairs = [[question.lstrip() for question in rows["question"]], rows["context"]]
    overflow = tokenizer(
        *(pairs if first else pairs[::-1]),
        truncation="only_second" if first else "only_first",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    for name in tokenizer.model_input_names:
        assert found[name] == overflow[name]
    assert found[QUESTION_ROW] == [row + 7 for row in overflow["overflow_to_sample_mapping"]]
    for window, (offsets, mask) in enumerate(zip(found[OFFSETS], found[CONTEXT_MASK], strict=True)):
        of_context = [each == int(first) for each in overflow.sequence_ids(window)]
        assert mask.tolist() == of_context and mask.dtype == np.int8 and offsets.dtype == np.int32
        assert [tuple(each) for each in offsets[mask == 1]] == [
            each for each, kept in zip(overflow["offset_mapping"][window], of_context, strict=True) if kept
        ]
        assert (offsets[mask == 0] == NO_OFFSET).all()

    for row, (pair, of_context) in enumerate(found_whole):
        own = [window for window, each in enumerate(found[QUESTION_ROW]) if each == row + 7]
        parts = [found[OFFSETS][window][found[CONTEXT_MASK][window] == 1].tolist() for window in own]
        assert all(len(found["input_ids"][window]) <= length for window in own)
        expected = [list(pair["offset_mapping"][token]) for token in of_context]
        joined = parts[0]
        for part in parts[1:]:  # so every token, and every character of a token, is in a window
            shared = part[:stride]
            assert joined[len(joined) - stride :] == shared
            joined = joined + part[stride:]
        assert joined == expected
        assert all(len(part) > stride for part in parts[1:])
        check_answer(found, own, asked[row], expected, tokenizer, stride)


def check_answer(
    found: Any, own: list[int], asked: tuple[str, str, str | None, int], offsets: Any, tokenizer: Any, stride: int
) -> None:
    """Checks the labels of the windows of a question, character by character."""
    _, context, text, start = asked
    inside = {place for place in range(start, start + len(text or "")) if not context[place].isspace()}
    if text is not None and inside:
        inside = set(range(min(inside), max(inside) + 1))
    tokens = [token for token, (begin, end) in enumerate(offsets) if inside & set(range(begin, end))]
    held = 0
    for window in own:
        begin, end = found["labels"][window]
        nothing = no_answer_position(found["input_ids"][window], tokenizer)
        if begin == end == nothing:
            continue
        held += 1
        covered = {
            place for each in found[OFFSETS][window][begin : end + 1].tolist() for place in range(each[0], each[1])
        }
        tokenized = {place for each in offsets for place in range(each[0], each[1])}
        assert begin <= end and found[CONTEXT_MASK][window][begin : end + 1].all()
        assert inside & tokenized <= covered
        # The edges are tokens of the answer: nothing more is taken than tokens that share a character with it.
        for edge in (begin, end):
            assert inside & set(range(*found[OFFSETS][window][edge]))
        assert end - begin + 1 == tokens[-1] - tokens[0] + 1
    assert held == 0 or tokens
    if tokens and (len(own) == 1 or tokens[-1] - tokens[0] <= stride):
        assert held >= 1


@settings(max_examples=60, deadline=None)
@given(questions(), st.integers(2, 9), st.integers(0, 8))
def test_labels_are_those_of_run_qa(asked: tuple[str, str, str | None, int], room: int, stride: int) -> None:
    """Except for its mistakes: an answer that begins in the last token of a window, or with or before white space."""
    question, context, text, start = asked
    text = text if text is None or text == text.strip() else None
    pair, of_context = whole("words", question, context)
    length = len(pair["input_ids"]) - len(of_context) + room
    rows = rows_of((question, context, text, start))
    found = encode(rows, make("words"), length=length, doc_stride=min(stride, room - 1))
    for offsets, mask, labels in zip(found[OFFSETS], found[CONTEXT_MASK], found["labels"], strict=True):
        tokens = np.flatnonzero(mask).tolist()
        end = start + len(text or "")
        expected = [0, 0]
        if text is not None and tokens and offsets[tokens[0]][0] <= start and offsets[tokens[-1]][1] >= end:
            expected = [
                max(token for token in tokens if offsets[token][0] <= start),
                min(token for token in tokens if offsets[token][1] >= end),
            ]
        assert labels == expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(asked=st.lists(questions(), min_size=2, max_size=5))
def test_results_do_not_depend_on_the_batch(kind: str, asked: list[Any]) -> None:
    rows = rows_of(*asked)
    together = plain(encode(rows, make(kind), length=24, doc_stride=2))
    alone: dict[str, list[Any]] = {name: [] for name in together}
    for row in range(len(asked)):
        for name, column in plain(
            encode({name: [values[row]] for name, values in rows.items()}, make(kind), length=24, doc_stride=2)
        ).items():
            alone[name] += column
    assert together == alone


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_in_windows() -> None:
    context = "it was a good movie and a great plot but not very nice"
    rows = rows_of(("  the film", context, "great plot", context.index("great")), ("the film", context, None, 0))
    found = encode(rows, make("words"), length=11, doc_stride=2)
    # [CLS] the film [SEP] + 6 words + [SEP]: words 0 to 5, 4 to 9, 8 to 12; the answer is words 7 and 8.
    assert [len(ids) for ids in found["input_ids"]] == [11, 11, 10] * 2
    assert found["labels"] == [[0, 0], [7, 8], [0, 0]] + [[0, 0]] * 3
    begin, end = found["labels"][1]
    offsets = found[OFFSETS][1]
    assert context[offsets[begin][0] : offsets[end][1]] == "great plot"
    assert found["token_type_ids"][2] == [0] * 4 + [1] * 6
    assert found[QUESTION_ROW] == [7, 7, 7, 8, 8, 8]


def test_answers_in_no_window() -> None:
    """Neither questions without an answer count, nor answers that one of several windows contains."""
    context = "a bc film the good x a bc film the good x"
    asked = [(context, 0), ("film", 5), ("a bc film", 21), (None, 0), (context[2:], 2)]
    rows = rows_of(*(("film", context, text, start) for text, start in asked))
    found = Dataset.from_dict(encode(rows, make("words"), 9, 2))
    assert len(found) > len(asked)
    assert answers_in_no_window(Dataset.from_dict(rows), found) == 2


def test_a_tokenizer_that_was_saved_with_truncation_and_padding() -> None:
    rows = rows_of(("a", "bc a" * 20, "c a", 1))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make("bytes").backend_tokenizer, pad_token="<pad>")
    expected = plain(encode(rows, tokenizer, length=20, doc_stride=4))
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=200)
    assert plain(encode(rows, tokenizer, length=20, doc_stride=4)) == expected
    assert len(expected["input_ids"]) > 4


def test_rows_without_answers_have_no_labels() -> None:
    rows = {name: column for name, column in rows_of(("a", "a film", None, 0)).items() if "answer" not in name}
    assert set(encode(rows, make("bytes"), length=20, doc_stride=0)) == {
        *("input_ids", "attention_mask", OFFSETS, CONTEXT_MASK, NO_ANSWER, QUESTION_ROW)
    }


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        ("film", 2, (1, 1)),
        (" film ", 1, (1, 1)),  # white space does not take in the words next to it
        ("il", 3, (1, 1)),
        ("a f", 0, (0, 1)),
        (" ", 1, None),
        (None, 0, None),
        ("€", 8, (3, 5)),  # all three bytes of one character
    ],
)
def test_tokens_of_an_answer(text: str | None, start: int, expected: tuple[int, int] | None) -> None:
    context = "a film: €"
    offsets = np.array([[0, 1], [2, 6], [6, 7], [8, 9], [8, 9], [8, 9]])
    assert answer_tokens(offsets, context, text, start) == expected


def test_an_answer_of_dropped_characters() -> None:
    assert answer_tokens(np.array([[0, 1]]), "a\u200b", "\u200b", 1) is None
    found = encode(rows_of(("a", " \n ", None, 0)), make("words"), length=8, doc_stride=2)
    assert found[CONTEXT_MASK][0].sum() == 0 and found["labels"] == [[0, 0]]


def test_the_token_that_stands_for_no_answer() -> None:
    assert no_answer_position([5, 3, 2, 2], make("bytes")) == 2
    assert no_answer_position([5, 6], make("bytes")) == 0
    last = encode(rows_of(("a", "bc a", None, 0)), make("left"), length=20, doc_stride=2)
    assert last["labels"][0] == [len(last["input_ids"][0]) - 1] * 2


# --- questions that are too long --------------------------------------------------------------------------------------


def test_no_room_for_the_context() -> None:
    long, short = "the film was very very good", "a plot"
    rows = rows_of(("a", short, None, 0), (long, short * 9, None, 0))
    with pytest.raises(UsageError) as caught:
        encode(rows, make("words"), length=12, doc_stride=3)
    assert str(caught.value) == (
        "question 'q1' and the special tokens have 9 tokens, so a row of 12 has room for 3 of its context, which is "
        "longer; windows that overlap by 3 need room for 4. Set --max_seq_length to 13 or more if the model can read "
        "so many tokens, reduce --doc_stride, or shorten or delete this question."
    )
    assert len(encode(rows, make("words"), length=13, doc_stride=3)["input_ids"]) > 2
    assert len(encode(rows, make("words"), length=12, doc_stride=2)["input_ids"]) > 2
    with pytest.raises(UsageError, match="so a row of 6 has room for 0 of its context"):
        encode(rows, make("words"), length=6, doc_stride=0)
    # A context that fits needs no windows, whatever the overlap.
    assert len(encode(rows_of((long, short, None, 0)), make("words"), length=11, doc_stride=9)["input_ids"]) == 1


# --- as a run calls it ------------------------------------------------------------------------------------------------


def test_tokenized_in_batches(tmp_path: Path) -> None:
    context = "a good film and a plot"
    rows = rows_of(*((f"{'a ' * (row % 3)}film", context, "film", 7) for row in range(1100)))
    options: dict[str, Any] = {"length": 9, "doc_stride": 1}
    calls = [
        tokenize({"train": Dataset.from_dict(rows)}, make("words"), encode, options, cache_dir=str(tmp_path))["train"]
        for _ in range(2)
    ]
    assert calls[0].cache_files == calls[1].cache_files != []
    expected = plain(encode(rows, make("words"), **options))
    assert calls[1].to_dict() == expected
    assert str(calls[0].features[OFFSETS]) == "List(List(Value('int32')))"
    assert str(calls[0].features[CONTEXT_MASK]) == "List(Value('int8'))"
