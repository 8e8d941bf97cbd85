"""Selects the splits that a run reads, and their rows; the same for every task."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparse_accel.data.splitting import draw, draw_groups, hold_out, hold_out_groups
from sparse_accel.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

    from sparse_accel.cli.training import TrainingArguments
    from sparse_accel.data.tables import Origin, Table


def needed_splits(arguments: TrainingArguments, found: dict[str, Table]) -> dict[str, Table]:
    """Returns the tables that the run reads, by purpose; train first.

    Raises:
        UsageError: a split is missing or empty, or --validation_ratio is not needed.
    """
    needed: dict[str, Table] = {}
    name = next(iter(found.values())).name.partition(", split")[0]

    def take(purpose: str, split: str, advice: str) -> None:
        if split not in found:
            raise UsageError(f"{name} has no {split} rows; {advice}")
        needed[purpose] = found[split]

    if arguments.do_train or arguments.validation_ratio is not None:
        take("train", "train", "--do_train and --validation_ratio need them.")
    elif arguments.one_shot and "train" in found:
        needed["train"] = found["train"]
    if arguments.validation_ratio is not None and "validation" in found:
        raise UsageError(f"{name} already has validation rows: remove --validation_ratio.")
    if arguments.eval_on_test:
        take("validation", "test", "--eval_on_test needs them.")
    elif arguments.do_eval and arguments.validation_ratio is None:
        advice = "--do_eval needs them: add --validation_ratio 0.1 to hold out 10% of the training rows"
        take("validation", "validation", advice + (", or --eval_on_test." if "test" in found else "."))
        if "validation_mismatched" in found:
            needed["validation_mismatched"] = found["validation_mismatched"]
    if arguments.do_predict:
        take("test", "test", "--do_predict needs them.")
        if "test_mismatched" in found:
            needed["test_mismatched"] = found["test_mismatched"]
    for table in needed.values():
        if not len(table):
            raise UsageError(f"{table.name} has no rows.")
    return needed or found


def needs_no_labels(arguments: TrainingArguments, split: str) -> bool:
    """Whether the labels of a split are not needed: rows to predict, and calibration rows of --one_shot."""
    calibrates = arguments.one_shot and not arguments.labels_at_once and arguments.validation_ratio is None
    return split.startswith("test") or (split == "train" and calibrates)


def draw_rows(
    arguments: TrainingArguments,
    splits: dict[str, Dataset],
    sources: dict[str, str],
    strata: np.ndarray | None,
    groups: Callable[[Dataset], Sequence[Hashable]] | None = None,
) -> tuple[dict[str, Dataset], dict[str, str]]:
    """Returns the splits after --validation_ratio and the --max_*_samples limits, and their sources.

    A limit keeps the first rows to predict, so that row numbers of predictions are those of the data; the rows of other
    splits are drawn at random.

    Args:
        arguments: flags with ratio, limits and seed.
        splits: rows by the name of their split.
        sources: where the rows of each split come from, for messages.
        strata: number of each training row's class, as `hold_out` takes it, kept in proportion; None: no classes.
        groups: gives the group of each row, which is held out or evaluated as a whole; None: there are no groups.

    Raises:
        UsageError: the hold-out leaves no rows for training or none for evaluation.
    """
    splits, sources = dict(splits), dict(sources)
    if arguments.validation_ratio is not None:
        train = splits["train"]
        kept: list[int] | np.ndarray
        held: list[int] | np.ndarray
        if groups:
            kept, held = hold_out_groups(groups(train), arguments.validation_ratio, arguments.seed)
        else:
            classes = np.zeros(len(train), dtype=np.int64) if strata is None else strata
            kept, held = hold_out(classes, arguments.validation_ratio, arguments.seed)
        if not len(held) or not len(kept):
            raise UsageError(
                f"--validation_ratio {arguments.validation_ratio} of {len(train)} rows ({sources['train']}) leaves "
                f"{len(kept)} for training and {len(held)} for evaluation."
            )
        splits["train"], splits["validation"] = train.select(kept), train.select(held)
        sources["validation"] = f"{sources['train']} ({len(held)} rows held out)"
        if not (arguments.do_train or arguments.one_shot):
            del splits["train"], sources["train"]
    limits = {
        "train": arguments.max_train_samples,
        "validation": arguments.max_eval_samples,
        "test": arguments.max_predict_samples,
    }
    for split, dataset in splits.items():
        purpose = split.partition("_")[0]
        limit = limits[purpose]
        if purpose == "test":
            splits[split] = dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
            continue
        rows: list[int] | np.ndarray | None
        if groups and purpose == "validation":
            rows = draw_groups(groups(dataset), limit, arguments.seed)
        else:
            rows = draw(len(dataset), limit, arguments.seed)
        splits[split] = dataset if rows is None else dataset.select(rows)
    return splits, sources


def numbered(rows: Dataset, column: str) -> Dataset:
    """Returns rows with their numbers, from 0, in a new column."""
    from datasets import Dataset, Features, Value

    features = Features({**rows.features, column: Value("int64")})
    return Dataset.from_dict({**rows[:], column: list(range(len(rows)))}, features=features)


def origins_of(splits: dict[str, Dataset], tables: dict[str, Table]) -> dict[str, Origin]:
    """Returns what the rows of each split are taken from.

    Args:
        splits: from `draw_rows`.
        tables: from `needed_splits`.
    """
    return {split: tables[split if split in tables else "train"].origin for split in splits}
