"""Resolves a `zoo:` stub to a folder, a recipe file or a Hub id. Search order:

1. a local mirror in SparseZoo's layout (`SPARSEZOO_MODELS_PATH`, default its cache, ~/.cache/sparsezoo)
2. for a recipe: those that ship with this package; for a model: the Hugging Face Hub, which has some of the weights

SparseZoo's own service was shut down in June 2025; no other server is contacted.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from sparse_accel.console import rank
from sparse_accel.errors import UsageError, first_line, in_order, nearest
from sparse_accel.zoo.known import RECIPES, nearest_known, on_hub, shipped_names, shipped_recipe
from sparse_accel.zoo.mirror import (
    WEIGHTS,
    choose_recipe,
    find_in_mirror,
    model_in,
    models_path,
    recipe_name,
    recipes_in,
)
from sparse_accel.zoo.stubs import Stub, parse_stub

_MIRROR, _SHIPPED, _HUB = "local mirror", "recipes of this package", "Hugging Face Hub"


def refuse_api_url(text: str) -> None:
    """Refuses stubs while SPARSEZOO_API_URL is set: ignoring it silently could select another model or recipe.

    Args:
        text: the stub, for the message.

    Raises:
        UsageError: SPARSEZOO_API_URL is set.
    """
    if os.environ.get("SPARSEZOO_API_URL"):
        raise UsageError(
            f"{text}: SPARSEZOO_API_URL is set, but SparseZoo's service was shut down in June 2025: unset "
            "SPARSEZOO_API_URL. Instead, set SPARSEZOO_MODELS_PATH to a mirror folder that has the model or recipe; "
            f"use a model id of the Hugging Face Hub; or use a recipe that ships with this package, in {RECIPES}"
        )


class _Steps:
    """Places searched for a stub, and the outcome of each."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.tried: list[tuple[str, str]] = []

    def add(self, place: str, outcome: str) -> None:
        self.tried.append((place, outcome))

    def found(self, place: str, outcome: str) -> None:
        """Adds the last step, and prints all steps on process 0."""
        self.add(place, outcome)
        if rank() == 0:
            print(f"{self.stub.text}\n{in_order(self.tried)}", file=sys.stderr)

    def failed(self, *, recipe: bool) -> UsageError:
        what = "recipe" if recipe else "model"
        ways = (
            "save the recipe as a file and pass its path; set SPARSEZOO_MODELS_PATH to a mirror that has it; or use "
            "another recipe: for a classification task, start from that of SST-2 and change it with --recipe_args"
            if recipe
            else "pass a local folder; set SPARSEZOO_MODELS_PATH to a mirror that has it, or HF_ENDPOINT to a mirror "
            "of the Hub; or pass another id of the Hugging Face Hub"
        )
        meant = nearest_known(self.stub, recipe=recipe)
        return UsageError(
            f"{self.stub.text}: no {what} was found for this stub.{meant} SparseZoo was shut down in June 2025. "
            f"Tried, in order:\n{in_order(self.tried)}\nWays to fix this: {ways}"
        )


# --- recipes ----------------------------------------------------------------------------------------------------------


@functools.cache
def recipe_path(text: str) -> Path:
    """Returns the recipe file of a stub, and prints on stderr where it was found.

    Args:
        text: the stub.

    Raises:
        UsageError: not a stub, not found (the message lists the places searched), or SPARSEZOO_API_URL is set.
    """
    refuse_api_url(text)
    stub = parse_stub(text)
    steps = _Steps(stub)
    folder = find_in_mirror(stub)
    if folder is None:
        steps.add(_MIRROR, f"{models_path()} has no entry for it")
    elif (file := choose_recipe(recipes_in(folder), stub.recipe)) is not None:
        steps.found(_MIRROR, f"{file}{_default_of_several(stub, recipes_in(folder))}")
        return file
    else:
        steps.add(_MIRROR, _no_recipe(stub, folder))

    shipped = shipped_recipe(stub)
    if shipped is not None:
        steps.found(_SHIPPED, shipped.file + (f" ({shipped.about})" if shipped.about else ""))
        return RECIPES / shipped.file
    names = shipped_names(stub)
    known = f"its name there is {' or '.join(names)}.{nearest(stub.recipe, names)}" if names else "not among them"
    steps.add(_SHIPPED, known)
    raise steps.failed(recipe=True)


def _default_of_several(stub: Stub, files: list[Path]) -> str:
    if stub.recipe or len(files) == 1:
        return ""
    others = ", ".join(recipe_name(file) for file in files[1:])
    return f" (the default; with ?recipe=NAME also: {others})"


def _no_recipe(stub: Stub, folder: Path) -> str:
    names = [recipe_name(file) or "(the default)" for file in recipes_in(folder)]
    if not names:
        return f"{folder} contains no recipe"
    return f"{folder} has no recipe '{stub.recipe}'.{nearest(stub.recipe, names)} It has: {', '.join(names)}"


# --- models -----------------------------------------------------------------------------------------------------------


@functools.cache
def model_source(text: str, cache_dir: str | None = None) -> str:
    """Returns a folder or Hugging Face Hub id with the weights of a stub, and prints it on stderr.

    Args:
        text: the stub.
        cache_dir: the Hub's cache; default: the Hub client's.

    Raises:
        UsageError: not a stub, not found (the message lists the places searched), or SPARSEZOO_API_URL is set.
    """
    refuse_api_url(text)
    stub = parse_stub(text)
    steps = _Steps(stub)
    mirrored = find_in_mirror(stub)
    folder = model_in(mirrored) if mirrored else None
    if folder is not None:
        steps.found(_MIRROR, str(folder))
        return str(folder)
    steps.add(_MIRROR, f"{mirrored or models_path()} has no {'weights' if mirrored else 'such model'}")

    entry = on_hub(stub)
    if entry is None:
        steps.add(_HUB, "no repository is known for this stub")
    elif (problem := _missing_on_hub(entry.hub_id, cache_dir)) is None:
        steps.found(_HUB, f"{entry.hub_id} ({entry.about})")
        return entry.hub_id
    else:
        steps.add(_HUB, f"{entry.hub_id}: {problem}")
    raise steps.failed(recipe=False)


def _missing_on_hub(hub_id: str, cache_dir: str | None) -> str | None:
    """Returns why config.json and weights cannot be fetched from the Hub; None if they can or are in the cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    problem = ""
    try:
        hf_hub_download(hub_id, "config.json", cache_dir=cache_dir)
        for name in WEIGHTS:
            try:
                hf_hub_download(hub_id, name, cache_dir=cache_dir)
            except (EntryNotFoundError, LocalEntryNotFoundError) as error:  # the weights may be in another format
                problem = problem or first_line(error)
            else:
                return None
    except Exception as error:  # errors of the library, the HTTP client or the system
        return first_line(error)
    return problem
