"""Loads the rows of a run: texts, pairs, triples or scored pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from sparse_accel.cli.sentence_embedding import NO_SCORES
from sparse_accel.data.columns import check_column, find_text_columns
from sparse_accel.data.lines import checked_text, lines_from
from sparse_accel.data.reading import Rows
from sparse_accel.data.sources import load_tables
from sparse_accel.data.tables import FileTable, Table, read_table
from sparse_accel.errors import UsageError, listed, shown
from sparse_accel.tasks.base import TaskData
from sparse_accel.tasks.splits import draw_rows, needed_splits, origins_of

if TYPE_CHECKING:
    from sparse_accel.cli.sentence_embedding import SentenceEmbeddingArguments

# Columns of our rows: of texts, and of scores.
TEXTS = ("text_1", "text_2", "text_3")
SCORE = "score"
USUAL_COLUMNS = (
    ("anchor", "positive", "negative"),
    ("query", "positive", "negative"),
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "answer"),
    ("question", "answer"),
    ("query", "document"),
)
USUAL_SCORES = ("score", "similarity_score", "label", "labels")
_HIGHEST = (1.0, 5.0)
_LINE = "text"


@dataclass(frozen=True, kw_only=True)
class EmbeddingData(TaskData):
    """Rows of texts. Columns of a split: one to three of TEXTS and, if its pairs have scores, SCORE (float).

    Attributes:
        columns: by split, the names of its text columns in the source.
        score_column: name of the column of scores; None without scores.
        max_score: the highest possible score; 1 without scores.
    """

    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    score_column: str | None = None
    max_score: float = 1.0

    def width(self, split: str) -> int:
        """Returns the number of texts of a row: 1, 2 or 3."""
        return sum(name in TEXTS for name in self.splits[split].column_names)

    def has_scores(self, split: str) -> bool:
        """Whether the rows of a split are scored pairs."""
        return SCORE in self.splits[split].column_names


def load_sentence_embedding(arguments: SentenceEmbeddingArguments) -> EmbeddingData:
    """Returns the splits that a run needs, with their columns found and their scores read.

    Splits may be of different kinds: a model that follows a teacher on texts is evaluated on scored pairs.

    Args:
        arguments: flags that name the data and its use.

    Raises:
        UsageError: data is missing or invalid, with file, row, line and column.
    """
    tables = needed_splits(arguments, load_tables(arguments, _read))
    _check_named(arguments, list(tables.values()))
    columns = {split: _text_columns(arguments, table) for split, table in tables.items()}
    score_columns = {
        split: column
        for split, table in tables.items()
        if len(columns[split]) == 2
        and not split.startswith("test")
        and (column := _score_column(arguments, table, columns[split])) is not None
    }
    splits = {split: _texts(table, columns[split]) for split, table in tables.items()}
    scores = {split: _scores(tables[split], column) for split, column in score_columns.items()}
    highest = arguments.max_score or _highest(tables, score_columns, scores)
    for split, values in scores.items():
        for row, value in enumerate(values):
            if not 0 <= value <= highest:
                raise UsageError(
                    f"{tables[split].place(row, score_columns[split])}: the score {value:g} is not between 0 and "
                    f"{highest:g}. Correct it, or set the highest score with --max_score."
                )
        splits[split] = splits[split].add_column(SCORE, values)
    splits, sources = draw_rows(arguments, splits, {split: table.name for split, table in tables.items()}, None)
    data = EmbeddingData(
        splits=splits,
        sources=sources,
        label_names=[],
        origins=origins_of(splits, tables),
        keeps_head=True,
        cache_dir=arguments.cache_dir,
        columns={split: columns[split if split in columns else "train"] for split in splits},
        score_column=next(iter(score_columns.values()), None),
        max_score=highest,
    )
    for split in splits:
        if split.startswith("validation") and data.width(split) == 1:
            raise UsageError(
                f"{sources[split]} has texts alone (column '{data.columns[split][0]}'): an evaluation needs pairs, "
                "with scores (sentence1, sentence2, score) or without (anchor, positive). Give another "
                "--validation_file, or leave out --do_eval."
            )
    return data


def has_pairs(file: str) -> bool:
    """Whether the rows of a data file are pairs or triples, by usual names of columns."""
    table = _read(file)
    try:
        return len(_by_rule(table)) > 1
    except UsageError:
        return False


def _read(file: str) -> Table:
    if Path(file).suffix.lower() != ".txt":
        return read_table(file)
    lines = [text for _, _, text in lines_from(file)]
    return FileTable(file, Rows({_LINE: lines}, list(range(1, len(lines) + 1))), typed=False)


# --- columns ----------------------------------------------------------------------------------------------------------


def _check_named(arguments: SentenceEmbeddingArguments, tables: list[Table]) -> None:
    """Checks that the first table has the columns of --input_column_names, and some table that of scores."""
    for name in _named(arguments, tables[0]):
        check_column(tables[0], name, "--input_column_names")
    score = arguments.label_column_name
    if score not in (None, NO_SCORES) and not any(score in table.column_names for table in tables):
        check_column(tables[0], str(score), "--label_column_name")


def _named(arguments: SentenceEmbeddingArguments, table: Table) -> tuple[str, ...]:
    """Returns the names in --input_column_names; a name with a comma in it takes precedence over two names."""
    names: list[str] = []
    for word in arguments.input_column_names or ():
        names += [word] if word in table.column_names else [name.strip() for name in word.split(",") if name.strip()]
    if arguments.input_column_names and (not 1 <= len(names) <= 3 or len(set(names)) != len(names)):
        raise UsageError(
            "--input_column_names: expected one column of texts, two of pairs or three of triples; got: "
            f"{listed(arguments.input_column_names)}."
        )
    return tuple(names)


def _text_columns(arguments: SentenceEmbeddingArguments, table: Table) -> tuple[str, ...]:
    """Returns the columns in --input_column_names, if the table has them, else those of usual names."""
    named = _named(arguments, table)
    if named and all(name in table.column_names for name in named):
        if arguments.label_column_name in named:
            raise UsageError(
                f"column '{arguments.label_column_name}' cannot be both text and score: fix --input_column_names."
            )
        return named
    return _by_rule(table, arguments.label_column_name)


def _by_rule(table: Table, score: str | None = None) -> tuple[str, ...]:
    for usual in USUAL_COLUMNS:
        if all(name in table.column_names for name in usual):
            return usual
    score = score if score in table.column_names else None
    known = score or next((name for name in USUAL_SCORES if name in table.column_names), None)
    return find_text_columns(table, None, known)


def _texts(table: Table, columns: tuple[str, ...]) -> Dataset:
    for column in columns:
        unusable = table.unusable_text((column,))
        if unusable is not None:
            row, _, wrong = unusable
            raise UsageError(f"{table.place(row, column)} {wrong}: fix or delete this row.")
        for row, text in enumerate(table.values(column)):
            if not checked_text(table.place(row, column), text).strip():
                raise UsageError(f"{table.place(row, column)} has no words: fix or delete this row.")
    found = table.texts(columns)
    return found.rename_columns(dict(zip(columns, TEXTS, strict=False)))


# --- scores -----------------------------------------------------------------------------------------------------------


def _score_column(arguments: SentenceEmbeddingArguments, table: Table, texts: tuple[str, ...]) -> str | None:
    named = arguments.label_column_name
    if named == NO_SCORES:
        return None
    if named is not None:
        return named if named in table.column_names else None
    return next((name for name in USUAL_SCORES if name in table.column_names and name not in texts), None)


def _scores(table: Table, column: str) -> list[float]:
    return [_score(table, row, column, value) for row, value in enumerate(table.values(column))]


def _score(table: Table, row: int, column: str, value: Any) -> float:
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise UsageError(
            f"{table.place(row, column)}: {shown(value)} is not a score. Correct it, name another column with "
            f"--label_column_name, or say that these pairs have no scores: --label_column_name {NO_SCORES}."
        )
    return score


def _highest(tables: dict[str, Table], columns: dict[str, str], scores: dict[str, list[float]]) -> float:
    """Returns the highest possible score: the first of 1 and 5 that no score is above."""
    if not scores:
        return 1.0
    found = {split: max(values) for split, values in scores.items() if values}
    split = max(found, key=lambda name: found[name])
    highest = next((each for each in _HIGHEST if found[split] <= each), None)
    if highest is None:
        row = scores[split].index(found[split])
        raise UsageError(
            f"{tables[split].place(row, columns[split])}: the score {found[split]:g} is above 5, so the highest "
            "possible score is not known: set it with --max_score."
        )
    return highest
