"""SparseZoo's API by our client, against one on loopback: what comes, what comes wrong, and what is left then."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loopback import Fault
from stand_in_zoo import StandInZoo
from zoo_fixtures import FILES, MISSING_ON_HUB, RECIPE, UNKNOWN, UPSTREAM

from sparse_accel.errors import UsageError
from sparse_accel.zoo import client, downloads, parse_stub, resolve

pytest_plugins = ["zoo_fixtures"]
pytestmark = pytest.mark.usefixtures("mirror")


def test_the_api(zoo: StandInZoo, mirror: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo.add(UNKNOWN, FILES)
    folder = mirror / "neuralmagic" / parse_stub(UNKNOWN).short_name
    assert resolve.recipe_path(UNKNOWN) == folder / "recipe" / "recipe.md"
    assert "3. SparseZoo's API" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["recipe", "stub.txt"]
    assert sorted(path.name for path in (folder / "recipe").iterdir()) == ["recipe.md", "recipe_transfer.md"]
    assert resolve.model_source(UNKNOWN) == str(folder / "training")
    assert (folder / "training" / "pytorch_model.bin").read_bytes() == FILES["pytorch_model.bin"][1]
    assert sorted(path.name for path in (folder / "training").iterdir()) == ["config.json", "pytorch_model.bin"]
    assert not [path for path in mirror.rglob("*partial*")]
    # Nothing but the question, and the files that are needed; and from then on, nothing.
    assert {request.split()[0] for request in zoo.requests} == {"POST", "GET"} and len(zoo.requests) == 6
    resolve.model_source.cache_clear()
    assert resolve.model_source("zoo:" + parse_stub(UNKNOWN).short_name) == str(folder / "training")
    assert len(zoo.requests) == 6


def test_a_model_known_by_its_id(zoo: StandInZoo, mirror: Path) -> None:
    zoo.add(UNKNOWN, FILES, model_id="1f3a", named=False)
    assert resolve.recipe_path(UNKNOWN) == mirror / "1f3a" / "recipe" / "recipe.md"
    resolve.recipe_path.cache_clear()
    zoo.models.clear()
    assert resolve.recipe_path(f"{UNKNOWN}?recipe=transfer") == mirror / "1f3a" / "recipe" / "recipe_transfer.md"


def test_the_short_form_asks_by_name(zoo: StandInZoo) -> None:
    zoo.add(UNKNOWN, FILES)
    assert resolve.recipe_path("zoo:obert-base-cola_wikipedia_bookcorpus-pruned80").name == "recipe.md"
    assert 'models(repoName: "obert-base-cola_wikipedia_bookcorpus-pruned80")' in zoo.questions[0]


@pytest.mark.parametrize("fault", [Fault.half, Fault.error, Fault.elsewhere, Fault.no_range])
def test_what_passes(zoo: StandInZoo, fault: Fault) -> None:
    zoo.add(UNKNOWN, FILES)
    zoo.faults["pytorch_model.bin"] = [Fault.half, fault]
    folder = Path(resolve.model_source(UNKNOWN))
    assert (folder / "pytorch_model.bin").read_bytes() == FILES["pytorch_model.bin"][1]
    assert any("bytes=5120-" in request for request in zoo.requests), "it goes on where it stopped"


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ([Fault.half] * 9, "broke: peer closed connection"),
        ([Fault.error] * 9, "answers 500"),
        ([Fault.missing], "answers 404"),
        ([Fault.flipped], "another sha-256 digest"),
        ([Fault.half, Fault.other_part], "sends another part of the file"),
        ([Fault.longer], "10240 bytes were announced, and the server has 10244"),
    ],
)
def test_what_does_not(zoo: StandInZoo, mirror: Path, faults: list[Fault], words: str) -> None:
    zoo.add(UNKNOWN, FILES)
    zoo.faults["pytorch_model.bin"] = faults
    with pytest.raises(UsageError) as error:
        resolve.model_source(UNKNOWN)
    assert words in str(error.value)
    assert not list(mirror.rglob("training")), "a folder that is not whole is not there"
    zoo.faults.clear()
    assert (Path(resolve.model_source(UNKNOWN)) / "pytorch_model.bin").read_bytes() == FILES["pytorch_model.bin"][1]


def test_a_download_that_was_killed_goes_on(zoo: StandInZoo, mirror: Path) -> None:
    zoo.add(UNKNOWN, FILES)
    zoo.faults["pytorch_model.bin"] = [Fault.half] * 4
    with pytest.raises(UsageError):
        resolve.model_source(UNKNOWN)
    there = sum(path.stat().st_size for path in mirror.rglob(".pytorch_model.bin.partial"))
    resolve.model_source(UNKNOWN)
    assert zoo.requests[-1].endswith(f"bytes={there}-") and there > 5000


def test_leftovers_longer_than_the_file(zoo: StandInZoo, tmp_path: Path) -> None:
    zoo.add(UNKNOWN, FILES)
    (tmp_path / ".config.json.partial").write_text("of another time")
    with downloads.http_client() as client:
        downloads.download(client, f"{zoo.url}/files/0/config.json", tmp_path / "config.json", None)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_room_is_needed_for_what_is_missing_only(
    zoo: StandInZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.add(UNKNOWN, FILES)
    content = FILES["pytorch_model.bin"][1]
    (tmp_path / ".model.bin.partial").write_bytes(content[:-10])
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    (tmp_path / ".model.bin.partial.version").write_text(f'"{digest}"')
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with downloads.http_client() as client:
        downloads.download(client, f"{zoo.url}/files/0/pytorch_model.bin", tmp_path / "model.bin", len(content))
    assert (tmp_path / "model.bin").read_bytes() == content


def test_sizes_that_cannot_be(zoo: StandInZoo, mirror: Path) -> None:
    zoo.add(UNKNOWN, FILES)
    zoo.sizes["pytorch_model.bin"] = 10**18
    with pytest.raises(UsageError) as error:
        resolve.model_source(UNKNOWN)
    assert "1,000,000,000,000,000,000 bytes are to come, and" in str(error.value)
    zoo.sizes["pytorch_model.bin"] = 100
    with pytest.raises(UsageError) as error:
        resolve.model_source(UNKNOWN)
    assert "100 bytes were announced, and the server has 10240" in str(error.value)
    assert not list(mirror.rglob("training"))


def test_recipes_appear_all_at_once(zoo: StandInZoo, mirror: Path) -> None:
    """Else what came before an interruption would be taken for all that there is, another recipe than was asked for."""
    transfer, default = FILES["recipe_transfer.md"], FILES["recipe.md"]
    zoo.add(UNKNOWN, {"recipe_transfer.md": transfer, "recipe.md": default})
    zoo.faults["recipe.md"] = [Fault.missing]
    with pytest.raises(UsageError, match="answers 404"):
        resolve.recipe_path(UNKNOWN)
    assert resolve.recipe_path(UNKNOWN).name == "recipe.md"


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_that_changed_meanwhile_is_not_mixed(zoo: StandInZoo, tmp_path: Path, announced: bool) -> None:
    zoo.add(UNKNOWN, FILES)
    zoo.digests = False
    zoo.faults["pytorch_model.bin"] = [Fault.half] * 4
    target, size = tmp_path / "model.bin", len(FILES["pytorch_model.bin"][1]) if announced else None
    with downloads.http_client() as client:
        with pytest.raises(downloads.DownloadError):
            downloads.download(client, f"{zoo.url}/files/0/pytorch_model.bin", target, size)
        assert (tmp_path / ".model.bin.partial").stat().st_size > 5000
        other = zoo.contents["0/pytorch_model.bin"] = zoo.contents["0/pytorch_model.bin"][::-1]
        downloads.download(client, f"{zoo.url}/files/0/pytorch_model.bin", target, size)
    assert target.read_bytes() == other
    assert [path.name for path in tmp_path.iterdir() if "model" in path.name] == ["model.bin"]


def test_a_finished_file_of_another_size_is_fetched_anew(zoo: StandInZoo, mirror: Path) -> None:
    zoo.add(UNKNOWN, FILES)
    left = mirror / "neuralmagic" / parse_stub(UNKNOWN).short_name / ".training.partial"
    left.mkdir(parents=True)
    (left / "config.json").write_text('{"of": "another time"}')
    assert (Path(resolve.model_source(UNKNOWN)) / "config.json").read_text() == "{}"


@pytest.mark.parametrize(("size", "known"), [(123, 123), ("123", 123), (123.0, 123), (None, None), ("many", None)])
def test_sizes_as_an_api_may_give_them(size: Any, known: int | None) -> None:
    entry = {"displayName": "config.json", "fileType": "training", "downloadUrl": "http://x/y", "fileSize": size}
    assert client._read({"modelId": "x", "files": [entry]}, "http://x").files[0].size == known


def test_older_entries_of_recipes(zoo: StandInZoo) -> None:
    zoo.add(UNKNOWN, {"original.md": ("recipe", RECIPE), "transfer.md": ("recipe", RECIPE)})
    assert resolve.recipe_path(UNKNOWN).name == "recipe_original.md"
    assert resolve.recipe_path(f"{UNKNOWN}?recipe=transfer").name == "recipe_transfer.md"


def test_recipes_in_an_archive(zoo: StandInZoo) -> None:
    content = archive(("recipe/recipe.md", RECIPE), ("recipe/recipe_transfer.md", RECIPE))
    zoo.add(UNKNOWN, {"recipe.tar.gz": ("recipe", content)})
    assert resolve.recipe_path(UNKNOWN).read_bytes() == RECIPE


def test_the_hub_must_have_weights_too(
    zoo: StandInZoo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration alone, as an interrupted download leaves it, is no model: the API is asked."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    def cached(hub_id: str, name: str, **_: Any) -> str:
        if name != "config.json":
            raise LocalEntryNotFoundError("not in the cache, and offline")
        return name

    monkeypatch.setattr("huggingface_hub.hf_hub_download", cached)
    monkeypatch.setattr(resolve, "_missing_on_hub", MISSING_ON_HUB)
    zoo.add(UPSTREAM, FILES)
    assert Path(resolve.model_source(UPSTREAM)).name == "training"
    assert "-v2: not in the cache, and offline" in capsys.readouterr().err


@pytest.mark.parametrize("proxy", ["foo://bar", "socks5://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used(zoo: StandInZoo, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, proxy)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=r"proxy in the environment cannot be used|cannot be reached"):
        resolve.recipe_path(UNKNOWN)


def archive(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, folder: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        if folder:
            member = tarfile.TarInfo(folder)
            member.type = tarfile.DIRTYPE
            tar.addfile(member)
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("top", ["", "training/", "./", "./training/"])
def test_a_training_folder_in_an_archive(zoo: StandInZoo, top: str) -> None:
    content = archive((f"{top}config.json", b"{}"), (f"{top}model.safetensors", b"weights"), folder="./")
    zoo.add(UNKNOWN, {**FILES, "training.tar.gz": ("training", content)})
    folder = Path(resolve.model_source(UNKNOWN))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "content",
    [
        archive(("../../escaped.txt", b"x")),
        archive(("/tmp/escaped.txt", b"x")),
        archive(("training/link", b""), kind=tarfile.SYMTYPE),
        archive(("..\\escaped.txt", b"x")),
    ],
)
def test_an_archive_that_leads_outside(zoo: StandInZoo, tmp_path: Path, content: bytes) -> None:
    zoo.add(UNKNOWN, {"training.tar.gz": ("training", content)})
    with pytest.raises(UsageError) as error:
        resolve.model_source(UNKNOWN)
    assert "leads outside of its folder" in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name or path.is_symlink()]


def test_an_archive_that_is_none(zoo: StandInZoo) -> None:
    zoo.add(UNKNOWN, {"training.tar.gz": ("training", b"no archive")})
    with pytest.raises(UsageError) as error:
        resolve.model_source(UNKNOWN)
    assert "training.tar.gz cannot be unpacked" in str(error.value)


def test_a_file_that_leads_outside(zoo: StandInZoo, tmp_path: Path) -> None:
    zoo.add(UNKNOWN, {"../../escaped.md": ("recipe", RECIPE)})
    with pytest.raises(UsageError) as error:
        resolve.recipe_path(UNKNOWN)
    assert "lists a file '../../escaped.md', which leads outside" in str(error.value)
    assert not list(tmp_path.rglob("escaped*"))


def test_an_api_that_does_not_answer(zoo: StandInZoo, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.status = 503
    with pytest.raises(UsageError) as error:
        resolve.recipe_path(UNKNOWN)
    assert f"{zoo.url} answers 503" in str(error.value)
    monkeypatch.setenv("SPARSEZOO_API_URL", "http://127.0.0.1:9")
    with pytest.raises(UsageError) as error:
        resolve.recipe_path(UNKNOWN)
    assert "http://127.0.0.1:9 cannot be reached" in str(error.value)


def test_a_proxy_is_used(zoo: StandInZoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host of that name does not exist: only the proxy answers."""
    zoo.add(UNKNOWN, FILES)
    monkeypatch.setenv("SPARSEZOO_API_URL", "http://zoo.invalid")
    monkeypatch.setenv("HTTP_PROXY", zoo.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert resolve.recipe_path(UNKNOWN).name == "recipe.md"


def test_only_http_is_fetched(zoo: StandInZoo, tmp_path: Path) -> None:
    with downloads.http_client() as client, pytest.raises(downloads.DownloadError, match="not one of http"):
        downloads.download(client, "file:///etc/passwd", tmp_path / "passwd", None)
