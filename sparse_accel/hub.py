"""Where a model, recipe or data set is that somebody names: a folder, a `zoo:` stub, or an id of the Hugging Face Hub.

Ids of older command lines have no owner, and today's Hub client refuses those: the tables say where they went. Imports
nothing heavy.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from sparse_accel.console import rank
from sparse_accel.errors import UsageError, in_order, nearest, shortened
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
    """Returns the folder, or the full Hub id, of what a flag names.

    Args:
        flag: for messages, with its dashes.
        name: a folder, a `zoo:` stub, or an id, short or full.
        cache_dir: the Hub's cache, if it is not the usual one.

    Raises:
        UsageError: nothing goes by that name, as far as that can be told without asking the Hub.
    """
    if is_stub(name):
        try:
            return model_source(name, cache_dir)
        except UsageError as error:
            raise UsageError(f"{flag} {error}") from error
    if (folder := local_folder(name)) is not None:
        return str(folder)
    if _is_file(name):
        raise UsageError(f"{flag}: {name} is a file. Name the folder that holds the model: {Path(name).parent}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"{flag}: there is no folder {name}.{_beside(name)}")
    return _full_id(flag, name, MODELS)


def local_folder(name: str) -> Path | None:
    """Returns the folder of that name, `~` resolved; None where there is none."""
    try:
        path = Path(name).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError):  # a name too long for the system, or the home of nobody
        return None


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:
        return False


def dataset_address(name: str) -> str:
    """Returns the full Hub id of a data set that is no local folder.

    Raises:
        UsageError: the name is neither an id nor a short name that is known.
    """
    if _is_file(name):
        raise UsageError(
            f"--dataset_name: {name} is a file. Name it with --train_file, --validation_file or --test_file"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"--dataset_name: there is no folder {name}.{_beside(name)}")
    return _full_id("--dataset_name", name, DATASETS)


def _full_id(flag: str, name: str, moved: Mapping[str, str]) -> str:
    _listen_to_the_hub()
    if name in moved:
        _note(f"{flag} {name} is {moved[name]} on today's Hub")
        return moved[name]
    if "/" not in name:
        raise UsageError(
            f"{flag}: '{name}' is neither a local folder nor a full Hub id, OWNER/NAME.{_beside(name)}"
            f"{nearest(name, moved)} Short names known here: {', '.join(sorted(moved))}."
        )
    return name


def _beside(name: str) -> str:
    """` Did you mean ...?` with the folder beside the one that is not there whose name is nearest."""
    parent = local_folder(str(Path(name).parent))
    there = [each.name for each in parent.iterdir() if each.is_dir()] if parent is not None else []
    return nearest(Path(name).name, there)


@functools.cache
def _note(text: str) -> None:
    if rank() == 0:
        print(f"note: {shortened(text)}", file=sys.stderr)


class _Complaints(logging.Handler):
    """Keeps what the Hub's client warns of: where a download fails, the libraries above it say that there is no file.

    Attributes:
        heard: the first line of each warning.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one."""
        self.heard.append(record.getMessage().partition("\n")[0])


_complaints = _Complaints()


@functools.cache
def _listen_to_the_hub() -> None:
    logging.getLogger("huggingface_hub").addHandler(_complaints)


def hub_complaint(hub_id: str) -> str | None:
    """Returns the last thing that the Hub's client warned of while it fetched a repository; None where all was well."""
    return next((line for line in reversed(_complaints.heard) if f"/{hub_id}/" in line), None)


def out_of_reach(typed: str, hub_id: str, kind: str, reason: str, cache_dir: str | None = None) -> UsageError:
    """The error for an id that neither the cache nor the Hub gives: what was tried, in order, and the ways out.

    Args:
        typed: flag and value as typed.
        hub_id: what was asked for.
        kind: `model` or `dataset`.
        reason: what the library said, for where the Hub's client said nothing.
        cache_dir: the cache, if it is not the usual one.
    """
    from huggingface_hub import constants

    offline = constants.is_offline_mode()
    address = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{hub_id}"
    asked = hub_complaint(hub_id) or f"{address}: {reason}"
    tried = [
        ("local folder", "there is none of that name"),
        ("cache", f"{cache_dir or constants.HF_HUB_CACHE} does not hold all of {hub_id}"),
        ("Hub", "not asked, because HF_HUB_OFFLINE is set" if offline else asked),
    ]
    folder = "a local folder" + (" of save_to_disk, or --train_file and --validation_file" if kind == "dataset" else "")
    return UsageError(
        f"{typed}: the {kind} was not found. Tried, in order:\n{in_order(tried)}\nThree ways out: {folder}; a "
        "mirror of the Hub that can be reached (HF_ENDPOINT=https://... in the environment); or another id. Without a "
        "network, fetch it before with scripts/prefetch.py"
    )
