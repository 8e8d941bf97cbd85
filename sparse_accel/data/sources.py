"""Loads the rows: from a dataset on the Hub, a local folder, or files."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from pyarrow import ArrowInvalid

from sparse_accel.data.parted_table import concatenated
from sparse_accel.data.tables import DatasetTable, Table, read_table
from sparse_accel.errors import UsageError, first_line, listed
from sparse_accel.hub import dataset_address, local_folder, not_found_error

if TYPE_CHECKING:
    from sparse_accel.cli.data import Data

Reader = Callable[[str], Table]
SPLIT_WORDS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def load_tables(arguments: Data, read: Reader | None = None) -> dict[str, Table]:
    """Returns all splits of a dataset, or the files of the flags, by our names: train, validation, test.

    Args:
        arguments: flags that name the data; their `suffixes` are the supported types of files.
        read: reads one file; None: `read_table`.

    Raises:
        UsageError: the data cannot be found, reached or read; the message says what was tried and what to do.
    """
    read = read or partial(read_table, cache_dir=arguments.cache_dir)
    if arguments.dataset_name:
        return _load_dataset(arguments, read)
    files = {"train": arguments.train_file, "validation": arguments.validation_file, "test": arguments.test_file}
    return {split: read(file) for split, file in files.items() if file}


def _load_dataset(arguments: Data, read: Reader) -> dict[str, Table]:
    name = str(arguments.dataset_name)
    folder = local_folder(name)
    if folder is not None:
        return _load_folder(folder, arguments, read)
    hub_id = dataset_address(name)
    config = arguments.dataset_config_name
    splits = load_hub(f"--dataset_name {name}", hub_id, config, arguments.cache_dir)
    return _our_splits(hub_id, splits, (hub_id, config))


def _our_splits(name: str, splits: DatasetDict, hub: tuple[str, str | None] | None = None) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for ours, words in SPLIT_WORDS.items():
        theirs = next((word for word in words if word in splits), None)
        if theirs is not None:
            tables[ours] = DatasetTable(f"{name}, split '{theirs}'", splits[theirs], (*hub, theirs) if hub else None)
    if not tables:
        raise UsageError(f"{name} has none of the splits train, validation, test; it has: {', '.join(splits)}.")
    return tables


# --- local folders ----------------------------------------------------------------------------------------------------


def _load_folder(folder: Path, arguments: Data, read: Reader) -> dict[str, Table]:
    """Loads a folder from save_to_disk, or a folder of data files named train, validation or test."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        try:
            saved = load_from_disk(str(folder))
        except Exception as error:
            raise UsageError(f"--dataset_name: {folder} cannot be read as a saved dataset: {error}") from error
        return _our_splits(str(folder), saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved))
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in arguments.suffixes)
    found: dict[str, list[Path]] = {}
    for file in files:
        if split := split_of(file.stem):
            found.setdefault(split, []).append(file)
    # CSV and TSV are always read here, because `datasets` would guess their types and quotes.
    ours = {
        split: any(file.suffix.lower() in arguments.read_here for file in several) for split, several in found.items()
    }
    for split, several in found.items():
        if len(several) > 1 and ours[split]:
            _check_numbered(folder, split, several)
    if not found and (
        inside := sorted(file for file in folder.rglob("*") if file.suffix.lower() in arguments.read_here)
    ):
        raise UsageError(
            f"--dataset_name: no file directly in {folder} is named train, validation or test. Files found: "
            f"{listed(file.relative_to(folder) for file in inside)}. Pass them with --train_file, --validation_file "
            "and --test_file."
        )
    if not found or (any(len(several) > 1 for several in found.values()) and not any(ours.values())):
        return _load_folder_as_repository(folder, arguments)
    return {split: concatenated([read(str(file)) for file in several]) for split, several in found.items()}


def split_of(stem: str) -> str:
    """Returns the split that a file name contains, by our names; empty if it contains none."""
    words = re.split(r"[^a-z]+", stem.lower())
    split = next((split for split, usual in SPLIT_WORDS.items() if any(word in usual for word in words)), "")
    return f"{split}_mismatched" if "mismatched" in words and split in ("validation", "test") else split


def _check_numbered(folder: Path, split: str, files: list[Path]) -> None:
    """Refuses several CSV or TSV files of one split unless their names differ in numbers only (parts of the split)."""
    if len({(re.sub(r"\d+", "#", file.stem), file.suffix) for file in files}) > 1 or not re.search(
        r"\d", files[0].stem
    ):
        names = listed(file.name for file in files)
        raise UsageError(
            f"--dataset_name: {folder} has several files for {split} that are not named as numbered parts: {names}. "
            f"Choose one with --{split.partition('_')[0]}_file."
        )


def _load_folder_as_repository(folder: Path, arguments: Data) -> dict[str, Table]:
    """Loads several files per split, subfolders, or files listed in a README, with `datasets`."""
    try:
        return _our_splits(
            str(folder), load_dataset(str(folder), arguments.dataset_config_name, cache_dir=arguments.cache_dir)
        )
    except UsageError:
        raise
    except Exception as error:
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        raise UsageError(
            f"--dataset_name: no rows found in {folder} ({first_line(error)}). It contains: {there}. Expected files "
            f"named train, validation or test that end in {', '.join(arguments.suffixes)}, or a save_to_disk folder."
        ) from error


# --- the Hub ----------------------------------------------------------------------------------------------------------


def load_hub(typed: str, name: str, config: str | None, cache_dir: str | None) -> DatasetDict:
    """Returns all splits of a Hub dataset, from the local cache if the Hub cannot be reached.

    Args:
        typed: flag and value that name the dataset, for messages.
        name: its Hub id.
        config: name of its configuration; None: the default one.
        cache_dir: folder for downloads; None: the Hugging Face cache.

    Raises:
        UsageError: the dataset cannot be reached or read, has no such configuration, or needs its own loading code.
    """
    what = f"{name} ({config})" if config else name
    try:
        splits: Any = load_dataset(name, config, cache_dir=cache_dir)
    except DatasetNotFoundError as error:
        reason = f"{first_line(error)} (if it is private or gated, log in with `hf auth login`)"
        raise not_found_error(typed, name, "dataset", reason, cache_dir) from error
    except (DatasetGenerationError, ArrowInvalid) as error:  # downloaded, but unreadable: the cause says why
        raise UsageError(f"{typed}: {what} cannot be read: {first_line(error.__cause__ or error)}") from error
    except ValueError as error:
        if not re.search("BuilderConfig|Config name is missing", str(error)):
            raise not_found_error(typed, name, "dataset", first_line(error), cache_dir) from error
        # A missing or unknown configuration: the message lists all of them, then an example in Python (dropped).
        said = " ".join(str(error).partition("\nExample")[0].split()).rstrip(".")
        raise UsageError(f"{what} cannot be loaded: {said}. Choose one with --dataset_config_name.") from error
    except RuntimeError as error:
        raise UsageError(
            f"{what} cannot be loaded: {first_line(error)}. Datasets that need their own loading code are not "
            "supported: use a copy in Parquet, or save it with another version of `datasets`."
        ) from error
    except Exception as error:
        raise not_found_error(typed, name, "dataset", first_line(error), cache_dir) from error
    return splits if isinstance(splits, DatasetDict) else DatasetDict(train=splits)
