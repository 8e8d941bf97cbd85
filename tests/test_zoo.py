"""`zoo:` stubs: how they are read, where they lead, and what is said when they lead nowhere."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback import Fault
from stand_in_zoo import StandInZoo

from sparse_accel import load_recipe
from sparse_accel.errors import UsageError
from sparse_accel.zoo import RECIPES, Model, downloads, parse_stub, resolve
from sparse_accel.zoo.known import ON_HUB, SHIPPED

SST2 = "zoo:nlp/sentiment_analysis/obert-base/pytorch/huggingface/sst2/pruned90_quant-none"
DENSE_SST2 = "zoo:nlp/sentiment_analysis/bert-base/pytorch/huggingface/sst2/base-none"
UPSTREAM = "zoo:nlp/masked_language_modeling/obert-base/pytorch/huggingface/wikipedia_bookcorpus/pruned90-none"
UNKNOWN = "zoo:nlp/text_classification/obert-base/pytorch/huggingface/cola/pruned80-none"
IMDB = "zoo:nlp/document_classification/obert-base/pytorch/huggingface/imdb/pruned90_quant-none"
RECIPE = b"---\ntraining_modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 2}\n---\n# card\n"


@pytest.fixture(autouse=True)
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty mirror, no API, and no network to be waited for."""
    monkeypatch.setenv("SPARSEZOO_MODELS_PATH", str(tmp_path / "mirror"))
    monkeypatch.delenv("SPARSEZOO_API_URL", raising=False)
    monkeypatch.setattr(downloads, "_PAUSE", 0.0)
    monkeypatch.setattr(resolve, "_missing_on_hub", lambda hub_id, cache_dir: "cannot be reached")
    resolve.recipe_path.cache_clear()
    resolve.model_source.cache_clear()
    return tmp_path / "mirror"


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInZoo]:
    with StandInZoo() as zoo:
        monkeypatch.setenv("SPARSEZOO_API_URL", zoo.url + "/")
        yield zoo


def put(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


# --- stubs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stub", "short"),
    [
        (UPSTREAM, "obert-base-wikipedia_bookcorpus-pruned90"),
        (SST2, "obert-base-sst2_wikipedia_bookcorpus-pruned90_quantized"),
        (DENSE_SST2, "bert-base-sst2_wikipedia_bookcorpus-base"),
        (
            "zoo:nlp/question_answering/mobilebert-none/pytorch/huggingface/squad/14layer_pruned50_quant-none-vnni",
            "mobilebert-squad_wikipedia_bookcorpus-14layer_pruned50.4block_quantized",
        ),
        (
            "zoo:nlp/text_classification/distilbert-none/pytorch/huggingface/qqp/pruned80_quant-none-vnni",
            "distilbert-qqp_wikipedia_bookcorpus-pruned80.4block_quantized",
        ),
        (
            "zoo:nlp/question_answering/bert-base/pytorch/huggingface/squad/pruned95_obs_quant-none",
            "bert-base-squad_wikipedia_bookcorpus-pruned95.obs_quantized",
        ),
        (
            "zoo:nlp/question_answering/bert-base_cased/pytorch/huggingface/squad/pruned90-none",
            "bert-base_cased-squad_wikipedia_bookcorpus-pruned90",
        ),
        (
            "zoo:nlp/question_answering/obert-medium/pytorch/huggingface/squad/pruned95_quant-none",
            "obert-medium-squad_wikipedia_bookcorpus-pruned95_quantized",
        ),
    ],
)
def test_long_and_short_forms(stub: str, short: str) -> None:
    """Short names as SparseML's and SparseZoo's own examples have them."""
    assert parse_stub(stub).short_name == short
    assert parse_stub(stub).names_the_same_as(parse_stub(f"zoo:{short}"))
    assert parse_stub(f"zoo:{short}?recipe=x") == parse_stub(f"zoo:{short}?recipe=x")


def test_an_architecture_without_a_size() -> None:
    without, none = (
        parse_stub(f"zoo:nlp/question_answering/mobilebert{size}/pytorch/huggingface/squad/base-none")
        for size in ("", "-none")
    )
    assert without.parts["architecture"] == "mobilebert" and without.names_the_same_as(none)
    assert not without.names_the_same_as(parse_stub("zoo:mobilebert-large-squad_wikipedia_bookcorpus-base"))


def test_parameters() -> None:
    assert parse_stub(f"{SST2}?recipe=original").recipe == "original"
    assert parse_stub(f"{SST2}?recipe_type=transfer-text_classification").recipe == "transfer-text_classification"


@pytest.mark.parametrize(
    ("stub", "words"),
    [
        ("zoo:nlp/sentiment_analysis", "is no stub"),
        ("zoo:", "is no stub"),
        ("zoo:nlp/../../../../etc/passwd/base-none", "is no stub"),
        ("zoo:nlp/sentiment_analysis/obert-base/pytorch/huggingface/sst2/base-none/more", "is no stub"),
        (f"{SST2}?recip=original", "'recip=original' is not a parameter of a stub. Did you mean 'recipe'?"),
        (f"{SST2}?recipe=../../secret", "is not a parameter"),
        (f"{SST2}?", "'' is not a parameter"),
    ],
)
def test_what_is_no_stub(stub: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_stub(stub)
    assert words in str(error.value)


# --- where they lead --------------------------------------------------------------------------------------------------


def test_shipped_recipes(capsys: pytest.CaptureFixture[str], mirror: Path) -> None:
    assert resolve.recipe_path(SST2) == RECIPES / "sst2_pruned90_quant.yaml"
    assert capsys.readouterr().err.splitlines() == [
        SST2,
        f"  1. local mirror             {mirror} has nothing of that name",
        "  2. recipes of this package  sst2_pruned90_quant.yaml",
    ]
    assert resolve.recipe_path(SST2 + "?recipe=original") == RECIPES / "sst2_pruned90_quant.yaml"
    assert resolve.recipe_path("zoo:" + parse_stub(SST2).short_name) == RECIPES / "sst2_pruned90_quant.yaml"
    assert resolve.recipe_path(DENSE_SST2).name == "sst2_dense.yaml"
    capsys.readouterr()
    transfer = resolve.recipe_path(UPSTREAM + "?recipe_type=transfer-text_classification")
    assert transfer.name == "sst2_pruned90_quant.yaml" and "STAND-IN" in capsys.readouterr().err


def test_everything_that_is_known_is_there() -> None:
    for entry in SHIPPED:
        assert parse_stub(entry.stub).parts and load_recipe(RECIPES / entry.file).max_epochs > 0
    for model in ON_HUB:
        assert parse_stub(model.stub).parts and model.hub_id.count("/") == 1 and model.about
    assert sum(model.is_stand_in for model in ON_HUB) == 2
    assert load_recipe(SST2).max_epochs == 13


@pytest.mark.parametrize(
    "place", ["neuralmagic/obert-base-sst2_wikipedia_bookcorpus-pruned90_quantized", SST2.removeprefix("zoo:")]
)
def test_the_mirror_comes_first(mirror: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(mirror / place, recipe_DOT_md=RECIPE.decode(), recipe_transfer_DOT_md=RECIPE.decode())
    assert resolve.recipe_path(SST2) == folder / "recipe.md"
    assert "(the default; with ?recipe=NAME also: transfer)" in capsys.readouterr().err
    assert resolve.recipe_path(f"{SST2}?recipe=transfer") == folder / "recipe_transfer.md"
    assert load_recipe(f"{SST2}?recipe=transfer").max_epochs == 2
    put(folder, training__config_DOT_json="{}", training__model_DOT_safetensors="")
    assert resolve.model_source(SST2) == str(folder / "training")


def test_a_recipe_that_the_mirror_does_not_have(mirror: Path) -> None:
    put(mirror / UNKNOWN.removeprefix("zoo:"), recipe_transfer_DOT_md=RECIPE.decode())
    with pytest.raises(UsageError) as error:
        resolve.recipe_path(f"{UNKNOWN}?recipe=transfre")
    assert "has no recipe 'transfre'. Did you mean 'transfer'? It has: transfer" in str(error.value)


def test_models_on_the_hub(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(resolve, "_missing_on_hub", lambda hub_id, cache_dir: None)
    assert resolve.model_source(UPSTREAM) == "RedHatAI/oBERT-12-upstream-pruned-unstructured-90-v2"
    assert "the files were never compared" in capsys.readouterr().err
    short = "zoo:obert-base-sst2_wikipedia_bookcorpus-base"
    assert resolve.model_source(short) == "JeremiahZ/bert-base-uncased-sst2"
    assert "STAND-IN: a dense BERT-base trained on SST-2 by somebody else" in capsys.readouterr().err


def test_a_stub_that_leads_nowhere() -> None:
    with pytest.raises(UsageError) as error:
        resolve.model_source(UPSTREAM.replace("pruned90", "pruned91"))
    lines = str(error.value).splitlines()
    assert "no model was found for this stub. Did you mean 'zoo:nlp/masked_language_modeling/obert-base/" in lines[0]
    assert [line.split(".")[0].strip() for line in lines[1:4]] == ["1", "2", "3"]
    assert "no repository is known" in lines[2] and "SPARSEZOO_API_URL is not set" in lines[3]
    assert lines[4].startswith("Three ways out:")
    with pytest.raises(UsageError) as error:
        resolve.recipe_path(IMDB)
    assert "not among them" in str(error.value) and "that of SST-2 is a start" in str(error.value)


def test_what_is_not_reached_is_said_in_order() -> None:
    with pytest.raises(UsageError) as error:
        resolve.model_source(UPSTREAM)
    assert "RedHatAI/oBERT-12-upstream-pruned-unstructured-90-v2: cannot be reached" in str(error.value)
    assert "Did you mean" not in str(error.value), "the stub is right"


# --- SparseZoo's API --------------------------------------------------------------------------------------------------

FILES = {
    "recipe.md": ("recipe", RECIPE),
    "recipe_transfer.md": ("recipe", RECIPE),
    "config.json": ("training", b"{}"),
    "pytorch_model.bin": ("framework", bytes(range(256)) * 40),
    "model.onnx": ("onnx", b"onnx"),
    "sample-inputs.tar.gz": ("inputs", b"inputs"),
}


def test_the_api(zoo: StandInZoo, mirror: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo.add(UNKNOWN, FILES)
    folder = mirror / "neuralmagic" / parse_stub(UNKNOWN).short_name
    assert resolve.recipe_path(UNKNOWN) == folder / "recipe.md"
    assert "3. SparseZoo's API" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["recipe.md", "recipe_transfer.md", "stub.txt"]
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
    assert resolve.recipe_path(UNKNOWN) == mirror / "1f3a" / "recipe.md"
    resolve.recipe_path.cache_clear()
    zoo.models.clear()
    assert resolve.recipe_path(f"{UNKNOWN}?recipe=transfer") == mirror / "1f3a" / "recipe_transfer.md"


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


def archive(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("top", ["", "training/"])
def test_a_training_folder_in_an_archive(zoo: StandInZoo, top: str) -> None:
    content = archive((f"{top}config.json", b"{}"), (f"{top}model.safetensors", b"weights"))
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


# --- in Python --------------------------------------------------------------------------------------------------------


def test_the_tutorials_snippet(tmp_path: Path) -> None:
    zoo_model = Model(SST2, download_path=tmp_path / "transfer_recipe")
    recipe_path = zoo_model.recipes.default.path
    assert Path(recipe_path).parent == tmp_path / "transfer_recipe"
    assert Path(recipe_path).read_text() == (RECIPES / "sst2_pruned90_quant.yaml").read_text()


def test_models_in_python(zoo: StandInZoo, tmp_path: Path, mirror: Path) -> None:
    zoo.add(UNKNOWN, FILES)
    model = Model(UNKNOWN, download_path=tmp_path / "here")
    assert model.training.path == str(tmp_path / "here" / "training")
    assert model.path == str(tmp_path / "here") and model.recipes.default.name == "recipe.md"
    named = model.recipes.get_recipe_by_name("recipe_transfer.md")
    assert named is not None and named.name == "recipe_transfer.md"
    assert model.recipes.get_recipe_by_name("nothing") is None
    local = Model(str(mirror / "neuralmagic" / parse_stub(UNKNOWN).short_name))
    assert local.training.name == "training" and local.recipes.default.name == "recipe.md"
    with pytest.raises(UsageError, match="neither a zoo: stub nor a folder"):
        Model(str(tmp_path / "nothing"))
