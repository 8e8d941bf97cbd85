"""From texts to a sparse start, to a classifier, to a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import script_fixtures
import torch
from language_fixtures import RECIPES, TinyTexts, run, write_texts
from places import ROOT
from script_fixtures import (
    RECIPE,
    SHORT,
    flat,
    make_model,
    read_json,
    run_program,
    sentences,
    weights,
    words,
    write_csv,
)
from script_fixtures import WORDS as VOCABULARY
from token_fixtures import NO_DROPOUT

pytest_plugins = ["language_fixtures"]
pytestmark = pytest.mark.slow

EXPORT = ROOT / "scripts" / "export_onnx.py"


@pytest.fixture(scope="module")
def start(language: TinyTexts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was pruned on texts of a domain."""
    folder = tmp_path_factory.mktemp("start")
    corpus = write_texts(folder / "corpus.txt", [row["text"] for row in sentences(203, seed=1)])
    model = make_model(folder / "dense", sparse=False, vocabulary=VOCABULARY, **NO_DROPOUT)
    flags = language.flags(model_name_or_path=model, train_file=corpus, validation_file=corpus)
    recipe = {"recipe": RECIPES / "magnitude_pruned90.yaml", "recipe_args": {"init_lr": 5e-3}}
    plain = {"num_train_epochs": None, "learning_rate": None}
    done = run(**{**flags, **recipe, **plain}, output_dir=folder / "out")
    assert done.code == 0, done.all
    return folder / "out"


def test_from_texts_to_a_deployment(start: Path, tmp_path: Path) -> None:
    """The zeros of the start are those of the classifier, whose export is proven."""
    done = script_fixtures.run(
        model_name_or_path=start,
        recipe=RECIPE,
        recipe_args=SHORT,
        distill_teacher="disable",
        train_file=write_csv(tmp_path / "train.csv", sentences(203, seed=1)),
        validation_file=write_csv(tmp_path / "validation.csv", sentences(60, seed=2)),
        per_device_train_batch_size=32,
        do_train=True,
        do_eval=True,
        output_dir=tmp_path / "out",
    )
    assert done.code == 0 and "newly initialized" in flat(done.out), done.all
    before, after = weights(start), weights(tmp_path / "out")
    names = [name for name in before if ".encoder." in name and before[name].ndim == 2]
    assert len(names) == 12
    for name in names:
        assert not after[name][before[name] == 0].any(), name
    results = read_json(tmp_path / "out" / "all_results.json")
    assert results["encoder_sparsity"] == pytest.approx(0.9, abs=2e-3) and results["quantized_linears"] == 14
    exported = run_program(EXPORT, words(model_path=tmp_path / "out", data=tmp_path / "validation.csv"))
    assert exported.code == 0, exported.all
    assert (tmp_path / "deployment" / "model.onnx").is_file()


def test_an_encoder_for_other_tasks(start: Path) -> None:
    """transformers reads it for any head, without the one for masked tokens."""
    from transformers import AutoModel, AutoModelForTokenClassification

    own = weights(start)
    for kind in (AutoModel, AutoModelForTokenClassification):
        model: Any = kind.from_pretrained(start)
        found = {name.removeprefix("bert."): value for name, value in model.state_dict().items()}
        for name in (name.removeprefix("bert.") for name in own if name.startswith("bert.encoder")):
            assert torch.equal(found[name], own[f"bert.{name}"]), name


def test_a_language_model_is_exported_without_a_task(start: Path, tmp_path: Path) -> None:
    """config.json says that its head is for masked tokens; with another task it is refused."""
    refused = run_program(EXPORT, words(model_path=start, task="text_classification", output_dir=tmp_path / "no"))
    assert refused.code == 2 and "BertForMaskedLM, which does not classify texts" in refused.err, refused.all
    assert len(refused.err.strip().splitlines()) == 1
    exported = run_program(EXPORT, words(model_path=start, output_dir=tmp_path / "out"))
    assert exported.code == 0, exported.all
    report = read_json(tmp_path / "out" / "export_report.json")
    own = read_json(start / "eval_results.json")
    assert report["fidelity"]["pytorch"]["perplexity"] == pytest.approx(own["eval_perplexity"], rel=1e-5)
