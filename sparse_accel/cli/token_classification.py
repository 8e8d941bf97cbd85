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
    """Data: a dataset_name, or files (CoNLL, or JSON and Parquet with lists of tokens and of tags)."""

    suffixes: ClassVar[tuple[str, ...]] = (*CONLL_SUFFIXES, ".json", ".jsonl", ".parquet")
    read_here: ClassVar[tuple[str, ...]] = CONLL_SUFFIXES

    train_file: str | None = flag(
        None,
        "training sentences: a conll, txt, tsv or iob file (a word and its tags in a line), or json, jsonl or parquet",
        path=True,
    )
    test_file: str | None = flag(None, "sentences that --do_predict tags; need no tags", path=True)
    max_seq_length: int = flag(
        128, "most tokens of a row, special tokens included; a longer sentence is split between words", at_least=3
    )
    task_name: str | None = flag(
        None,
        "which tags, where the data has several columns of them: of NAME_tags, such as ner, pos or chunk, the NAME",
        default_text="ner",
    )
    text_column_name: str | None = flag(
        None, "column of lists of tokens; in CoNLL files it is the first", default_text="tokens, words"
    )
    label_column_name: str | None = flag(
        None,
        "column of lists of tags; in CoNLL files its number, counted from 1",
        default_text="TASK_tags, tags, labels; in CoNLL files the last one",
    )
    label_all_tokens: bool = flag(
        False, "train on all pieces of a word; otherwise on its first alone (figures are always of words)"
    )
    return_entity_level_metrics: bool = flag(False, "also the F1 of each type of entity")


@dataclass(kw_only=True)
class TokenClassificationArguments(TokenData, TrainingArguments):
    """Arguments of scripts/token_classification.py, checked."""

    refused: ClassVar[Mapping[str, str]] = REFUSED | {
        "input_column_names": "tokens are named with --text_column_name.",
        "problem_type": "each word has one label.",
    }

    def warnings(self) -> list[str]:
        """Lines about flags that are given and have nothing to act on."""
        files = [file for file in (self.train_file, self.validation_file, self.test_file) if file]
        lines = super().warnings()
        if self.task_name and files and all(Path(file).suffix.lower() in CONLL_SUFFIXES for file in files):
            lines.append("--task_name names no column of CoNLL files: give its number with --label_column_name.")
        return lines
