"""Finds models and recipes in a local mirror with SparseZoo's folder layout.

    $SPARSEZOO_MODELS_PATH (default ~/.cache/sparsezoo)/
        NAMESPACE/SHORT_NAME/ or MODEL_ID/
            training/     config.json, weights, tokenizer
            deployment/   model.onnx, ...
            recipe/       recipe.md, recipe_NAME.md, ...; older models have them next to this folder
            model.md

A folder may also have the stub's long name as its path. If a folder contains `stub.txt`, the stubs in it (one per line)
identify the model, regardless of the folder's name; a folder named by a model id is found only this way.
"""

from __future__ import annotations

import os
from pathlib import Path

from sparse_accel.errors import UsageError
from sparse_accel.files import write_text
from sparse_accel.zoo.stubs import PREFIX, Stub, is_stub, parse_stub

STUB_FILE = "stub.txt"
_ENDINGS = (".md", ".yaml", ".yml")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def models_path() -> Path:
    """Returns the folder of the mirror. It is never written to.

    Raises:
        UsageError: SPARSEZOO_MODELS_PATH is in a home folder that does not exist.
    """
    named = os.environ.get("SPARSEZOO_MODELS_PATH")
    try:
        return Path(named or "~/.cache/sparsezoo").expanduser()
    except RuntimeError as error:
        raise UsageError(f"SPARSEZOO_MODELS_PATH is {named or 'not set'}: {error}. Set it to a folder") from error


def find_in_mirror(stub: Stub) -> Path | None:
    """Returns the folder of a stub's model in the mirror; None if there is none."""
    root = models_path()
    if not root.is_dir():
        return None
    places = [root / stub.name]
    if stub.short_name:
        places += [root / stub.short_name, *sorted(root.glob(f"*/{stub.short_name}"))]
    places += [file.parent for file in sorted([*root.glob(f"*/{STUB_FILE}"), *root.glob(f"*/*/{STUB_FILE}")])]
    for place in places:
        if place.is_dir() and (is_known_as(place, stub) or not (place / STUB_FILE).is_file()):
            return place
    return None


def is_known_as(folder: Path, stub: Stub) -> bool:
    """Returns whether the folder's `stub.txt` lists this stub."""
    record = folder / STUB_FILE
    return record.is_file() and any(stub.same_model_as(each) for each in _stubs_in(record))


def _stubs_in(record: Path) -> list[Stub]:
    """Returns the stubs in a file; words that are not stubs are ignored."""
    found = []
    for text in record.read_text(encoding="utf-8", errors="replace").split():
        try:
            found += [parse_stub(text)] if is_stub(text) else []
        except UsageError:
            continue
    return found


def remember_stub(folder: Path, stub: Stub) -> None:
    """Writes `stub.txt` into a folder; replaces the stubs listed before."""
    write_text(folder / STUB_FILE, f"{PREFIX}{stub.name}\n")


def model_in(folder: Path) -> Path | None:
    """Returns the folder with config.json and weights: `training/`, else the folder itself; None if neither."""
    for place in (folder / "training", folder):
        if (place / "config.json").is_file() and any((place / name).is_file() for name in WEIGHTS):
            return place
    return None


def recipes_in(folder: Path) -> list[Path]:
    """Returns the recipes of a folder, the default first: recipe.*, then recipe_original.*, then by name."""
    there = [*folder.glob("recipe*"), *(folder / "recipe").glob("recipe*")]
    files = [file for file in there if file.is_file() and file.suffix.lower() in _ENDINGS]
    order = {"": 0, "original": 1}
    return sorted(files, key=lambda file: (order.get(recipe_name(file), 2), file.name))


def recipe_name(file: Path) -> str:
    """Returns the `?recipe=` name of a recipe file: NAME of recipe_NAME.md, empty for recipe.md."""
    return file.stem.removeprefix("recipe").removeprefix("_")


def choose_recipe(files: list[Path], name: str) -> Path | None:
    """Returns the recipe file with this name; None if there is none.

    As in SparseZoo, the beginning of a name is enough. An empty name selects the default, and so does `original` if no
    file has that name.

    Args:
        files: from `recipes_in`.
        name: from `?recipe=`; may be empty.

    Raises:
        UsageError: several names begin with `name`.
    """
    if not name:
        return files[0] if files else None
    exact = [file for file in files if recipe_name(file) == name]
    found = exact or [file for file in files if recipe_name(file).startswith(name)]
    if not found and name == "original":
        found = [file for file in files if not recipe_name(file)]
    names = sorted({recipe_name(file) for file in found})
    if len(names) > 1:
        raise UsageError(f"?recipe={name} is ambiguous in {found[0].parent}: write one of {', '.join(names)}")
    return found[0] if found else None
