"""`Model`, for code that was written for the `sparsezoo` package.

from sparse_accel.zoo import Model

recipe = Model(stub, download_path="./transfer_recipe").recipes.default.path
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from sparse_accel.errors import UsageError
from sparse_accel.files import to_disk, tree_to_disk
from sparse_accel.zoo.mirror import choose_recipe, is_known_as, model_in, recipe_name, recipes_in, remember_stub
from sparse_accel.zoo.resolve import model_source, recipe_path, refuse_api_url
from sparse_accel.zoo.stubs import is_stub, parse_stub


@dataclass(frozen=True)
class File:
    """A file of a model: `path` as a string, and `name`."""

    path: str

    @property
    def name(self) -> str:
        return Path(self.path).name


class Model:
    """A model of SparseZoo, given by its stub or a folder in SparseZoo's layout. Files are searched on access.

    Args:
        source: a `zoo:` stub or a folder.
        download_path: folder to copy accessed files to, with a `stub.txt` that identifies the model. Without it, files
            stay in the mirror, the package or the Hub's cache.

    Raises:
        UsageError: `source` is neither a stub nor a folder; or it is a stub and SPARSEZOO_API_URL is set. On access:
            the file was not found, or download_path contains the weights of another model.
    """

    def __init__(self, source: str, download_path: str | os.PathLike[str] | None = None) -> None:
        self.source = str(source)
        self.download_path = Path(download_path).expanduser() if download_path is not None else None
        if is_stub(self.source):
            refuse_api_url(self.source)
            parse_stub(self.source)
        elif not Path(self.source).is_dir():
            raise UsageError(f"{source} is neither a zoo: stub nor a folder")
        elif download_path is not None:
            raise UsageError(f"{source} is a folder, so download_path has no effect: remove it")

    @property
    def recipes(self) -> Recipes:
        """Returns the recipes of this model."""
        return Recipes(self)

    @property
    def training(self) -> File:
        """Returns the folder with configuration, weights and tokenizer."""
        return File(str(self._training()))

    @property
    def path(self) -> str:
        """Returns download_path, after copying `training` and any default recipe to it; else the model's own folder."""
        if self.download_path is not None:
            self._training()
            with contextlib.suppress(UsageError):
                self._recipe("")
            return str(self.download_path)
        folder = self._training()
        return str(folder.parent if folder.name == "training" else folder)

    def _training(self) -> Path:
        if not is_stub(self.source):
            folder = model_in(Path(self.source))
            if folder is None:
                raise UsageError(f"{self.source} contains no config.json with weights, also not in training/")
            return folder
        source = Path(_folder_of(model_source(self.source)))
        if self.download_path is None:
            return source
        stub, target = parse_stub(self.source), self.download_path / "training"
        if target.is_dir() and not is_known_as(self.download_path, stub):
            raise UsageError(f"{target} exists, and no stub.txt lists {self.source}: use another download_path")
        if not target.is_dir():
            partial = target.with_name(f".training.{os.getpid()}.partial")
            shutil.copytree(source, partial)
            tree_to_disk(partial)
            remember_stub(self.download_path, stub)
            try:
                os.replace(partial, target)
            except OSError:  # another process was first
                shutil.rmtree(partial)
                return self._training()
        return target

    def _recipe(self, name: str) -> Path:
        if not is_stub(self.source):
            file = choose_recipe(recipes_in(Path(self.source)), name)
            if file is None:
                raise UsageError(f"{self.source} contains no recipe" + (f" '{name}'" if name else ""))
            return file
        source = recipe_path(f"{self.source.partition('?')[0]}?recipe={name}" if name else self.source)
        if self.download_path is None:
            return source
        self.download_path.mkdir(parents=True, exist_ok=True)
        partial = self.download_path / f".{source.name}.{os.getpid()}.partial"
        shutil.copyfile(source, partial)
        to_disk(partial)
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
        """Returns the recipe named by the stub's `?recipe=`, else the model's default recipe."""
        return File(str(self._model._recipe("")))

    def get_recipe_by_name(self, name: str) -> File | None:
        """Returns the recipe with this name (as in `?recipe=NAME`) or file name; None if there is none."""
        try:
            return File(str(self._model._recipe(recipe_name(Path(name)) if "." in name else name)))
        except UsageError:
            return None


def _folder_of(source: str) -> str:
    """Returns a folder unchanged; for a Hub id, its snapshot folder in the cache (downloads it)."""
    if Path(source).is_dir():
        return source
    from huggingface_hub import snapshot_download

    return snapshot_download(source)
