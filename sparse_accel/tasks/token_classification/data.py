"""Loads the sentences of a token classification run: words, tags, and the names of the tags."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from sparse_accel.cli.token_classification import CONLL_SUFFIXES
from sparse_accel.console import warn
from sparse_accel.data.columns import check_column
from sparse_accel.data.conll import ConllTable, read_conll
from sparse_accel.data.sources import load_tables
from sparse_accel.data.tables import Table, read_table
from sparse_accel.errors import NoLabels, UsageError, listed, nearest, shown
from sparse_accel.tasks.base import TaskData
from sparse_accel.tasks.label_names import Head, are_default_names, describe_positions, match_names
from sparse_accel.tasks.splits import draw_rows, needed_splits, needs_no_labels, numbered, origins_of
from sparse_accel.tasks.token_classification.tags import (
    BIOES,
    IOB2,
    OUTSIDE,
    PLAIN,
    check_entity_tags,
    convert,
    find_scheme,
    is_valid,
    label_names,
)

if TYPE_CHECKING:
    from sparse_accel.cli.token_classification import TokenClassificationArguments

TOKENS, TAGS, SENTENCE = "tokens", "tags", "sentence"
_USUAL_TOKEN_COLUMNS = ("tokens", "words")
_USUAL_TAG_COLUMNS = ("tags", "labels")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell it, but no encoding has it


@dataclass(frozen=True, kw_only=True)
class TokenClassificationData(TaskData):
    """Sentences.

    Columns of a split: `tokens` and, if the rows have them, `tags` (both lists of texts), and `sentence`, the number of
    the row in its split.

    Attributes:
        token_column, tag_column: their names in the source; tag_column is None if no split has tags.
        scheme: scheme of the tags: PLAIN, IOB2 or BIOES.
    """

    token_column: str
    tag_column: str | None
    scheme: str


def load_token_classification(arguments: TokenClassificationArguments, head: Head | None) -> TokenClassificationData:
    """Returns the splits that a run needs, with their columns found and their tags read.

    IOB1 tags are converted to IOB2, and BIOES tags too unless a fine-tuned model has BIOES tags; the entities do not
    change.

    Args:
        arguments: flags that name the data and its use.
        head: of a fine-tuned model, with whose tags those of the data are matched; None: the data defines them.

    Raises:
        UsageError: data is missing or invalid (with file and line or row), or its tags do not match those of the model.
    """
    found = load_tables(arguments, lambda file: _read(file, arguments.label_column_name))
    tables = needed_splits(arguments, found)
    sentences = {split: Sentences(table, _token_column(table, arguments)) for split, table in tables.items()}
    for split, each in sentences.items():
        if not needs_no_labels(arguments, split):
            each.read_tags(_tag_column(each.table, arguments))
    teaching = next((each for each in sentences.values() if each.tags), None)
    if "train" in found and "train" not in tables and _find_tag_column(found["train"], arguments):
        teaching = Sentences(found["train"], _token_column(found["train"], arguments))
        teaching.read_tags(_tag_column(teaching.table, arguments))
    for each in {id(each): each for each in (*sentences.values(), teaching) if each is not None}.values():
        each.name_numbers(head.names if head else [])
    names, scheme, keeps_head = _names_and_scheme(arguments, teaching, head)
    splits = {}
    for split, each in sentences.items():
        columns: dict[str, list[Any]] = {TOKENS: each.tokens}
        if each.tags is not None:
            columns[TAGS] = each.tags_as(scheme, names, teaching.table.name if teaching else "the model")
        splits[split] = Dataset.from_dict(columns)
    splits, sources = draw_rows(arguments, splits, {split: table.name for split, table in tables.items()}, None)
    return TokenClassificationData(
        splits={split: numbered(rows, SENTENCE) for split, rows in splits.items()},
        sources=sources,
        origins=origins_of(splits, tables),
        label_names=names,
        keeps_head=keeps_head,
        cache_dir=arguments.cache_dir,
        token_column=next(iter(sentences.values())).token_column,
        tag_column=teaching.tag_column if teaching is not None else None,
        scheme=scheme,
    )


# --- files and columns ------------------------------------------------------------------------------------------------


def _read(file: str, tag_column: str | None) -> Table:
    if Path(file).suffix.lower() not in CONLL_SUFFIXES:
        return read_table(file)
    if tag_column is not None and not tag_column.removeprefix("-").isdecimal():
        raise UsageError(
            f"--label_column_name {tag_column}: columns of the CoNLL file {file} have no names. Give the number of the "
            "tag column, counted from 1."
        )
    return ConllTable(read_conll(file, None if tag_column is None else int(tag_column)))


def has_tags(file: str) -> bool:
    """Whether a file of sentences has tags, in a column with a usual name."""
    return any(name in _USUAL_TAG_COLUMNS or name.endswith("_tags") for name in _read(file, None).column_names)


def _token_column(table: Table, arguments: TokenClassificationArguments) -> str:
    if isinstance(table, ConllTable):
        return TOKENS
    if arguments.text_column_name is not None:
        check_column(table, arguments.text_column_name, "--text_column_name")
        return arguments.text_column_name
    for name in _USUAL_TOKEN_COLUMNS:
        if name in table.column_names:
            return name
    raise UsageError(
        f"{table.name} has no column 'tokens' or 'words'; its columns are: {listed(table.column_names)}. Name the "
        "column with the token lists with --text_column_name."
    )


def _tag_column(table: Table, arguments: TokenClassificationArguments) -> str:
    if column := _find_tag_column(table, arguments):
        return column
    if isinstance(table, ConllTable):
        raise NoLabels(
            f"{table.name} has one column: expected tags in a second one, unless it is only predicted (--do_predict)."
        )
    if arguments.label_column_name:
        check_column(table, arguments.label_column_name, "--label_column_name")
    raise NoLabels(
        f"{table.name} has no tag column with a usual name; its columns are: {listed(table.column_names)}. "
        "Name the column with --label_column_name."
    )


def _find_tag_column(table: Table, arguments: TokenClassificationArguments) -> str | None:
    """Returns the tag column; None if the table has none (sentences to predict)."""
    usual: tuple[str, ...] = (f"{arguments.task_name or 'ner'}_tags", *_USUAL_TAG_COLUMNS)
    if isinstance(table, ConllTable):
        usual = (TAGS,)
    elif arguments.label_column_name is not None:
        usual = (arguments.label_column_name,)
    return next((name for name in usual if name in table.column_names), None)


class Sentences:
    """The sentences of a table.

    Attributes:
        tokens: words of each sentence, one or more.
        tags: one per word; None until they are read.
        declared: names of all tags in order if the source declares them; else None.

    Raises:
        UsageError: the token column does not exist, or a row is not a list of words.
    """

    def __init__(self, table: Table, token_column: str) -> None:
        self.table, self.token_column, self.tag_column = table, token_column, ""
        check_column(table, token_column, "--text_column_name")
        self.tokens: list[list[str]] = table.values(token_column)
        self.tags: list[list[str]] | None = None
        self.declared: list[str] | None = None
        for row, tokens in enumerate(self.tokens):
            if not isinstance(tokens, list) or not tokens:
                what = "is empty" if isinstance(tokens, list) else f"is {shown(tokens)}, which is not a list of tokens"
                raise UsageError(f"{table.place(row, token_column)} {what}: fix or delete this row.")
            for number, token in enumerate(tokens):
                if wrong := _wrong_text(token):
                    raise UsageError(f"{table.entry(row, token_column, number)}: the token {wrong}.")

    def place(self, row: int, word: int) -> str:
        """Returns the place of a tag, for messages; `row` and `word` count from 0."""
        return self.table.entry(row, self.tag_column, word)

    def read_tags(self, column: str) -> None:
        """Reads the tags: names, or numbers of names that the source declares.

        Raises:
            UsageError: a row does not have one valid tag per token.
        """
        self.tag_column = column
        self.declared = self.table.class_names(column)
        self.tags = [self._tags_of(row, tags) for row, tags in enumerate(self.table.values(column))]

    def _tags_of(self, row: int, tags: Any) -> list[str]:
        if not isinstance(tags, list) or len(tags) != len(self.tokens[row]):
            found = f"{len(tags)} tags" if isinstance(tags, list) else f"{shown(tags)}, which is not a list of tags"
            raise UsageError(
                f"{self.table.place(row, self.tag_column)} has {found} for {len(self.tokens[row])} tokens: expected "
                "one tag per token."
            )
        names = []
        for word, tag in enumerate(tags):
            if isinstance(tag, bool) or (not isinstance(tag, int) and _wrong_text(tag)):
                raise UsageError(f"{self.place(row, word)}: the tag is {shown(tag)}; expected a name or an integer.")
            if self.declared is not None and isinstance(tag, int):
                if not 0 <= tag < len(self.declared):
                    raise UsageError(
                        f"{self.place(row, word)}: the tag is {tag}, but the source declares {len(self.declared)} tags."
                    )
                tag = self.declared[tag]
            names.append(str(tag).strip())
        return names

    def name_numbers(self, outputs: list[str]) -> None:
        """Replaces tags that are only numbers by the names of a model's outputs, so that entities are known."""
        found = sorted({tag for tags in self.tags or [] for tag in tags})
        numbers = all(tag.isdecimal() and len(tag) < 10 and int(tag) < len(outputs) for tag in found)
        if are_default_names(outputs) or not numbers:
            return
        if by_position := describe_positions({tag: outputs[int(tag)] for tag in found}):
            warn(f"tags are matched by position, not by name: {by_position}")
        self.tags = None if self.tags is None else [[outputs[int(tag)] for tag in tags] for tags in self.tags]

    def tags_as(self, scheme: str, names: list[str], known_from: str) -> list[list[str]]:
        """Returns the tags, converted to a scheme, with the names of the model's outputs.

        Args:
            scheme: PLAIN, IOB2 or BIOES.
            names: names of the model's outputs.
            known_from: where `names` come from, for messages.

        Raises:
            UsageError: a tag is not in `names`, or cannot be converted to the scheme.
        """
        assert self.tags is not None
        own = _scheme_of(self)
        if scheme != PLAIN and own == PLAIN:
            check_entity_tags(self.tags, self.place)  # passes if all are O
        if PLAIN in (scheme, own):
            own = scheme
        matched = {name: name for name in names} | _matched(label_names(self._converted(own, scheme)), names)
        result = []
        for row, tags in enumerate(self._converted(own, scheme)):
            for word, tag in enumerate(tags):
                if tag not in matched:
                    raise UsageError(
                        f"{self.place(row, word)}: the tag {shown(self.tags[row][word])} does not occur in "
                        f"{known_from}.{nearest(tag, names)} Its tags are: {listed(names)}."
                    )
            result.append([matched[tag] for tag in tags])
        return result

    def _converted(self, own: str, to: str) -> list[list[str]]:
        assert self.tags is not None
        return self.tags if own == to else [convert(tags, own, to) for tags in self.tags]


def _wrong_text(value: Any) -> str:
    """Returns what is wrong with a token or tag. A no-break space may be a word; it has no pieces."""
    if not isinstance(value, str):
        return f"is {shown(value)}, which is not text"
    if not value.strip(" \t\r\n"):
        return "is empty"
    return "has a lone surrogate (half of a \\u pair)" if _LONE_SURROGATE.search(value) else ""


# --- names of tags ----------------------------------------------------------------------------------------------------


def _scheme_of(sentences: Sentences) -> str:
    assert sentences.tags is not None
    return find_scheme(sentences.tags, sentences.place)


def _names_and_scheme(
    arguments: TokenClassificationArguments, teaching: Sentences | None, head: Head | None
) -> tuple[list[str], str, bool]:
    """Returns the names of the model's outputs in order, the scheme of the tags, and whether the model keeps its head.

    Args:
        arguments: flags of the run.
        teaching: sentences that define the set of tags; None: no sentences have tags.
        head: of a fine-tuned model.

    Raises:
        UsageError: the tags are unknown, invalid or too few, or do not match those of the model.
    """
    in_model = [head.names] if head else []
    if teaching is None:
        if head is None:
            raise UsageError(
                "no sentences with tags, so the tag names are unknown: predict with a fine-tuned model (the output "
                "folder of a training run as --model_name_or_path)."
            )
        return head.names, find_scheme(in_model, lambda *_: "the model's config.json"), True
    own = _scheme_of(teaching)
    of_model = find_scheme(in_model, lambda *_: "the model's config.json") if head else PLAIN
    if of_model != PLAIN and {tag for each in teaching.tags or [] for tag in each} == {OUTSIDE}:
        own = IOB2  # the data has no entities, but the model has
    scheme = PLAIN if own == PLAIN else BIOES if of_model == BIOES else IOB2
    if own != scheme:
        tags = [convert(each, own, scheme) for each in teaching.tags or []]
    else:
        tags = teaching.tags or []
        irregular = sum(not is_valid(each, own) for each in tags)
        if irregular:
            counted = f"{irregular} of {len(tags)} sentences break"
            warn(f"{teaching.table.name}: {counted} the rules of {own}, for example I- after O")
    names = label_names(tags)
    if teaching.declared is not None and own == scheme:
        names = teaching.declared
    if head is None:
        return _checked(names, teaching, arguments), scheme, False
    # A declared tag need not occur in the data.
    if _matched(names, head.names) or _matched(label_names(tags), head.names):
        if are_default_names(head.names) and not are_default_names(names) and len(names) == len(head.names):
            return names, scheme, True  # the model's outputs have only numbers: use the names of the data
        return head.names, scheme, True
    types = {name.partition("-")[2] or name for name in names} - {OUTSIDE}
    shared = types & {name.partition("-")[2] or name for name in head.names}
    if not arguments.do_train or shared or len(names) == len(head.names):
        raise UsageError(
            f"{_mismatch(teaching, tags, head)}. The model's tags, in output order: {listed(head.names)}. Rename tags "
            "in the data or in the model's config.json (id2label)"
            + (", or add --new_head to start from a newly initialized head." if arguments.do_train else ".")
        )
    return _checked(names, teaching, arguments), scheme, False


def _mismatch(sentences: Sentences, tags: list[list[str]], head: Head) -> str:
    """Returns the place and name of the first tag that the model does not have."""
    for row, each in enumerate(tags):
        for word, tag in enumerate(each):
            if not match_names([tag], head.names, complete=False):
                return f"{sentences.place(row, word)}: the model does not have the tag {shown(tag)}"
    return f"{sentences.table.name}: its tags ({listed(label_names(tags))}) do not match the model's"


def _matched(names: list[str], outputs: list[str]) -> dict[str, str]:
    """Returns the output's name for each tag of the data; empty if they do not match. Data may lack some tags."""
    matched = match_names(names, outputs) or match_names(names, outputs, complete=False) or {}
    if by_position := describe_positions(matched):
        warn(f"tags are matched by position, not by name: {by_position}")
    return matched


def _checked(names: list[str], teaching: Sentences, arguments: TokenClassificationArguments) -> list[str]:
    if len(names) < 2 and arguments.do_train:
        raise UsageError(
            f"{teaching.table.name}: all tags are {', '.join(names) or 'empty'}; training needs two or more."
        )
    if are_default_names(names):
        warn(
            f"{teaching.table.name}: the tags are numbers without names, so entities are unknown and metrics count "
            "single words. Use tag names to get precision, recall and F1 of entities"
        )
    return names
