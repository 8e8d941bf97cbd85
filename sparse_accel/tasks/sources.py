"""Where rows come from: a GLUE task, a dataset of the Hub, a local folder, or files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from datasets import DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError

from sparse_accel.arguments import DATA_SUFFIXES
from sparse_accel.errors import UsageError, nearest
from sparse_accel.tasks.glue import GLUE, GLUE_ID
from sparse_accel.tasks.tables import DatasetTable, Table, read_table

if TYPE_CHECKING:
    from sparse_accel.arguments import TextClassificationArguments

# The Hub refuses ids without an owner; these are where the short names of old commands went.
MOVED = {
    "ag_news": "fancyzhx/ag_news",
    "amazon_polarity": "fancyzhx/amazon_polarity",
    "anli": "facebook/anli",
    "banking77": "PolyAI/banking77",
    "conll2003": "lhoestq/conll2003",
    "dbpedia_14": "fancyzhx/dbpedia_14",
    "emotion": "dair-ai/emotion",
    "go_emotions": "google-research-datasets/go_emotions",
    "glue": GLUE_ID,
    "imdb": "stanfordnlp/imdb",
    "multi_nli": "nyu-mll/multi_nli",
    "paws": "google-research-datasets/paws",
    "rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes",
    "snli": "stanfordnlp/snli",
    "sst2": "stanfordnlp/sst2",
    "super_glue": "aps/super_glue",
    "trec": "CogComp/trec",
    "tweet_eval": "cardiffnlp/tweet_eval",
    "yelp_polarity": "fancyzhx/yelp_polarity",
    "yelp_review_full": "Yelp/yelp_review_full",
}
SPLIT_WORDS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def load_tables(arguments: TextClassificationArguments) -> dict[str, Table]:
    """All splits at hand, by our names: train, validation, test, and MNLI's validation_mismatched, test_mismatched.

    Raises:
        UsageError: the data cannot be found, reached or read; the message says what was tried, and the ways out.
    """
    if arguments.task_name:
        splits = _load_hub(GLUE_ID, arguments.task_name, arguments.cache_dir)
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
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _load_folder(folder, config, cache_dir)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"--dataset_name: there is no folder {name}.")
    if "/" not in name and name not in MOVED:
        raise UsageError(
            f"--dataset_name: '{name}' is neither a local folder nor a full Hub id, OWNER/NAME."
            f"{nearest(name, MOVED)} Short names known here: {', '.join(sorted(MOVED))}."
        )
    name = MOVED.get(name, name)
    return _our_splits(name, _load_hub(name, config, cache_dir))


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
            f"--dataset_name: no rows found in {folder} ({_first_line(error)}). It holds: {there}. Wanted are files "
            f"named train, validation or test that end in {', '.join(DATA_SUFFIXES)}, or a folder of save_to_disk."
        ) from error


# --- the Hub ----------------------------------------------------------------------------------------------------------


def _load_hub(name: str, config: str | None, cache_dir: str | None) -> DatasetDict:
    """All splits of a Hub dataset, from the local cache where the Hub is out of reach."""
    what = f"{name} ({config})" if config else name
    try:
        splits: Any = load_dataset(name, config, cache_dir=cache_dir)
    except DatasetNotFoundError as error:
        raise UsageError(
            f"the Hub has no dataset {what} that can be read from here ({_first_line(error)}). Check the id on "
            "huggingface.co/datasets; for a private or gated one, log in with `hf auth login`."
        ) from error
    except ValueError as error:
        # A configuration that is missing or unknown; the library's message lists those there are, then Python to type.
        listed = " ".join(str(error).partition("\nExample")[0].split()).rstrip(".")
        raise UsageError(f"{what} cannot be loaded: {listed}. Choose with --dataset_config_name.") from error
    except RuntimeError as error:
        raise UsageError(
            f"{what} cannot be loaded: {_first_line(error)}. A dataset that needs its own code to load is not "
            "supported: look for a copy in Parquet, or save it with another version of `datasets`."
        ) from error
    except Exception as error:
        raise UsageError(
            f"{what} cannot be fetched from {datasets.config.HF_ENDPOINT} ({_first_line(error)}), and is not in the "
            "local cache. Ways out: a local copy (a folder of save_to_disk as --dataset_name, or --train_file and "
            "--validation_file), a mirror of the Hub (HF_ENDPOINT=https://... in the environment), or another id."
        ) from error
    return splits if isinstance(splits, DatasetDict) else DatasetDict(train=splits)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
