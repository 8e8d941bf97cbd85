"""A Hugging Face Hub on loopback, small enough to read: what `datasets`, `transformers` and `huggingface_hub` ask for.

The real loading code runs against it, in a process whose environment has HF_ENDPOINT set before any import:

    hub = StandInHub(tmp_path / "hub")
    hub.add_dataset("owner/name", {"data/train.parquet": path_or_bytes})
    hub.add_model("owner/name", folder)
    with hub:
        subprocess.run([...], env=hub.environment(tmp_path / "home"))

It answers /api/{datasets,models}/ID[/revision/REV], .../tree/REV[/PATH], .../paths-info/REV and
/[datasets/]ID/resolve/REV/FILE. Every repository has one commit. A file can misbehave:
`hub.faults["owner/name/FILE"] = [Fault.half, ...]`, one fault for each request of its content, then none.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopback import Fault, Loopback, QuietHandler

_HUGE = 10**13


class StandInHub(Loopback):
    """Repositories as folders under `root`, served while the context is open.

    Attributes:
        root: root/datasets/OWNER/NAME/... and root/models/OWNER/NAME/...
        url: what HF_ENDPOINT must say.
        requests: "METHOD path" of each request so far.
        faults: by id and file, what goes wrong with the next requests of its content.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self.faults: dict[str, list[Fault]] = {}
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
        return kept | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}


class _Handler(QuietHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.owner.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in ("datasets", "models"):
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
            siblings = [{"rfilename": str(file.relative_to(folder))} for file in files]
            about = {"id": name, "sha": _commit(name), "private": False, "gated": False, "disabled": False}
            more = {"tags": [], "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"}
            self._json(about | more | {"modelId": name, "createdAt": "2026-01-01T00:00:00.000Z", "siblings": siblings})

    def _answer_file(self, kind: str, name: str, path: str) -> None:
        file = self.owner.root / kind / name / path
        if not file.is_file():
            self._missing("EntryNotFound" if (self.owner.root / kind / name).is_dir() else "RepoNotFound")
            return
        content = file.read_bytes()
        first, status = 0, 200
        headers = {"X-Repo-Commit": _commit(name), "ETag": f'"{_oid(file)}"', "Accept-Ranges": "bytes"}
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

    def _missing(self, code: str) -> None:
        self._send(404, b'{"error": "not found"}', "application/json", {"X-Error-Code": code})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), "application/json", {})

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _commit(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


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
