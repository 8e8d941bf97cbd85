"""Where rows come from: a GLUE task, a dataset of the Hub, a local folder, or files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from pyarrow import ArrowInvalid

from sparse_accel.addresses import GLUE_ID, dataset_address, local_folder, out_of_reach
from sparse_accel.arguments import DATA_SUFFIXES
from sparse_accel.errors import UsageError, first_line
from sparse_accel.tasks.glue import GLUE
from sparse_accel.tasks.tables import DatasetTable, Table, read_table

if TYPE_CHECKING:
    from sparse_accel.arguments import TextClassificationArguments

SPLIT_WORDS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def load_tables(arguments: TextClassificationArguments) -> dict[str, Table]:
    """All splits at hand, by our names: train, validation, test, and MNLI's validation_mismatched, test_mismatched.

    Raises:
        UsageError: the data cannot be found, reached or read; the message says what was tried, and the ways out.
    """
    if arguments.task_name:
        splits = _load_hub(f"--task_name {arguments.task_name}", GLUE_ID, arguments.task_name, arguments.cache_dir)
        return {
            ours: DatasetTable(f"{GLUE_ID} {arguments.task_name}, split '{theirs}'", splits[theirs])
            for ours, theirs in GLUE[arguments.task_name].splits
            if theirs in splits
        }
    if arguments.dataset_name:
        return _load_dataset(arguments.dataset_name, arguments.dataset_config_name, arguments.cache_dir)
    files = {"train": arguments.train_file, "validation": arguments.validation_file, "test": arguments.test_file}
    return {split: read_table(file) for split, file in files.items() if file}


def _load_dataset(name: str, config: str | None, cache_dir: str | None) -> dict[str, Table]:
    folder = local_folder(name)
    if folder is not None:
        return _load_folder(folder, config, cache_dir)
    hub_id = dataset_address(name)
    return _our_splits(hub_id, _load_hub(f"--dataset_name {name}", hub_id, config, cache_dir))


def _our_splits(name: str, splits: DatasetDict) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for ours, words in SPLIT_WORDS.items():
        theirs = next((word for word in words if word in splits), None)
        if theirs is not None:
            tables[ours] = DatasetTable(f"{name}, split '{theirs}'", splits[theirs])
    if not tables:
        raise UsageError(f"{name} has none of the splits train, validation, test; it has: {', '.join(splits)}.")
    return tables


# --- local folders ----------------------------------------------------------------------------------------------------


def _load_folder(folder: Path, config: str | None, cache_dir: str | None) -> dict[str, Table]:
    """A folder that save_to_disk wrote, or one of data files whose names say train, validation or test."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        try:
            saved = load_from_disk(str(folder))
        except Exception as error:
            raise UsageError(f"--dataset_name: {folder} cannot be read as a saved dataset: {error}") from error
        return _our_splits(str(folder), saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved))
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in DATA_SUFFIXES)
    found: dict[str, Path] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.stem.lower())
        for split, usual in SPLIT_WORDS.items():
            if any(word in usual for word in words):
                if split in found:
                    return _load_folder_as_repository(folder, config, cache_dir)
                found[split] = file
                break
    if not found:
        return _load_folder_as_repository(folder, config, cache_dir)
    return {split: read_table(str(file)) for split, file in found.items()}


def _load_folder_as_repository(folder: Path, config: str | None, cache_dir: str | None) -> dict[str, Table]:
    """Several files to a split, subfolders, or a README that lists them: `datasets` knows these layouts."""
    try:
        return _our_splits(str(folder), load_dataset(str(folder), config, cache_dir=cache_dir))
    except UsageError:
        raise
    except Exception as error:
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        raise UsageError(
            f"--dataset_name: no rows found in {folder} ({first_line(error)}). It holds: {there}. Wanted are files "
            f"named train, validation or test that end in {', '.join(DATA_SUFFIXES)}, or a folder of save_to_disk."
        ) from error


# --- the Hub ----------------------------------------------------------------------------------------------------------


def _load_hub(typed: str, name: str, config: str | None, cache_dir: str | None) -> DatasetDict:
    """All splits of a Hub dataset, from the local cache where the Hub is out of reach."""
    what = f"{name} ({config})" if config else name
    try:
        splits: Any = load_dataset(name, config, cache_dir=cache_dir)
    except DatasetNotFoundError as error:
        reason = f"{first_line(error)} (for a private or gated one, log in with `hf auth login`)"
        raise out_of_reach(typed, name, "dataset", reason, cache_dir) from error
    except (DatasetGenerationError, ArrowInvalid) as error:  # it came; what lies behind says what is wrong with it
        raise UsageError(f"{typed}: {what} cannot be read: {first_line(error.__cause__ or error)}") from error
    except ValueError as error:
        if not re.search("BuilderConfig|Config name is missing", str(error)):
            raise out_of_reach(typed, name, "dataset", first_line(error), cache_dir) from error
        # A configuration that is missing or unknown; the library's message lists those there are, then Python to type.
        listed = " ".join(str(error).partition("\nExample")[0].split()).rstrip(".")
        raise UsageError(f"{what} cannot be loaded: {listed}. Choose with --dataset_config_name.") from error
    except RuntimeError as error:
        raise UsageError(
            f"{what} cannot be loaded: {first_line(error)}. A dataset that needs its own code to load is not "
            "supported: look for a copy in Parquet, or save it with another version of `datasets`."
        ) from error
    except Exception as error:
        raise out_of_reach(typed, name, "dataset", first_line(error), cache_dir) from error
    return splits if isinstance(splits, DatasetDict) else DatasetDict(train=splits)
