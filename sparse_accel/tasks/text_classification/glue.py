"""The tasks of --task_name: Hub repository and configuration, columns, splits.

Source: the dataset card of nyu-mll/glue, and Wang et al. 2018, https://arxiv.org/abs/1804.07461.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparse_accel.data.sources import load_hub
from sparse_accel.data.tables import DatasetTable, Table
from sparse_accel.hub import GLUE_ID


@dataclass(frozen=True)
class GlueTask:
    """One GLUE task.

    Attributes:
        text_columns: its one or two text columns.
        splits: pairs of our split name and that of the dataset.
        problem_type: as in a model's config.json.
        repository: Hub id of the dataset; the task's name is its configuration.
    """

    text_columns: tuple[str, ...]
    splits: tuple[tuple[str, str], ...] = (("train", "train"), ("validation", "validation"), ("test", "test"))
    problem_type: str = "single_label_classification"
    repository: str = GLUE_ID


_PAIR = ("sentence1", "sentence2")
_MNLI_SPLITS = (
    ("train", "train"),
    ("validation", "validation_matched"),
    ("validation_mismatched", "validation_mismatched"),
    ("test", "test_matched"),
    ("test_mismatched", "test_mismatched"),
)

# The label of STS-B is a score from 0 to 5. The labels of all test rows are -1: not published.
GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(("sentence",)),
    "mnli": GlueTask(("premise", "hypothesis"), splits=_MNLI_SPLITS),
    "mrpc": GlueTask(_PAIR),
    "qnli": GlueTask(("question", "sentence")),
    "qqp": GlueTask(("question1", "question2")),
    "rte": GlueTask(_PAIR),
    "sst2": GlueTask(("sentence",)),
    "stsb": GlueTask(_PAIR, problem_type="regression"),
    "wnli": GlueTask(_PAIR),
}


def load_glue(name: str, cache_dir: str | None) -> dict[str, Table]:
    """Returns the splits of a task by our names, for MNLI also validation_mismatched and test_mismatched.

    Args:
        name: a key of GLUE.
        cache_dir: folder for downloads; None: the Hugging Face cache.

    Raises:
        UsageError: the dataset cannot be reached or read.
    """
    repository = GLUE[name].repository
    splits = load_hub(f"--task_name {name}", repository, name, cache_dir)
    return {
        ours: DatasetTable(f"{repository} {name}, split '{theirs}'", splits[theirs], (repository, name, theirs))
        for ours, theirs in GLUE[name].splits
        if theirs in splits
    }
