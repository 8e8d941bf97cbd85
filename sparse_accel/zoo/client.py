"""SparseZoo's API, spoken by ourselves: the `sparsezoo` package no longer imports, and it reported its users.

One GraphQL question lists a model's files; each has an address, a size and a kind. Nothing else is ever sent.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_accel.zoo.downloads import DownloadError, download, http_client, is_inside, unpack
from sparse_accel.zoo.mirror import models_path, remember_stub
from sparse_accel.zoo.stubs import Stub

_WAIT_FOR_ANOTHER = 3600.0  # seconds, while another process downloads the same


@dataclass(frozen=True)
class RemoteFile:
    """One file of a model: its name, kind, address, and size in bytes if the API says it."""

    name: str
    kind: str
    url: str
    size: int | None


@dataclass(frozen=True)
class RemoteModel:
    """What the API knows of a stub: its folder in the mirror's layout, and its files."""

    folder: str
    files: list[RemoteFile]

    def select(self, kind: str) -> list[RemoteFile]:
        """The files of `training`, `deployment` or `recipe`: the folder's archive, or all of them."""
        kinds = ("training", "framework") if kind == "training" else (kind,)  # framework: its older name
        found = [file for file in self.files if file.kind in kinds]
        archive = [file for file in found if file.name == f"{kind}.tar.gz"]
        return archive or [file for file in found if not file.name.endswith(".tar.gz")]


def api_url() -> str | None:
    """Where the API is; None where nobody said so. Its own service was ended, so there is no default."""
    return (os.environ.get("SPARSEZOO_API_URL") or "").rstrip("/") or None


def ask(stub: Stub, url: str) -> RemoteModel | None:
    """Asks the API for a stub's files. Returns None where it has no such model.

    Raises:
        DownloadError: it cannot be reached, or answers what makes no sense.
    """
    import httpx

    wanted = "modelId repoName repoNamespace files(version: 2) { displayName downloadUrl fileSize fileType }"
    query = f"{{ models({_arguments(stub)}) {{ {wanted} }} }}"
    try:
        with http_client() as client:
            response = client.post(f"{url}/v2/graphql", json={"query": query})
    except httpx.HTTPError as error:
        raise DownloadError(f"{url} cannot be reached: {error or type(error).__name__}") from error
    if response.status_code != 200:
        raise DownloadError(f"{url} answers {response.status_code} {response.reason_phrase}")
    try:
        answer = response.json()
        if answer.get("errors"):
            raise DownloadError(f"{url} refuses the question: {json.dumps(answer['errors'])[:200]}")
        models = answer["data"]["models"]
        return _read(models[0], url) if models else None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DownloadError(f"{url} answers with something that is no list of models ({error!r})") from error


def _arguments(stub: Stub) -> str:
    if not stub.is_long:
        return f"repoName: {json.dumps(stub.name)}"
    names = {
        "domain": "domain",
        "task": "task",
        "architecture": "architecture",
        "size": "subArchitecture",
        "framework": "framework",
        "repo": "repo",
        "dataset": "sourceDataset",
        "tag": "sparseTag",
    }
    parts = stub.parts
    return ", ".join(f"{theirs}: {json.dumps(parts[ours])}" for ours, theirs in names.items() if ours in parts)


def _read(model: dict[str, Any], url: str) -> RemoteModel:
    files = []
    for entry in model["files"]:
        name, kind, size = str(entry["displayName"]), str(entry["fileType"]), entry.get("fileSize")
        if not is_inside(name):
            raise DownloadError(f"{url} lists a file '{name}', which leads outside of its folder")
        if kind == "recipe" and not name.startswith("recipe"):
            name = f"recipe_{name}"  # older entries have the name alone
        known_size = int(float(size)) if re.fullmatch(r"\d+(\.0*)?", str(size)) else None
        files.append(RemoteFile(name, kind, str(entry["downloadUrl"]), known_size))
    names = [model.get("repoNamespace"), model.get("repoName")]
    folder = "/".join(str(name) for name in names) if all(names) else str(model["modelId"])
    if not is_inside(folder):
        raise DownloadError(f"{url} names a folder '{folder}', which leads outside of the mirror")
    return RemoteModel(folder, files)


def fetch(stub: Stub, remote: RemoteModel, kind: str) -> Path:
    """Downloads the files of one kind into the mirror and returns the model's folder there.

    A folder appears when all of its files are whole; what is there of them after an interruption is used.

    Raises:
        DownloadError: there are none of that kind, or one does not come.
    """
    from filelock import FileLock

    files = remote.select(kind)
    if not files:
        raise DownloadError(f"the API lists no files of kind '{kind}'")
    root = models_path()
    target = root / remote.folder
    (root / ".locks").mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".locks" / f"{remote.folder.replace('/', '--')}.lock", timeout=_WAIT_FOR_ANOTHER):
        if not (target / kind).is_dir():
            partial = target / f".{kind}.partial"
            _fetch_into(partial, [file for file in files if not _is_whole(partial / file.name, file.size)])
            os.replace(_unpacked(partial, kind), target / kind)
            shutil.rmtree(partial, ignore_errors=True)
        remember_stub(target, stub)
    return target


def _is_whole(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)


def _fetch_into(folder: Path, files: list[RemoteFile]) -> None:
    with http_client() as client:
        for file in files:
            download(client, file.url, folder / file.name, file.size)


def _unpacked(folder: Path, kind: str) -> Path:
    """The folder itself, or where it holds an archive of all, that archive's content."""
    archive = folder / f"{kind}.tar.gz"
    if not archive.is_file():
        return folder
    inside = folder / "unpacked"
    shutil.rmtree(inside, ignore_errors=True)
    try:
        unpack(archive, inside)
    except DownloadError:
        shutil.rmtree(folder)  # it would be as wrong the next time
        raise
    return inside / kind if (inside / kind).is_dir() else inside
