"""SparseZoo's API on loopback: its one GraphQL question, and the files that the answer points to.

    zoo = StandInZoo()
    zoo.add(stub, {"recipe.md": ("recipe", b"..."), "config.json": ("training", b"...")})
    with zoo:
        ...  # SPARSEZOO_API_URL=zoo.url

A file can misbehave: `zoo.faults[name] = [Fault.half, ...]`, one fault for each request, then none.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from loopback import Fault, Loopback, QuietHandler

from sparse_accel.zoo import parse_stub


class StandInZoo(Loopback):
    """Models by stub, served while the context is open.

    Attributes:
        url: what SPARSEZOO_API_URL must say.
        requests: "METHOD path range" of each request so far, and the question of each POST.
        faults: by file name, what goes wrong with its next requests.
        sizes: by file name, a size to announce instead of the real one.
        digests: whether answers carry them.
    """

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = []
        self.contents: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.questions: list[str] = []
        self.faults: dict[str, list[Fault]] = {}
        self.sizes: dict[str, int] = {}
        self.digests = True
        self.status = 200
        super().__init__(_Handler)

    def add(self, stub: str, files: Mapping[str, tuple[str, bytes]], *, model_id: str = "", named: bool = True) -> None:
        """Adds a model: its files as (kind, content) by name. One that is not `named` is known by its id alone."""
        parsed = parse_stub(stub)
        number = str(len(self.models))
        for name, (_, content) in files.items():
            self.contents[f"{number}/{name}"] = content
        self.models.append(
            {
                "stub": parsed,
                "modelId": model_id or f"id-{number}",
                "repoName": parsed.short_name if named else None,
                "repoNamespace": "neuralmagic" if named else None,
                "files": {name: kind for name, (kind, _) in files.items()},
                "number": number,
            }
        )

    def answer(self, question: str) -> dict[str, Any]:
        """The API's answer to a question."""
        self.questions.append(question)
        asked = dict(re.findall(r'(\w+): "([^"]*)"', question))
        names = {"task": "task", "sourceDataset": "dataset", "sparseTag": "tag", "subArchitecture": "size"}
        wanted = {names.get(key, key): value for key, value in asked.items()}
        found = []
        for model in self.models:
            if wanted in (model["stub"].parts, {"repoName": model["repoName"]}):
                files = [self._entry(model["number"], name, kind) for name, kind in model["files"].items()]
                entry = {key: model[key] for key in ("modelId", "repoName", "repoNamespace")}
                found.append({**entry, "files": files})
        return {"data": {"models": found}}

    def _entry(self, number: str, name: str, kind: str) -> dict[str, Any]:
        size = self.sizes.get(name, len(self.contents[f"{number}/{name}"]))
        url = f"{self.url}/files/{number}/{name}"
        return {"displayName": name, "downloadUrl": url, "fileSize": size, "fileType": kind}


class _Handler(QuietHandler):
    def parse_request(self) -> bool:
        """Takes a proxy's requests too: they name a host, whose name does not matter here."""
        parsed = super().parse_request()
        self.path: str = re.sub("^http://[^/]*", "", self.path) if parsed else ""
        return parsed

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.owner.requests.append(f"POST {self.path}")
        if self.path != "/v2/graphql" or self.owner.status != 200:
            self._send(self.owner.status if self.owner.status != 200 else 404, b"")
            return
        self._send(200, json.dumps(self.owner.answer(json.loads(body)["query"])).encode())

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.owner.requests.append(f"GET {self.path} {asked}".rstrip())
        key = self.path.removeprefix("/files/").removeprefix("moved/")
        content = self.owner.contents[key]
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        faults = self.owner.faults.get(key.partition("/")[2], [])
        fault = faults.pop(0) if faults else None
        if fault in (Fault.error, Fault.missing):
            self._send(500 if fault is Fault.error else 404, b"")
            return
        if fault is Fault.elsewhere:
            self._send(302, b"", {"Location": f"{self.owner.url}/files/moved/{key}"})
            return
        if fault is Fault.flipped:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if fault is Fault.longer:
            content += b"more"
        headers, status, first = {"ETag": f'"{digest}"'}, 200, 0
        if self.owner.digests:
            headers["Repr-Digest"] = f"sha-256=:{digest}:"
        same = self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        if asked and same and fault is not Fault.no_range:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
            if first >= len(content):
                self._send(416, b"")
                return
            first = 0 if fault is Fault.other_part else first
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            status = 206
        part = content[first:]
        self._send(status, part, headers, cut=len(part) // 2 if fault is Fault.half else len(part))

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] = {}, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:cut])
