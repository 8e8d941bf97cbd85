"""Downloads everything that a training command needs, so that it then runs without a network.

    python scripts/prefetch.py --task_name sst2 --model_name_or_path MODEL --recipe RECIPE --distill_teacher TEACHER ...
    python scripts/prefetch.py token_classification --dataset_name conll2003 ...
    python scripts/prefetch.py question_answering --dataset_name squad ...

Takes the flags of scripts/text_classification.py or, after the name of another task, those of its script. Loads recipe,
data, model, tokenizer and teacher as that script does, so errors appear here first. Trains nothing and writes no output
folder. Then compares the downloaded files with the Hub's digests, which training does not do.
On a cluster: run it on the login node; compute nodes share its cache (HF_HOME, SPARSEZOO_MODELS_PATH) and run with
HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

from sparse_accel.cli.parser import parse_arguments
from sparse_accel.cli.tasks import ARGUMENTS
from sparse_accel.cli.training import TrainingArguments
from sparse_accel.errors import UsageError, listed, nearest
from sparse_accel.hub import dataset_address, local_folder, model_address
from sparse_accel.main import run_main
from sparse_accel.recipe import load_recipe


def main() -> None:
    name, words = task_of_words(sys.argv[1:])
    arguments = parse_arguments(ARGUMENTS[name], words, description=(__doc__ or "").partition("\n")[0])
    recipe = load_recipe(arguments.recipe, arguments.recipe_args) if arguments.recipe else None
    if arguments.do_train and recipe is not None:
        recipe.check_teacher(arguments.distill_teacher)

    from huggingface_hub import constants

    from sparse_accel.models.loading import (
        default_head,
        fine_tuned_head,
        load_model,
        load_teacher,
        load_tokenizer,
        load_trained,
    )
    from sparse_accel.tasks import TASKS
    from sparse_accel.tasks.label_names import head_in
    from sparse_accel.zoo.mirror import models_path

    task_kind = TASKS[name]
    if arguments.do_train or arguments.one_shot:
        head = default_head(arguments) if arguments.one_shot else fine_tuned_head(arguments, task_kind)
        task = task_kind.load(arguments, head)
        model, _ = load_model(arguments, task_kind if arguments.one_shot else task)
    else:  # a trained model: its config has the labels
        model = load_trained(arguments, task_kind)
        config: Any = model.config
        task = task_kind.load(arguments, head_in(config, "config.json"))
    load_tokenizer(arguments, task_kind)
    if arguments.distill_teacher not in (None, "disable", "self"):
        load_teacher(arguments, model, task)
    for hub_id, repository, revision in hub_repositories(arguments):
        check_digests(hub_id, repository, revision, arguments.cache_dir)
    rows = ", ".join(f"{len(split)} {name}" for name, split in task.data.splits.items())
    print(f"Everything is available: {rows} rows, model and tokenizer{'' if recipe is None else ', recipe'}.")
    print(f"scripts/{task_kind.name}.py with the same flags now needs no network. Set there:")
    places = {"HF_HOME": constants.HF_HOME, "SPARSEZOO_MODELS_PATH": models_path()}
    places |= {name: value for name, value in os.environ.items() if name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE")}
    print("  HF_HUB_OFFLINE=1", *(f"{name}={shlex.quote(str(value))}" for name, value in places.items()))


def task_of_words(words: list[str]) -> tuple[str, list[str]]:
    """Returns the name of a task, and the flags: the first word may be a task or the pasted name of its command.

    Raises:
        UsageError: the first word is neither, nor a flag or a file of flags.
    """
    default = next(iter(ARGUMENTS))
    if not words or words[0].startswith("-") or words[0].endswith(".json"):
        return default, words
    task = words[0].removesuffix(".py").replace("-", "_")
    for name in ARGUMENTS:
        if task.endswith(name):
            return name, words[1:]
    raise UsageError(
        f"'{words[0]}' is not a task.{nearest(task, ARGUMENTS)} Begin with one of {', '.join(ARGUMENTS)}, or with the "
        f"flags of {default}."
    )


def hub_repositories(arguments: TrainingArguments) -> list[tuple[str, str, str | None]]:
    """Returns (id, kind, revision) of each Hub repository that the flags name; kind is `model` or `dataset`."""
    found = []
    for flag in ("model_name_or_path", "config_name", "tokenizer_name", "distill_teacher"):
        name = getattr(arguments, flag)
        if name in (None, "disable", "self"):
            continue
        address = model_address(f"--{flag}", name, arguments.cache_dir)
        if local_folder(address) is None:
            found.append((address, "model", None if flag == "distill_teacher" else arguments.model_revision))
    if "task_name" in arguments.sources and vars(arguments)["task_name"]:
        from sparse_accel.tasks.text_classification.glue import GLUE

        found.append((GLUE[vars(arguments)["task_name"]].repository, "dataset", None))
    elif arguments.dataset_name and local_folder(arguments.dataset_name) is None:
        found.append((dataset_address(arguments.dataset_name), "dataset", None))
    return found


def check_digests(hub_id: str, kind: str, revision: str | None, cache_dir: str | None) -> None:
    """Compares a repository's files in the cache with the Hub's digests.

    Args:
        hub_id, kind, revision: the repository; kind is `model` or `dataset`.
        cache_dir: the Hub's cache; default: the Hub client's.

    Raises:
        UsageError: a file differs from the Hub's.
    """
    from huggingface_hub import HfApi

    try:
        result = HfApi().verify_repo_checksums(hub_id, repo_type=kind, revision=revision, cache_dir=cache_dir)
    except Exception as error:  # of the library, the HTTP client or the system: continue unchecked
        print(f"note: the digests of {hub_id} were not compared: {str(error).partition(chr(10))[0]}")
        return
    if result.mismatches:
        files = listed(mismatch["path"] for mismatch in result.mismatches)
        raise UsageError(
            f"{hub_id}: these files differ from the Hub's: {files}. Delete {result.verified_path.parent.parent} and "
            "run this again"
        )
    print(f"{hub_id}: {result.checked_count} files match the Hub's digests")


if __name__ == "__main__":
    run_main(main)
