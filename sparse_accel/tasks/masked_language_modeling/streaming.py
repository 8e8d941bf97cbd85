"""Texts of a corpus that fits no disk: where they are read from, and how a shard's texts become rows."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import IterableDataset, load_dataset, load_dataset_builder

from sparse_accel.data.parted_table import concatenated
from sparse_accel.data.sources import split_of
from sparse_accel.data.streams.identity import check_identities, hub_identity_of, identity_of
from sparse_accel.data.streams.order import Row
from sparse_accel.data.streams.shards import Corpus, DatasetShards, TextFiles
from sparse_accel.data.tables import DatasetTable, Table
from sparse_accel.errors import UsageError, first_line, listed
from sparse_accel.hub import dataset_address, local_folder, not_found_error
from sparse_accel.tasks.masked_language_modeling.encoding import (
    WORDS,
    Packer,
    encode_lines,
    encode_texts,
    room_of,
    row_of,
    separator_id,
    special_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sparse_accel.cli.masked_language_modeling import MaskedLanguageModelingArguments

TEXT = "text"
_LINES = (".txt", ".jsonl")
# What `datasets` calls the readers of other files.
_READERS = {".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


# --- the corpus -------------------------------------------------------------------------------------------------------


def open_corpus(arguments: MaskedLanguageModelingArguments) -> Corpus:
    """Returns the training texts of a run with --streaming, which are read as it trains.

    Files with a text per line (txt, jsonl) are cut into shards of equal bytes. Other files, and datasets of the Hub,
    are read by `datasets`: each of their files is in one shard.

    Args:
        arguments: flags that name the data.

    Raises:
        UsageError: the data cannot be found or read, or has too few files or lines for --stream_shards.
    """
    try:
        corpus = _corpus(arguments)
        next(corpus.shard(0).texts(), None)  # so that what is wrong with all rows is said at once
    except UsageError as error:
        if arguments.text_column_name is None and "has no column" in str(error):
            raise UsageError(f"{error} Name the column of texts: --text_column_name.") from error
        raise
    return corpus


def _corpus(arguments: MaskedLanguageModelingArguments) -> Corpus:
    column, shards = arguments.text_column_name or TEXT, arguments.stream_shards
    if arguments.train_file:
        return _of_files([arguments.train_file], column, shards, arguments.train_file)
    name = str(arguments.dataset_name)
    folder = local_folder(name)
    if folder is not None:
        files = _files_in(folder, arguments, "train")
        if not files:
            there = listed(sorted(file.name for file in folder.iterdir())) or "nothing"
            raise UsageError(
                f"--dataset_name: no file in {folder} is named train. It contains: {there}. Expected files such as "
                f"train-0001.txt, that end in {', '.join(arguments.suffixes)}."
            )
        return _of_files(files, column, shards, f"--dataset_name {folder}")
    hub_id = dataset_address(name)
    config = arguments.dataset_config_name
    try:
        builder = load_dataset_builder(hub_id, config)
        dataset: Any = builder.as_streaming_dataset(split="train")
        found = [hub_identity_of(url) for url in (builder.config.data_files or {}).get("train", [])]
    except Exception as error:
        raise not_found_error(f"--dataset_name {name}", hub_id, "dataset", first_line(error)) from error
    return _HubShards(dataset, column, shards, f"{hub_id} ({config})" if config else hub_id, found)


def validation_table(arguments: MaskedLanguageModelingArguments, read: Callable[[str], Table]) -> Table:
    """Returns the validation texts of a run with --streaming, without reading the training texts.

    Args:
        arguments: flags that name the data.
        read: reads a file.

    Raises:
        UsageError: there are none, or they cannot be read.
    """
    if arguments.validation_file:
        return read(arguments.validation_file)
    name = str(arguments.dataset_name)
    folder = local_folder(name)
    if folder is not None:
        files = _files_in(folder, arguments, "validation")
        if not files:
            raise UsageError(f"--do_eval: no file in {folder} is named validation.")
        return concatenated([read(file) for file in files])
    hub_id, config = dataset_address(name), arguments.dataset_config_name
    try:
        rows: Any = load_dataset(hub_id, config, split="validation", cache_dir=arguments.cache_dir)
    except Exception as error:
        raise UsageError(
            f"--do_eval: the validation rows of {hub_id} cannot be loaded: {first_line(error)}. Leave --do_eval out, "
            "or name files with --train_file and --validation_file."
        ) from error
    return DatasetTable(f"{hub_id}, split 'validation'", rows, (hub_id, config, "validation"))


def _files_in(folder: Path, arguments: MaskedLanguageModelingArguments, split: str) -> list[str]:
    """Returns the files of a split in a folder, sorted."""
    known = (file for file in folder.iterdir() if file.suffix.lower() in arguments.suffixes)
    return sorted(str(file) for file in known if split_of(file.stem) == split)


def _of_files(files: list[str], column: str, shards: int, name: str) -> Corpus:
    kinds = {Path(file).suffix.lower() for file in files}
    if kinds <= {*_LINES}:
        return TextFiles(files, shards, column)
    if len(kinds) > 1:
        raise UsageError(f"{name}: a stream is of files of one kind; got {listed(sorted(kinds))}.")
    (kind,) = kinds
    options: dict[str, Any] = {"sep": "\t"} if kind == ".tsv" else {}
    if _READERS[kind] == "csv":
        options |= {"converters": {column: str}, "keep_default_na": False}  # else "1984" is a number, "NA" nothing
    try:
        dataset: Any = load_dataset(_READERS[kind], data_files=files, split="train", streaming=True, **options)
    except Exception as error:
        raise UsageError(f"{name} cannot be read: {first_line(error)}") from error
    assert isinstance(dataset, IterableDataset)
    return _FileShards(dataset, column, shards, name, files)


class _FileShards(DatasetShards):
    """Files that `datasets` reads: a resumed run must find them unchanged."""

    def __init__(self, dataset: IterableDataset, column: str, shards: int, name: str, files: list[str]) -> None:
        super().__init__(dataset, column, shards, name)
        self.files = files
        self.identity: Any = [identity_of(file) for file in files]

    def check(self, identity: Any) -> None:
        """Raises UsageError if a file is not as it was when the run began; the message names it."""
        check_identities(self.files, self.identity, identity)


class _HubShards(DatasetShards):
    """A dataset of the Hub: a resumed run must find its files unchanged, whatever the commit."""

    def __init__(
        self, dataset: IterableDataset, column: str, shards: int, name: str, files: list[dict[str, Any]]
    ) -> None:
        super().__init__(dataset, column, shards, name)
        self.identity["files"] = files

    def check(self, identity: Any) -> None:
        """Raises UsageError if a file, the name or the number of files is not as when the run began."""
        if identity.get("name") == self.name and "files" in identity:  # else `super` says what differs
            files = self.identity["files"]
            check_identities([f"{self.name}: {each['name']}" for each in files], files, identity["files"])
        super().check(identity)


# --- rows -------------------------------------------------------------------------------------------------------------


class Blocks:
    """Makes blocks of the texts of a shard; the pending tokens are its state.

    Args:
        tokenizer: a fast one.
        length: tokens of a block, special tokens included.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # in loader workers, which are forked
        self.tokenizer, self.around = tokenizer, special_tokens(tokenizer)
        self._settings = (room_of(tokenizer, length), separator_id(tokenizer))
        self.packer = Packer(*self._settings)

    def feed(self, text: str) -> list[Row]:
        """Returns the blocks that a text completes."""
        encoded = encode_texts({TEXT: [text]}, self.tokenizer, TEXT)
        return [
            row_of(block, self.around)
            for ids, words in zip(encoded["input_ids"], encoded[WORDS], strict=True)
            for block in self.packer.feed(ids, words)
        ]

    def flush(self) -> list[Row]:
        """Returns the last block, which is shorter."""
        return [row_of(block, self.around) for block in self.packer.flush()]

    def state(self) -> Any:
        """Returns the pending tokens."""
        return self.packer.rest

    def restore(self, state: Any) -> None:
        """Replaces the pending tokens."""
        self.packer = Packer(*self._settings, state)


class Lines:
    """Makes a row of each text of a shard; arguments as for `Blocks`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.tokenizer, self.length = tokenizer, length

    def feed(self, text: str) -> list[Row]:
        """Returns the row of a text; none for one without tokens."""
        encoded = encode_lines({TEXT: [text]}, self.tokenizer, TEXT, self.length)
        return [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]

    def flush(self) -> list[Row]:
        """Returns nothing: no row is pending."""
        return []

    def state(self) -> Any:
        """Returns nothing: no row is pending."""
        return None

    def restore(self, state: Any) -> None:
        """Does nothing."""


def row_maker(tokenizer: PreTrainedTokenizerBase, length: int, line_by_line: bool) -> Callable[[], Blocks | Lines]:
    """Returns what makes the maker of a shard's rows: of blocks, or of lines."""
    return functools.partial(Lines if line_by_line else Blocks, tokenizer, length)
