"""Files over HTTP into a folder: resumed where they stopped, checked, and put in place only when whole.

While it comes, a file is `.NAME.partial` beside its place. What is there of it after an interruption is not fetched
again where the server says that the file is still the same (by its ETag, or else its date, kept beside it). Its size
must be the one that was announced, and its digest the one that the server sends, if it sends one (RFC 9530's
`Repr-Digest`, or `Content-MD5`).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sparse_accel.console import rank

if TYPE_CHECKING:
    import httpx

ATTEMPTS = 4
_PAUSE = 0.5  # seconds before the second attempt; twice as long before each next one
_CHUNK = 1 << 20
# Seconds until a connection stands, and between two pieces of an answer.
_CONNECT, _READ = 10.0, 60.0


class DownloadError(Exception):
    """A file that does not come, or comes wrong; the message says which and why."""


class _Interrupted(DownloadError):
    """Worth another attempt: the connection broke, or the server had a bad moment."""


@contextmanager
def http_client() -> Iterator[httpx.Client]:
    """A client that follows redirects, and takes proxies and certificates from the environment as others do."""
    import httpx

    try:
        client = httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(_READ, connect=_CONNECT),
            headers={"User-Agent": "sparse_accel", "Accept-Encoding": "identity"},
        )
    except (ImportError, ValueError) as error:  # it reads them when it is made
        raise DownloadError(f"the proxy in the environment cannot be used: {error}") from error
    with client:
        yield client


def download(client: httpx.Client, url: str, target: Path, size: int | None) -> None:
    """Fetches one file, going on with what an earlier attempt left of it.

    Args:
        url: http or https.
        target: where the file goes; its folder is made.
        size: its size in bytes as announced; None: as the server says when it sends it.

    Raises:
        DownloadError: it could not be had, or is not what was announced. Nothing lies at `target` then.
    """
    if not re.match(r"https?://", url):
        raise DownloadError(f"{target.name}: its address is not one of http or https: {url}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    version = _version_file(partial)
    for attempt in range(ATTEMPTS):
        try:
            digests = _receive(client, url, partial, target.name, size)
            break
        except _Interrupted:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(_PAUSE * 2**attempt)
    try:
        _check_digests(partial, target.name, digests)
    except DownloadError:
        partial.unlink()
        raise
    finally:
        version.unlink(missing_ok=True)
    os.replace(partial, target)


def _version_file(partial: Path) -> Path:
    """Where the ETag or date of what lies in a partial file is kept."""
    return partial.with_name(f"{partial.name}.version")


def _receive(client: httpx.Client, url: str, partial: Path, name: str, size: int | None) -> dict[str, str]:
    """Adds what is missing to a partial file, and returns the digests that the server sent, by algorithm."""
    import httpx

    version = _version_file(partial)
    there = partial.stat().st_size if partial.exists() and version.exists() else 0
    if size is not None and there >= size:
        there = 0
    _check_room(partial.parent, (size or 0) - there)
    asked = {"Range": f"bytes={there}-", "If-Range": version.read_text(encoding="utf-8")} if there else {}
    try:
        with client.stream("GET", url, headers=asked) as response:
            if response.status_code == 416:  # what is there is longer than the file: it is no part of it
                partial.unlink()
            _check_answer(response, url, name)
            if asked and response.status_code != 206:
                there = 0  # the server sends it all again
            total = _total_size(response, there)
            if size is not None and total is not None and total != size:
                partial.unlink(missing_ok=True)
                raise DownloadError(f"{name}: {size} bytes were announced, and the server has {total}")
            total = total if size is None else size
            if total is None:
                raise DownloadError(f"{name}: neither the list of files nor the server says how large it is")
            _check_room(partial.parent, total - there)
            _remember_version(response, version)
            _append(response, partial, name, there, total)
            return _digests(response)
    except httpx.HTTPError as error:
        raise _Interrupted(f"{name}: the connection to {_host(url)} broke: {error or type(error).__name__}") from error


def _remember_version(response: httpx.Response, version: Path) -> None:
    """Keeps what tells this content from another of the same address; a weak ETag does not, by RFC 9110."""
    tag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    known = tag if tag and not tag.startswith("W/") else date
    if known:
        version.write_text(known, encoding="utf-8")
    else:
        version.unlink(missing_ok=True)


def _append(response: httpx.Response, partial: Path, name: str, there: int, total: int) -> None:
    with open(partial, "r+b" if partial.exists() else "wb") as stream, _bar(name, total, there) as bar:
        stream.truncate(there)
        stream.seek(there)
        # As it comes: pieces of a fixed size would hold back what came before the connection broke.
        for chunk in response.iter_raw():
            if stream.tell() + len(chunk) > total:
                raise DownloadError(f"{name}: more bytes come than the {total} that were announced")
            stream.write(chunk)
            bar.update(len(chunk))
        received = stream.tell()
    if received != total:
        raise _Interrupted(f"{name}: the connection ended after {received} of {total} bytes")


def _check_answer(response: httpx.Response, url: str, name: str) -> None:
    hops = [str(each.url) for each in (*response.history, response)]
    if hops[0].startswith("https:") and not all(hop.startswith("https:") for hop in hops):
        raise DownloadError(f"{name}: {_host(url)} redirects from https to http")
    if response.status_code >= 500 or response.status_code in (416, 429):
        raise _Interrupted(f"{name}: {_host(url)} answers {response.status_code} {response.reason_phrase}")
    if response.status_code not in (200, 206):
        raise DownloadError(f"{name}: {_host(url)} answers {response.status_code} {response.reason_phrase}")


def _total_size(response: httpx.Response, there: int) -> int | None:
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != there:
            raise DownloadError(f"{_host(str(response.url))} sends another part of the file than was asked for")
        return int(match[2])
    length = response.headers.get("Content-Length")
    return int(length) if length and length.isdigit() else None


def _digests(response: httpx.Response) -> dict[str, str]:
    found = dict(re.findall(r"(sha-256|sha-512)=:([A-Za-z0-9+/=]+):", response.headers.get("Repr-Digest", "")))
    if response.status_code == 200 and (md5 := response.headers.get("Content-MD5")):
        found["md5"] = md5  # of what this answer holds, so of a part after a Range
    return found


def _check_digests(file: Path, name: str, digests: dict[str, str]) -> None:
    for algorithm, expected in digests.items():
        found = hashlib.new(algorithm.replace("-", ""))
        with open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                found.update(chunk)
        if base64.b64encode(found.digest()).decode() != expected:
            raise DownloadError(f"{name}: what came has another {algorithm} digest than the server says; it is deleted")


def _check_room(folder: Path, size: int) -> None:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise DownloadError(f"{size:,} bytes are to come, and {there} has room for {free:,}")


def _host(url: str) -> str:
    return url.split("/")[2]


@contextmanager
def _bar(name: str, total: int, there: int) -> Iterator[Any]:
    from tqdm import tqdm

    quiet = rank() != 0 or not sys.stderr.isatty()
    with tqdm(total=total, initial=there, desc=name, unit="B", unit_scale=True, disable=quiet) as bar:
        yield bar


# --- archives ---------------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar archive into a folder, plain files and folders only, none of them outside it.

    Raises:
        DownloadError: it is no archive, leads outside, holds links or devices, or has no room.
    """
    try:
        with tarfile.open(archive) as tar:
            # `./`, which many archives begin with, is the folder itself.
            members = [member for member in tar.getmembers() if PurePosixPath(member.name).parts]
            for member in members:
                if not is_inside(member.name) or not (member.isfile() or member.isdir()):
                    raise DownloadError(f"{archive.name} holds '{member.name}', which leads outside of its folder")
            _check_room(folder, sum(member.size for member in members))
            folder.mkdir(parents=True, exist_ok=True)
            for member in members:
                member.mode = 0o755 if member.isdir() else 0o644
                tar.extract(member, folder, set_attrs=False)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DownloadError(f"{archive.name} cannot be unpacked: {error}") from error


def is_inside(name: str) -> bool:
    """True for a relative path that stays inside its folder, on any system."""
    path = PurePosixPath(name)
    plain = not path.is_absolute() and ".." not in path.parts and path.parts not in ((), (".",))
    return plain and not re.search(r"[\x00-\x1f\\:]", name)
