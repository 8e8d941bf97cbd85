"""A Hugging Face Hub on loopback, small enough to read: what `datasets`, `transformers` and `huggingface_hub` ask for.

The real loading code runs against it, in a process whose environment has HF_ENDPOINT set before any import:

    hub = StandInHub(tmp_path / "hub")
    hub.add_dataset("owner/name", {"data/train.parquet": path_or_bytes})
    hub.add_model("owner/name", folder)
    with hub:
        subprocess.run([...], env=hub.environment(tmp_path / "home"))

It answers /api/{datasets,models}/ID[/revision/REV], .../tree/REV[/PATH], .../paths-info/REV and
/[datasets/]ID/resolve/REV/FILE. A file can misbehave: `hub.faults["owner/name/FILE"] = [Fault.half, ...]`, one fault
for each request of its content, then none.

Models can be uploaded, with HF_TOKEN set to a key of `tokens`: whoami, create, preupload, LFS and commits. Only the
newest commit has its files. An upload can be cut off: `hub.cut_uploads = 3` for the next three large files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from loopback import Fault, Loopback, QuietHandler

NOTHING: Mapping[str, str] = {}
_HUGE = 10**13
# Files that the Hub keeps as large ones, by the .gitattributes of a new repository.
_LARGE = (".safetensors", ".onnx", ".xz", ".bin")


@dataclass(frozen=True)
class User:
    """Whose token it is, and what it may do.

    Attributes:
        role: `write` or `read`.
        may_write: the owners whose repositories the token may write.
    """

    name: str
    role: str = "write"
    may_write: tuple[str, ...] = ()


@dataclass(frozen=True)
class Commit:
    """One upload: its title, the paths that it wrote, the paths that it deleted."""

    title: str
    written: tuple[str, ...]
    deleted: tuple[str, ...]


class StandInHub(Loopback):
    """Repositories as folders under `root`, served while the context is open.

    Attributes:
        root: root/datasets/OWNER/NAME/... and root/models/OWNER/NAME/...
        url: what HF_ENDPOINT must say.
        requests: "METHOD path" of each request so far.
        faults: by id and file, what goes wrong with the next requests of its content.
        tokens: by token, whose it is.
        commits: by id of a model, its uploads.
        private: the ids of private models.
        cut_uploads: how many of the next uploads of large files end in the middle.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self.faults: dict[str, list[Fault]] = {}
        self.tokens: dict[str, User] = {}
        self.commits: dict[str, list[Commit]] = {}
        self.private: set[str] = set()
        self.cut_uploads = 0
        self.large: dict[str, bytes] = {}  # uploaded contents by their SHA-256
        super().__init__(_Handler)

    def add_dataset(self, name: str, files: Mapping[str, bytes | str | Path] | Path) -> None:
        """Adds a dataset repository: paths inside it and their contents (or files to copy), or a folder to copy."""
        self._add("datasets", name, files)

    def add_model(self, name: str, files: Mapping[str, bytes | str | Path] | Path) -> None:
        """Adds a model repository, likewise."""
        self._add("models", name, files)

    def _add(self, kind: str, name: str, files: Mapping[str, bytes | str | Path] | Path) -> None:
        if isinstance(files, Path):
            files = {str(each.relative_to(files)): each for each in files.rglob("*") if each.is_file()}
        for path, content in files.items():
            target = self.root / kind / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            content = content.read_bytes() if isinstance(content, Path) else content
            target.write_bytes(content.encode() if isinstance(content, str) else content)

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a process that takes this for the Hub, and keeps its cache in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        proxies = {name for name in kept if name.lower().endswith("_proxy")}
        kept = {name: value for name, value in kept.items() if name not in proxies}
        kept |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return kept | {"HF_ENDPOINT": self.url, "HF_HOME": str(home)}

    def head(self, name: str) -> str:
        """The newest commit of a repository."""
        return hashlib.sha1(f"{name}{len(self.commits.get(name, ())) or ''}".encode()).hexdigest()


class _Handler(QuietHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._take_large()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.owner.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if path in ("/api/whoami-v2", "/api/repos/create", "/api/validate-yaml"):
            self._answer_account(path, body)
        elif self.command == "POST" and parts[:2] == ["api", "models"] and parts[4:5] in (["preupload"], ["commit"]):
            self._answer_upload("/".join(parts[2:4]), parts[4], body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._answer_large(json.loads(body))
        elif parts[0] == "api" and len(parts) >= 4 and parts[1] in ("datasets", "models"):
            self._answer_api(parts[1], "/".join(parts[2:4]), parts[4:], body)
        elif "resolve" in parts:
            parts = [part for part in parts if part != "moved"]
            kind = parts.pop(0) if parts[0] == "datasets" else "models"
            self._answer_file(kind, "/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._missing("RepoNotFound")

    def _answer_api(self, kind: str, name: str, rest: list[str], body: bytes) -> None:
        folder = self.owner.root / kind / name
        if not folder.is_dir():
            self._missing("RepoNotFound")
            return
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if rest[:1] == ["tree"]:
            under = folder.joinpath(*rest[2:])
            found = [_entry(folder, file) for file in files if under in (file, *file.parents)]
            folders = {each for file in files for each in file.parents if under in each.parents}
            found += [_directory(folder, each) for each in sorted(folders)]
            if found:
                self._json(found)
            else:
                self._missing("EntryNotFound")
        elif rest[:1] == ["paths-info"]:
            fields = urllib.parse.parse_qs(body.decode()) if not body.startswith(b"{") else json.loads(body)
            wanted = [folder / path for path in fields.get("paths", [])]
            entries = [_entry(folder, file) for file in files if file in wanted]
            entries += [_directory(folder, each) for each in wanted if each.is_dir()]
            self._json(entries)
        else:
            siblings = [_sibling(folder, file) for file in files]
            private = name in self.owner.private
            about = {"id": name, "sha": self.owner.head(name), "private": private, "gated": False, "disabled": False}
            more = {"tags": [], "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"}
            self._json(about | more | {"modelId": name, "createdAt": "2026-01-01T00:00:00.000Z", "siblings": siblings})

    def _answer_file(self, kind: str, name: str, path: str) -> None:
        file = self.owner.root / kind / name / path
        if not file.is_file():
            if (self.owner.root / kind / name).is_dir():
                self._missing("EntryNotFound", {"X-Repo-Commit": self.owner.head(name)})
            else:
                self._missing("RepoNotFound")
            return
        content = file.read_bytes()
        first, status = 0, 200
        headers = {"X-Repo-Commit": self.owner.head(name), "ETag": f'"{_oid(file)}"', "Accept-Ranges": "bytes"}
        faults = self.owner.faults.get(f"{name}/{path}", [])
        fault = faults[0] if faults else None
        if fault is Fault.elsewhere and "/moved/" not in self.path:  # as large files are, to another place
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"]}
            self._send(302, b"", "text/plain", headers | {"Location": f"{self.owner.url}/moved{self.path}"})
            return
        if self.command == "GET" and faults:
            faults.pop(0)
        if fault in (Fault.error, Fault.missing):
            code = {} if fault is Fault.error else {"X-Error-Code": "EntryNotFound"}
            self._send(500 if fault is Fault.error else 404, b"", "text/plain", code)
            return
        if fault is Fault.flipped:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        if (asked := self.headers.get("Range", "")).startswith("bytes="):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(start or 0), min(int(end or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        if fault is Fault.huge:
            headers["Content-Length"] = str(_HUGE)
        if fault in (Fault.half, Fault.silence) and self.command == "GET":
            headers["Content-Length"], content = str(len(content)), content[: len(content) // 2]
        self._send(status, content, "application/octet-stream", headers)
        if fault in (Fault.half, Fault.huge):
            self.close_connection = True
        if fault is Fault.silence and self.command == "GET":
            self.wfile.flush()
            time.sleep(600)

    def _missing(self, code: str, more: Mapping[str, str] = NOTHING) -> None:
        self._send(404, b'{"error": "not found"}', "application/json", {"X-Error-Code": code, **more})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", {})

    # --- uploads ------------------------------------------------------------------------------------------------------

    def _user(self) -> User | None:
        """Whose token was sent; answers the request if it is nobody's."""
        user: User | None = self.owner.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if user is None:
            self._json({"error": "Invalid credentials in Authorization header"}, 401)
        return user

    def _may_write(self, name: str) -> bool:
        if (user := self._user()) is None:
            return False
        owner = name.partition("/")[0]
        if user.role != "write" or owner not in (user.name, *user.may_write):
            self._json({"error": f"You don't have the rights to create a model under the namespace {owner!r}"}, 403)
            return False
        return True

    def _answer_account(self, path: str, body: bytes) -> None:
        if path == "/api/validate-yaml":
            problems = card_problems(json.loads(body)["content"])
            self._json({"errors": problems, "warnings": []}, 400 if problems else 200)
        elif path == "/api/whoami-v2":
            if (user := self._user()) is not None:
                self._json({"name": user.name, "type": "user", "auth": {"accessToken": {"role": user.role}}})
        else:
            wanted = json.loads(body)
            name = f"{wanted['organization'] or self._name_of_user()}/{wanted['name']}"
            if not self._may_write(name):
                return
            folder = self.owner.root / "models" / name
            exists = folder.is_dir()
            folder.mkdir(parents=True, exist_ok=True)
            if not exists and wanted.get("visibility") == "private":
                self.owner.private.add(name)
            if not exists:
                (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
            self._json({"url": f"{self.owner.url}/{name}"}, 409 if exists else 200)

    def _name_of_user(self) -> str:
        user = self.owner.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        return user.name if user else ""

    def _answer_upload(self, name: str, what: str, body: bytes) -> None:
        folder = self.owner.root / "models" / name
        if not self._may_write(name):
            return
        if not folder.is_dir():
            self._missing("RepoNotFound")
        elif what == "preupload":
            files = []
            for each in json.loads(body)["files"]:
                there, large = folder / each["path"], each["path"].endswith(_LARGE)
                oid = (_sha256(there) if large else _oid(there)) if there.is_file() else None
                mode = "lfs" if large else "regular"
                files.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self._json({"files": files})
        else:
            self._commit(name, folder, [json.loads(line) for line in body.splitlines()])

    def _commit(self, name: str, folder: Path, lines: list[dict[str, Any]]) -> None:
        header, *changes = (line["value"] for line in lines)
        if header.get("parentCommit", self.owner.head(name)) != self.owner.head(name):
            self._json({"error": "A commit has happened since."}, 412)
            return
        written, deleted = [], []
        for kind, change in zip((line["key"] for line in lines[1:]), changes, strict=True):
            target = folder / change["path"]
            if kind == "deletedFile":
                target.unlink()
                deleted.append(change["path"])
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            is_large = kind == "lfsFile"
            target.write_bytes(self.owner.large[change["oid"]] if is_large else base64.b64decode(change["content"]))
            written.append(change["path"])
        made = Commit(header["summary"], tuple(sorted(written)), tuple(sorted(deleted)))
        self.owner.commits.setdefault(name, []).append(made)
        head = self.owner.head(name)
        self._json({"commitUrl": f"{self.owner.url}/{name}/commit/{head}", "commitOid": head, "success": True})

    def _answer_large(self, asked: dict[str, Any]) -> None:
        objects: list[dict[str, Any]] = [{"oid": each["oid"], "size": each["size"]} for each in asked["objects"]]
        for each in objects:
            if each["oid"] not in self.owner.large:
                each["actions"] = {"upload": {"href": f"{self.owner.url}/large/{each['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def _take_large(self) -> None:
        self.owner.requests.append(f"PUT {self.path}")
        size, oid = int(self.headers["Content-Length"]), self.path.rpartition("/")[2]
        if self.owner.cut_uploads:
            self.owner.cut_uploads -= 1
            self.rfile.read(size // 2)
            self.close_connection = True
            return
        content = self.rfile.read(size)
        assert hashlib.sha256(content).hexdigest() == oid
        self.owner.large[oid] = content
        self._send(200, b"", "text/plain", {})

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def card_problems(text: str) -> list[dict[str, str]]:
    """What the Hub would not accept in a model card's metadata, as its errors: a part of its rules."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    data = yaml.safe_load(found[1]) if found else {}
    problems = []
    texts: tuple[type, ...] = (str,)
    kinds: dict[str, tuple[type, ...]] = dict.fromkeys(("license", "pipeline_tag", "library_name"), texts)
    kinds |= {"datasets": (list, str), "base_model": (list, str), "tags": (list,), "metrics": (list,)}
    for key, allowed in kinds.items():
        if key in data and not isinstance(data[key], allowed):
            problems.append(f'"{key}" must be one of {allowed}')
    ids = [each for key in ("datasets", "base_model") for each in _listed(data.get(key))]
    problems += [f'"{each}" is not a valid id' for each in ids if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", each)]
    for model in data.get("model-index") or []:
        for result in model["results"]:
            if not result["task"].get("type") or not {"type", "name"} <= result["dataset"].keys():
                problems.append('"model-index" needs task.type, dataset.type and dataset.name')
            problems += [
                "a metric needs type and value" for each in result["metrics"] if not {"type", "value"} <= each.keys()
            ]
    return [{"message": problem} for problem in problems]


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value or []


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _sibling(folder: Path, file: Path) -> dict[str, Any]:
    size, about = file.stat().st_size, {"rfilename": str(file.relative_to(folder)), "blobId": _oid(file)}
    if not file.name.endswith(_LARGE):
        return about | {"size": size}
    return about | {"size": size, "lfs": {"sha256": _sha256(file), "size": size, "pointerSize": 134}}


def _oid(file: Path) -> str:
    """The name that git gives to a file's content."""
    content = file.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _directory(folder: Path, each: Path) -> dict[str, Any]:
    return {"type": "directory", "path": str(each.relative_to(folder)), "oid": "0"}


def _entry(folder: Path, file: Path) -> dict[str, Any]:
    return {
        "type": "file",
        "path": str(file.relative_to(folder)),
        "oid": _oid(file),
        "size": file.stat().st_size,
    }
