"""Resolves names of models, recipes and datasets: a folder, a `zoo:` stub, or an id of the Hugging Face Hub.

Older command lines have ids without an owner, which today's Hub client refuses: tables map them to full ids. Imports
nothing heavy.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sparse_accel.console import rank
from sparse_accel.errors import UsageError, first_line, in_order, nearest, shortened
from sparse_accel.zoo import is_stub, model_source

GLUE_ID = "nyu-mll/glue"
DATASETS = {
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
    "squad": "rajpurkar/squad",
    "squad_v2": "rajpurkar/squad_v2",
    "sst2": "stanfordnlp/sst2",
    "super_glue": "aps/super_glue",
    "trec": "CogComp/trec",
    "tweet_eval": "cardiffnlp/tweet_eval",
    "yelp_polarity": "fancyzhx/yelp_polarity",
    "yelp_review_full": "Yelp/yelp_review_full",
}
_OWNERS = {
    "google-bert": (
        "bert-base-uncased",
        "bert-base-cased",
        "bert-large-uncased",
        "bert-large-cased",
        "bert-base-multilingual-uncased",
        "bert-base-multilingual-cased",
        "bert-base-chinese",
        "bert-base-german-cased",
        "bert-large-uncased-whole-word-masking",
        "bert-large-cased-whole-word-masking",
    ),
    "distilbert": (
        "distilbert-base-uncased",
        "distilbert-base-cased",
        "distilbert-base-multilingual-cased",
        "distilbert-base-uncased-finetuned-sst-2-english",
        "distilroberta-base",
    ),
    "FacebookAI": ("roberta-base", "roberta-large", "roberta-large-mnli", "xlm-roberta-base", "xlm-roberta-large"),
    "albert": ("albert-base-v1", "albert-base-v2", "albert-large-v1", "albert-large-v2", "albert-xlarge-v2"),
    "xlnet": ("xlnet-base-cased", "xlnet-large-cased"),
    "almanach": ("camembert-base",),
}
MODELS = {name: f"{owner}/{name}" for owner, names in _OWNERS.items() for name in names}


def model_address(flag: str, name: str, cache_dir: str | None = None) -> str:
    """Returns the folder or the full Hub id of a model.

    Args:
        flag: the flag, for messages, with its dashes.
        name: a folder, a `zoo:` stub, or a short or full Hub id.
        cache_dir: the Hub's cache; default: the Hub client's.

    Raises:
        UsageError: the name is invalid. Whether the id exists on the Hub is not checked.
    """
    if is_stub(name):
        try:
            return model_source(name, cache_dir)
        except UsageError as error:
            raise UsageError(f"{flag} {error}") from error
    if (folder := local_folder(name)) is not None:
        return str(folder)
    if _is_file(name):
        raise UsageError(f"{flag}: {name} is a file. Give the folder that contains the model: {Path(name).parent}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"{flag}: there is no folder {name}.{_similar_folder(name)}")
    return _full_id(flag, name, MODELS)


def local_folder(name: str) -> Path | None:
    """Returns the folder of this name, with `~` resolved; None if there is none."""
    try:
        path = Path(name).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError):  # the name is too long for the system, or its user does not exist
        return None


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:
        return False


def dataset_address(name: str) -> str:
    """Returns the full Hub id of a dataset that is not a local folder.

    Args:
        name: a short or full Hub id.

    Raises:
        UsageError: the name is neither a full id nor a known short name.
    """
    if _is_file(name):
        raise UsageError(f"--dataset_name: {name} is a file. Use --train_file, --validation_file or --test_file")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"--dataset_name: there is no folder {name}.{_similar_folder(name)}")
    return _full_id("--dataset_name", name, DATASETS)


def _full_id(flag: str, name: str, moved: Mapping[str, str]) -> str:
    _capture_hub_log()
    if name in moved:
        _note(f"{flag} {name} is now {moved[name]} on the Hub")
        return moved[name]
    if "/" not in name:
        raise UsageError(
            f"{flag}: '{name}' is neither a local folder nor a full Hub id, OWNER/NAME, such as "
            f"{next(iter(moved.values()))}.{_similar_folder(name)}{nearest(name, moved)}"
        )
    return name


def _similar_folder(name: str) -> str:
    """Returns ` Did you mean ...?` with an existing folder of a similar name next to the missing one."""
    parent = local_folder(str(Path(name).parent))
    there = [each.name for each in parent.iterdir() if each.is_dir()] if parent is not None else []
    return nearest(Path(name).name, there)


@functools.cache
def _note(text: str) -> None:
    if rank() == 0:
        print(f"note: {shortened(text)}", file=sys.stderr)


class _HubLogHandler(logging.Handler):
    """Stores the Hub client's warnings: if a download fails, the libraries that use it only report a missing file.

    Attributes:
        heard: the first line of each warning.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Stores the first line of a warning."""
        self.heard.append(record.getMessage().partition("\n")[0])


_hub_log = _HubLogHandler()


@functools.cache
def _capture_hub_log() -> None:
    logging.getLogger("huggingface_hub").addHandler(_hub_log)


def last_hub_warning(hub_id: str) -> str | None:
    """Returns the Hub client's last warning about a repository; None if there is none."""
    return next((line for line in reversed(_hub_log.heard) if f"/{hub_id}/" in line), None)


def not_found_error(typed: str, hub_id: str, kind: str, reason: str, cache_dir: str | None = None) -> UsageError:
    """Returns the error for an id that is neither in the cache nor on the Hub: places tried, in order, and remedies.

    Args:
        typed: flag and value as typed.
        hub_id: full Hub id.
        kind: `model` or `dataset`.
        reason: the library's message, used if the Hub's client logged no warning.
        cache_dir: the cache; default: the Hub client's.
    """
    from huggingface_hub import constants

    offline = constants.is_offline_mode()
    address = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{hub_id}"
    asked = last_hub_warning(hub_id) or f"{address}: {reason}"
    tried = [
        ("local folder", "not found"),
        ("cache", f"{cache_dir or constants.HF_HUB_CACHE} does not contain all files of {hub_id}"),
        ("Hub", "not asked, because HF_HUB_OFFLINE is set" if offline else asked),
    ]
    folder = "a local folder" + (" of save_to_disk, or --train_file and --validation_file" if kind == "dataset" else "")
    return UsageError(
        f"{typed}: the {kind} was not found. Tried, in order:\n{in_order(tried)}\nWays to fix this: use {folder}; set "
        "HF_ENDPOINT=https://... in the environment to a mirror of the Hub; or use another id. For a machine without a "
        "network, fetch it first with scripts/prefetch.py"
    )


@contextmanager
def reading_model(typed: str, address: str, *, prefix: str = "") -> Iterator[None]:
    """Inside the block, a model's files are read. Libraries raise whatever they meet in a damaged one.

    Args:
        typed: flag and value as typed, or the function and its argument.
        address: folder, or full Hub id.
        prefix: of the message of a UsageError that is raised in the block.

    Raises:
        UsageError: for any error: what the folder contains, or where the id was searched.
    """
    try:
        yield
    except UsageError as error:
        if prefix:
            raise UsageError(f"{prefix}{error}") from error
        raise
    except (MemoryError, ImportError):  # not the files' fault; a missing package says which
        raise
    except Exception as error:
        folder, said = Path(address), first_line(error)
        if folder.is_dir():
            held = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
            message = f"{typed}: the folder contains no readable model ({said}). It contains: {held}"
            raise UsageError(message) from error
        if not isinstance(error, OSError):  # it was downloaded, but is not a valid model
            raise UsageError(f"{typed}: {address} contains no readable model ({said})") from error
        raise not_found_error(typed, address, "model", said) from error
