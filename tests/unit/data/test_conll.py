"""Sentences of CoNLL files: every form that these have is read as it stands, and a fault is told by its line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparse_accel.cli.token_classification import CONLL_SUFFIXES
from sparse_accel.data.conll import Sentences, read_conll
from sparse_accel.errors import UsageError

# Signs that mean something to a reader more often than others; no tab, line end or NUL, and no blank at the ends.
signs = st.sampled_from("#\"'-,1_ \u00a0\u2028\x85") | st.characters(codec="utf-8", exclude_characters="\0\t\r\n")
fields = st.text(signs, min_size=1, max_size=6).filter(lambda text: text == text.strip(" ") and "-DOC" not in text)
unbroken_fields = fields.filter(lambda text: " " not in text)


def sentences_of(words: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[tuple[str, str]]]]:
    return st.lists(st.lists(st.tuples(words, words), min_size=1, max_size=4), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def read(folder: Path) -> Callable[..., Sentences]:
    """Reads a file of this content."""

    def read_content(content: str | bytes, column: int | None = None, name: str = "a.conll") -> Sentences:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return read_conll(str(folder / name), column)

    return read_content


@pytest.fixture
def fault_of(read: Callable[..., Sentences], folder: Path) -> Callable[..., str]:
    """Reads a file of this content: the message that it is refused with."""

    def refused(content: str | bytes, column: int | None = None, name: str = "a.conll") -> str:
        with pytest.raises(UsageError) as caught:
            read(content, column, name)
        return str(caught.value).replace(str(folder) + "/", "")

    return refused


def tokens_and_tags(read: Sentences) -> tuple[list[list[str]], list[list[str]] | None]:
    return read.tokens, read.tags


# --- what is written is read back -------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    sentences=sentences_of(fields),
    between=st.sampled_from(["", "\t", " ", "\n", "-DOCSTART-\tO", "\n-DOCSTART- -X- O\n"]),
    end=st.sampled_from(["\n", "\r\n"]),
    middle=st.sampled_from(["\t", "\tNN\t", "\t\t"]),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_fields_between_tabs_are_read_back(
    sentences: list[list[tuple[str, str]]],
    between: str,
    end: str,
    middle: str,
    mark: str,
    read: Callable[..., Sentences],
) -> None:
    rows = [[middle.join(row) for row in sentence] + [between] for sentence in sentences]
    found = read(mark + end.join(row for sentence in rows for row in sentence).replace("\n", end) + end)
    assert found.tokens == [[token for token, _ in sentence] for sentence in sentences]
    assert found.tags == [[tag for _, tag in sentence] for sentence in sentences]


@settings(max_examples=150)
@given(
    sentences=sentences_of(unbroken_fields),
    separators=st.lists(st.sampled_from([" ", "  ", " \t ", "\t"]), min_size=1, max_size=3),
)
def test_fields_between_blanks_are_read_back(
    sentences: list[list[tuple[str, str]]], separators: list[str], read: Callable[..., Sentences]
) -> None:
    rows = [[f"{separators[row % len(separators)].join(pair)} " for row, pair in enumerate(each)] for each in sentences]
    found = read("\n\n".join("\n".join(sentence) for sentence in rows))
    assert found.tokens == [[token for token, _ in sentence] for sentence in sentences]
    assert found.tags == [[tag for _, tag in sentence] for sentence in sentences]


@settings(max_examples=100)
@given(
    sentences=sentences_of(unbroken_fields),
    comment=st.sampled_from(["# text = a b c", "# id\n# text = a b", "#\t1\t2"]),
)
def test_every_token_has_its_line(
    sentences: list[list[tuple[str, str]]], comment: str, read: Callable[..., Sentences]
) -> None:
    assume(any(token != "#" for sentence in sentences for token, _ in sentence))  # else all could be comments
    rows = [[comment, *("\t".join(row) for row in sentence)] for sentence in sentences]
    content = "-DOCSTART-\tO\n\n" + "\n\n".join("\n".join(sentence) for sentence in rows)
    found = read(content)
    assert found.tokens == [[token for token, _ in sentence] for sentence in sentences]
    for number, tokens in enumerate(found.tokens):
        for word, token in enumerate(tokens):
            line = int(found.place(number, word).rpartition("line ")[2])
            assert content.split("\n")[line - 1].split("\t")[0] == token


@settings(max_examples=50)
@given(sentences=st.lists(st.lists(unbroken_fields, min_size=1, max_size=4), min_size=1, max_size=4))
def test_one_column_has_no_tags(sentences: list[list[str]], read: Callable[..., Sentences]) -> None:
    assert tokens_and_tags(read("\n\n".join("\n".join(sentence) for sentence in sentences))) == (sentences, None)


@pytest.mark.parametrize(
    ("content", "tokens", "tags"),
    [
        # Lines and their ends.
        ("a\tO\r\nb\tO\r\n\r\nc\tO", [["a", "b"], ["c"]], [["O", "O"], ["O"]]),
        ("a O\rb O\r\rc O\r", [["a", "b"], ["c"]], [["O", "O"], ["O"]]),
        ("\n \n\t\na O\n \t\n\n\nb O\n\t\n", [["a"], ["b"]], [["O"], ["O"]]),
        # Blanks in a word between tabs; a no-break space is no blank.
        ("New York\tB-LOC\nis \t O \n", [["New York", "is"]], [["B-LOC", "O"]]),
        ("10\u00a0000 B-X\n\u00a0 O\n", [["10\u00a0000", "\u00a0"]], [["B-X", "O"]]),
        # Quotes are characters.
        ('"\tO\n""a"\tO\n', [['"', '""a"']], [["O", "O"]]),
        # Documents of CoNLL-2003.
        ("-DOCSTART- -X- -X- O\n\na NN I-NP O\n-DOCSTART- (2)\nb NN I-NP O\n", [["a"], ["b"]], [["O"], ["O"]]),
        # A token "#" with its tag, and comments.
        ("# O\na O\n\n# O\nb O\n", [["#", "a"], ["#", "b"]], [["O", "O"], ["O", "O"]]),
        ("#\tO\n", [["#"]], [["O"]]),
        ("#a\tO\n\n#\tB-X\n#\tO\n", [["#a"], ["#", "#"]], [["O"], ["B-X", "O"]]),
        ("# text = # a\n#\tO\na\tO\n\n# newdoc\n\n# b\n#\tB-X\n", [["#", "a"], ["#"]], [["O", "O"], ["B-X"]]),
        ("# text = a b\na\nb\n", [["a", "b"]], None),
        ("a O\n# O\n", [["a", "#"]], [["O", "O"]]),
    ],
)
def test_forms_of_a_file(
    content: str, tokens: list[list[str]], tags: list[list[str]] | None, read: Callable[..., Sentences]
) -> None:
    assert tokens_and_tags(read(content)) == (tokens, tags)


def test_the_column_of_the_tags(read: Callable[..., Sentences]) -> None:
    content = "EU NNP I-NP I-ORG\nrejects VBZ I-VP O\n"
    for column, tags in [(None, ["I-ORG", "O"]), (-1, ["I-ORG", "O"]), (4, ["I-ORG", "O"]), (2, ["NNP", "VBZ"])]:
        assert read(content, column).tags == [tags]
    # A column that is not asked for may be empty.
    assert read("a\t\tO\n", 3).tags == read("a\tO\t\n", 2).tags == [["O"]]


@pytest.mark.parametrize("suffix", CONLL_SUFFIXES)
def test_the_suffix_does_not_matter(suffix: str, read: Callable[..., Sentences], folder: Path) -> None:
    found = read("a\tO\n", name=f"a{suffix}")
    assert tokens_and_tags(found) == ([["a"]], [["O"]]) and found.place(0, 0) == f"{folder}/a{suffix}, line 1"


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        (
            "a O\n\nb O x\n",
            None,
            "a.conll, line 3: 'b O x' has 3 columns, but line 1 has 2.",
        ),
        ("a O\nb\n", None, "separated by spaces; an empty line ends a sentence."),
        ("\na\tO\nb\tNN\tO\n", None, "a.conll, line 3: 'b\\tNN\\tO' has 3 columns, but line 2 has 2."),
        ("a\tO\nb\tNN\tO\n", None, "separated by tabs; an empty line ends a sentence."),
        ("a\tO\nNew York\tO\nb\n", None, "Line 3 has no tab, so spaces separate columns too."),
        ("# x = y\na\tO\nNew York\tO\nb\n", None, "line 3: 'New York\\tO' has 3 columns, but line 2 has 2."),
        ("a O\n\u00a0\nb O\n", None, "a.conll, line 2: '\\xa0' has 1 columns"),
        # A comment is before a sentence.
        ("a O\n# text = b\nb O\n", None, "a.conll, line 2: '# text = b' has 4 columns"),
        ("#begin document\na O x\n", None, "a.conll, line 2: 'a O x' has 3 columns, but line 1 has 2."),
        ("a\tO\n\tO\n", None, "a.conll, line 2: the word is empty (its tag is 'O'). Delete this line."),
        ("a\tO\n \tO\n", None, "a.conll, line 2: the word is empty"),
        ("a\tO\nb\t\n", None, "a.conll, line 2: the tag of 'b' is empty. Add it (O outside of entities)."),
        ("a\tO\nb\t \n", None, "a.conll, line 2: the tag of 'b' is empty."),
        ("a\tO\t\n", None, "a.conll, line 1: the tag of 'a' is empty."),
        ("\n \n\t\n", None, "a.conll has no sentences: expected a word and its tag in each line."),
        ("-DOCSTART- O\n", None, "a.conll has no sentences"),
        (
            "a NN O\n",
            4,
            "a.conll: tag column 4 does not exist. Columns are counted from 1; line 1 has 3.",
        ),
        ("a NN O\n", 0, "a.conll: tag column 0 does not exist"),
        ("a NN O\n", -2, "a.conll: tag column -2 does not exist"),
        ("a\n", 2, "a.conll: tag column 2 does not exist. Columns are counted from 1; line 1 has 1."),
        ("a NN O\n", 1, "a.conll: column 1 contains the words, not tags."),
        ("# text = a b\n1\ta\tO\n2-3\tb\tO\n2\tb\tO\n3\tb\tO\n\n1\tc\tO\n", None, "a.conll: the first column"),
        ("0 a O\n1 b O\n", None, "delete the columns before them (cut -f 2-)."),
    ],
)
def test_fault_of_a_file(content: str, column: int | None, message: str, fault_of: Callable[..., str]) -> None:
    found = fault_of(content, column)
    assert message in found and len(found) < 400


def test_numbers_may_be_words(read: Callable[..., Sentences]) -> None:
    assert read("1 CD O\n\n1 CD O\n").tokens == [["1"], ["1"]]
    assert read("1 CD O\n2 CD O\n\na DT O\n").tokens == [["1", "2"], ["a"]]
    assert read("1 O\n2 O\n").tokens == [["1", "2"]]


@pytest.mark.parametrize("suffix", CONLL_SUFFIXES)
def test_files_that_are_something_else(suffix: str, fault_of: Callable[..., str], tmp_path: Path) -> None:
    name = f"train{suffix}"
    for content, message in [
        (gzip.compress(b"a O\n", mtime=0), f"{name} is compressed with gzip: decompress it first."),
        (b"<!DOCTYPE html>", f"{name} is a web page: download the data file itself."),
        (b"", f"{name} has no sentences" if suffix == ".tsv" else f"{name} is empty."),
        ("a O\né O\n".encode("latin-1"), f"{name} is not UTF-8 text (line 2: "),
        ("a O\n".encode("utf-16"), f"{name} is not UTF-8 text but UTF-16"),
        (b"a O\n\0 O\n", f"{name}, line 2: contains a NUL character."),
    ]:
        assert message in fault_of(content, name=name)
    with pytest.raises(UsageError, match=r"cannot be read: .*No such file"):
        read_conll(str(tmp_path / name))


def test_a_long_line_is_shown_in_part(fault_of: Callable[..., str]) -> None:
    assert len(fault_of("a O\n" + "b " * 10_000)) < 400
    assert len(fault_of("a\tO\n\t" + "b" * 10_000)) < 200
