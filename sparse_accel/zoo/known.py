"""What is known of SparseZoo's stubs: the recipes that ship with this package, and where weights live today.

SparseZoo was ended in June 2025. Its authors had published the weights of their papers on the Hugging Face Hub as well;
nobody has compared the files of both places, so an entry says how sure it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparse_accel.errors import nearest
from sparse_accel.zoo.stubs import PREFIX, Stub, parse_stub

RECIPES = Path(__file__).parent / "recipes"

_MLM = "zoo:nlp/masked_language_modeling"
_SENTIMENT = "zoo:nlp/sentiment_analysis"
_TEXT = "zoo:nlp/text_classification"
_QUESTIONS = "zoo:nlp/question_answering"
_FROM = "pytorch/huggingface"

SAME_AUTHORS = "the same model by its authors' description; the files were never compared"
_STAND_IN = "STAND-IN: "


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe in `recipes/`.

    Attributes:
        stub: whose recipe it is.
        file: name of the file.
        names: what `?recipe=` may call it; the stub alone always means it, unless `only_by_name`.
        about: what the user should know of it.
    """

    stub: str
    file: str
    names: tuple[str, ...] = ("original",)
    only_by_name: bool = False
    about: str = ""


@dataclass(frozen=True)
class HubModel:
    """Where the weights of a stub live today.

    Attributes:
        stub: long form.
        hub_id: id of the repository on the Hugging Face Hub.
        about: how sure it is that these are the stub's weights.
    """

    stub: str
    hub_id: str
    about: str = SAME_AUTHORS


_TRANSFER = ("transfer-text_classification", "transfer_text_classification")
_SST2_STANDS_IN = _STAND_IN + "the recipe for SST-2, the place to start from on another task"

SHIPPED = (
    ShippedRecipe(f"{_SENTIMENT}/obert-base/{_FROM}/sst2/pruned90_quant-none", "sst2_pruned90_quant.yaml"),
    ShippedRecipe(f"{_SENTIMENT}/bert-base/{_FROM}/sst2/base-none", "sst2_dense.yaml"),
    ShippedRecipe(
        f"{_SENTIMENT}/obert-base/{_FROM}/sst2/base-none",
        "sst2_dense.yaml",
        about=_STAND_IN + "the recipe of bert-base",
    ),
    ShippedRecipe(f"{_TEXT}/obert-base/{_FROM}/mnli/pruned90_quant-none", "mnli_pruned90_quant.yaml"),
    ShippedRecipe(f"{_TEXT}/obert-base/{_FROM}/qqp/pruned90_quant-none", "qqp_pruned90_quant.yaml"),
    ShippedRecipe(
        f"{_MLM}/obert-base/{_FROM}/wikipedia_bookcorpus/pruned90-none",
        "sst2_pruned90_quant.yaml",
        names=_TRANSFER,
        only_by_name=True,
        about=_SST2_STANDS_IN,
    ),
)

_AUTHORS = "RedHatAI"  # neuralmagic before
ON_HUB = (
    HubModel(
        f"{_MLM}/obert-base/{_FROM}/wikipedia_bookcorpus/pruned90-none",
        f"{_AUTHORS}/oBERT-12-upstream-pruned-unstructured-90-v2",
    ),
    HubModel(
        f"{_MLM}/obert-base/{_FROM}/wikipedia_bookcorpus/pruned97-none",
        f"{_AUTHORS}/oBERT-12-upstream-pruned-unstructured-97-v2",
    ),
    HubModel(
        f"{_MLM}/obert-base/{_FROM}/wikipedia_bookcorpus/base-none",
        "google-bert/bert-base-uncased",
        "the dense BERT that its paper starts from; the files were never compared",
    ),
    HubModel(
        f"{_MLM}/bert-base/{_FROM}/wikipedia_bookcorpus/base-none",
        "google-bert/bert-base-uncased",
        "BERT-base, uncased; the files were never compared",
    ),
    HubModel(
        f"{_SENTIMENT}/obert-base/{_FROM}/sst2/base-none",
        "JeremiahZ/bert-base-uncased-sst2",
        _STAND_IN + "a dense BERT-base trained on SST-2 by somebody else (its card says 93.2%)",
    ),
    HubModel(
        f"{_SENTIMENT}/bert-base/{_FROM}/sst2/base-none",
        "JeremiahZ/bert-base-uncased-sst2",
        _STAND_IN + "a dense BERT-base trained on SST-2 by somebody else (its card says 93.2%)",
    ),
    *(
        entry
        for area, data, name in ((_TEXT, "mnli", "mnli"), (_TEXT, "qqp", "qqp"), (_QUESTIONS, "squad", "squadv1"))
        for entry in (
            HubModel(f"{area}/obert-base/{_FROM}/{data}/base-none", f"{_AUTHORS}/oBERT-teacher-{name}"),
            *(
                HubModel(
                    f"{area}/obert-base/{_FROM}/{data}/pruned{share}-none",
                    f"{_AUTHORS}/oBERT-12-upstream-pruned-unstructured-{share}-finetuned-{name}-v2",
                )
                for share in (90, 97)
            ),
        )
    ),
)


def shipped_recipe(stub: Stub) -> ShippedRecipe | None:
    """Returns the recipe of this package that a stub names."""
    for entry in SHIPPED:
        named = bool(stub.recipe) and any(name.startswith(stub.recipe) for name in entry.names)
        if (named or not (stub.recipe or entry.only_by_name)) and stub.names_the_same_as(parse_stub(entry.stub)):
            return entry
    return None


def shipped_names(stub: Stub) -> tuple[str, ...]:
    """Returns what `?recipe=` may say after a stub whose recipe this package has; nothing where it has none."""
    found = [entry.names for entry in SHIPPED if stub.names_the_same_as(parse_stub(entry.stub))]
    return found[0] if found else ()


def on_hub(stub: Stub) -> HubModel | None:
    """Returns where the weights of a stub live today, if that is known."""
    return next((entry for entry in ON_HUB if stub.names_the_same_as(parse_stub(entry.stub))), None)


def nearest_known(stub: Stub, *, recipe: bool) -> str:
    """Returns ` Did you mean ...?` with the known stubs of a recipe or a model that are nearest; empty when none is."""
    entries: tuple[ShippedRecipe | HubModel, ...] = SHIPPED if recipe else ON_HUB
    known = [parse_stub(entry.stub) for entry in entries]
    if any(stub.names_the_same_as(each) for each in known):
        return ""
    return nearest(PREFIX + stub.name, [PREFIX + (each.name if stub.is_long else each.short_name) for each in known], 3)
