"""From a `zoo:` stub to a folder, a recipe's file, or a Hub id: the places that are tried, in order, and what is said.

1. a local mirror in SparseZoo's layout (`SPARSEZOO_MODELS_PATH`, default its cache, ~/.cache/sparsezoo)
2. the recipes that ship with this package (for a recipe)
3. the Hugging Face Hub, where the weights of some stubs live today (for a model)
4. SparseZoo's API, where `SPARSEZOO_API_URL` says one is; what it gives is kept in the mirror
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from sparse_accel.console import rank
from sparse_accel.errors import UsageError, first_line, in_order, nearest
from sparse_accel.zoo.client import api_url, ask, fetch
from sparse_accel.zoo.downloads import DownloadError
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

_MIRROR, _SHIPPED, _HUB, _API = "local mirror", "recipes of this package", "Hugging Face Hub", "SparseZoo's API"


class _Steps:
    """What was tried for a stub, and how it went."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tried: list[tuple[str, str]] = []

    def add(self, place: str, outcome: str) -> None:
        self.tried.append((place, outcome))

    def found(self, place: str, outcome: str) -> None:
        """Adds the last step and prints them all, once for all processes."""
        self.add(place, outcome)
        if rank() == 0:
            print(f"{self.text}\n{in_order(self.tried)}", file=sys.stderr)

    def failed(self, stub: Stub, *, recipe: bool) -> UsageError:
        what = "recipe" if recipe else "model"
        ways = (
            "save the recipe as a file and pass its path; set SPARSEZOO_MODELS_PATH to a mirror that has it; or take "
            "another recipe: for a classification task, that of SST-2 is a start, changed by --recipe_args"
            if recipe
            else "pass a local folder; set SPARSEZOO_MODELS_PATH or SPARSEZOO_API_URL to a mirror that has it, or "
            "HF_ENDPOINT to one of the Hub; or pass another id, of the Hugging Face Hub"
        )
        return UsageError(
            f"{self.text}: no {what} was found for this stub.{nearest_known(stub, recipe=recipe)} Tried, in order:\n"
            f"{in_order(self.tried)}\nThree ways out: {ways}"
        )


# --- recipes ----------------------------------------------------------------------------------------------------------


@functools.cache
def recipe_path(text: str) -> Path:
    """Returns the file of the recipe that a stub names, and says on stderr where it was found.

    Raises:
        UsageError: no stub, or none of the places has it; the message lists them.
    """
    stub, steps = parse_stub(text), _Steps(text)
    folder = find_in_mirror(stub)
    if folder is None:
        steps.add(_MIRROR, f"{models_path()} has nothing of that name")
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
    known = f"it is called {' or '.join(names)} there.{nearest(stub.recipe, names)}" if names else "not among them"
    steps.add(_SHIPPED, known)

    folder = _from_api(stub, steps, "recipe")
    if folder is not None:
        file = choose_recipe(recipes_in(folder), stub.recipe)
        if file is not None:
            steps.found(_API, f"{file}{_default_of_several(stub, recipes_in(folder))}")
            return file
        steps.add(_API, _no_recipe(stub, folder))
    raise steps.failed(stub, recipe=True)


def _default_of_several(stub: Stub, files: list[Path]) -> str:
    if stub.recipe or len(files) == 1:
        return ""
    others = ", ".join(recipe_name(file) for file in files[1:])
    return f" (the default; with ?recipe=NAME also: {others})"


def _no_recipe(stub: Stub, folder: Path) -> str:
    names = [recipe_name(file) or "(the default)" for file in recipes_in(folder)]
    if not names:
        return f"{folder} holds no recipe"
    return f"{folder} has no recipe '{stub.recipe}'.{nearest(stub.recipe, names)} It has: {', '.join(names)}"


# --- models -----------------------------------------------------------------------------------------------------------


@functools.cache
def model_source(text: str, cache_dir: str | None = None) -> str:
    """Returns a folder, or an id of the Hugging Face Hub, with the weights of a stub, and says on stderr which.

    Args:
        text: the stub.
        cache_dir: the Hub's cache, if it is not the usual one.

    Raises:
        UsageError: no stub, or none of the places has it; the message lists them.
    """
    stub, steps = parse_stub(text), _Steps(text)
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

    mirrored = _from_api(stub, steps, "training")
    folder = model_in(mirrored) if mirrored else None
    if folder is not None:
        steps.found(_API, str(folder))
        return str(folder)
    if mirrored is not None:
        steps.add(_API, f"{mirrored} has no weights that can be read")
    raise steps.failed(stub, recipe=False)


def _missing_on_hub(hub_id: str, cache_dir: str | None) -> str | None:
    """Why the Hub does not give configuration and weights of a repository; None when it does, or the cache has them."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    problem = ""
    try:
        hf_hub_download(hub_id, "config.json", cache_dir=cache_dir)
        for name in WEIGHTS:
            try:
                hf_hub_download(hub_id, name, cache_dir=cache_dir)
            except (EntryNotFoundError, LocalEntryNotFoundError) as error:  # perhaps in another format
                problem = problem or first_line(error)
            else:
                return None
    except Exception as error:  # the library raises its own, the HTTP client's, and the system's
        return first_line(error)
    return problem


# --- the API ----------------------------------------------------------------------------------------------------------


def _from_api(stub: Stub, steps: _Steps, kind: str) -> Path | None:
    """Downloads what the API has of a stub and returns its folder; None, and a step, where it does not."""
    url = api_url()
    if url is None:
        steps.add(_API, "SPARSEZOO_API_URL is not set, and the service itself was ended in June 2025")
        return None
    try:
        remote = ask(stub, url)
        if remote is None:
            steps.add(_API, f"{url} knows no such model")
            return None
        return fetch(stub, remote, kind)
    except (DownloadError, OSError) as error:
        steps.add(_API, str(error))
        return None
