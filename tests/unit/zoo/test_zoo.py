"""`zoo:` stubs: how they are read, where they lead, and what is said when they lead nowhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from sparse_accel import load_recipe
from sparse_accel.errors import UsageError
from sparse_accel.zoo import RECIPES, Model, parse_stub, resolve
from sparse_accel.zoo.known import ON_HUB, SHIPPED

pytestmark = pytest.mark.usefixtures("mirror")

SST2 = "zoo:nlp/sentiment_analysis/obert-base/pytorch/huggingface/sst2/pruned90_quant-none"
DENSE_SST2 = "zoo:nlp/sentiment_analysis/bert-base/pytorch/huggingface/sst2/base-none"
UPSTREAM = "zoo:nlp/masked_language_modeling/obert-base/pytorch/huggingface/wikipedia_bookcorpus/pruned90-none"
SQUAD = "zoo:nlp/question_answering/obert-base/pytorch/huggingface/squad/pruned90_quant-none"
UNKNOWN = "zoo:nlp/text_classification/obert-base/pytorch/huggingface/cola/pruned80-none"
IMDB = "zoo:nlp/document_classification/obert-base/pytorch/huggingface/imdb/pruned90_quant-none"
RECIPE = "---\ntraining_modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 2}\n---\n# card\n"
MISSING_ON_HUB = resolve._missing_on_hub


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty mirror, and no network to be waited for."""
    monkeypatch.setenv("SPARSEZOO_MODELS_PATH", str(tmp_path / "mirror"))
    monkeypatch.delenv("SPARSEZOO_API_URL", raising=False)
    monkeypatch.setattr(resolve, "_missing_on_hub", lambda hub_id, cache_dir: "cannot be reached")
    resolve.recipe_path.cache_clear()
    resolve.model_source.cache_clear()
    return tmp_path / "mirror"


def put(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def put_model(mirror: Path, stub: str) -> Path:
    """A model with two recipes in the mirror, where SparseZoo kept it."""
    return put(
        mirror / "neuralmagic" / parse_stub(stub).short_name,
        recipe__recipe_DOT_md=RECIPE,
        recipe__recipe_transfer_DOT_md=RECIPE,
        training__config_DOT_json="{}",
        training__model_DOT_safetensors=stub,
    )


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
    assert parse_stub(stub).same_model_as(parse_stub(f"zoo:{short}"))
    assert parse_stub(f"zoo:{short}?recipe=x") == parse_stub(f"zoo:{short}?recipe=x")


def test_an_architecture_without_a_size() -> None:
    without, none = (
        parse_stub(f"zoo:nlp/question_answering/mobilebert{size}/pytorch/huggingface/squad/base-none")
        for size in ("", "-none")
    )
    assert without.parts["architecture"] == "mobilebert" and without.same_model_as(none)
    assert not without.same_model_as(parse_stub("zoo:mobilebert-large-squad_wikipedia_bookcorpus-base"))


def test_parameters() -> None:
    assert parse_stub(f"{SST2}?recipe=original").recipe == "original"
    assert parse_stub(f"{SST2}?recipe_type=transfer-text_classification").recipe == "transfer-text_classification"


@pytest.mark.parametrize(
    ("stub", "words"),
    [
        ("zoo:nlp/sentiment_analysis", "is not a stub"),
        ("zoo:", "is not a stub"),
        ("zoo:nlp/../../../../etc/passwd/base-none", "is not a stub"),
        ("zoo:nlp/sentiment_analysis/obert-base/pytorch/huggingface/sst2/base-none/more", "is not a stub"),
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
        f"  1. local mirror             {mirror} has no entry for it",
        "  2. recipes of this package  sst2_pruned90_quant.yaml",
    ]
    assert resolve.recipe_path(SST2 + "?recipe=original") == RECIPES / "sst2_pruned90_quant.yaml"
    assert resolve.recipe_path("zoo:" + parse_stub(SST2).short_name) == RECIPES / "sst2_pruned90_quant.yaml"
    assert resolve.recipe_path(DENSE_SST2).name == "sst2_dense.yaml"
    capsys.readouterr()
    assert resolve.recipe_path(SQUAD).name == "squad_pruned90_quant.yaml" and "STAND-IN" in capsys.readouterr().err
    transfer = resolve.recipe_path(UPSTREAM + "?recipe_type=transfer-text_classification")
    assert transfer.name == "sst2_pruned90_quant.yaml" and "STAND-IN" in capsys.readouterr().err


def test_everything_that_is_known_is_there() -> None:
    for entry in SHIPPED:
        assert parse_stub(entry.stub).parts and load_recipe(RECIPES / entry.file).max_epochs > 0
    for model in ON_HUB:
        assert parse_stub(model.stub).parts and model.hub_id.count("/") == 1 and model.about
    assert sum(model.about.startswith("STAND-IN: ") for model in ON_HUB) == 2
    assert load_recipe(SST2).max_epochs == 13


def test_every_shipped_recipe_is_a_recipe_and_is_documented() -> None:
    table = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    recipes = sorted(RECIPES.glob("*.yaml"))
    assert len(recipes) > 5
    for path in recipes:
        recipe = load_recipe(path)
        assert recipe.modifiers and not recipe.warnings and not recipe.notes, path
        assert table.count(f"| `{path.name}` |") == 1, path


@pytest.mark.parametrize(
    "place", ["neuralmagic/obert-base-sst2_wikipedia_bookcorpus-pruned90_quantized", SST2.removeprefix("zoo:")]
)
def test_the_mirror_comes_first(mirror: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(mirror / place, recipe_DOT_md=RECIPE, recipe_transfer_DOT_md=RECIPE)
    assert resolve.recipe_path(SST2) == folder / "recipe.md"
    assert "(the default; with ?recipe=NAME also: transfer)" in capsys.readouterr().err
    assert resolve.recipe_path(f"{SST2}?recipe=transfer") == folder / "recipe_transfer.md"
    assert load_recipe(f"{SST2}?recipe=transfer").max_epochs == 2
    put(folder, training__config_DOT_json="{}", training__model_DOT_safetensors="")
    assert resolve.model_source(SST2) == str(folder / "training")


def test_a_recipe_that_the_mirror_does_not_have(mirror: Path) -> None:
    put(mirror / UNKNOWN.removeprefix("zoo:"), recipe_transfer_DOT_md=RECIPE)
    with pytest.raises(UsageError) as error:
        resolve.recipe_path(f"{UNKNOWN}?recipe=transfre")
    assert "has no recipe 'transfre'. Did you mean 'transfer'? It has: transfer" in str(error.value)


def test_models_on_the_hub(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(resolve, "_missing_on_hub", lambda hub_id, cache_dir: None)
    assert resolve.model_source(UPSTREAM) == "RedHatAI/oBERT-12-upstream-pruned-unstructured-90-v2"
    assert "the files were never compared" in capsys.readouterr().err
    short = "zoo:obert-base-sst2_wikipedia_bookcorpus-base"
    assert resolve.model_source(short) == "JeremiahZ/bert-base-uncased-sst2"
    assert "STAND-IN: a dense BERT-base trained on SST-2 by another author" in capsys.readouterr().err


def test_the_hub_must_have_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration alone, as an interrupted download leaves it, is no model."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    def cached(hub_id: str, name: str, **_: Any) -> str:
        if name != "config.json":
            raise LocalEntryNotFoundError("not in the cache, and offline")
        return name

    monkeypatch.setattr("huggingface_hub.hf_hub_download", cached)
    monkeypatch.setattr(resolve, "_missing_on_hub", MISSING_ON_HUB)
    with pytest.raises(UsageError, match="-v2: not in the cache, and offline"):
        resolve.model_source(UPSTREAM)


def test_sparsezoos_own_cache_has_a_folder_of_recipes(mirror: Path) -> None:
    folder = put(mirror / "neuralmagic" / parse_stub(SST2).short_name, recipe__recipe_original_DOT_md=RECIPE)
    assert resolve.recipe_path(SST2) == folder / "recipe" / "recipe_original.md"


def test_original_is_the_default_too(mirror: Path) -> None:
    folder = put(mirror / SST2.removeprefix("zoo:"), recipe_DOT_md=RECIPE)
    assert resolve.recipe_path(f"{SST2}?recipe=original") == folder / "recipe.md"


def test_a_name_that_two_recipes_begin_with(mirror: Path) -> None:
    put(mirror / SST2.removeprefix("zoo:"), recipe_transfer_a_DOT_md=RECIPE, recipe_transfer_b_DOT_md=RECIPE)
    with pytest.raises(UsageError, match=r"\?recipe=transfer is ambiguous in .*: write one of transfer_a, transfer_b"):
        resolve.recipe_path(f"{SST2}?recipe=transfer")


def test_names_of_shipped_recipes() -> None:
    for name, file in (("text_classification", "sst2"), ("question_answering", "squad")):
        for stub in (f"{UPSTREAM}?recipe=transfer-{name}", f"{UPSTREAM}?recipe_type=transfer_{name.partition('_')[0]}"):
            assert resolve.recipe_path(stub).name == f"{file}_pruned90_quant.yaml"
    ambiguous = "transfer is ambiguous: write one of transfer-text_classification, transfer-question_answering"
    with pytest.raises(UsageError, match=ambiguous):
        resolve.recipe_path(f"{UPSTREAM}?recipe=transfer")
    names = "transfer-text_classification or transfer_text_classification or transfer-question_answering or transfer_q"
    with pytest.raises(UsageError, match=names):
        resolve.recipe_path(f"{UPSTREAM}?recipe=original")
    with pytest.raises(UsageError, match=r"its name there is original\. Did you mean 'original'\?"):
        resolve.recipe_path(f"{SST2}?recipe=orignal")
    with pytest.raises(UsageError, match="names two recipes, a and b"):
        parse_stub(f"{SST2}?recipe=a&recipe_type=b")


@pytest.mark.parametrize("tag", ["pruned-aggressive_98", "pruned-conservative", "pruned-none"])
@pytest.mark.parametrize("framework", ["pytorch", "tensorflow_v1"])
def test_a_folder_is_not_another_models(mirror: Path, tag: str, framework: str) -> None:
    """A short name leaves out framework and category, so a folder of that name is the usual ones' only."""
    stub = f"zoo:nlp/question_answering/bert-base/{framework}/huggingface/squad/{tag}"
    put(mirror / "neuralmagic" / "bert-base-squad_wikipedia_bookcorpus-pruned", recipe_DOT_md=RECIPE)
    if (tag, framework) == ("pruned-none", "pytorch"):
        assert resolve.recipe_path(stub).name == "recipe.md"
        return
    with pytest.raises(UsageError, match="no recipe was found"):
        resolve.recipe_path(stub)


def test_a_folder_of_any_name_with_a_record(mirror: Path) -> None:
    """SparseZoo's older cache names folders by an id; `stub.txt` says whose they are, and may list several stubs."""
    folder = put_model(mirror, UNKNOWN).rename(mirror / "1f3a")
    (folder / "stub.txt").write_text(f"{IMDB}\n{UNKNOWN}\n")
    assert resolve.recipe_path(f"{UNKNOWN}?recipe=transfer") == folder / "recipe" / "recipe_transfer.md"
    assert resolve.model_source("zoo:" + parse_stub(UNKNOWN).short_name) == str(folder / "training")
    assert resolve.model_source(IMDB) == str(folder / "training")


def test_a_record_counts_more_than_the_name(mirror: Path) -> None:
    (put_model(mirror, UNKNOWN) / "stub.txt").write_text(f"{IMDB}\n")
    with pytest.raises(UsageError, match="no model was found"):
        resolve.model_source(UNKNOWN)


def test_records_that_are_none(mirror: Path) -> None:
    folder = mirror / "neuralmagic"
    put(folder / "broken", stub_DOT_txt="zoo:broken\n")
    put(folder / "binary")
    (folder / "binary").mkdir()
    (folder / "binary" / "stub.txt").write_bytes(bytes(range(256)))
    assert resolve.recipe_path(SST2) == RECIPES / "sst2_pruned90_quant.yaml"


def test_a_mirror_in_nobodys_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEZOO_MODELS_PATH", "~nobody_of_this_name/zoo")
    with pytest.raises(UsageError, match="SPARSEZOO_MODELS_PATH is ~nobody_of_this_name/zoo"):
        resolve.recipe_path(UNKNOWN)


def test_a_stub_that_leads_nowhere() -> None:
    with pytest.raises(UsageError) as error:
        resolve.model_source(UPSTREAM.replace("pruned90", "pruned91"))
    lines = str(error.value).splitlines()
    assert "no model was found for this stub. Did you mean 'zoo:nlp/masked_language_modeling/obert-base/" in lines[0]
    assert [line.split(".")[0].strip() for line in lines[1:3]] == ["1", "2"]
    assert "SparseZoo was shut down in June 2025" in lines[0] and "no repository is known" in lines[2]
    assert lines[3].startswith("Ways to fix this: ") and len(lines) == 4
    with pytest.raises(UsageError) as error:
        resolve.recipe_path(IMDB)
    assert "not among them" in str(error.value) and "start from that of SST-2" in str(error.value)


def test_what_is_not_reached_is_said_in_order() -> None:
    with pytest.raises(UsageError) as error:
        resolve.model_source(UPSTREAM)
    assert "RedHatAI/oBERT-12-upstream-pruned-unstructured-90-v2: cannot be reached" in str(error.value)
    assert "Did you mean" not in str(error.value), "the stub is right"


@pytest.mark.parametrize("ask", [resolve.recipe_path, resolve.model_source, Model], ids=["recipe", "model", "Model"])
def test_an_api_is_refused_by_name(ask: Any, monkeypatch: pytest.MonkeyPatch, mirror: Path) -> None:
    put_model(mirror, SST2)
    monkeypatch.setenv("SPARSEZOO_API_URL", "https://name:secret@zoo.invalid")
    with pytest.raises(UsageError) as error:
        ask(SST2)
    message = str(error.value)
    assert message.startswith(f"{SST2}: SPARSEZOO_API_URL is set, but ") and "shut down in June 2025" in message
    assert "unset SPARSEZOO_API_URL" in message
    for way in ("SPARSEZOO_MODELS_PATH", "id of the Hugging Face Hub", str(RECIPES)):
        assert way in message
    assert "secret" not in message
    monkeypatch.setenv("SPARSEZOO_API_URL", "")
    assert ask(SST2)


def test_an_api_is_refused_for_recipes_that_are_loaded(monkeypatch: pytest.MonkeyPatch, mirror: Path) -> None:
    monkeypatch.setenv("SPARSEZOO_API_URL", "https://zoo.invalid")
    with pytest.raises(UsageError, match="SPARSEZOO_API_URL is set"):
        load_recipe(SST2)
    folder = put_model(mirror, SST2)  # a folder is no stub: nothing would have been asked for it
    assert Model(str(folder)).recipes.default.name == "recipe.md"


# --- in Python --------------------------------------------------------------------------------------------------------


def test_the_tutorials_snippet(tmp_path: Path) -> None:
    zoo_model = Model(SST2, download_path=tmp_path / "transfer_recipe")
    recipe_path = zoo_model.recipes.default.path
    assert Path(recipe_path).parent == tmp_path / "transfer_recipe"
    assert Path(recipe_path).read_text() == (RECIPES / "sst2_pruned90_quant.yaml").read_text()


def test_models_in_python(tmp_path: Path, mirror: Path) -> None:
    folder = put_model(mirror, UNKNOWN)
    model = Model(UNKNOWN, download_path=tmp_path / "here")
    assert model.training.path == str(tmp_path / "here" / "training")
    assert model.path == str(tmp_path / "here") and model.recipes.default.name == "recipe.md"
    named = model.recipes.get_recipe_by_name("recipe_transfer.md")
    assert named is not None and named.name == "recipe_transfer.md"
    assert model.recipes.get_recipe_by_name("nothing") is None
    assert Model(UNKNOWN).path == str(folder), "without download_path it stays where it is"
    local = Model(str(folder))
    assert local.training.name == "training" and local.recipes.default.name == "recipe.md"
    with pytest.raises(UsageError, match="neither a zoo: stub nor a folder"):
        Model(str(tmp_path / "nothing"))


def test_download_path_of_another_model(tmp_path: Path, mirror: Path) -> None:
    other = UNKNOWN.replace("cola", "mrpc")
    put_model(mirror, UNKNOWN)
    put_model(mirror, other)
    place = tmp_path / "here"
    assert Model(UNKNOWN, download_path=place).path == str(place)
    assert sorted(path.name for path in place.iterdir()) == ["recipe.md", "stub.txt", "training"]
    with pytest.raises(UsageError, match=f"no stub.txt lists {other}: use another download_path"):
        _ = Model(other, download_path=place).training
    assert Model(UNKNOWN, download_path=place).training.path == str(place / "training")


def test_a_download_path_whose_weights_were_deleted_is_free(tmp_path: Path, mirror: Path) -> None:
    """And from then on known as the other model's only."""
    other = UNKNOWN.replace("cola", "mrpc")
    put_model(mirror, UNKNOWN)
    put_model(mirror, other)
    place = tmp_path / "here"
    shutil.rmtree(Model(UNKNOWN, download_path=place).training.path)
    assert (Path(Model(other, download_path=place).training.path) / "model.safetensors").read_text() == other
    with pytest.raises(UsageError, match=f"no stub.txt lists {UNKNOWN}: use another download_path"):
        _ = Model(UNKNOWN, download_path=place).training
