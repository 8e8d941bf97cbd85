"""`num_calibration_steps` in scripts: sentence embeddings, streams of masked texts, and --one_shot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import embedding_fixtures
import language_fixtures
import pytest
import torch
from calibration_watch import range_of, stored_range, watched_calibrations
from embedding_fixtures import TinyEmbeddings
from language_fixtures import TinyTexts, texts, write_texts
from script_fixtures import Tiny, flat, run
from stream_watch import Row, watched
from transformers import AutoTokenizer

from sparse_accel.training import loop

pytest_plugins = ["embedding_fixtures", "language_fixtures", "script_fixtures"]


def write_recipe(folder: Path, count: int, epochs: int = 1, start: int = 0) -> Path:
    """Quantization whose ranges are those of the calibration: they freeze where they start."""
    keys = f"start_epoch: {start}, disable_quantization_observer_epoch: {start}, num_calibration_steps: {count}"
    path = folder / "recipe.yaml"
    path.write_text(
        f"modifiers:\n  - !EpochRangeModifier {{end_epoch: {epochs}}}\n  - !QuantizationModifier {{{keys}}}\n"
    )
    return path


@pytest.mark.parametrize("texts_of_a_row", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_embeddings_of_pairs_and_triples(embeddings: TinyEmbeddings, tmp_path: Path, texts_of_a_row: int) -> None:
    """All texts of a row are shown, and the loss of the batch is not computed."""
    train = {2: embeddings.pairs, 3: embeddings.triples}[texts_of_a_row]
    few = {"max_train_samples": 40, "do_eval": None, "num_train_epochs": None}
    flags = embeddings.short(recipe=write_recipe(tmp_path, 3), train_file=train, **few)
    with watched_calibrations() as found:
        done = embedding_fixtures.run(**flags, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    [batches] = found
    assert [len(batch.texts()) for batch in batches] == [each * texts_of_a_row for each in (32, 8, 32)]
    assert all(batch.training == {False} for batch in batches)
    # Each pass over the rows shows each text once.
    shown = [text for batch in batches[:2] for text in batch.texts()]
    tokenizer = AutoTokenizer.from_pretrained(embeddings.model)
    lines = [line.split(",") for line in train.read_text().splitlines()[1:]]
    known = {tuple(tokenizer(text)["input_ids"]) for line in lines for text in line}
    assert len(shown) == 40 * texts_of_a_row and {*shown} <= known
    assert stored_range(tmp_path / "out") == pytest.approx(range_of(batches), rel=1e-5)


@pytest.mark.slow
def test_a_stream_shows_the_rows_that_training_reads_next(language: TinyTexts, tmp_path: Path) -> None:
    """Masked as training masks them, and the stream does not move."""
    flags = language.flags(
        train_file=write_texts(tmp_path / "train.txt", texts(90, seed=1)),
        **{"streaming": True, "stream_shards": 4, "shuffle_window": 8, "steps_per_epoch": 3},
        **{"per_device_train_batch_size": 8, "do_eval": None, "validation_file": None},
    )

    def trained(output: Path, **others: Any) -> dict[int, list[Row]]:
        steps: dict[int, list[Row]] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                loop, "train_step", watched(loop.train_step, lambda step, rows: steps.update({step: sorted(rows)}))
            )
            done = language_fixtures.run(**{**flags, **others}, output_dir=output)
        assert done.code == 0, done.all
        return steps

    plain = trained(tmp_path / "plain", num_train_epochs=2)
    with watched_calibrations() as found:
        recipe = write_recipe(tmp_path, 2, epochs=2, start=1)
        quantized = trained(tmp_path / "out", recipe=recipe, num_train_epochs=None)
    assert quantized == plain and len(plain) == 6
    [batches] = found
    assert len(batches) == 2 and all(batch.training == {False} for batch in batches)
    for batch, step in zip(batches, (5, 6), strict=True):  # those of step 4 are read already
        assert sorted(batch.texts()) == sorted(ids for _, _, ids, _ in plain[step])
    assert stored_range(tmp_path / "out") == pytest.approx(range_of(batches), rel=1e-5)


@pytest.mark.parametrize("count", [2, pytest.param(35, id="more than without the key", marks=pytest.mark.slow)])
def test_at_once(tiny: Tiny, tmp_path: Path, count: int) -> None:
    """Rows without labels."""
    unlabelled = tmp_path / "train.csv"
    unlabelled.write_text("text\n" + "\n".join(line.rpartition(",")[0] for line in _lines(tiny.train)[:20]) + "\n")
    flags: dict[str, Any] = {"train_file": unlabelled, "per_device_train_batch_size": 8, "max_seq_length": 16}
    with watched_calibrations() as found:
        done = run(
            one_shot=True,
            recipe=write_recipe(tmp_path, count),
            model_name_or_path=tiny.model,
            output_dir=tmp_path / "out",
            **flags,
        )
    assert done.code == 0, done.all
    assert f"from {count} batches of the training rows" in flat(done.out)
    [batches] = found
    sizes = [len(batch.texts()) for batch in batches]
    assert sizes == ([8, 8, 4] * count)[:count] and all(batch.training == {False} for batch in batches)
    assert stored_range(tmp_path / "out") == pytest.approx(range_of(batches), rel=1e-5)


@pytest.mark.slow
def test_at_once_for_a_language_model(language: TinyTexts, tmp_path: Path) -> None:
    flags = language.flags(recipe=write_recipe(tmp_path, 2), num_train_epochs=None, learning_rate=None, do_train=None)
    with watched_calibrations() as found:
        done = language_fixtures.run(**{**flags, "do_eval": None}, one_shot=True, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    [batches] = found
    ids = torch.cat([part.flatten() for batch in batches for part in batch.ids])
    assert len(batches) == 2 and bool((ids == AutoTokenizer.from_pretrained(language.model).mask_token_id).any())
    assert stored_range(tmp_path / "out") == pytest.approx(range_of(batches), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("paired", [False, True])
def test_at_once_for_embeddings(embeddings: TinyEmbeddings, tmp_path: Path, paired: bool) -> None:
    with watched_calibrations() as found:
        done = embedding_fixtures.run(
            one_shot=True,
            recipe=write_recipe(tmp_path, 2),
            model_name_or_path=embeddings.model,
            train_file=embeddings.pairs if paired else embeddings.train,
            per_device_train_batch_size=32,
            max_seq_length=16,
            output_dir=tmp_path / "out",
        )
    assert done.code == 0, done.all
    [batches] = found
    assert [len(batch.texts()) for batch in batches] == [32 * (1 + paired)] * 2
    assert stored_range(tmp_path / "out") == pytest.approx(range_of(batches), rel=1e-5)


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()[1:]
