"""Table of known SparseZoo stubs: recipes that ship with this package, and today's location of weights.

SparseZoo was shut down in June 2025. Its authors also published the weights of their papers on the Hugging Face Hub.
Nobody has compared the files of both, so each entry states how certain it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparse_accel.errors import UsageError, nearest
from sparse_accel.zoo.stubs import PREFIX, Stub, parse_stub

RECIPES = Path(__file__).parent / "recipes"

_MLM = "zoo:nlp/masked_language_modeling"
_SENTIMENT = "zoo:nlp/sentiment_analysis"
_TEXT = "zoo:nlp/text_classification"
_QUESTIONS = "zoo:nlp/question_answering"
_FROM = "pytorch/huggingface"

SAME_AUTHORS = "the same model according to its authors; the files were never compared"
_STAND_IN = "STAND-IN: "


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe in `recipes/`.

    Attributes:
        stub: the stub that the recipe belongs to.
        file: file name in `recipes/`.
        names: its names for `?recipe=`.
        only_by_name: whether the stub without `?recipe=` does not select it.
        about: note for the user.
    """

    stub: str
    file: str
    names: tuple[str, ...] = ("original",)
    only_by_name: bool = False
    about: str = ""


@dataclass(frozen=True)
class HubModel:
    """Today's location of a stub's weights.

    Attributes:
        stub: the stub in its long form.
        hub_id: repository on the Hugging Face Hub.
        about: how certain it is that these are the stub's weights.
    """

    stub: str
    hub_id: str
    about: str = SAME_AUTHORS


_TRANSFER = ("transfer-text_classification", "transfer_text_classification")
_TRANSFER_QUESTIONS = ("transfer-question_answering", "transfer_question_answering")
_SST2_STANDS_IN = _STAND_IN + "the recipe for SST-2, a starting point for other tasks"
_SQUAD_STANDS_IN = _STAND_IN + "written for this package, in the form of the published one"

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
        f"{_QUESTIONS}/obert-base/{_FROM}/squad/pruned90_quant-none",
        "squad_pruned90_quant.yaml",
        about=_SQUAD_STANDS_IN,
    ),
    ShippedRecipe(
        f"{_MLM}/obert-base/{_FROM}/wikipedia_bookcorpus/pruned90-none",
        "sst2_pruned90_quant.yaml",
        names=_TRANSFER,
        only_by_name=True,
        about=_SST2_STANDS_IN,
    ),
    ShippedRecipe(
        f"{_MLM}/obert-base/{_FROM}/wikipedia_bookcorpus/pruned90-none",
        "squad_pruned90_quant.yaml",
        names=_TRANSFER_QUESTIONS,
        only_by_name=True,
        about=_SQUAD_STANDS_IN,
    ),
)

_AUTHORS = "RedHatAI"  # formerly neuralmagic
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
        _STAND_IN + "a dense BERT-base trained on SST-2 by another author (model card: 93.2%)",
    ),
    HubModel(
        f"{_SENTIMENT}/bert-base/{_FROM}/sst2/base-none",
        "JeremiahZ/bert-base-uncased-sst2",
        _STAND_IN + "a dense BERT-base trained on SST-2 by another author (model card: 93.2%)",
    ),
    *(
        entry
        for area, data, name in ((_TEXT, "mnli", "mnli"), (_TEXT, "qqp", "qqp"), (_QUESTIONS, "squad", "squadv1"))
        for entry in (
            HubModel(f"{area}/obert-base/{_FROM}/{data}/base-none", f"{_AUTHORS}/oBERT-teacher-{name}"),
            *(
                HubModel(
                    f"{area}/obert-base/{_FROM}/{data}/pruned{percent}-none",
                    f"{_AUTHORS}/oBERT-12-upstream-pruned-unstructured-{percent}-finetuned-{name}-v2",
                )
                for percent in (90, 97)
            ),
        )
    ),
)


def shipped_recipe(stub: Stub) -> ShippedRecipe | None:
    """Returns the shipped recipe that a stub names, by the beginning of a name too; None if there is none.

    Raises:
        UsageError: names of several recipes begin so.
    """
    found = [
        entry
        for entry in _shipped(stub)
        if any(name.startswith(stub.recipe) for name in entry.names) and (stub.recipe or not entry.only_by_name)
    ]
    if len(found) > 1:
        names = ", ".join(entry.names[0] for entry in found)
        raise UsageError(f"{stub.text}: ?recipe={stub.recipe} is ambiguous: write one of {names}")
    return found[0] if found else None


def shipped_names(stub: Stub) -> tuple[str, ...]:
    """Returns the valid `?recipe=` names of a stub with shipped recipes; empty if there is no shipped recipe."""
    return tuple(name for entry in _shipped(stub) for name in entry.names)


def _shipped(stub: Stub) -> list[ShippedRecipe]:
    return [entry for entry in SHIPPED if stub.same_model_as(parse_stub(entry.stub))]


def on_hub(stub: Stub) -> HubModel | None:
    """Returns the location of a stub's weights; None if it is not known."""
    return next((entry for entry in ON_HUB if stub.same_model_as(parse_stub(entry.stub))), None)


def nearest_known(stub: Stub, *, recipe: bool) -> str:
    """Returns ` Did you mean ...?` with the nearest known stubs of recipes or models; empty if none is near."""
    entries: tuple[ShippedRecipe | HubModel, ...] = SHIPPED if recipe else ON_HUB
    known = [parse_stub(entry.stub) for entry in entries]
    if any(stub.same_model_as(each) for each in known):
        return ""
    return nearest(PREFIX + stub.name, [PREFIX + (each.name if stub.is_long else each.short_name) for each in known], 3)
