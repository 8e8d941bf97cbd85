"""Recipes in masked language modelling: gradients of masked rows, a live teacher, and the decoder that is tied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from language_fixtures import RECIPES, STEPS, TinyTexts, blocks, masked_batch, run, texts
from layouts import masks_of
from script_fixtures import Outcome, flat, make_model, read_json, trace, weights
from token_fixtures import NO_DROPOUT, VOCABULARY
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

import sparse_accel
from sparse_accel.nn.layers import quantizers
from sparse_accel.nn.losses import IGNORED
from sparse_accel.tasks import MaskedLanguageModeling

pytest_plugins = ["language_fixtures"]

TIED = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def teacher(language: TinyTexts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model that was trained on the same texts; also the start of what is pruned."""
    output = tmp_path_factory.mktemp("teachers") / "teacher"
    done = run(**language.flags(num_train_epochs=10, learning_rate=1e-2, output_dir=output))
    assert done.code == 0, done.all
    return output


def train(language: TinyTexts, output: Path, recipe: Path, **others: Any) -> Outcome:
    """Runs a recipe; the length of the training is the recipe's."""
    plain: dict[str, Any] = {"num_train_epochs": None, "learning_rate": None, "save_strategy": "epoch"}
    done = run(**language.flags(**{**plain, "recipe": recipe, "output_dir": output, **others}))
    assert done.code == 0, done.all
    return done


def write_recipe(folder: Path, *modifiers: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text("\n".join(["modifiers:", *(f"  - !{line}" for line in modifiers)]))
    return path


def zeros_in_the_encoder(folder: Path) -> float:
    found = [weight for name, weight in weights(folder).items() if ".layer." in name and weight.ndim == 2]
    assert len(found) == 12
    return sum(int((weight == 0).sum()) for weight in found) / sum(weight.numel() for weight in found)


@pytest.fixture
def seen() -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Ids and labels of every batch that a loss is computed of."""
    found, loss = [], MaskedLanguageModeling.loss

    def recorded(self: Any, outputs: Any, batch: dict[str, Any], label_smoothing: float = 0.0) -> torch.Tensor:
        found.append((batch["input_ids"].clone(), batch["labels"].clone()))
        return loss(self, outputs, batch, label_smoothing)

    with mock.patch.object(MaskedLanguageModeling, "loss", recorded):
        yield found


@pytest.fixture
def read() -> Iterator[list[torch.Tensor]]:
    """Ids of every batch that a model of this class reads."""
    found, forward = [], BertForMaskedLM.forward

    def recorded(self: Any, *arguments: Any, **inputs: Any) -> Any:
        found.append(inputs["input_ids"].clone())
        return forward(self, *arguments, **inputs)

    with mock.patch.object(BertForMaskedLM, "forward", recorded):
        yield found


# --- pruning ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradual_magnitude_pruning(language: TinyTexts, teacher: Path, tmp_path: Path) -> None:
    train(language, tmp_path / "out", RECIPES / "magnitude_pruned90.yaml", model_name_or_path=teacher)
    assert zeros_in_the_encoder(tmp_path / "out") == pytest.approx(0.9, abs=2e-3)
    assert not (weights(tmp_path / "out")[TIED] == 0).any()
    results = read_json(tmp_path / "out" / "all_results.json")
    assert results["encoder_sparsity"] == pytest.approx(0.9, abs=2e-3) and results["quantized_linears"] == 0


@pytest.mark.slow
def test_movement_pruning(language: TinyTexts, teacher: Path, tmp_path: Path) -> None:
    flags = {"model_name_or_path": teacher, "distill_teacher": teacher}
    train(language, tmp_path / "out", RECIPES / "movement_pruned90.yaml", **flags)
    assert zeros_in_the_encoder(tmp_path / "out") == pytest.approx(0.9, abs=2e-3)


def test_second_order_pruning_with_a_live_teacher(
    language: TinyTexts, teacher: Path, tmp_path: Path, seen: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """Its gradient samples are of masked rows, 16 of them each, masked as their epoch masks them."""
    flags = {"model_name_or_path": teacher, "distill_teacher": teacher, "do_eval": None}
    settings = {"num_grads": 8, "num_epochs": 2, "pruning_end_epoch": 1.0}
    done = train(language, tmp_path / "out", RECIPES / "obert_pruned90.yaml", recipe_args=settings, **flags)
    assert "it runs in each step, for its hidden_states, logits" in flat(done.out)
    assert zeros_in_the_encoder(tmp_path / "out") == pytest.approx(0.9, abs=2e-3)
    assert len(seen) == 3 * 8 + 2 * STEPS and sum(len(ids) == 16 for ids, _ in seen) > 2 * 8
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    rows = blocks(tokenizer, texts(203, seed=1))
    known: dict[tuple[int, ...], dict[int, tuple[list[int], list[int]]]] = {}
    for epoch in (0, 1):
        whole = masked_batch(tokenizer, rows, range(len(rows)), epoch)
        for row, ids, labels in zip(rows, whole["input_ids"].tolist(), whole["labels"].tolist(), strict=True):
            known.setdefault(tuple(row), {})[epoch] = (ids[: len(row)], labels[: len(row)])
    epochs = set()
    for ids, labels in seen:
        for row, answer in zip(ids, labels, strict=True):
            original = torch.where(answer == IGNORED, row, answer)
            length = int((original != tokenizer.pad_token_id).sum())
            found = (row[:length].tolist(), answer[:length].tolist())
            epochs |= {epoch for epoch, each in known[tuple(original[:length].tolist())].items() if each == found}
            assert found in known[tuple(original[:length].tolist())].values()
    assert epochs == {0, 1}


def test_the_teacher_is_compared_at_masked_tokens(language: TinyTexts, teacher: Path, tmp_path: Path) -> None:
    """The distillation loss of the first step, computed by hand."""
    recipe = write_recipe(
        tmp_path, "EpochRangeModifier {end_epoch: 1}", "DistillationModifier {hardness: 0.3, temperature: 2.0}"
    )
    flags = {"distill_teacher": teacher, "do_eval": True, "per_device_train_batch_size": 128, "learning_rate": 1e-3}
    train(language, tmp_path / "out", recipe, **flags)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    rows = blocks(tokenizer, texts(203, seed=1))
    batch = masked_batch(tokenizer, rows, range(len(rows)), 0)
    masked = batch.pop("labels") != IGNORED
    models = [AutoModelForMaskedLM.from_pretrained(folder).eval() for folder in (language.model, teacher)]
    with torch.no_grad():
        student, wanted = ((model(**batch).logits[masked] / 2).log_softmax(-1) for model in models)
    expected = 4 * torch.nn.functional.kl_div(student, wanted, reduction="batchmean", log_target=True)
    found = {name: trace(tmp_path / "out", f"train/{name}")[1] for name in ("loss", "task_loss", "distillation_loss")}
    assert found["distillation_loss"] == pytest.approx(float(expected), rel=1e-4)
    assert found["loss"] == pytest.approx(0.7 * found["task_loss"] + 0.3 * found["distillation_loss"], rel=1e-5)
    agreed = float((student.argmax(-1) == wanted.argmax(-1)).float().mean())
    assert trace(tmp_path / "out", "train/teacher_agreement")[1] == pytest.approx(agreed, rel=1e-5)
    figures = read_json(tmp_path / "out" / "teacher_results.json")["splits"]["validation"]["figures"]
    own = read_json(teacher / "eval_results.json")
    assert figures == pytest.approx({name: own[f"eval_{name}"] for name in figures}, rel=1e-5) and len(figures) == 3


# --- the tied decoder -------------------------------------------------------------------------------------------------


def assert_file_is_the_forward(folder: Path) -> None:
    """The figures of a run are those of its files, and embeddings and decoder are one weight there."""
    model: Any = sparse_accel.load(folder)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = blocks(tokenizer, texts(60, seed=2))
    with torch.no_grad():
        loss = float(model.eval()(**masked_batch(tokenizer, rows, range(len(rows)), 0)).loss)
    figures = read_json(folder / "eval_results.json")
    assert figures["eval_loss"] == pytest.approx(loss, rel=1e-5)
    # The evaluation of the model in training, at its last step, is the same.
    last = trace(folder, "eval_loss")
    assert last[max(last)] == pytest.approx(loss, rel=1e-5)


QUANTIZED = "QuantizationModifier {start_epoch: 1, disable_quantization_observer_epoch: 1.5%s}"


def test_embeddings_and_decoder_are_quantized_alike(language: TinyTexts, teacher: Path, tmp_path: Path) -> None:
    """Each has a quantizer of the one weight, with the same range."""
    recipe = write_recipe(tmp_path, "EpochRangeModifier {end_epoch: 2}", QUANTIZED % "")
    flags = {"model_name_or_path": teacher, "eval_strategy": "epoch", "learning_rate": 1e-3}
    done = train(language, tmp_path / "out", recipe, **flags)
    assert read_json(tmp_path / "out" / "all_results.json")["quantized_linears"] == 14, done.all
    stored = read_json(tmp_path / "out" / "quantization.json")["quantizers"]
    one, other = (
        stored[f"{name}.weight_quantizer"] for name in ("bert.embeddings.word_embeddings", "cls.predictions.decoder")
    )
    assert one == other
    largest = float(weights(tmp_path / "out")[TIED].abs().max())
    assert one["scale"][0] == pytest.approx(largest / 127.5, rel=0.02)
    assert_file_is_the_forward(tmp_path / "out")
    before, after = (read_json(folder / "eval_results.json") for folder in (teacher, tmp_path / "out"))
    assert after["eval_perplexity"] < 1.2 * before["eval_perplexity"]


@pytest.mark.slow
def test_quantization_of_the_encoder_alone(language: TinyTexts, teacher: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "EpochRangeModifier {end_epoch: 2}", QUANTIZED % ", submodules: [bert.encoder]")
    flags = {"model_name_or_path": teacher, "eval_strategy": "epoch", "learning_rate": 1e-3}
    train(language, tmp_path / "out", recipe, **flags)
    found = quantizers(sparse_accel.load(tmp_path / "out"))
    assert found and all(name.startswith("bert.encoder.") for name in found)
    assert read_json(tmp_path / "out" / "all_results.json")["quantized_linears"] == 12
    assert_file_is_the_forward(tmp_path / "out")


@pytest.mark.slow
def test_the_recipe_of_a_classifier(language: TinyTexts, teacher: Path, tmp_path: Path) -> None:
    """Submodules that name a classifier are refused. One without them quantizes all, with a live teacher."""
    known = RECIPES / "sst2_pruned90_quant.yaml"
    refused = run(
        **language.flags(recipe=known, distill_teacher=teacher, num_train_epochs=None, output_dir=tmp_path / "no")
    )
    assert refused.code == 2 and "no module 'classifier'" in refused.err and "cls" in refused.err, refused.all
    recipe = RECIPES / "sparse_quant_distilled.yaml"
    short = {"num_epochs": 3, "qat_start_epoch": 1.0, "observer_epoch": 2.0, "init_lr": 1e-3}
    flags = {"model_name_or_path": teacher, "distill_teacher": teacher, "recipe_args": short, "eval_strategy": "epoch"}
    train(language, tmp_path / "out", recipe, **flags)
    assert read_json(tmp_path / "out" / "all_results.json")["quantized_linears"] == 14
    assert_file_is_the_forward(tmp_path / "out")


def test_zeros_are_kept_and_the_tied_weight_has_no_mask(language: TinyTexts, tmp_path: Path) -> None:
    start = make_model(tmp_path / "pruned", sparse=True, vocabulary=VOCABULARY, **NO_DROPOUT)
    recipe = write_recipe(
        tmp_path, "EpochRangeModifier {end_epoch: 2}", "ConstantPruningModifier {params: __ALL_PRUNABLE__}"
    )
    done = train(language, tmp_path / "out", recipe, model_name_or_path=start, learning_rate=5e-3)
    assert "on 13 of 13 prunable weights" in flat(done.out), done.all
    masks, before, after = masks_of(tmp_path / "out"), weights(start), weights(tmp_path / "out")
    assert len(masks) == 13 and TIED not in masks and "cls.predictions.decoder.weight" not in masks
    for name, mask in masks.items():
        assert torch.equal(mask, before[name] != 0) and not after[name][~mask].any(), name
    assert not torch.equal(before[TIED], after[TIED])


def test_a_mask_on_the_tied_weight_is_one_mask(language: TinyTexts, teacher: Path, tmp_path: Path) -> None:
    """By the name of the embeddings: decoder and embeddings then leave out the same weights."""
    pruning = "init_sparsity: 0.3, final_sparsity: 0.5, start_epoch: 0, end_epoch: 1, update_frequency: 0.5"
    recipe = write_recipe(
        tmp_path,
        "EpochRangeModifier {end_epoch: 2}",
        f"MagnitudePruningModifier {{params: [{TIED}], {pruning}}}",
    )
    flags = {"model_name_or_path": teacher, "eval_strategy": "epoch", "learning_rate": 1e-3}
    train(language, tmp_path / "out", recipe, **flags)
    stored = weights(tmp_path / "out")[TIED]
    assert float((stored == 0).float().mean()) == pytest.approx(0.5, abs=1e-3)
    assert_file_is_the_forward(tmp_path / "out")
    named = write_recipe(tmp_path, f"MagnitudePruningModifier {{params: [cls.predictions.decoder.weight], {pruning}}}")
    refused = run(**language.flags(recipe=named, num_train_epochs=None, output_dir=tmp_path / "no"))
    assert refused.code == 2 and "cls.predictions.decoder.weight" in refused.err, refused.all


# --- at once ----------------------------------------------------------------------------------------------------------


def at_once(language: TinyTexts, model: Path, output: Path, recipe: Path, **others: Any) -> Outcome:
    flags = language.flags(model_name_or_path=model, recipe=recipe, num_train_epochs=None, learning_rate=None)
    return run(**{**flags, "do_train": None, "one_shot": True, "output_dir": output, **others})


def test_one_shot_reads_masked_rows(
    language: TinyTexts, teacher: Path, tmp_path: Path, read: list[torch.Tensor]
) -> None:
    """Ranges are those of rows as an evaluation reads them: masked with the mask token."""
    done = at_once(language, teacher, tmp_path / "out", RECIPES / "one_shot_int8.yaml")
    assert done.code == 0, done.all
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    rows = blocks(tokenizer, texts(203, seed=1))
    batch = masked_batch(tokenizer, rows, range(len(rows)), 0)
    known = {tuple(row) for row in batch["input_ids"].tolist()}
    calibration = [ids for ids in read if len(ids) == 32][:3]
    assert all(tuple(row) in known for ids in calibration for row in ids.tolist())
    before, after = (read_json(folder / "eval_results.json") for folder in (teacher, tmp_path / "out"))
    assert after["eval_perplexity"] == pytest.approx(before["eval_perplexity"], rel=0.1)
    assert read_json(tmp_path / "out" / "all_results.json")["quantized_linears"] == 14


def test_one_shot_with_another_fraction_is_another_result(language: TinyTexts, teacher: Path, tmp_path: Path) -> None:
    recipe, output = RECIPES / "one_shot_int8.yaml", tmp_path / "out"
    done = at_once(language, teacher, output, recipe, mlm_probability=0.5)
    assert done.code == 0, done.all
    again = at_once(language, teacher, output, recipe, mlm_probability=0.5)
    assert again.code == 0 and "finished" in flat(again.out), again.all
    other = at_once(language, teacher, output, recipe)
    assert other.code == 0 and "differs in mlm_probability (0.5 there, 0.15 here)" in flat(other.out), other.all


def test_one_shot_second_order_pruning(
    language: TinyTexts, teacher: Path, tmp_path: Path, seen: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    keys = (
        "params: ['re:.*encoder.*dense.weight'], final_sparsity: 0.5, end_epoch: 1, num_grads: 8, update_frequency: 1"
    )
    recipe = write_recipe(tmp_path, f"OBSPruningModifier {{{keys}}}")
    done = at_once(language, teacher, tmp_path / "out", recipe, do_eval=None)
    assert done.code == 0, done.all
    mask = AutoTokenizer.from_pretrained(teacher).mask_token_id
    hidden = torch.cat([ids[labels != IGNORED] for ids, labels in seen])
    assert 0.75 < float((hidden == mask).float().mean()) < 0.85 and not (hidden == 0).any()
