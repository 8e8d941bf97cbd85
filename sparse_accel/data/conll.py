"""Reads CoNLL files: one word with its tags per line, an empty line after each sentence.

The formats of the shared tasks (https://aclanthology.org/W03-0419, https://aclanthology.org/W17-4418) and of tagging
tools: tokens in the first column, tags in one of the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sparse_accel.data.reading import Rows, check_signature, read_text
from sparse_accel.data.tables import FileTable
from sparse_accel.errors import UsageError, first_line, shown

# Only these separate columns: str.split and str.strip also split at a no-break space, which may be (part of) a word.
_BLANKS = " \t"
_RUN_OF_BLANKS = re.compile("[ \t]+")
_COMMENT = re.compile("#[ \t]")
# Word numbers of CoNLL-U that are not a single word: a contraction (1-2), or a word that is not written (1.1).
_NO_WORD_NUMBER = re.compile(r"\d+[-.]\d+")


@dataclass(frozen=True)
class Sentences:
    """The sentences of a file, in file order.

    Attributes:
        file: name of the file.
        tokens: words of each sentence, one or more.
        tags: one per word; None if the file has only one column (sentences to predict).
        lines: line of each sentence's first token, from 1. The lines of a sentence are consecutive.
    """

    file: str
    tokens: list[list[str]]
    tags: list[list[str]] | None
    lines: list[int]

    def place(self, sentence: int, token: int) -> str:
        """Returns file and line of a token for messages; `sentence` and `token` count from 0."""
        return _place(self.file, self.lines[sentence] + token)


class ConllTable(FileTable):
    """A CoNLL file as a table of lists, with the columns `tokens` and, if it has tags, `tags`."""

    def __init__(self, sentences: Sentences) -> None:
        columns: dict[str, list[Any]] = {"tokens": sentences.tokens}
        if sentences.tags is not None:
            columns["tags"] = sentences.tags
        super().__init__(sentences.file, Rows(columns, sentences.lines), typed=True)
        self._sentences = sentences

    def entry(self, row: int, column: str, number: int) -> str:
        """Returns file and line of a token for messages; `row` and `number` count from 0."""
        return self._sentences.place(row, number)


@dataclass(frozen=True)
class _Block:
    """Consecutive lines that are not empty, and the number of the first one, from 1."""

    line: int
    rows: list[str]

    @property
    def comments(self) -> int:
        """Returns how many of the first lines may be comments; a token '#' looks like one."""
        return next((row for row, text in enumerate(self.rows) if not _COMMENT.match(text)), len(self.rows))


def read_conll(file: str, column: int | None = None) -> Sentences:
    r"""Returns the sentences of a file.

    Lines end with \n or \r\n, or with \r in a file without any \n. A line of spaces and tabs counts as empty, and so do
    lines that begin with -DOCSTART- (documents of CoNLL-2003). Columns are separated by tabs if each line has one (a
    word may then contain spaces), else by runs of spaces and tabs. Quotes are ordinary characters. Lines before a
    sentence's first word that begin with "# " are comments (CoNLL-U), unless they have as many columns as the words:
    "#" with a tag is a word.

    Args:
        file: name of the file.
        column: number of the tag column, from 1; None or -1: the last one.

    Raises:
        UsageError: the file cannot be read, does not match its suffix or has no sentences; the lines have different
            numbers of columns; a word or tag is empty; the tag column does not exist; the first column is word numbers.
    """
    try:
        check_signature(file)
        blocks = list(_blocks(read_text(file)))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {first_line(error)}") from None
    words = [text for block in blocks for text in block.rows[block.comments :]]
    words = words or [text for block in blocks for text in block.rows]
    if not words:
        raise UsageError(f"{file} has no sentences: expected a word and its tag in each line.")
    by_tabs = all("\t" in text for text in words)
    split = _split_at_tabs if by_tabs else _split_at_blanks
    sentences = list(_without_comments(blocks, split, width=len(split(words[0]))))
    width = len(split(sentences[0].rows[0]))
    tag_column = _tag_column(file, column, width, sentences[0].line)
    tokens, tags, lines = [], [], []
    for block in sentences:
        rows = [split(text) for text in block.rows]
        for line, row in enumerate(rows, block.line):
            if len(row) != width:
                raise _ragged(file, line, sentences, by_tabs, (len(row), width))
            _check_filled(_place(file, line), row, tag_column)
        tokens.append([row[0] for row in rows])
        tags.append([row[tag_column] for row in rows])
        lines.append(block.line)
    if width > 2:
        _check_not_numbers(file, tokens)
    return Sentences(file, tokens, tags if width > 1 else None, lines)


def _place(file: str, line: int) -> str:
    return f"{file}, line {line}"


def _blocks(text: str) -> Iterator[_Block]:
    if "\n" not in text:
        text = text.replace("\r", "\n")
    begin = 1
    rows: list[str] = []
    for line, row in enumerate([*text.split("\n"), ""], 1):
        row = row.rstrip("\r")
        if row.strip(_BLANKS) and not row.startswith("-DOCSTART-"):
            rows.append(row)
            continue
        if rows:
            yield _Block(begin, rows)
        begin, rows = line + 1, []


def _split_at_tabs(text: str) -> list[str]:
    # With a space before or after it, a tag would be another tag.
    return [field.strip(" ") for field in text.split("\t")]


def _split_at_blanks(text: str) -> list[str]:
    return _RUN_OF_BLANKS.split(text.strip(_BLANKS))


def _without_comments(blocks: list[_Block], split: Callable[[str], list[str]], width: int) -> Iterator[_Block]:
    """Yields the blocks that have words, without the comments before them."""
    for block in blocks:
        rows = block.rows[: block.comments]
        skipped = next((row for row, text in enumerate(rows) if len(split(text)) == width), len(rows))
        if skipped < len(block.rows):
            yield _Block(block.line + skipped, block.rows[skipped:])


def _tag_column(file: str, column: int | None, width: int, line: int) -> int:
    """Returns the position of the tags in a row, from 0; in a file without tags, that of the tokens."""
    if column in (None, -1):
        return width - 1
    if column == 1:
        raise UsageError(f"{file}: column 1 contains the words, not tags. Columns are counted from 1.")
    if not 1 < column <= width:
        raise UsageError(
            f"{file}: tag column {column} does not exist. Columns are counted from 1; line {line} has {width}."
        )
    return column - 1


def _ragged(file: str, line: int, sentences: list[_Block], by_tabs: bool, columns: tuple[int, int]) -> UsageError:
    """Returns the error for a line that does not have as many columns as the first one, with the likely cause."""
    rows = {number: text for block in sentences for number, text in enumerate(block.rows, block.line)}
    hint = ""
    if not by_tabs and any("\t" in text for text in rows.values()):
        without = next(number for number, text in rows.items() if "\t" not in text)
        hint = f" Line {without} has no tab, so spaces separate columns too."
    return UsageError(
        f"{_place(file, line)}: {shown(rows[line])} has {columns[0]} columns, but line {sentences[0].line} has "
        f"{columns[1]}. Each line must have a word and its tags, separated by {'tabs' if by_tabs else 'spaces'}; an "
        f"empty line ends a sentence.{hint}"
    )


def _check_filled(place: str, row: list[str], tag_column: int) -> None:
    if not row[0]:
        raise UsageError(f"{place}: the word is empty (its tag is {shown(row[tag_column])}). Delete this line.")
    if not row[tag_column]:
        raise UsageError(
            f"{place}: the tag of {shown(row[0])} is empty. Add it (O outside of entities). A file to predict has "
            "words only."
        )


def _check_not_numbers(file: str, tokens: list[list[str]]) -> None:
    """Refuses CoNLL-U and similar formats, because their word numbers would be read as the words."""
    counted = [[token for token in sentence if not _NO_WORD_NUMBER.fullmatch(token)] for sentence in tokens]
    if max(map(len, counted)) > 1 and any(
        all(sentence == [str(start + word) for word in range(len(sentence))] for sentence in counted)
        for start in (0, 1)
    ):
        raise UsageError(
            f"{file}: the first column contains word numbers, but must contain the words: delete the columns before "
            "them (cut -f 2-)."
        )
