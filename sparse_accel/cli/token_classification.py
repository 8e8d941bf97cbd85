"""Flags of scripts/token_classification.py. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sparse_accel.cli.data import Data
from sparse_accel.cli.parser import flag
from sparse_accel.cli.refused import REFUSED
from sparse_accel.cli.training import TrainingArguments

CONLL_SUFFIXES = (".conll", ".txt", ".tsv", ".iob")


@dataclass(kw_only=True)
class TokenData(Data):
    """Data: dataset_name, or files (CoNLL, or JSON and Parquet with lists of tokens and of tags)."""

    suffixes: ClassVar[tuple[str, ...]] = (*CONLL_SUFFIXES, ".json", ".jsonl", ".parquet")
    read_here: ClassVar[tuple[str, ...]] = CONLL_SUFFIXES

    train_file: str | None = flag(
        None,
        "training sentences: a conll, txt, tsv or iob file (one word and its tags per line), or json, jsonl or parquet",
        path=True,
    )
    test_file: str | None = flag(None, "sentences for --do_predict; tags are not needed", path=True)
    max_seq_length: int = flag(
        128, "maximum tokens per row, special tokens included; longer sentences are split between words", at_least=3
    )
    task_name: str | None = flag(
        None,
        "tag column to use, if there are several: `ner` for ner_tags; also pos, chunk, ...",
        default_text="ner",
    )
    text_column_name: str | None = flag(
        None, "column with lists of tokens; in CoNLL files always the first", default_text="tokens, words"
    )
    label_column_name: str | None = flag(
        None,
        "column with lists of tags; for CoNLL files its number, counted from 1",
        default_text="TASK_tags, tags, labels; for CoNLL files the last column",
    )
    label_all_tokens: bool = flag(
        False, "train on all pieces of a word instead of only the first (metrics always count words)"
    )
    return_entity_level_metrics: bool = flag(False, "also report the F1 of each entity type")


@dataclass(kw_only=True)
class TokenClassificationArguments(TokenData, TrainingArguments):
    """Arguments of scripts/token_classification.py, checked."""

    refused: ClassVar[Mapping[str, str]] = REFUSED | {
        "input_column_names": "name the token column with --text_column_name.",
        "text_column_names": "name the token column with --text_column_name.",
        "text_column_delimiter": "there is one token column: name it with --text_column_name.",
        "do_regression": "each word has one label.",
        "task": "use --task_name, which selects the column TASK_tags.",
        "problem_type": "each word has one label.",
    }

    def warnings(self) -> list[str]:
        """Returns one line per flag that has no effect."""
        files = [file for file in (self.train_file, self.validation_file, self.test_file) if file]
        lines = super().warnings()
        if self.task_name and files and all(Path(file).suffix.lower() in CONLL_SUFFIXES for file in files):
            lines.append("--task_name has no effect on CoNLL files: give the column's number with --label_column_name.")
        return lines
