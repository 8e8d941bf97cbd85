"""`Model`, the part of the `sparsezoo` package that its users' own code calls.

from sparse_accel.zoo import Model

recipe = Model(stub, download_path="./transfer_recipe").recipes.default.path
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from sparse_accel.errors import UsageError
from sparse_accel.zoo.mirror import choose_recipe, model_in, recipe_name, recipes_in
from sparse_accel.zoo.resolve import model_source, recipe_path
from sparse_accel.zoo.stubs import is_stub, parse_stub


@dataclass(frozen=True)
class File:
    """A file of a model: `path`, as a text, and `name`."""

    path: str

    @property
    def name(self) -> str:
        return Path(self.path).name


class Model:
    """A model of SparseZoo, by its stub or a folder in SparseZoo's layout. Files are fetched when they are asked for.

    Args:
        source: a `zoo:` stub, or a folder.
        download_path: a folder to copy what is asked for into; left out, it stays in the mirror or the package.

    Raises:
        UsageError: no stub and no folder; later, when a file is asked for, that it was not found.
    """

    def __init__(self, source: str, download_path: str | os.PathLike[str] | None = None) -> None:
        self.source = str(source)
        self.download_path = Path(download_path).expanduser() if download_path is not None else None
        if is_stub(self.source):
            parse_stub(self.source)
        elif not Path(self.source).is_dir():
            raise UsageError(f"{source} is neither a zoo: stub nor a folder")
        elif download_path is not None:
            raise UsageError(f"download_path does nothing for a folder, and {source} is one: leave it out")

    @property
    def recipes(self) -> Recipes:
        """Its recipes."""
        return Recipes(self)

    @property
    def training(self) -> File:
        """The folder with configuration, weights and tokenizer."""
        return File(str(self._training()))

    @property
    def path(self) -> str:
        """The folder that `training` and recipes are copied to; without download_path, the model's own."""
        if self.download_path is not None:
            self._training()
            return str(self.download_path)
        folder = self._training()
        return str(folder.parent if folder.name == "training" else folder)

    def _training(self) -> Path:
        if not is_stub(self.source):
            folder = model_in(Path(self.source))
            if folder is None:
                raise UsageError(f"{self.source} holds no configuration with weights, in training/ or itself")
            return folder
        source = Path(_folder_of(model_source(self.source)))
        if self.download_path is None:
            return source
        target = self.download_path / "training"
        if not target.is_dir():
            partial = target.with_name(f".training.{os.getpid()}.partial")
            shutil.copytree(source, partial)
            os.replace(partial, target)
        return target

    def _recipe(self, name: str) -> Path:
        if not is_stub(self.source):
            file = choose_recipe(recipes_in(Path(self.source)), name)
            if file is None:
                raise UsageError(f"{self.source} holds no recipe" + (f" '{name}'" if name else ""))
            return file
        source = recipe_path(f"{self.source.partition('?')[0]}?recipe={name}" if name else self.source)
        if self.download_path is None:
            return source
        self.download_path.mkdir(parents=True, exist_ok=True)
        partial = self.download_path / f".{source.name}.{os.getpid()}.partial"
        shutil.copyfile(source, partial)
        os.replace(partial, self.download_path / source.name)
        return self.download_path / source.name

    def __repr__(self) -> str:
        return f"Model({self.source!r})"


class Recipes:
    """The recipes of a model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @property
    def default(self) -> File:
        """The recipe that the stub's `?recipe=` names, else the model's own."""
        return File(str(self._model._recipe("")))

    def get_recipe_by_name(self, name: str) -> File | None:
        """Returns a recipe by its name in `?recipe=NAME`, or by its file's; None where there is none."""
        try:
            return File(str(self._model._recipe(recipe_name(Path(name)) if "." in name else name)))
        except UsageError:
            return None


def _folder_of(source: str) -> str:
    """The folder itself, or where the Hub's cache holds what an id names."""
    if Path(source).is_dir():
        return source
    from huggingface_hub import snapshot_download

    return snapshot_download(source)
