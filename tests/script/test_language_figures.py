"""Loss and perplexity of masked language modelling, against plain transformers on rows that are packed here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from language_fixtures import STEPS, TinyTexts, blocks, loss_of, make_encoder, make_roberta, masked_batch, run, texts
from script_fixtures import flat, read_json, trace, weights
from transformers import AutoModelForMaskedLM, AutoTokenizer

from sparse_accel.data.batches import GlobalBatchSampler

pytest_plugins = ["language_fixtures"]

FIXED = {"learning_rate": 1e-12, "num_train_epochs": 2}


@pytest.fixture(scope="module")
def trained(language: TinyTexts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs that change nothing, so that all losses are of the start."""
    output = tmp_path_factory.mktemp("trained") / "out"
    done = run(**language.flags(**FIXED, output_dir=output))
    assert done.code == 0, done.all
    return output


def assert_figures(folder: Path, model: Path, lines: list[str]) -> None:
    """The evaluation in a folder is what transformers makes of a model."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = blocks(tokenizer, lines)
    batch = masked_batch(tokenizer, rows, range(len(rows)), epoch=0)
    plain = AutoModelForMaskedLM.from_pretrained(model)
    found, expected = read_json(folder / "eval_results.json"), loss_of(plain, batch)
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert found["eval_perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]), rel=1e-6)
    masked = batch["labels"] != -100
    with torch.no_grad():
        decided = plain(**batch).logits.argmax(-1)
    right = decided[masked] == batch["labels"][masked]
    assert found["eval_accuracy"] == pytest.approx(float(right.float().mean()))
    assert found.keys() == {"eval_loss", "eval_perplexity", "eval_accuracy"}


def test_the_figures_of_an_evaluation(trained: Path) -> None:
    assert_figures(trained, trained, texts(60, seed=2))


def test_the_losses_of_all_steps_of_two_epochs(language: TinyTexts, trained: Path) -> None:
    """Each epoch masks other tokens of the same rows."""
    tokenizer = AutoTokenizer.from_pretrained(language.model)
    rows, model = blocks(tokenizer, texts(203, seed=1)), AutoModelForMaskedLM.from_pretrained(language.model)
    sampler = GlobalBatchSampler([len(row) for row in rows], 32, 1, seed=42)
    found, first = trace(trained, "train/loss"), []
    assert sampler.steps == STEPS and len(found) == 2 * STEPS
    for epoch in (0, 1):
        sampler.epoch = epoch
        for step, batch in enumerate(sampler):
            numbers = [int(row) for row in batch if row >= 0]
            masked = masked_batch(tokenizer, rows, numbers, epoch)
            assert found[1 + epoch * STEPS + step] == pytest.approx(loss_of(model, masked), rel=1e-5)
        first.append(masked_batch(tokenizer, rows, range(len(rows)), epoch)["labels"] != -100)
    assert not torch.equal(*first) and torch.equal(*(each.sum(1) for each in first))


# --- heads ------------------------------------------------------------------------------------------------------------


def test_an_encoder_gets_a_head_that_is_tied_to_its_embeddings(language: TinyTexts, tmp_path: Path) -> None:
    model = make_encoder(tmp_path / "encoder")
    done = run(**language.flags(model_name_or_path=model, output_dir=tmp_path / "out"))
    assert done.code == 0 and "newly initialized" in flat(done.out), done.all
    plain: Any = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert plain.cls.predictions.decoder.weight is plain.bert.embeddings.word_embeddings.weight
    stored = weights(tmp_path / "out")
    # Trained, and stored once.
    assert not torch.equal(
        stored["bert.embeddings.word_embeddings.weight"], weights(model)["embeddings.word_embeddings.weight"]
    )
    assert "cls.predictions.decoder.weight" not in stored
    assert_figures(tmp_path / "out", tmp_path / "out", texts(60, seed=2))
    again = run(
        model_name_or_path=tmp_path / "out",
        validation_file=language.validation,
        do_eval=True,
        max_seq_length=24,
        output_dir=tmp_path / "again",
    )
    assert again.code == 0, again.all
    figures = [read_json(tmp_path / name / "eval_results.json") for name in ("out", "again")]
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)


def test_a_head_of_random_outputs_is_not_measured(language: TinyTexts, tmp_path: Path) -> None:
    model = make_encoder(tmp_path / "encoder")
    done = run(model_name_or_path=model, validation_file=language.validation, do_eval=True, output_dir=tmp_path / "out")
    assert done.code == 2 and "cls.predictions.bias" in done.err and "Train the model first" in done.err, done.all


def test_roberta(language: TinyTexts, tmp_path: Path) -> None:
    """Two separators around a pair, positions from 2, a tokenizer of bytes; lm_head is tied."""
    model = make_roberta(tmp_path / "model")
    done = run(**language.flags(model_name_or_path=model, output_dir=tmp_path / "out"))
    assert done.code == 0 and "the model's own" in flat(done.out), done.all
    plain: Any = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert plain.lm_head.decoder.weight is plain.roberta.embeddings.word_embeddings.weight
    assert_figures(tmp_path / "out", tmp_path / "out", texts(60, seed=2))


# --- batches ----------------------------------------------------------------------------------------------------------


def test_micro_batches(language: TinyTexts, tmp_path: Path) -> None:
    """Of 8 rows: the last batch, of 11 rows, has whole ones of fillers. The loss is a mean over masked tokens."""
    flags = language.flags(line_by_line=True)
    for rows in (32, 8):
        settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 32 // rows}
        done = run(**{**flags, **settings}, output_dir=tmp_path / str(rows))
        assert done.code == 0 and f"32 rows: micro-batches of {rows}" in flat(done.out), done.all
    losses, others = (trace(tmp_path / str(rows), "train/loss") for rows in (32, 8))
    assert losses == pytest.approx(others, abs=1e-6) and len(losses) == 7
    one, other = (weights(tmp_path / str(rows)) for rows in (32, 8))
    gaps = {name: float((one[name] - other[name]).abs().max()) for name in one}
    # Attention does not depend on the bias of the keys: its gradient is rounding errors alone, which Adam enlarges.
    assert max(gap for name, gap in gaps.items() if not name.endswith("key.bias")) < 1e-4


def test_padding_does_not_count(language: TinyTexts, tmp_path: Path) -> None:
    for name, more in (("longest", {}), ("padded", {"pad_to_max_length": True, "max_seq_length": 40})):
        flags = language.flags(line_by_line=True, per_device_eval_batch_size=7, output_dir=tmp_path / name)
        done = run(**{**flags, **more})
        assert done.code == 0, done.all
    figures = [read_json(tmp_path / name / "eval_results.json") for name in ("longest", "padded")]
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
    losses = [trace(tmp_path / name, "train/loss") for name in ("longest", "padded")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
